"""The disk, kernel and initrd of the nested host ("L1"), made once from Debian packages and kept by what goes into them."""

import hashlib
import lzma
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

SUITE = "bookworm"
KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
PACKAGES = [
    "python3", "iproute2", "nftables", "e2fsprogs", "xfsprogs", "dmsetup", "kmod", "procps", "curl", "jq",
    "util-linux", "ca-certificates",
]
# What L1 needs to reach its root, in load order.
INITRD_MODULES = [
    "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk",
]

INITRD_INIT = r"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for m in $(/bin/busybox cat /mods/order); do /bin/busybox insmod /mods/$m || echo "initrd: insmod $m failed"; done
n=0; while [ ! -b /dev/vda ] && [ $n -lt 100 ]; do /bin/busybox sleep 0.1; n=$((n+1)); done
/bin/busybox mount -t ext4 -o rw,noatime /dev/vda /root || { echo "initrd: no root"; /bin/busybox poweroff -f; }
/bin/busybox mount --move /dev /root/dev
/bin/busybox mount --move /proc /root/proc
/bin/busybox mount --move /sys /root/sys
exec /bin/busybox switch_root /root /sbin/l1init
"""

# All that the image itself knows: what is done in L1 comes with each run, on the second disk (`machine.L1_INIT`).
L1_BOOT = r"""#!/bin/sh
export PATH=/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
mkdir -p /dev/pts /dev/shm /run /tmp /job /out /in /opt/bin
mount -t devpts devpts /dev/pts; mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777,size=80% tmp /tmp
mount -t cgroup2 cg /sys/fs/cgroup 2>/dev/null
tar -x -P -f /dev/vdb --warning=no-unknown-keyword
exec /bin/sh /in/.init
"""


def log(*words):
    print("nested_host:", *words, file=sys.stderr, flush=True)


def need(program):
    """The path of a program that must be installed."""
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not path:
        sys.exit(f"nested_host: {program} is not installed")
    return path


def run(*command, timeout=600, **options):
    """Runs a command that must succeed, in seconds."""
    return subprocess.run([str(word) for word in command], check=True, timeout=timeout, stdin=subprocess.DEVNULL,
                          **options)


def kernel_package():
    """Name and version of the kernel package that apt would install."""
    text = run("apt-cache", "depends", "--no-recommends", "--no-suggests", KERNEL_META_PACKAGE,
               stdout=subprocess.PIPE, text=True).stdout
    found = re.search(r"Depends: (linux-image-\d\S+)", text)
    if not found:
        sys.exit(f"nested_host: apt knows no {KERNEL_META_PACKAGE}; run apt-get update")
    show = run("apt-cache", "show", "--no-all-versions", found[1], stdout=subprocess.PIPE, text=True).stdout
    version = re.search(r"^Version: (\S+)", show, re.M)[1]
    return found[1], version


def kernel_tree(cache, package, version):
    """The kernel package, unpacked, not installed."""
    tree = cache / f"kernel-{package}-{version.replace(':', '_')}"
    if not tree.is_dir():
        with tempfile.TemporaryDirectory(prefix=".kernel-", dir=cache) as part:
            # apt's sandbox user must be able to write there.
            os.chmod(part, 0o777)
            run("apt-get", "-q", "download", f"{package}={version}", cwd=part, stdout=subprocess.DEVNULL)
            deb = next(pathlib.Path(part).glob("*.deb"))
            run("dpkg-deb", "-x", deb, f"{part}/tree")
            os.rename(f"{part}/tree", tree)
    return tree


def module_paths(tree):
    """Module name (with _) -> file."""
    return {path.name.split(".ko")[0].replace("-", "_"): path for path in tree.glob("lib/modules/*/kernel/**/*.ko*")}


def make_initrd(target, tree):
    modules = module_paths(tree)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        top = pathlib.Path(name)
        for folder in ("bin", "mods", "dev", "proc", "sys", "root"):
            (top / folder).mkdir()
        shutil.copy(need("busybox"), top / "bin/busybox")
        order = []
        for module in INITRD_MODULES:
            path = modules.get(module)
            if path is None:
                log(f"module {module} is not in this kernel; left out")
                continue
            data = path.read_bytes()
            if path.suffix == ".xz":
                data = lzma.decompress(data)
            (top / "mods" / f"{module}.ko").write_bytes(data)
            order.append(f"{module}.ko\n")
        (top / "mods/order").write_text("".join(order))
        write(top / "init", INITRD_INIT, 0o755)
        (top / "bin/sh").symlink_to("/bin/busybox")
        names = run("find", ".", "-print0", cwd=top, stdout=subprocess.PIPE).stdout
        part = target.with_suffix(".part")
        with part.open("wb") as out:  # not compressed: inflating is slow under emulation
            subprocess.run(["cpio", "-0", "-o", "-H", "newc", "--quiet"], cwd=top, input=names, stdout=out, check=True,
                           timeout=60)
        part.rename(target)


def base_tree(cache):
    """Debian with our packages, cached by their list."""
    tree = cache / ("debian-" + hashlib.sha256("\0".join([SUITE, *PACKAGES]).encode()).hexdigest()[:12])
    if not tree.is_dir():
        started = time.monotonic()
        part = pathlib.Path(tempfile.mkdtemp(prefix=".debian-", dir=cache))
        try:
            run(need("mmdebstrap"), "--quiet", "--variant=minbase", "--include=" + ",".join(PACKAGES),
                "--aptopt=APT::Install-Recommends false", "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
                SUITE, part, timeout=900)
            shutil.rmtree(part / "var/cache/apt", ignore_errors=True)
            shutil.rmtree(part / "var/lib/apt/lists", ignore_errors=True)
            part.chmod(0o755)
            part.rename(tree)
        finally:
            if part.exists():
                shutil.rmtree(part, ignore_errors=True)
        log(f"mmdebstrap: {time.monotonic() - started:.0f} s")
    return tree


def write(path, text, mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def build_image(cache):
    """The folder of the image; made when it is not there."""
    package, version = kernel_package()
    inputs = [package, version, SUITE, *PACKAGES, "|", *INITRD_MODULES, INITRD_INIT, L1_BOOT]
    image = cache / ("image-" + hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:16])
    if (image / "ok").exists():
        return image
    if os.geteuid() != 0:
        sys.exit("nested_host: making L1's image needs root")
    for program in ("mmdebstrap", "mke2fs", "cpio", "busybox", "depmod", "dpkg-deb"):
        need(program)
    started = time.monotonic()
    log(f"making L1's image in {image}")
    image.mkdir(exist_ok=True)
    kernel = kernel_tree(cache, package, version)
    release = next((kernel / "lib/modules").iterdir()).name
    shutil.copy(kernel / f"boot/vmlinuz-{release}", image / "vmlinuz")
    make_initrd(image / "initrd.img", kernel)
    debian = base_tree(cache)
    with tempfile.TemporaryDirectory(prefix=".tree-", dir=cache) as name:
        tree = pathlib.Path(name)
        run("cp", "-a", f"{debian}/.", tree)
        write(tree / "usr/sbin/l1init", L1_BOOT, 0o755)
        (tree / "usr/lib/modules").mkdir(exist_ok=True)
        run("cp", "-a", kernel / "lib/modules" / release, tree / "usr/lib/modules/")
        run(need("depmod"), "-b", tree / "usr", release)
        write(tree / "etc/resolv.conf", "")
        write(tree / "etc/hosts", "127.0.0.1 localhost l1\n")
        tree.chmod(0o755)
        part = image / "l1.ext4.part"
        part.unlink(missing_ok=True)
        run(need("mke2fs"), "-q", "-t", "ext4", "-F", "-O", "^metadata_csum,^64bit",
            "-E", "lazy_itable_init=0,lazy_journal_init=0", "-L", "l1root", "-d", tree, part, "12288M",
            stdout=subprocess.DEVNULL)
        part.rename(image / "l1.ext4")  # sparse
    (image / "ok").touch()
    log(f"L1's image made in {time.monotonic() - started:.0f} s")
    return image
