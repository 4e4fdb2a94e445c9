#!/usr/bin/env python3
"""The service's memory after 150 builds whose logs are followed, by followers that leave early and some that stay to the end.

The first builds fill what a running service keeps once: SQLite's pages, pools, threads. Memory is measured after them, and again
after 150 more, each with a log of 400 lines that three followers read. A step writes the lines and fails, so that no snapshot is taken:
what is measured are logs and their followers. Memory is what is the process's own (RssAnon): pages of the program's file come and go.
What may stay is bounded, whatever the number of builds: 16 MiB of logs that followers share (shared_reads.rs), and 8 MiB that the
allocator does not give back. Exits with 1 beyond that.

    memory.py [--builds 150] [--first 10]
"""

import argparse
import concurrent.futures
import http.client
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sdk"))

from bench_api import busybox  # noqa: E402
from running import Registry  # noqa: E402
from victim import Fault, Victim, check, until  # noqa: E402

# Lines that each build's step writes.
LINES = 400
# Followers of each build: some leave after their first bytes.
LEAVE, STAY = 2, 1
# MiB that may stay: 16 of shared logs and 8 of the allocator's.
BOUND = 24


def own(victim):
    with open(f"/proc/{victim.process.pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon:")) / 1024


def settled(victim):
    """The memory once nothing runs: the least of ten looks, half a second apart."""
    seen = []
    for _ in range(10):
        time.sleep(0.5)
        seen.append(own(victim))
    return min(seen)


def follow(victim, build, leaves):
    """Reads a build's log as it is written, and goes away after its first bytes if it `leaves`."""
    host, port = victim.url.removeprefix("http://").split(":")
    stream = http.client.HTTPConnection(host, int(port), timeout=300)
    headers = {"Authorization": f"Bearer {victim.tenant}", "Accept": "text/event-stream"}
    stream.request("GET", f"/v1/templates/builds/{build}/logs?follow=true", headers=headers)
    answer = stream.getresponse()
    check(answer.status == 200, f"a log cannot be followed: {answer.status}")
    read = len(answer.read1(4096))
    while not leaves:
        more = len(answer.read1(1 << 16))
        if more == 0:
            break
        read += more
    stream.close()
    return read


def build(victim, number):
    """One build with followers. The step is its own, so that it runs and writes."""
    line = f"i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo build {number} line $i of a log that somebody follows; done; exit 3"
    body = {
        "name": f"m{number}",
        "base_image": "box:1",
        "steps": [{"action": "run", "command": line}],
        "build_config": {"memory_mib": 128, "disk_mb": 512},
    }
    code, answer = victim.api("POST", "/v1/templates/builds", body)
    check(code == 202, f"a build is refused: {code} {answer}")
    read = []
    followers = [
        threading.Thread(target=lambda leaves=leaves: read.append((leaves, follow(victim, answer["build_id"], leaves))))
        for leaves in [True] * LEAVE + [False] * STAY
    ]
    for follower in followers:
        follower.start()
    over = victim.finished(answer["build_id"])
    for follower in followers:
        follower.join(120)
    detail = over["build"].get("error_detail") or {}
    reason = (detail.get("details") or {}).get("reason")
    check(reason == "build_step_nonzero_exit", f"build {number} ended otherwise: {over['build']['status']} {detail}")
    check(len(read) == LEAVE + STAY, f"followers of build {number} have not ended: {read}")
    whole = [count for leaves, count in read if not leaves]
    check(min(whole) > LINES * 20, f"a follower of build {number} has not read the log: {read}")
    victim.api("DELETE", f"/v1/templates/m{number}")


def run(victim, numbers):
    """These builds, two at a time."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for _ in pool.map(lambda number: build(victim, number), numbers):
            pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--builds", type=int, default=150)
    parser.add_argument("--first", type=int, default=10, help="builds before the first measurement")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Registry() as hub:
        hub.push("library/box", "1", busybox(folder), Cmd=["/bin/sh"])
        with Victim(hub, build_concurrency=2, requests_per_second=100000) as victim:
            idle = settled(victim)
            try:
                run(victim, range(options.first))
                before = settled(victim)
                first, last = options.first, options.first + options.builds
                for some in range(first, last, 25):
                    run(victim, range(some, min(some + 25, last)))
                    print(f"after {min(some + 25, last)} builds: {own(victim):.1f} MiB", flush=True)
                after = settled(victim)
            except Fault as fault:
                print(f"FAULT: {fault}\n" + "\n".join(victim.lines[-40:]))
                return 1
            until(lambda: victim.ready() == 200, "/readyz")
    print(f"bench: own_idle_mib {idle:.1f} MiB")
    print(f"bench: own_before_builds_mib {before:.1f} MiB")
    print(f"bench: own_after_builds_mib {after:.1f} MiB")
    grown = after - before
    survived = int(grown <= BOUND)
    print(f"{options.builds} builds with {LEAVE + STAY} followers each: {grown:+.1f} MiB, at most {BOUND}")
    print(f"tried 1 survived {survived}")
    return 0 if survived else 1


if __name__ == "__main__":
    sys.exit(main())
