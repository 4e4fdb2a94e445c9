#!/usr/bin/env python3
"""What the life of a sandbox costs: pauses with little and much dirtied memory, resumes, forks one at a time and ten at once,
and what an idle paused sandbox takes in the store.

    busybox, 1 GiB ──create──> exec: fill /dev/shm ──pause──> snapshot ──resume──> first exec     with 7 and with 500 MB
    busybox, 192 MiB ──fork──> first exec                                                         one, and ten at once

A pause is measured from its request to its answer, as a client sees it: the sandbox is captured and named then, and stored behind the
answer; what it adds to the store is measured after that. What a pause costs for each 100 MiB is compared with the same bytes, written into
a file beside the data folder and flushed. Resumes and forks are measured to the answer of the first command. As root each machine has a network of its own, as by default; else QEMU's user network, with
which a pause sends all memory through a second machine. The last lines are `bench: <figure> <value> <unit>`.
"""

import concurrent.futures
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench_api import busybox
from bench_rebuild import build
from running import Registry, Service

RUNS = int(os.environ.get("BENCH_RUNS", "5"))
# An emulated guest on a busy machine makes some MB of random bytes a second.
PATIENCE_SECS = 300
MIB = 1 << 20


class Bench:
    def __init__(self, service):
        self.service, self.key = service, service.key("bench")

    def ask(self, method, path, body=None):
        status, answer = self.service.request(self.key, method, path, body)
        if status >= 300:
            raise SystemExit(f"{method} {path}: {status} {answer}")
        return answer

    def run(self, sandbox, command):
        answer = self.ask("POST", f"/v1/sandboxes/{sandbox}/exec", {"command": "sh", "args": ["-c", command], "timeout_secs": PATIENCE_SECS})
        if answer["exit_code"] != 0:
            raise SystemExit(f"{command}: {answer}")
        return answer["stdout"]

    def create(self, template):
        return self.ask("POST", "/v1/sandboxes", {"template": template, "timeout_ms": 3_600_000})["id"]

    def to_exec(self, begin):
        """Milliseconds until a new sandbox has answered its first command, and the sandbox."""
        began = time.monotonic()
        sandbox = begin()
        self.run(sandbox, "echo up")
        return (time.monotonic() - began) * 1000, sandbox

    def pause(self, sandbox):
        began = time.monotonic()
        snapshot = self.ask("POST", f"/v1/sandboxes/{sandbox}/hibernate")
        return (time.monotonic() - began) * 1000, snapshot

    def end(self, sandbox):
        self.ask("DELETE", f"/v1/sandboxes/{sandbox}")

    def publications(self):
        """Paused sandboxes that were stored so far."""
        return sum("a paused sandbox is stored" in line for line in self.service.lines)

    def pause_stored(self, sandbox):
        """A pause, and the wait until it is stored."""
        before = self.publications()
        took, snapshot = self.pause(sandbox)
        deadline = time.monotonic() + PATIENCE_SECS
        while self.publications() == before:
            if time.monotonic() > deadline:
                raise SystemExit(f"{sandbox} is not stored")
            time.sleep(0.02)
        return took, snapshot

    def stored(self):
        """Bytes of the packs in the data folder."""
        return sum(file.stat().st_size for file in Path(self.service.folder.name, "data", "chunks").rglob("*") if file.is_file())


def dirtied(bench, megabytes):
    """Medians of pause and of resume to the first exec, after so many megabytes were written to memory since the start."""
    pauses, resumes = [], []
    for _ in range(RUNS):
        sandbox = bench.create("large")
        bench.run(sandbox, "mkdir -p /dev/shm && mount -t tmpfs -o size=900m tmpfs /dev/shm"
                           f" && dd if=/dev/urandom of=/dev/shm/dirty bs=1000000 count={megabytes} && sync")
        took, snapshot = bench.pause(sandbox)
        pauses.append(took)
        took, resumed = bench.to_exec(lambda: bench.ask("POST", f"/v1/sandboxes/{snapshot['id']}/resume")["id"])
        resumes.append(took)
        # In blocks: head and wc of busybox need minutes of an emulated guest.
        read = bench.run(resumed, "dd if=/dev/shm/dirty of=/dev/null bs=1000000 2>&1")
        if f"{megabytes}+0 records in" not in read:
            raise SystemExit(f"{megabytes} MB were written, and read again: {read}")
        bench.end(resumed)
    print(f"{megabytes} MB dirtied: pause {sorted(map(round, pauses))} ms, resume to exec {sorted(map(round, resumes))} ms")
    return statistics.median(pauses), statistics.median(resumes)


def idle(bench):
    """Medians of the pause of a sandbox that did nothing, and of what it adds to the store, MiB."""
    pauses, stored = [], []
    for _ in range(RUNS):
        sandbox = bench.create("small")
        before = bench.stored()
        took, _ = bench.pause_stored(sandbox)
        pauses.append(took)
        stored.append((bench.stored() - before) / MIB)
        bench.end(sandbox)
    print(f"idle: pause {sorted(map(round, pauses))} ms, stored {[f'{mib:.1f}' for mib in stored]} MiB")
    return statistics.median(pauses), statistics.median(stored)


def forks(bench):
    """Medians of a fork to its first exec, and of ten at once until all have answered."""
    source = bench.create("small")

    def fork():
        return bench.to_exec(lambda: bench.ask("POST", f"/v1/sandboxes/{source}/fork")["id"])

    one, ten = [], []
    for _ in range(RUNS):
        took, child = fork()
        one.append(took)
        bench.end(child)
    for _ in range(2):
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(10) as threads:
            children = [child for _, child in threads.map(lambda _: fork_patiently(bench, source), range(10))]
        ten.append((time.monotonic() - began) * 1000)
        for child in children:
            bench.end(child)
    bench.end(source)
    print(f"forks: one {sorted(map(round, one))} ms, ten at once {sorted(map(round, ten))} ms")
    return statistics.median(one), statistics.median(ten)


def flushed(service, megabytes):
    """Median of the milliseconds that writing and flushing so many megabytes take."""
    took, bytes_ = [], os.urandom(1_000_000)
    path = Path(service.folder.name, "floor")
    for _ in range(RUNS):
        began = time.monotonic()
        with open(path, "wb") as file:
            for _ in range(megabytes):
                file.write(bytes_)
            file.flush()
            os.fsync(file.fileno())
        took.append((time.monotonic() - began) * 1000)
        path.unlink()
    print(f"{megabytes} MB written and flushed: {sorted(map(round, took))} ms")
    return statistics.median(took)


def fork_patiently(bench, source):
    """A fork to its first exec; asked for again while another one of the same sandbox is under way."""
    def begin():
        while True:
            status, answer = bench.service.request(bench.key, "POST", f"/v1/sandboxes/{source}/fork")
            if status == 201:
                return answer["id"]
            if status != 409 or answer["code"] != "transition_in_progress":
                raise SystemExit(f"fork: {status} {answer}")
            time.sleep(0.01)
    return bench.to_exec(begin)


def main():
    with tempfile.TemporaryDirectory() as folder, Registry() as hub:
        hub.push("box", "1", busybox(folder), Cmd=["/bin/sh"])
        network = "namespaces" if os.geteuid() == 0 else "user"
        with Service(hub, requests_per_second=100000, memory_mib_per_tenant=16384, memory_mib=16384, network=network) as service:
            bench = Bench(service)
            for name, memory in (("large", 1024), ("small", 192)):
                build(service, bench.key, {"name": name, "base_image": f"{hub.address}/box:1", "start_cmd": "exec sleep 1000000",
                                           "build_config": {"memory_mib": memory}})
            creates = []
            for _ in range(RUNS):
                took, sandbox = bench.to_exec(lambda: bench.create("large"))
                creates.append(took)
                bench.end(sandbox)
            create = statistics.median(creates)
            print(f"create to exec {sorted(map(round, creates))} ms")
            pause, stored = idle(bench)
            little = dirtied(bench, 7)
            much = dirtied(bench, 500)
            floor = flushed(service, 493)
            fork, ten = forks(bench)
    hundreds = (500 - 7) * 1_000_000 / (100 * MIB)
    per_100 = (much[0] - little[0]) / hundreds
    print(f"bench: pause_ms {pause:.0f} ms")
    print(f"bench: pause_ms_per_100mib_dirty {per_100:.0f} ms")
    print(f"bench: flush_ms_per_100mib {floor / hundreds:.0f} ms")
    print(f"bench: pause_per_100mib_over_flush {per_100 * hundreds / floor:.2f} ratio")
    print(f"bench: create_to_exec_ms {create:.0f} ms")
    for name, (_, resume) in (("7mb", little), ("500mb", much)):
        print(f"bench: resume_to_exec_ms_{name} {resume:.0f} ms")
        print(f"bench: resume_over_create_{name} {resume / create:.2f} ratio")
    print(f"bench: fork_ms {fork:.0f} ms")
    print(f"bench: fork_10_ms {ten:.0f} ms")
    print(f"bench: paused_stored_mib_idle {stored:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
