#!/usr/bin/env python3
"""Run a script as root in a Linux machine that has a working /dev/kvm, on one that has none.

    this machine
      QEMU, pure emulation (TCG), a CPU with emulated AMD-SVM
        L1: a small Debian; its kvm-amd is real KVM; here the script runs
          L2: guests of the VMM under test

Slow, but real: L1 is up in about 6 s, a Firecracker guest in it in 5 to 8 s.

    nested_host.py --script SCRIPT.sh [--bin PROGRAM ...] [--file SRC[:DEST] ...] [--env K=V ...]
                   [--out DIR] [--cache DIR] [--mem 6144] [--smp 1] [--timeout 900] [--part NAME]

 * each --bin lands in /opt/bin, first in PATH
 * each --file lands in /in, or at DEST, an absolute path in L1
 * the script runs in /job; its output streams to ours, its exit code is ours (124: timed out, 125: L1 was lost too often)
 * what it leaves in /out comes back into --out
 * every L1 starts fresh, without a way out; two at once do not disturb each other

The emulator is not without faults: now and then L1 hangs, its kernel crashes, or a guest in it is spoiled. A hung L1 is told
within 10 s, ended, and the script runs again in a fresh one. A script that tells of its tests on /run/control (nested/ledger.py,
tests/nested/tested.sh) finds those that are finished in /in/.finished and leaves them out. docs/nested-host.md has the faults.

L1's image is made once, from Debian packages, into --cache (default: target/nested-host; about 1 GB, a minute or two).
Needs: root for that image; qemu-system-x86, mmdebstrap, e2fsprogs, cpio, busybox-static, kmod, and apt with Debian's
main component.
"""

import argparse
import fcntl
import os
import pathlib
import signal
import sys
import time

from nested.image import build_image, log
from nested.injection import Injection
from nested.ledger import Ledger
from nested.machine import NUDGE, Host, Lost, emulator

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def arguments():
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
    parser.add_argument("--timeout", type=float, default=900, help="seconds for all, with what is lost")
    parser.add_argument("--cache", default=os.environ.get("NULLSPACE_NESTED_CACHE", REPOSITORY / "target/nested-host"))
    parser.add_argument("--console", help="keep L1's serial console in this file")
    parser.add_argument("--part", default="nested-host", help="what the last line calls this run, where the script told of tests")
    parser.add_argument("--hostfwd", action="append", default=[], metavar="HOSTPORT:L1PORT",
                        help="a TCP port of 127.0.0.1 here that leads to L1 (gives L1 an eth0; still no way out)")
    parser.add_argument("--build-only", action="store_true", help="only make the image")
    parser.add_argument("--inject-hang", type=int, default=int(os.environ.get("NULLSPACE_NESTED_INJECT_HANG", "0")),
                        metavar="N", help="stop the emulator N times, each at a random moment of a host's first minute")
    trial = parser.add_argument_group("the emulator's settings, for the search of docs/nested-host.md")
    # Without erms, kernels do not copy memory by `rep movsb`, which TCG does byte by byte.
    trial.add_argument("--cpu", default="max,-la57,-erms")
    trial.add_argument("--accel", default="tcg,thread=multi,tb-size=1024")
    trial.add_argument("--append", default="", help="more arguments for L1's kernel")
    trial.add_argument("--kvm-amd", default="", help="more parameters for L1's kvm-amd")
    trial.add_argument("--nudge", type=float, default=NUDGE, help="seconds between interrupts made in L1 from outside; 0: none")
    args = parser.parse_args()
    if not (args.script or args.build_only):
        parser.error("--script is needed")
    return args


def main():
    args = arguments()
    cache = pathlib.Path(args.cache).resolve()
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        image = build_image(cache)
    if args.build_only:
        print(image)
        return 0
    started = time.monotonic()
    args.deadline = started + args.timeout
    ledger, injection = Ledger(emulator()), Injection(args.inject_hang)
    code = None
    while code is None:
        try:
            with Host(args, cache, image, ledger, injection) as host:
                code = host.run()
        except Lost as why:
            log(ledger.lost(str(why)))
            if not ledger.may_go_on():
                log(f"given up: {ledger.emulator} lost host after host (docs/nested-host.md)")
                code = 125
            else:
                left_out = len(ledger.finished())
                log("going on in a fresh host" + (f"; {left_out} tests are finished and not run again" if left_out else ""))
    seconds = time.monotonic() - started
    if ledger.tests:
        if code == 0 and ledger.failed():
            code = 1
        log(f"under {ledger.emulator}:\n" + ledger.table())
        for number, loss in enumerate(ledger.losses, 1):
            log(f"loss {number} {loss}")
        if ledger.failed():
            log("not passed: " + ", ".join(ledger.failed()))
        print(ledger.part(args.part, seconds), flush=True)
    log(f"exit code {code}, {len(ledger.losses)} losses, {seconds:.1f} s in all")
    return code


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    sys.exit(main())
