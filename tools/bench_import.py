#!/usr/bin/env python3
"""Measure what an import costs, against other tools and against the least that any tool could do.

    ours    blobs --decompress, hash, merge, write--> ext4 file                       examples/import_image.rs
    floor   blobs --decompress, hash-->               (nothing)                       the same program, two threads
    peers   blobs --skopeo copy--> layout --umoci unpack--> folders --mke2fs -d--> ext4 file

Two images of Debian packages, made once: about 200 MB in one layer, and about 1 GB in fourteen. All three start from the
same OCI image layout, whose files are in the page cache, and write to the same disk; nobody syncs inside the measured
time, and what the one before left dirty is written out before the next begins. They take turns, and ratios are medians
of the ratios of neighbours. Ours is also measured pulling from Debian's docker-registry on loopback, as the service does.
"""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import signal
import socket
import stat
import statistics
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
BENCH = REPOSITORY / "target" / "bench" / "import"
IMPORT_IMAGE = REPOSITORY / "target" / "release" / "examples" / "import_image"
SUITE = "bookworm"
# Bound of one step, seconds.
LIMIT = 240

# What a layer adds, one list each, the base first. `-path` removes.
IMAGES = {
    "200m": [["python3", "ca-certificates", "curl", "git", "procps"]],
    "1g": [
        [],
        ["ca-certificates", "curl", "git", "procps"],
        ["python3", "python3-pip", "python3-venv"],
        ["build-essential"],
        ["nodejs", "npm"],
        ["ruby"],
        ["php-cli"],
        ["postgresql-client", "sqlite3"],
        ["vim", "less"],
        ["cmake"],
        ["python3-numpy"],
        ["-usr/share/man", "-usr/share/info"],
        ["openssh-client", "rsync"],
        ["imagemagick"],
    ],
}
# Size of the filesystem, MiB: what the service chooses by itself.
DISK_MIB = {"200m": 4096, "1g": 4096}
ROUNDS = {"200m": 7, "1g": 5}
# The peers take so long that fewer turns have to do.
PEER_ROUNDS = {"200m": 3, "1g": 2}


def say(text):
    print(text, flush=True)


# ---- Images -----------------------------------------------------------------------------------------------------------


def ensure_image(name):
    """The image's layout, made when it is missing or its recipe has changed."""
    layout = BENCH / name
    recipe = json.dumps([SUITE, IMAGES[name], 2])
    stamp = layout / "recipe"
    if stamp.exists() and stamp.read_text() == recipe:
        return layout
    say(f"making the image {name} of Debian packages (once)")
    shutil.rmtree(layout, ignore_errors=True)
    part = BENCH / f"{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    (part / "blobs" / "sha256").mkdir(parents=True)
    hooks = []
    for index, change in enumerate(IMAGES[name]):
        install = [word for word in change if not word.startswith("-")]
        remove = [word[1:] for word in change if word.startswith("-")]
        if install and index > 0:
            # The root's own apt, inside it: the host's must never be asked to install anything.
            hooks.append(
                'env -u APT_CONFIG DEBIAN_FRONTEND=noninteractive chroot "$1" apt-get -qq -y'
                " --no-install-recommends install " + " ".join(install)
            )
        hooks += [f'rm -rf "${{1:?}}"/{path}/*' for path in remove]
        hooks.append(f'python3 "{__file__}" --layer "$1" "{part}"')
    include = [f"--include={','.join(IMAGES[name][0])}"] if IMAGES[name][0] else []
    command = ["mmdebstrap", "--quiet", "--mode=root", "--format=null", "--variant=minbase", *include]
    command += [f"--customize-hook={hook}" for hook in hooks]
    subprocess.run([*command, SUITE, "-"], check=True, stdout=subprocess.DEVNULL, timeout=1800)
    finish_layout(part)
    (part / "recipe").write_text(recipe)
    part.rename(layout)
    return layout


def listing(root):
    """Path -> what tells a change, for everything that an image may hold."""
    found = {}
    for folder, folders, files in os.walk(root):
        relative = os.path.relpath(folder, root)
        # What no image has: the kernel's trees, and apt's lists and archives.
        if relative in ("proc", "sys", "dev", "tmp", "var/lib/apt/lists", "var/cache/apt"):
            folders.clear()
            continue
        for name in folders + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode):
                key = os.path.normpath(os.path.join(relative, name))
                found[key] = [status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return found


def add_layer(root, out):
    """What has changed since the last layer, as a layer; what is gone as whiteouts."""
    state = out / "state.json"
    described = json.loads(state.read_text()) if state.exists() else {"before": {}, "layers": []}
    before, now = described["before"], listing(root)
    changed = sorted(path for path, what in now.items() if before.get(path) != what)
    gone = sorted(path for path in before if path not in now and os.path.dirname(path) in {"", *now})
    blob = Blob(out / "blobs" / "sha256")
    with tarfile.open(fileobj=blob, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as tar:
        for path in changed:
            full = os.path.join(root, path)
            info = tar.gettarinfo(full, arcname=path)
            info.uname = info.gname = ""
            nanoseconds = os.lstat(full).st_mtime_ns
            info.mtime = nanoseconds // 10**9
            if nanoseconds % 10**9:
                info.pax_headers["mtime"] = f"{info.mtime}.{nanoseconds % 10**9:09}"
            for name in os.listxattr(full, follow_symlinks=False):
                value = os.getxattr(full, name, follow_symlinks=False)
                info.pax_headers[f"SCHILY.xattr.{name}"] = value.decode("utf-8", "surrogateescape")
            if info.isreg():
                with open(full, "rb") as file:
                    tar.addfile(info, file)
            else:
                tar.addfile(info)
        for path in gone:
            folder, name = os.path.split(path)
            tar.addfile(tarfile.TarInfo(os.path.join(folder, ".wh." + name)))
    described["layers"].append(blob.finish(len(changed) + len(gone)))
    described["before"] = now
    state.write_text(json.dumps(described))


class Blob:
    """A gzip blob being written, hashed on both sides."""

    def __init__(self, folder):
        self.folder, self.path = folder, folder / "part"
        self.file = open(self.path, "wb")
        self.gzip = zlib.compressobj(6, zlib.DEFLATED, 31)
        self.digest, self.diff_id, self.size, self.unpacked = hashlib.sha256(), hashlib.sha256(), 0, 0

    def write(self, data):
        self.diff_id.update(data)
        self.unpacked += len(data)
        self.put(self.gzip.compress(data))
        return len(data)

    def put(self, data):
        self.digest.update(data)
        self.size += len(data)
        self.file.write(data)

    def finish(self, entries):
        self.put(self.gzip.flush())
        self.file.close()
        self.path.rename(self.folder / self.digest.hexdigest())
        return {
            "digest": "sha256:" + self.digest.hexdigest(),
            "diff_id": "sha256:" + self.diff_id.hexdigest(),
            "size": self.size,
            "unpacked": self.unpacked,
            "entries": entries,
        }


def finish_layout(out):
    layers = json.loads((out / "state.json").read_text())["layers"]
    (out / "state.json").unlink()

    def put(document):
        data = json.dumps(document).encode()
        digest = hashlib.sha256(data).hexdigest()
        (out / "blobs" / "sha256" / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    media = "application/vnd.oci.image."
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    rootfs = {"type": "layers", "diff_ids": [layer["diff_id"] for layer in layers]}
    config = put({"os": "linux", "architecture": architecture, "config": {"Cmd": ["/bin/sh"]}, "rootfs": rootfs})
    manifest = {
        "schemaVersion": 2,
        "mediaType": media + "manifest.v1+json",
        "config": {"mediaType": media + "config.v1+json", **config},
        "layers": [
            {"mediaType": media + "layer.v1.tar+gzip", "digest": layer["digest"], "size": layer["size"]}
            for layer in layers
        ],
    }
    entry = {"mediaType": media + "manifest.v1+json", **put(manifest)}
    entry["annotations"] = {"org.opencontainers.image.ref.name": "x"}
    (out / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (out / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (out / "layers.json").write_text(json.dumps(layers))


# ---- Measuring --------------------------------------------------------------------------------------------------------


def run(*command):
    """The command's output. Its end is waited for, whatever happens here."""
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        try:
            output, _ = child.communicate(timeout=LIMIT)
        except BaseException:
            child.kill()
            raise
    if child.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {child.returncode}:\n{output.decode()[-2000:]}")
    return output.decode()


class Contest:
    """One image and all who import it."""

    def __init__(self, name, layout, registry):
        self.name, self.layout, self.reference = name, layout, registry.push(name, layout)
        self.work = BENCH / "work"
        self.disk = DISK_MIB[name]
        self.peak_kib = 0

    def measure(self, contender):
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        os.sync()
        began = time.perf_counter()
        contender()
        taken = time.perf_counter() - began
        image = self.work / "image"
        if image.exists():
            # Once for each contender is enough to know that it made what it says.
            if contender.__name__ not in self.checked:
                run("/sbin/e2fsck", "-fn", image)
                self.checked.add(contender.__name__)
        shutil.rmtree(self.work)
        return taken

    checked = set()

    def floor(self):
        run(IMPORT_IMAGE, "floor", self.layout)

    def ours(self):
        self.note_peak(run(IMPORT_IMAGE, "layout", self.layout, self.work / "image", self.disk))

    def pulled(self):
        self.note_peak(run(IMPORT_IMAGE, "registry", self.reference, self.work / "image", self.disk))

    def note_peak(self, output):
        peak = next(line for line in output.splitlines() if line.startswith("peak "))
        self.peak_kib = max(self.peak_kib, int(peak.split()[1]))

    def peers(self):
        copy, bundle = self.work / "copy", self.work / "bundle"
        run("skopeo", "copy", "--quiet", "--insecure-policy", f"oci:{self.layout}:x", f"oci:{copy}:x")
        run("umoci", "unpack", "--image", f"{copy}:x", bundle)
        run("/sbin/mke2fs", "-q", "-t", "ext4", "-d", bundle / "rootfs", self.work / "image", f"{self.disk}M")

    def run(self):
        layers = json.loads((self.layout / "layers.json").read_text())
        total = lambda key: sum(layer[key] for layer in layers)
        say(
            f"{self.name}: {len(layers)} layers, {total('entries')} entries, {total('size') >> 20} MiB compressed,"
            f" {total('unpacked') >> 20} MiB unpacked"
        )
        # Everyone once, unmeasured: files come into the page cache, programs too.
        for contender in (self.floor, self.ours, self.pulled):
            self.measure(contender)
        times = {"floor": [], "ours": [], "pulled": [], "peers": []}
        for turn in range(ROUNDS[self.name]):
            order = [self.floor, self.ours, self.pulled]
            order = order[turn % 3 :] + order[: turn % 3]
            if turn < PEER_ROUNDS[self.name]:
                order.append(self.peers)
            for contender in order:
                times[contender.__name__].append(self.measure(contender))
        for who, taken in times.items():
            say(f"  {who:7} {statistics.median(taken):6.2f} s   ({' '.join(f'{one:.2f}' for one in taken)})")
        ratio = lambda above, below: statistics.median(a / b for a, b in zip(times[above], times[below]))
        return [
            (f"import_over_floor_{self.name}", f"{ratio('ours', 'floor'):.2f}", "x"),
            (f"import_registry_over_floor_{self.name}", f"{ratio('pulled', 'floor'):.2f}", "x"),
            (f"import_peers_over_ours_{self.name}", f"{ratio('peers', 'ours'):.1f}", "x"),
            (f"import_peak_mib_{self.name}", f"{self.peak_kib / 1024:.0f}", "MiB"),
        ]


class Registry:
    """Debian's docker-registry on a free port of loopback, with its blobs under the bench's folder."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.host = f"127.0.0.1:{free.getsockname()[1]}"
        config = BENCH / "registry.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {BENCH / 'registry'}}}}}\nhttp: {{addr: '{self.host}'}}\n"
        )
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.child = subprocess.Popen(["docker-registry", "serve", str(config)], **quiet)

    def __enter__(self):
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://{self.host}/v2/", timeout=5).close()
                return self
            except urllib.error.URLError:
                time.sleep(0.1)
        self.__exit__()
        raise RuntimeError("docker-registry does not answer")

    def __exit__(self, *_):
        self.child.terminate()
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()

    def push(self, name, layout):
        reference = f"{self.host}/bench/{name}:x"
        destination = ["--dest-tls-verify=false", f"docker://{reference}"]
        run("skopeo", "copy", "--quiet", "--insecure-policy", *destination[:1], f"oci:{layout}:x", destination[1])
        return reference


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layer", nargs=2, metavar=("ROOT", "OUT"), help="internal: add a layer to an image being made")
    parser.add_argument("--only", choices=IMAGES, help="measure one image")
    arguments = parser.parse_args()
    if arguments.layer:
        root, out = arguments.layer
        return add_layer(root, pathlib.Path(out))
    if os.getuid() != 0:
        sys.exit("bench-import needs root: umoci cannot give files to their owners without")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    BENCH.mkdir(parents=True, exist_ok=True)
    names = [arguments.only] if arguments.only else list(IMAGES)
    layouts = {name: ensure_image(name) for name in names}
    figures = []
    try:
        with Registry() as registry:
            for name, layout in layouts.items():
                figures += Contest(name, layout, registry).run()
    finally:
        shutil.rmtree(BENCH / "work", ignore_errors=True)
    for figure in figures:
        say("bench: " + " ".join(figure))


if __name__ == "__main__":
    main()
