#!/usr/bin/env python3
"""What a rebuild costs: nothing changed, last step changed, first step changed, base image's tag moved.

Times are from POST to ready. The floor of a changed last step is one boot of a machine and the step itself, both taken from
the log of the very build that is measured.
"""

import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench_api import busybox
from running import Registry, Service

RUNS = 5


def build(service, key, request):
    """Milliseconds from POST to ready, and the build's status with its log."""
    began = time.monotonic()
    status, started = service.request(key, "POST", "/v1/templates/builds", request)
    if status != 202:
        raise SystemExit(f"refused with {status}: {started}")
    path = f"/v1/templates/builds/{started['build_id']}"
    while True:
        status, answer = service.request(key, "GET", f"{path}?offset=1000000")
        if status != 200:
            raise SystemExit(f"status refused with {status}: {answer}")
        if answer["build"]["status"] in ("ready", "error", "cancelled"):
            break
        time.sleep(0.003)
    took = (time.monotonic() - began) * 1000
    _, answer = service.request(key, "GET", path)
    if answer["build"]["status"] != "ready":
        raise SystemExit("\n".join(entry["message"] for entry in answer["entries"]))
    return took, answer


def logged(answer, pattern):
    """The numbers of all log lines that match."""
    found = (re.search(pattern, entry["message"]) for entry in answer["entries"])
    return [int(match[1]) for match in found if match]


def counters(answer):
    summary = answer["build"]["cache_summary"]
    return " ".join(f"{name}={count}" for name, count in sorted(summary.items()) if count)


def main():
    with tempfile.TemporaryDirectory() as folder, Registry() as hub:
        tar = busybox(folder)
        hub.push("box", "1", tar, Cmd=["/bin/sh"])
        # Asked every few milliseconds, for the sake of the figures.
        with Service(hub, requests_per_second=100000) as service:
            key = service.key("bench")

            def request(first="first", last="last"):
                steps = [
                    {"action": "run", "command": f"echo {first} > /workspace/first"},
                    {"action": "make_dir", "path": "/srv/data"},
                    {"action": "workdir", "path": "/srv/app"},
                    {"action": "run", "command": f"echo {last} > last; sleep 0.2"},
                ]
                return {"name": "bench", "base_image": f"{hub.address}/box:1", "steps": steps, "start_cmd": "exec sleep 1000000",
                        "runtime_config": {"readiness": {"kind": "command", "command": "test -e /srv/app/last"}},
                        "build_config": {"memory_mib": 192}}

            cases = {"nothing before": [build(service, key, request())]}
            cases["nothing changed"] = [build(service, key, request()) for _ in range(RUNS)]
            cases["last step changed"] = [build(service, key, request(last=f"last{n}")) for n in range(RUNS)]
            cases["first step changed"] = [build(service, key, request(first=f"first{n}")) for n in range(RUNS)]
            moved = []
            for number in range(RUNS):
                hub.push("box", "1", tar, Cmd=["/bin/sh"], Env=[f"MOVED={number}"])
                moved.append(build(service, key, request()))
            cases["tag moved"] = moved
            for name, runs in cases.items():
                times = [took for took, _ in runs]
                print(f"{name:20} {statistics.median(times):7.0f} ms ({min(times):.0f} to {max(times):.0f})  {counters(runs[-1][1])}")
            ratios = []
            for took, answer in cases["last step changed"]:
                floor = logged(answer, r"Machine booted in (\d+) ms")[0] + sum(logged(answer, r"^Done in (\d+) ms"))
                ratios.append(took / floor)
            noop = statistics.median(took for took, _ in cases["nothing changed"])
    print(f"bench: rebuild_noop_ms {noop:.0f}")
    print(f"bench: rebuild_last_step_over_boot_plus_step {statistics.median(ratios):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
