#!/usr/bin/env python3
"""Root in a guest against the host and its neighbours: `tried N survived M`, `bench: …` lines, exit 1 on a failure.

    tests/attack/guests.py [NAME...]        names of attacks; all by default

One tenant attacks from sandboxes of the built-in template (Debian, python3, root), another one has a quiet sandbox and is
asked for all the time. An attack is survived when the service goes on, a machine that can no longer be talked to has ended
within its limit as `error`, the neighbour was served meanwhile, and nothing of the machine is left.
"""

import json
import os
import re
import statistics
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sdk"))

from running import PROGRAM, Service  # noqa: E402

# A silent guest counts as halted after 30 s; the rest is for a busy host in software emulation.
SILENT = 75
# A breach of the protocol, or the end of the VMM, is known at once.
AT_ONCE = 30
# The neighbour's slowest request for a status while an attack runs, seconds. A tenth of it is usual on an idle host.
NEIGHBOUR = 10
# Attacks that only load the machine go on for so long.
LOAD = 20
CONNECTIONS = 300
# Begin of the addresses of the service's machines (`network_pool`).
POOL = "100.97."
QUOTA = {"sandboxes": 3, "memory_mib": 3000, "vcpus": 6}

# Steals the agent's end of the channel: pidfd_getfd(2) on every descriptor of PID 1 that is a port or a vsock.
STEAL = r"""
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def steal():
    pidfd = libc.syscall(434, 1, 0)
    found = []
    for fd in os.listdir('/proc/1/fd'):
        where = os.readlink('/proc/1/fd/' + fd)
        if 'vport' in where or 'socket:' in where:
            got = libc.syscall(438, pidfd, int(fd), 0)
            if got >= 0:
                os.set_blocking(got, True)
                found.append(got)
    return found
fds = steal()
print('stolen', len(fds), flush=True)
def send(bytes):
    for fd in fds:
        try:
            os.write(fd, bytes)
        except OSError:
            pass
"""
FRAME = r"""
import struct
def frame(session, channel, kind, payload):
    return struct.pack('<IQIBBHI', 0x31534e9d, session, channel, kind, 0, 0, len(payload)) + payload
"""
# Stops every thread of PID 1, and never lets it go on.
FREEZE = r"""
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
for tid in os.listdir('/proc/1/task'):
    libc.ptrace(0x4206, int(tid), None, None)   # PTRACE_SEIZE
    libc.ptrace(0x4207, int(tid), None, None)   # PTRACE_INTERRUPT
time.sleep(100000)
"""
CONNECT = r"""
import socket, time
deadline = time.time() + %d
opened = []
while time.time() < deadline:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if len(opened) %% 2 else socket.SOCK_STREAM)
    s.setblocking(False)
    try:
        s.connect(('1.1.1.1', 1 + len(opened) %% 60000))
        s.send(b'x')
    except OSError:
        pass
    opened.append(s)
    if len(opened) > 900:
        opened.pop(0).close()
""" % LOAD

# Name: what root runs in the guest, and within how many seconds its sandbox must have ended (None: it may go on).
ATTACKS = {
    "garbage in the agent's channel": (STEAL + "while True: send(os.urandom(65536))", AT_ONCE),
    "one wrong byte": (STEAL + "send(b'\\xff'); time.sleep(1000)", AT_ONCE),
    "a flood of well-formed frames": (
        STEAL + FRAME + "wire = b''.join(frame(7, 1, 6, b'x' * 60) for _ in range(500))\nwhile True: send(wire)",
        AT_ONCE,
    ),
    "a flood of acknowledgements": (
        STEAL + FRAME + "wire = b''.join(frame(7, 0, 2, b'{}') for _ in range(500))\nwhile True: send(wire)",
        AT_ONCE,
    ),
    "half a frame, then nothing": (STEAL + FRAME + "send(frame(7, 1, 6, b'x' * 60000)[:3000]); time.sleep(1000)", SILENT),
    "halted": ("import ctypes; ctypes.CDLL(None).reboot(0xcdef0123)", SILENT),
    "powered off": ("import ctypes; ctypes.CDLL(None).reboot(0x4321fedc)", AT_ONCE),
    "rebooted": ("import ctypes; ctypes.CDLL(None).reboot(0x01234567)", AT_ONCE),
    "a kernel panic": ("open('/proc/sysrq-trigger', 'w').write('c')", AT_ONCE),
    "a frozen agent": (FREEZE, SILENT),
    "all processors busy": (f"import os\nfor _ in range(64): os.fork()\nwhile True: pass", None),
    "a fork bomb": ("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", None),
    "all memory": ("held = []\nwhile True: held.append(bytearray(1 << 20))", None),
    "the disk written without end": (
        "import os\nwhile True:\n  try:\n    f = open('/junk', 'wb')\n    while True: f.write(os.urandom(1 << 20))\n  except OSError: pass",
        None,
    ),
    "the console flooded": ("f = open('/dev/ttyS0', 'wb', 0)\nwhile True: f.write(b'A' * 4096)", None),
    "connections without end": (CONNECT, None),
}


class Neighbour:
    """Asks for its sandbox all the time, and runs something in it now and then."""

    def __init__(self, service, key):
        self.service, self.key = service, key
        code, made = create(service, key)
        assert code == 201, made
        self.sandbox = made["id"]
        self.status, self.execs, self.failures = [], [], []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._ask)
        self.thread.start()

    def _ask(self):
        last = 0.0
        while not self.over.is_set():
            began = time.monotonic()
            try:
                code, info = self.service.request(self.key, "GET", f"/v1/sandboxes/{self.sandbox}")
                self.status.append(time.monotonic() - began)
                if code != 200 or info["status"] != "running":
                    self.failures.append((code, info))
                if time.monotonic() - last > 2:
                    last = began = time.monotonic()
                    code, done = execute(self.service, self.key, self.sandbox, "echo alive")
                    self.execs.append(time.monotonic() - began)
                    if code != 200 or done["stdout"] != "alive\n":
                        self.failures.append((code, done))
            except Exception as error:  # noqa: BLE001
                self.failures.append(repr(error))
            self.over.wait(0.05)

    def take(self):
        taken = (self.status, self.execs, self.failures)
        self.status, self.execs, self.failures = [], [], []
        return taken

    def end(self):
        self.over.set()
        self.thread.join()
        self.service.request(self.key, "DELETE", f"/v1/sandboxes/{self.sandbox}")


def create(service, key):
    return service.request(key, "POST", "/v1/sandboxes", {"template": "nullspace/base:latest", "timeout_ms": 3_600_000})


def execute(service, key, sandbox, line, **more):
    return service.request(key, "POST", f"/v1/sandboxes/{sandbox}/exec", {"command": line, "shell": True, **more})


def run_python(service, key, sandbox, program):
    body = {"command": "python3", "args": ["-c", program], "background": True}
    return service.request(key, "POST", f"/v1/sandboxes/{sandbox}/exec", body)


def machines(service):
    """Processes of VMMs that the service has started."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        name, rest = text[text.index("(") + 1 :].rsplit(")", 1)
        if int(rest.split()[1]) == service.process.pid and (name.startswith("qemu-system") or name in ("sh", "firecracker")):
            found.add(int(stat.parent.name))
    return found


def groups(service):
    """Control groups of single machines."""
    return {str(path) for path in Path("/sys/fs/cgroup").glob(f"**/nullspace-{service.process.pid}-*/*") if path.is_dir()}


def connections():
    """Live connections of guests. The kernel lists closed ones for some seconds more, but its limit does not count them. The
    host's own connections are not counted."""
    try:
        flows = Path("/proc/net/nf_conntrack").read_text()
    except OSError:
        return 0
    # The sender's address comes first in a line.
    live = [line for line in flows.splitlines() if not re.search(r" (CLOSE|TIME_WAIT) ", line)]
    return sum(1 for line in live if re.search(r"src=(\S+)", line)[1].startswith(POOL))


def percentile(values, part):
    return sorted(values)[min(len(values) - 1, int(len(values) * part))] if values else 0.0


def attack(service, key, neighbour, name):
    """Why it was not survived, if it was not."""
    program, limit = ATTACKS[name]
    before = (machines(service), groups(service))
    flows = connections()
    neighbour.take()
    code, made = create(service, key)
    if code != 201:
        return f"no sandbox: {made}"
    sandbox = made["id"]
    code, begun = run_python(service, key, sandbox, program)
    if code not in (200, 502, 404):
        return f"the attack did not start: {code} {begun}"
    began = time.monotonic()
    most = 0
    status = "running"
    while time.monotonic() - began < (limit or LOAD):
        most = max(most, connections() - flows)
        code, info = service.request(key, "GET", f"/v1/sandboxes/{sandbox}")
        status = info.get("status", code)
        if status == "error":
            break
        time.sleep(0.25)
    took = time.monotonic() - began
    problems = []
    if limit and status != "error":
        problems.append(f"after {took:.0f} s the sandbox is still {status}")
    if status != "error":
        code, gone = service.request(key, "DELETE", f"/v1/sandboxes/{sandbox}")
        if code not in (200, 404):
            problems.append(f"it cannot be deleted: {code} {gone}")
    statuses, execs, failures = neighbour.take()
    slowest = max(statuses, default=0.0)
    if failures:
        problems.append(f"the neighbour was not served: {failures[:3]}")
    if slowest > NEIGHBOUR or not statuses:
        problems.append(f"the neighbour's slowest of {len(statuses)} requests took {slowest:.1f} s")
    if "connections" in name:
        print(f"bench: attack_connections_most {most}")
        # The neighbour has some too.
        if most > CONNECTIONS + 50:
            problems.append(f"{most} connections at a time, {CONNECTIONS} are allowed")
    until = time.monotonic() + 20
    while (machines(service), groups(service)) != before and time.monotonic() < until:
        time.sleep(0.1)
    if (machines(service), groups(service)) != before:
        problems.append(f"left behind: {machines(service) - before[0]} {groups(service) - before[1]}")
    label = name.replace("'", "").replace(" ", "_")
    ended = f"ended_s {took:.1f} " if status == "error" else ""
    print(
        f"bench: attack {label} {ended}neighbour_status_ms p50 {percentile(statuses, 0.5) * 1000:.0f} "
        f"p99 {percentile(statuses, 0.99) * 1000:.0f} exec_ms {statistics.median(execs or [0]) * 1000:.0f}",
        flush=True,
    )
    return "; ".join(problems)


def quotas(service, key, other):
    """One tenant takes all that it may have; another still gets a sandbox, and the first does too once it ends one."""
    made, refused = [], None
    for _ in range(QUOTA["sandboxes"] + 2):
        code, answer = create(service, key)
        if code == 201:
            made.append(answer["id"])
        else:
            refused = (code, answer.get("code"))
    problems = []
    if len(made) > QUOTA["sandboxes"] or refused != (429, "QUOTA_EXCEEDED"):
        problems.append(f"{len(made)} sandboxes, the next one: {refused}")
    code, answer = create(service, other)
    if code != 201:
        problems.append(f"another tenant got none: {answer}")
    else:
        service.request(other, "DELETE", f"/v1/sandboxes/{answer['id']}")
    service.request(key, "DELETE", f"/v1/sandboxes/{made.pop()}")
    code, answer = create(service, key)
    if code != 201:
        problems.append(f"no place after one was ended: {answer}")
    else:
        made.append(answer["id"])
    for sandbox in made:
        service.request(key, "DELETE", f"/v1/sandboxes/{sandbox}")
    return "; ".join(problems)


def wait_for_base(service, key):
    until = time.monotonic() + 300
    while time.monotonic() < until:
        code, _ = service.request(key, "GET", "/v1/templates/refs/nullspace%2Fbase%3Alatest")
        if code == 200:
            return
        time.sleep(0.5)
    raise SystemExit("nullspace/base is not there: run `make base`")


def main():
    wanted = sys.argv[1:]
    names = [name for name in ATTACKS if not wanted or any(part in name for part in wanted)]
    settings = {
        "network": "auto" if os.geteuid() == 0 else "user",
        "network_prefix": "nsq",
        "network_pool": "100.97.0.0/20",
        "requests_per_second": 100_000,
        "sandboxes_per_tenant": QUOTA["sandboxes"],
        "memory_mib_per_tenant": QUOTA["memory_mib"],
        "vcpus_per_tenant": QUOTA["vcpus"],
        "network_connections": CONNECTIONS,
        "log": "info",
    }
    tried = survived = 0
    failed = {}
    with Service(**settings) as service:
        evil, good, third = (service.key(tenant) for tenant in ("evil", "good", "third"))
        wait_for_base(service, evil)
        neighbour = Neighbour(service, good)
        try:
            checks = [(name, lambda name=name: attack(service, evil, neighbour, name)) for name in names]
            if not wanted or "quotas" in wanted:
                checks.append(("quotas", lambda: quotas(service, evil, third)))
            for name, check in checks:
                tried += 1
                problem = check()
                if service.process.poll() is not None:
                    problem = f"the service ended with {service.process.returncode}"
                if problem:
                    failed[name] = problem
                    print(f"FAILED {name}: {problem}", flush=True)
                    if service.process.poll() is not None:
                        break
                else:
                    survived += 1
                    print(f"survived {name}", flush=True)
        finally:
            neighbour.end()
        until = time.monotonic() + 30
        while machines(service) and time.monotonic() < until:
            time.sleep(0.1)
        if machines(service) or groups(service):
            failed["the end"] = f"left behind: {machines(service)} {groups(service)}"
            print(f"FAILED the end: {failed['the end']}")
        panics = [line for line in service.lines if "panicked" in line]
        if panics:
            failed["panics"] = panics[:3]
            print(f"FAILED panics: {json.dumps(panics[:3])}")
    print(f"bench: attack_guests tried {tried} survived {survived}")
    print(f"tried {tried} survived {survived}")
    return 1 if failed or survived != tried else 0


if __name__ == "__main__":
    if not PROGRAM.exists():
        raise SystemExit(f"{PROGRAM} is not there: run `make`")
    sys.exit(main())
