"""One nested host: its QEMU process, what is carried in and out, and the watch over it."""

import ctypes
import io
import json
import mmap
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time

from .image import log, need, run
from .looks import look, verdict

# Runs in L1, as its first process, once the image's own few lines are done. Talks to us over two virtio-serial ports: l1.out
# is the script's output; l1.rc takes our nudges and gives a line each for readiness, a heartbeat a second, the tests (ledger.py)
# and the exit code. Input is a tar on the second disk, output a tar on the third.
L1_INIT = r"""#!/bin/sh
mkdir -p /run/netns /run/lock; ln -sfn /proc/self/fd /dev/fd
ip link set lo up
hostname l1
modprobe virtio_console; modprobe irqbypass; modprobe kvm; modprobe kvm_amd npt=1 $KVM_AMD
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
# A port is opened by one process only; all who have a line to say write it here.
mkfifo /run/control
exec 3<>$RC
cat <>/run/control >&3 &
( while :; do cat >/dev/null; sleep 0.2; done <&3 ) &
( while sleep 1; do echo hb; done >/run/control ) &
exec 3>&-
if [ -c /dev/kvm ]; then
  setsid python3 -S -E /in/.kvmhold.py </dev/null >/dev/null 2>&1 &
  n=0; while [ ! -s /run/kvmhold.pid ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n+1)); done
fi
echo "ready $(cut -d' ' -f1 /proc/uptime)" >/run/control
cd /job
( set -a; [ -f /in/.env ] && . /in/.env; set +a; exec /in/.script </dev/null ) >$OUT 2>&1
rc=$?
sync
if [ -n "$(ls -A /out)" ]; then tar -c -f /dev/vdc -C /out . 2>/dev/console || echo "outfail" >/run/control; sync; fi
echo "rc $rc $(cut -d' ' -f1 /proc/uptime)" >/run/control
sleep 0.3
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

# Seconds between nudges; a host that is silent for SILENT is looked at each LOOK, one that is silent for LOST is lost whatever
# its CPU does.
NUDGE, SILENT, LOOK, LOST = 0.2, 4, 1.0, 20
# So long may a host take until its script starts: 6 s on two free cores, 45 s were seen on a busy machine.
BOOT = 150


class Lost(Exception):
    """The host is gone, by no fault of the script as far as is known."""


class Monitor:
    """QEMU's monitor. Every question has a bound."""

    def __init__(self, path):
        self.path, self.stream, self.rest = path, None, b""

    def ask(self, line, limit=2.5):
        """The answer to a line of the human monitor, or None."""
        try:
            end = time.monotonic() + limit
            if self.stream is None:
                self.stream = socket.socket(socket.AF_UNIX)
                self.stream.settimeout(limit)
                self.stream.connect(self.path)
                self._command({"execute": "qmp_capabilities"}, end)
            return self._command({"execute": "human-monitor-command", "arguments": {"command-line": line}}, end)
        except (OSError, ValueError):
            self.close()
            return None

    def _command(self, command, end):
        self.stream.sendall(json.dumps(command).encode() + b"\n")
        while True:
            while b"\n" not in self.rest:
                self.stream.settimeout(max(0.01, end - time.monotonic()))
                more = self.stream.recv(1 << 16)
                if not more or len(self.rest) > 1 << 22:
                    raise OSError("the monitor ended")
                self.rest += more
            line, self.rest = self.rest.split(b"\n", 1)
            answer = json.loads(line)
            if "error" in answer:
                raise OSError(answer["error"])
            if "return" in answer:
                return answer["return"]

    def close(self):
        if self.stream is not None:
            self.stream.close()
        self.stream, self.rest = None, b""


def make_input(path, args, finished):
    """The tar that L1 unpacks at its root. `finished` are the names of tests that the script leaves out."""
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
        add_bytes("in/.init", L1_INIT.replace("$KVM_AMD", args.kvm_amd).encode(), 0o755)
        add_bytes("in/.kvmhold.py", KVM_HOLDER.encode(), 0o644)
        add_bytes("in/.finished", "".join(name + "\n" for name in finished).encode(), 0o644)


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


def emulator():
    """Name and version of the emulator, for messages."""
    text = run(need("qemu-system-x86_64"), "--version", stdout=subprocess.PIPE, text=True).stdout
    found = re.search(r"version (\S+(?: \([^)]*\))?)", text)
    return "QEMU " + (found[1] if found else "of unknown version")


def qemu_command(args, image, work, console):
    kernel_arguments = ["console=ttyS0 panic=-1 mitigations=off nokaslr nowatchdog nmi_watchdog=0 audit=0",
                        "random.trust_cpu=on tsc=reliable", args.append]
    khz = host_khz()
    if khz:  # else the calibration of the TSC hangs now and then under TCG
        kernel_arguments.append(f"tsc_early_khz={khz} lpj={khz * 2}")
    command = [
        need("qemu-system-x86_64"), "-M", "q35,vmport=off,smm=off", "-accel", args.accel,
        "-cpu", args.cpu, "-smp", str(args.smp), "-m", str(args.mem),
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-kernel", f"{image}/vmlinuz", "-initrd", f"{image}/initrd.img", "-append", " ".join(kernel_arguments),
        "-chardev", f"file,id=con,path={console}", "-serial", "chardev:con",
        "-drive", f"if=none,id=d0,file={image}/l1.ext4,format=raw,snapshot=on,cache=unsafe",
        "-device", "virtio-blk-pci,drive=d0",
        "-drive", f"if=none,id=d1,file={work}/in.tar,format=raw,readonly=on", "-device", "virtio-blk-pci,drive=d1",
        "-drive", f"if=none,id=d2,file={work}/out.raw,format=raw,cache=unsafe", "-device", "virtio-blk-pci,drive=d2",
        "-device", "virtio-serial-pci",
        "-chardev", f"file,id=po,path={work}/port.out", "-device", "virtserialport,chardev=po,name=l1.out",
        "-chardev", f"socket,id=pr,path={work}/port.rc,server=on,wait=off",
        "-device", "virtserialport,chardev=pr,name=l1.rc",
        "-qmp", f"unix:{work}/mon,server=on,wait=off",
    ]
    if args.hostfwd:
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{host}-10.0.2.15:{guest}"
                           for host, guest in (pair.split(":") for pair in args.hostfwd))
        command += ["-netdev", "user,id=n0,restrict=on" + forwards, "-device", "virtio-net-pci,netdev=n0,romfile="]
    return command


def tail(path, size=3000):
    return pathlib.Path(path).read_bytes()[-size:].decode("utf-8", "replace")


class Host:
    """A nested host from its start to its end, as a context."""

    def __init__(self, args, cache, image, ledger, injection):
        self.args, self.cache, self.image = args, cache, image
        self.ledger, self.injection = ledger, injection
        self.work = self.qemu = self.control = None
        self.told, self.beat, self.ready, self.code = b"", None, False, None

    def __enter__(self):
        self.work = tempfile.mkdtemp(prefix="run-", dir=self.cache)
        return self

    def __exit__(self, *_):
        if self.qemu is not None and self.qemu.poll() is None:
            # Not SIGTERM: a stopped process does not take it. Nothing of this host is needed any more.
            self.qemu.kill()
            self.qemu.wait()
        if self.control is not None:
            self.control.close()
        shutil.rmtree(self.work, ignore_errors=True)

    def run(self):
        """-> the script's exit code, 124 when time is up. Raises Lost."""
        work = self.work
        make_input(f"{work}/in.tar", self.args, self.ledger.finished())
        with open(f"{work}/out.raw", "wb") as out:
            out.truncate(4 << 30)
        open(f"{work}/port.out", "wb").close()
        console = os.path.abspath(self.args.console) if self.args.console else f"{work}/console.log"
        open(console, "wb").close()
        self.started = self.beat = time.monotonic()
        self.qemu = subprocess.Popen(qemu_command(self.args, self.image, work, console), stdin=subprocess.DEVNULL,
                                     env=dict(os.environ, TMPDIR=work))
        try:
            self._connect(f"{work}/port.rc")
            with open(f"{work}/port.out", "rb") as output:
                try:
                    code = self._watch(output, Monitor(f"{work}/mon"))
                finally:
                    self._pass_on(output)
        except Lost:
            sys.stdout.flush()
            log("the console's end:\n" + tail(console, 1500))
            raise
        if self.args.out and code != 124:
            os.makedirs(self.args.out, exist_ok=True)
            with open(f"{work}/out.raw", "rb") as out:
                anything = out.read(512).strip(b"\0")
            if anything:
                run("tar", "-x", "-f", f"{work}/out.raw", "-C", self.args.out, "--no-same-owner", timeout=300)
        return code

    def _connect(self, path):
        for _ in range(200):
            try:
                self.control = socket.socket(socket.AF_UNIX)
                self.control.connect(path)
                self.control.setblocking(False)
                return
            except OSError:
                self.control.close()
                if self.qemu.poll() is not None:
                    break
                time.sleep(0.05)
        raise Lost("QEMU did not start")

    def _pass_on(self, output):
        data = output.read()
        if data:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    def _listen(self):
        """Takes in what L1 said. -> whether it said anything"""
        try:
            data = self.control.recv(1 << 16)
        except BlockingIOError:
            return False
        except OSError:
            return False
        self.told += data
        *lines, self.told = self.told.split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace").strip()
            if text.startswith("ready "):
                self.ready = True
                log(f"L1 ready after {time.monotonic() - self.started:.1f} s")
            elif result := re.fullmatch(r"rc (\d+) \S+", text):
                self.code = int(result[1])
            elif why := self.ledger.line(text):
                raise Lost(why)
            elif text.startswith("end "):
                log(text)
        return bool(data)

    def _used(self):
        """Processor seconds that QEMU has used so far."""
        try:
            fields = pathlib.Path(f"/proc/{self.qemu.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _nudge(self):
        """Makes an interrupt in L1. With it the emulated CPU also takes one that it has lost (docs/nested-host.md)."""
        try:
            self.control.send(b"n")
        except OSError:
            pass  # L1 has not read the last ones

    def _watch(self, output, monitor):
        looks, looked, nudged = [], 0.0, 0.0
        while True:
            self._pass_on(output)
            now = time.monotonic()
            if self._listen():
                self.beat, looks = now, []
            if self.code is not None:
                log(f"the emulator used {self._used():.0f} s of processor time")
                try:
                    self.qemu.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    pass  # it is ended with this host
                return self.code
            if self.qemu.poll() is not None:
                self._listen()
                if self.code is not None:
                    continue
                raise Lost(f"L1 ended without a result (QEMU's status {self.qemu.returncode})")
            if now > self.args.deadline:
                log("time is up")
                return 124
            if self.ready and self.args.nudge and now - nudged > self.args.nudge:
                self._nudge()
                nudged = now
            self.injection.maybe(self.qemu, self.ready, now)
            silent = now - self.beat
            if silent > SILENT and now - looked > LOOK:
                registers = monitor.ask("info registers")
                looks.append(look(registers, monitor.ask("info lapic") if registers else None, self._used()))
                looked = time.monotonic()
                why = verdict(looks)
                if why is None and silent > (LOST if self.ready else BOOT):
                    why = f"no sign of life; {looks[-1]}"
                if why:
                    state = "hung" if self.ready else "hung while it booted"
                    raise Lost(f"{state} at {self.beat - self.started:.0f} s, silent for {silent:.0f} s: {why}")
            time.sleep(0.05)
