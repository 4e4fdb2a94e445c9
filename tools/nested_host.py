#!/usr/bin/env python3
"""Run a script as root in a Linux machine that has a working /dev/kvm, on one that has none.

    this machine
      QEMU, pure emulation (TCG), a CPU with emulated AMD-SVM
        L1: a small Debian; its kvm-amd is real KVM; here the script runs
          L2: guests of the VMM under test

Slow, but real: L1 is up in about 6 s, a Firecracker guest in it in 5 to 8 s.

    nested_host.py --script SCRIPT.sh [--bin PROGRAM ...] [--file SRC[:DEST] ...] [--env K=V ...]
                   [--out DIR] [--cache DIR] [--mem 6144] [--smp 1] [--timeout 900]

 * each --bin lands in /opt/bin, first in PATH
 * each --file lands in /in, or at DEST, an absolute path in L1
 * the script runs in /job; its output streams to ours, its exit code is ours (124: timed out, 125: L1 died or hung)
 * what it leaves in /out comes back into --out
 * every L1 starts fresh, without a way out; two at once do not disturb each other

L1's image is made once, from Debian packages, into --cache (default: target/nested-host; about 1 GB, a minute or two).
Needs: root for that image; qemu-system-x86, mmdebstrap, e2fsprogs, cpio, busybox-static, kmod, and apt with Debian's
main component.
"""

import argparse
import ctypes
import fcntl
import hashlib
import io
import lzma
import mmap
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
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

# Talks to us over two virtio-serial ports: l1.out is the script's output, l1.rc a line each for readiness, a
# heartbeat and the exit code. Input is a tar on the second disk, output a tar on the third.
L1_INIT = r"""#!/bin/sh
export PATH=/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
mkdir -p /dev/pts /dev/shm /run /tmp /job /out /in /opt/bin
mount -t devpts devpts /dev/pts; mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777,size=80% tmp /tmp
mount -t cgroup2 cg /sys/fs/cgroup 2>/dev/null
mkdir -p /run/netns /run/lock; ln -sfn /proc/self/fd /dev/fd
ip link set lo up
hostname l1
modprobe virtio_console; modprobe irqbypass; modprobe kvm; modprobe kvm_amd npt=1
modprobe tun; modprobe virtio_net; modprobe loop
if [ -d /sys/class/net/eth0 ]; then ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up; ip route add default via 10.0.2.2; fi
[ -e /dev/net/tun ] || { mkdir -p /dev/net; mknod /dev/net/tun c 10 200; }
n=0; while [ $n -lt 100 ]; do
  OUT=; RC=
  for p in /sys/class/virtio-ports/*; do
    case "$(cat $p/name 2>/dev/null)" in l1.out) OUT=/dev/${p##*/};; l1.rc) RC=/dev/${p##*/};; esac
  done
  [ -c "$OUT" ] && [ -c "$RC" ] && break
  sleep 0.1; n=$((n+1))
done
tar -x -P -f /dev/vdb --warning=no-unknown-keyword
if [ -c /dev/kvm ]; then
  setsid python3 -S -E /sbin/kvmhold.py </dev/null >/dev/null 2>&1 &
  n=0; while [ ! -s /run/kvmhold.pid ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n+1)); done
fi
echo "ready $(cut -d' ' -f1 /proc/uptime)" > $RC
( while sleep 2; do echo "hb" > $RC; done ) &
cd /job
( set -a; [ -f /in/.env ] && . /in/.env; set +a; exec /in/.script </dev/null ) >$OUT 2>&1
rc=$?
sync
if [ -n "$(ls -A /out)" ]; then tar -c -f /dev/vdc -C /out . 2>/dev/console || echo "outfail" > $RC; sync; fi
echo "rc $rc $(cut -d' ' -f1 /proc/uptime)" > $RC
sleep 0.2
echo o > /proc/sysrq-trigger
sleep 60
"""

# One VM with one vCPU, held for as long as L1 lives. KVM flips static branches (preempt_notifier_key in __schedule,
# apic_sw_disabled) when its first VM comes and its last one goes, and QEMU 7.2's multi-threaded TCG now and then keeps
# running the int3 that such a flip leaves in the code for a moment: both CPUs then loop in asm_exc_int3 for good. With
# a VM held there is one flip, before the script starts.
KVM_HOLDER = r"""
import fcntl, os, signal
k = os.open("/dev/kvm", os.O_RDWR)
vm = fcntl.ioctl(k, 0xAE01, 0)          # KVM_CREATE_VM
fcntl.ioctl(vm, 0xAE60, 0)              # KVM_CREATE_IRQCHIP
cpu = fcntl.ioctl(vm, 0xAE41, 0)        # KVM_CREATE_VCPU 0
open("/run/kvmhold.pid", "w").write(str(os.getpid()))
while True:
    signal.pause()
"""

# L1 hung, or its kernel crashed: the script said nothing.
LOST = -1


def log(*words):
    print("nested_host:", *words, file=sys.stderr, flush=True)


def need(program):
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not path:
        sys.exit(f"nested_host: {program} is not installed")
    return path


def run(*command, timeout=600, **options):
    return subprocess.run([str(word) for word in command], check=True, timeout=timeout, stdin=subprocess.DEVNULL,
                          **options)


# ------------------------------------------------------------------ the image

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
    package, version = kernel_package()
    inputs = [package, version, SUITE, *PACKAGES, "|", *INITRD_MODULES, INITRD_INIT, L1_INIT, KVM_HOLDER]
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
        write(tree / "usr/sbin/l1init", L1_INIT, 0o755)
        write(tree / "usr/sbin/kvmhold.py", KVM_HOLDER)
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


# ------------------------------------------------------------------ one run

def make_input(path, args):
    """The tar that L1 unpacks at its root."""
    def as_root(info):
        info.uid = info.gid = 0
        info.uname = info.gname = "root"
        return info

    with tarfile.open(path, "w") as tar:
        def add_bytes(name, data, mode):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), mode, int(time.time())
            tar.addfile(info, io.BytesIO(data))

        def add(source, destination):
            # TarFile.add strips the leading slash, which is what `tar -P` in L1's / makes good for.
            tar.add(source, destination, filter=as_root)

        for program in args.bin:
            real = os.path.realpath(program)
            info = as_root(tar.gettarinfo(real, "opt/bin/" + os.path.basename(program)))
            info.mode = 0o755
            with open(real, "rb") as data:
                tar.addfile(info, data)
        for spec in args.file:
            source, _, destination = spec.partition(":")
            add(source, destination or "/in/" + os.path.basename(os.path.normpath(source)))
        script = pathlib.Path(args.script).read_bytes()
        if not script.startswith(b"#!"):
            script = b"#!/bin/bash\n" + script
        add_bytes("in/.script", script, 0o755)
        lines = []
        for setting in args.env:
            key, _, value = setting.partition("=")
            lines.append("%s='%s'\n" % (key, value.replace("'", "'\\''")))
        add_bytes("in/.env", "".join(lines).encode(), 0o644)


def host_khz():
    """This machine's TSC rate in kHz: TCG gives L1 the host's own TSC. 0 when unknown."""
    try:
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3")  # rdtsc; shl rdx,32; or rax,rdx; ret
        rdtsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        rates = []
        for _ in range(3):
            seconds, ticks = time.perf_counter(), rdtsc()
            time.sleep(0.05)
            rates.append((rdtsc() - ticks) / (time.perf_counter() - seconds) / 1000)
        return int(sorted(rates)[1])
    except (OSError, ValueError):
        return 0


def qemu_command(args, image, work, console):
    kernel_arguments = ["console=ttyS0 panic=-1 mitigations=off nokaslr nowatchdog nmi_watchdog=0 audit=0",
                        "random.trust_cpu=on tsc=reliable"]
    khz = host_khz()
    if khz:  # else the calibration of the TSC hangs now and then under TCG
        kernel_arguments.append(f"tsc_early_khz={khz} lpj={khz * 2}")
    command = [
        need("qemu-system-x86_64"), "-M", "q35,vmport=off,smm=off", "-accel", "tcg,thread=multi,tb-size=1024",
        # Without erms, kernels do not copy memory by `rep movsb`, which TCG does byte by byte.
        "-cpu", "max,-la57,-erms", "-smp", str(args.smp), "-m", str(args.mem),
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-kernel", f"{image}/vmlinuz", "-initrd", f"{image}/initrd.img", "-append", " ".join(kernel_arguments),
        "-chardev", f"file,id=con,path={console}", "-serial", "chardev:con",
        "-drive", f"if=none,id=d0,file={image}/l1.ext4,format=raw,snapshot=on,cache=unsafe",
        "-device", "virtio-blk-pci,drive=d0",
        "-drive", f"if=none,id=d1,file={work}/in.tar,format=raw,readonly=on", "-device", "virtio-blk-pci,drive=d1",
        "-drive", f"if=none,id=d2,file={work}/out.raw,format=raw,cache=unsafe", "-device", "virtio-blk-pci,drive=d2",
        "-device", "virtio-serial-pci",
        "-chardev", f"file,id=po,path={work}/port.out", "-device", "virtserialport,chardev=po,name=l1.out",
        "-chardev", f"file,id=pr,path={work}/port.rc", "-device", "virtserialport,chardev=pr,name=l1.rc",
        "-monitor", f"unix:{work}/mon,server=on,wait=off",
    ]
    if args.hostfwd:
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{host}-10.0.2.15:{guest}"
                           for host, guest in (pair.split(":") for pair in args.hostfwd))
        command += ["-netdev", "user,id=n0,restrict=on" + forwards, "-device", "virtio-net-pci,netdev=n0,romfile="]
    return command


def show_cpus(path):
    """Where the emulated CPUs are, from QEMU's monitor: for the report of a hang."""
    try:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(3)
            monitor.connect(path)
            text = b""
            for command in (b"info status\n", b"info registers -a\n"):
                monitor.sendall(command)
                time.sleep(0.7)
                text += monitor.recv(1 << 20)
        lines = text.decode("utf-8", "replace").splitlines()
        log("emulated CPUs:\n  " + "\n  ".join(x for x in lines if re.search(r"CPU#|RIP=|VM status|CR3=|EFER", x)))
    except OSError as error:
        log(f"no monitor: {error}")


def tail(path, size=3000):
    return pathlib.Path(path).read_bytes()[-size:].decode("utf-8", "replace")


def one_run(args, cache, image):
    """-> (exit code or LOST, whether the script had started)"""
    work = tempfile.mkdtemp(prefix="run-", dir=cache)
    qemu = None
    try:
        make_input(f"{work}/in.tar", args)
        with open(f"{work}/out.raw", "wb") as out:
            out.truncate(4 << 30)
        for name in ("port.out", "port.rc"):
            open(f"{work}/{name}", "wb").close()
        console = os.path.abspath(args.console) if args.console else f"{work}/console.log"
        open(console, "wb").close()
        started = time.monotonic()
        qemu = subprocess.Popen(qemu_command(args, image, work, console), stdin=subprocess.DEVNULL,
                                env=dict(os.environ, TMPDIR=work))
        with open(f"{work}/port.out", "rb") as output, open(f"{work}/port.rc", "rb") as control:
            code, ready = watch(args, qemu, output, control, started, console, f"{work}/mon")
        if code is LOST:
            return LOST, ready
        if args.out and code != 125:
            os.makedirs(args.out, exist_ok=True)
            with open(f"{work}/out.raw", "rb") as out:
                anything = out.read(512).strip(b"\0")
            if anything:
                run("tar", "-x", "-f", f"{work}/out.raw", "-C", args.out, "--no-same-owner", timeout=300)
        log(f"exit code {code}, {time.monotonic() - started:.1f} s in all")
        return code, ready
    finally:
        if qemu is not None and qemu.poll() is None:
            qemu.terminate()
            try:
                qemu.wait(timeout=10)
            except subprocess.TimeoutExpired:
                qemu.kill()
                qemu.wait()
        shutil.rmtree(work, ignore_errors=True)


def watch(args, qemu, output, control, started, console, monitor):
    """Passes the script's output on until it ends, L1 dies or hangs, or time is up."""
    told, beat, ready = b"", started, False

    def pump():
        data = output.read()
        if data:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    def result():
        found = re.search(rb"^rc (\d+) \S+$", told, re.M)
        return int(found[1]) if found else None

    while True:
        pump()
        data = control.read()
        now = time.monotonic()
        if data:
            told, beat = told + data, now
        if not ready and b"ready " in told:
            ready = True
            log(f"L1 ready after {now - started:.1f} s")
        if result() is not None or qemu.poll() is not None:
            try:
                qemu.wait(timeout=30)
            except subprocess.TimeoutExpired:
                pass
            pump()
            told += control.read()
            if result() is not None:
                return result(), ready
            log(f"L1 ended without a result (QEMU's status {qemu.returncode}); its console's end:")
            sys.stderr.write(tail(console))
            return LOST, ready
        if now - started > args.timeout:
            log(f"timed out after {args.timeout:.0f} s" + ("" if ready else "; L1 never came up:"))
            if not ready:
                sys.stderr.write(tail(console))
            return 124, ready
        if now - beat > args.hang:
            log(f"L1 hung: no sign of life for {args.hang:.0f} s, at {now - started:.0f} s; its console's end:")
            sys.stderr.write(tail(console, 1500) + "\n")
            show_cpus(monitor)
            return LOST, ready
        time.sleep(0.05)


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--bin", action="append", default=[])
    parser.add_argument("--file", action="append", default=[], metavar="SRC[:DEST]")
    parser.add_argument("--env", action="append", default=[], metavar="K=V")
    parser.add_argument("--script")
    parser.add_argument("--out", help="folder that receives what the script leaves in /out")
    parser.add_argument("--mem", type=int, default=6144, help="MiB")
    parser.add_argument("--smp", type=int, default=1,
                        help="CPUs of L1. With more than one, QEMU 7.2 and 10 corrupt guests and L1 itself every minute or two "
                             "when two guests run at once; with one that was not seen")
    parser.add_argument("--timeout", type=float, default=900, help="seconds")
    parser.add_argument("--cache", default=os.environ.get("NULLSPACE_NESTED_CACHE", REPOSITORY / "target/nested-host"))
    parser.add_argument("--console", help="keep L1's serial console in this file")
    parser.add_argument("--hang", type=float, default=60, help="seconds without a heartbeat that mean L1 hung")
    parser.add_argument("--retry-lost", type=int, default=2,
                        help="run the script again in a new L1 this often when L1 hung or its kernel crashed")
    parser.add_argument("--hostfwd", action="append", default=[], metavar="HOSTPORT:L1PORT",
                        help="a TCP port of 127.0.0.1 here that leads to L1 (gives L1 an eth0; still no way out)")
    parser.add_argument("--build-only", action="store_true", help="only make the image")
    args = parser.parse_args()
    cache = pathlib.Path(args.cache).resolve()
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        image = build_image(cache)
    if args.build_only:
        print(image)
        return 0
    if not args.script:
        parser.error("--script is needed")
    attempt = 0
    while True:
        code, started = one_run(args, cache, image)
        if code != LOST:
            return code
        # The emulator (KVM_HOLDER; and QEMU 7.2's SVM now and then leaves a kernel with the other's GS base). A new L1 is a
        # wholly new machine, so running the script again is safe. What is tested and crashes a kernel does so each time.
        attempt += 1
        if attempt > (args.retry_lost if started else max(args.retry_lost, 2)):
            return 125
        log(f"running again in a new L1 (attempt {attempt + 1})")


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    sys.exit(main())
