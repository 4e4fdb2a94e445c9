#!/usr/bin/env python3
"""Measure what templates of one base cost a running service.

    nullspace/base ──run: a megabyte of random bytes──> template 1 … 30      a step each, in a real machine
                                                            │
      disk:     what chunks/ and artifacts/ grew by, the memory snapshot apart
      restore:  POST /v1/sandboxes with the raw file there, and with none kept (written back from chunks first)

The last lines are `bench: <figure> <value> <unit>`. Everything is under a folder of its own, which is removed.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
SERVICE = REPOSITORY / "target" / "release" / "nullspace"
# Bound of one wait, seconds.
LIMIT = 600
RESTORES = 8
MIB = 1 << 20
# The guest's memory: everything else of a snapshot counts.
MEMORY = {"memory"}


def say(text):
    print(text, flush=True)


class Service:
    """The service on a folder of its own."""

    def __init__(self, data, **settings):
        self.environment = dict(os.environ, NULLSPACE_DATA_DIR=str(data), **settings)
        key = self.command("keys", "create", "--tenant", "bench")
        self.key = key.stdout.strip()
        self.log = data.parent / "service.log"
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [SERVICE, "serve", "--listen", "127.0.0.1:0"], env=self.environment, stderr=log, stdout=log
            )
        deadline = time.monotonic() + LIMIT
        while True:
            found = re.search(r"listening on (http://\S+)", self.text())
            if found:
                self.url = found[1]
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise SystemExit("the service does not listen:\n" + self.text())
            time.sleep(0.05)

    def text(self):
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(encoding="utf-8", errors="replace"))

    def command(self, *arguments):
        done = subprocess.run([SERVICE, *arguments], env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"nullspace {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done

    def ask(self, method, path, body=None):
        request = urllib.request.Request(self.url + path, method=method)
        request.add_header("authorization", "Bearer " + self.key)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("content-type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=LIMIT) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=LIMIT)


def wait_for_base(service):
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        status, _ = service.ask("GET", "/v1/templates/base")
        if status == 200:
            return
        time.sleep(0.2)
    raise SystemExit("the base template is not built:\n" + service.text())


def build(service, number):
    status, build = service.ask(
        "POST",
        "/v1/templates/builds",
        {
            "name": f"t{number}",
            "base_image": "nullspace/base:latest",
            "build_config": {"memory_mib": 256},
            # Each its own: an equal step would be found in the cache.
            "steps": [{"action": "run", "command": f"head -c 1048576 /dev/urandom > /srv/added # {number}"}],
        },
    )
    if status != 202:
        raise SystemExit(f"a build with a step is refused: {status} {build}")
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        _, state = service.ask("GET", f"/v1/templates/builds/{build['build_id']}")
        state = state.get("build", state)
        if state["status"] == "ready":
            return
        if state["status"] in ("error", "cancelled"):
            raise SystemExit(f"a build failed: {state}")
        time.sleep(0.1)
    raise SystemExit("a build does not end")


def disk_bytes(folder, but=()):
    total = 0
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in but:
            total += path.stat().st_blocks * 512
    return total


def restore(service, number):
    began = time.monotonic()
    status, sandbox = service.ask("POST", "/v1/sandboxes", {"template": f"t{number}"})
    took = (time.monotonic() - began) * 1000
    if status not in (200, 201):
        raise SystemExit(f"no sandbox: {status} {sandbox}")
    identity = sandbox.get("id") or sandbox["sandbox_id"]
    status, size = service.ask(
        "POST", f"/v1/sandboxes/{identity}/exec", {"command": "wc -c < /srv/added", "shell": True}
    )
    if status != 200 or size["stdout"].strip() != "1048576":
        raise SystemExit(f"the sandbox of t{number} lacks its file: {size}")
    service.ask("DELETE", f"/v1/sandboxes/{identity}")
    return took


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--templates", type=int, default=30)
    count = parser.parse_args().templates
    root = pathlib.Path(tempfile.mkdtemp(prefix="nullspace-bench-store.", dir=os.environ.get("TMPDIR", "/var/tmp")))
    data = root / "data"
    service = None
    try:
        service = Service(data)
        wait_for_base(service)
        # The first one, which also warms up, is not counted.
        build(service, 0)
        chunks, artifacts = disk_bytes(data / "chunks"), disk_bytes(data / "artifacts", MEMORY)
        memory = disk_bytes(data / "artifacts") - artifacts
        say(f"the base and one template: {chunks / MIB:.1f} MiB of chunks, {memory / MIB:.1f} MiB of memory")
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda number: build(service, number), range(1, count + 1)))
        say(f"{count} templates built in {time.monotonic() - began:.0f} s")
        grown_chunks = (disk_bytes(data / "chunks") - chunks) / MIB / count
        grown_other = (disk_bytes(data / "artifacts", MEMORY) - artifacts) / MIB / count
        restore(service, 1)
        warm = [restore(service, 1) for _ in range(RESTORES)]
        service.stop()

        service = Service(data, NULLSPACE_ROOTFS_CACHE_MIB="0")
        cold = [restore(service, 1 + number % count) for number in range(RESTORES)]
        written = [int(ms) for ms in re.findall(r"root image written back.*?ms=(\d+)", service.text())]
        service.stop()
        say(service.command("store", "stats").stdout.rstrip())
        began = time.monotonic()
        say(service.command("store", "gc").stdout.rstrip())
        gc_ms = (time.monotonic() - began) * 1000
        say(service.command("store", "verify").stdout.rstrip())
        say(f"written back {len(written)} times, median {statistics.median(written) if written else 0:.0f} ms")
        say(f"bench: step_store_growth_mib_per_template {grown_chunks + grown_other:.3f} MiB")
        say(f"bench: step_store_growth_chunks_mib_per_template {grown_chunks:.3f} MiB")
        say(f"bench: restore_raw_file_there_ms {statistics.median(warm):.0f} ms")
        say(f"bench: restore_written_back_ms {statistics.median(cold):.0f} ms")
        say(f"bench: store_gc_command_ms {gc_ms:.0f} ms")
    finally:
        if service is not None:
            service.stop()
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
