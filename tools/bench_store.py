#!/usr/bin/env python3
"""Measure what templates of one base cost a running service.

    nullspace/base ──run: a megabyte of random bytes──> template 1 … 30      a step each, in a real machine
                                                            │
      memory:   what the base's snapshot and a second template's (python3 -m http.server, as in the demo) cost in the store
      disk:     what chunks/ grew by for each template, its memory included
      restore:  POST /v1/sandboxes with the raw files there, and with none kept (written back from chunks first, which are read
                from the disk: they are dropped from the page cache)
      S3:       the same with an S3 store (SeaweedFS on loopback): the chunks in the data folder, and only in the store, in turn;
                the service is restarted before each

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

import seaweedfs

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
SERVICE = pathlib.Path(os.environ.get("NULLSPACE_PROGRAM", REPOSITORY / "target" / "release" / "nullspace")).resolve()
# Bound of one wait, seconds.
LIMIT = 600
RESTORES = 8
S3_ROUNDS = 5
MIB = 1 << 20


def say(text):
    print(text, flush=True)


class Service:
    """The service on a folder of its own."""

    def __init__(self, data, **settings):
        self.environment = dict(os.environ, NULLSPACE_DATA_DIR=str(data), NULLSPACE_BUILDKIT="off", **settings)
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


def with_a_step(number):
    return {
        "name": f"t{number}",
        "base_image": "nullspace/base:latest",
        "build_config": {"memory_mib": 256},
        # Each its own: an equal step would be found in the cache.
        "steps": [{"action": "run", "command": f"head -c 1048576 /dev/urandom > /srv/added # {number}"}],
    }


DEMO_WEB = {
    "name": "demo-web",
    "base_image": "nullspace/base:latest",
    "start_cmd": "python3 -m http.server 8000",
    "runtime_config": {"readiness": {"kind": "tcp", "port": 8000}},
}


def build(service, request):
    status, build = service.ask("POST", "/v1/templates/builds", request)
    if status != 202:
        raise SystemExit(f"a build with a step is refused: {status} {build}")
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        _, state = service.ask("GET", f"/v1/templates/builds/{build['build_id']}")
        state = state.get("build", state)
        if state["status"] == "ready":
            return build
        if state["status"] in ("error", "cancelled"):
            raise SystemExit(f"a build failed: {state}")
        time.sleep(0.1)
    raise SystemExit("a build does not end")


def disk_bytes(folder):
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def snapshot_costs(service):
    """MiB in the store of each template's snapshot: alone, and shared with others."""
    lines = re.findall(r"^(tmpl_\w+)\S* +([\d.]+) MiB alone, +([\d.]+) MiB shared", service.command("store", "stats").stdout, re.M)
    return {template: (float(alone), float(shared)) for template, alone, shared in lines}


def snapshot_ms(service, build):
    _, log = service.ask("GET", f"/v1/templates/builds/{build['build_id']}?offset=0")
    return int(re.search(r"Snapshot taken in (\d+) ms", json.dumps(log))[1])


def drop_from_page_cache(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def drop_page_cache(*folders):
    """All of it where that is allowed, else that of the files in these folders."""
    os.sync()
    try:
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("1", encoding="ascii")
    except OSError:
        for folder in folders:
            drop_from_page_cache(folder)


def wait_for_upload(server, data, prefix):
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        missing = 0
        for kind in ("packs", "manifests"):
            stored = {name.split(".")[0] for name in server.objects(f"{prefix}/{kind}")}
            missing += sum(path.name.split(".")[0] not in stored for path in (data / "chunks" / kind).iterdir())
        if missing == 0:
            return
        time.sleep(0.2)
    raise SystemExit(f"{missing} files of the data folder are not in the store")


def restore_with_store(root, data, rounds):
    """Milliseconds of cold restores of one template: its chunks in the data folder, and in the store alone."""
    local, stored = [], []
    with seaweedfs.Server(root / "s3") as server:
        settings = server.settings("bench")
        service = Service(data, **settings)
        try:
            began = time.monotonic()
            wait_for_upload(server, data, "bench")
            size = disk_bytes(data / "chunks") / MIB
            say(f"store added to the data folder: {size:.0f} MiB uploaded in {time.monotonic() - began:.1f} s")
            for _ in range(rounds):
                for caches, took in ((("snapshots", "rootfs"), local), (("snapshots", "rootfs", "chunks/packs"), stored)):
                    # The packs that this template needs are in the folder at the start, and again after each round.
                    service.stop()
                    for cache in caches:
                        for path in (data / cache).iterdir():
                            shutil.rmtree(path) if path.is_dir() else path.unlink()
                    drop_page_cache(data / "chunks", server.data)
                    service = Service(data, **settings)
                    took.append(restore(service, 1))
        finally:
            service.stop()
    return local, stored


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
        [(base_alone, base_shared)] = snapshot_costs(service).values()
        base_raw = disk_bytes(data / "snapshots") / MIB
        second = build(service, DEMO_WEB)
        second_ms = snapshot_ms(service, second)
        second_alone, _ = snapshot_costs(service)[second["template_id"]]
        raw = disk_bytes(data / "snapshots") / MIB
        say(f"snapshots of the base and demo-web: {base_raw:.1f} and {raw - base_raw:.1f} MiB as raw files")
        # The first one, which also warms up, is not counted.
        build(service, with_a_step(0))
        chunks = disk_bytes(data / "chunks")
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda number: build(service, with_a_step(number)), range(1, count + 1)))
        say(f"{count} templates built in {time.monotonic() - began:.0f} s")
        grown = (disk_bytes(data / "chunks") - chunks) / MIB / count
        restore(service, 1)
        warm = [restore(service, 1) for _ in range(RESTORES)]
        service.stop()

        service = Service(data, NULLSPACE_ROOTFS_CACHE_MIB="0")
        cold = []
        for number in range(RESTORES):
            drop_from_page_cache(data / "chunks")
            cold.append(restore(service, 1 + number % count))
        written = [int(ms) for ms in re.findall(r"root image written back.*?ms=(\d+)", service.text())]
        snapshots = re.findall(r"snapshot written back.*?bytes=(\d+).*?ms=(\d+)", service.text())
        per_100 = [int(ms) / (int(size) / MIB / 100) for size, ms in snapshots]
        service.stop()
        say(service.command("store", "stats").stdout.rstrip())
        began = time.monotonic()
        say(service.command("store", "gc").stdout.rstrip())
        gc_ms = (time.monotonic() - began) * 1000
        say(service.command("store", "verify").stdout.rstrip())
        say(f"written back {len(written)} times, median {statistics.median(written) if written else 0:.0f} ms")
        say(f"bench: memory_stored_mib {base_alone + base_shared:.1f} MiB")
        say(f"bench: memory_stored_second_mib {second_alone:.1f} MiB")
        say(f"bench: memory_stored_over_raw {(base_alone + base_shared + second_alone) / raw:.3f} ratio")
        say(f"bench: snapshot_ms {second_ms} ms")
        say(f"bench: restore_cold_ms_per_100mib {statistics.median(per_100):.0f} ms")
        say(f"bench: step_store_growth_with_memory_mib_per_template {grown:.3f} MiB")
        say(f"bench: restore_raw_file_there_ms {statistics.median(warm):.0f} ms")
        say(f"bench: restore_written_back_ms {statistics.median(cold):.0f} ms")
        say(f"bench: store_gc_command_ms {gc_ms:.0f} ms")
        local, stored = restore_with_store(root, data, S3_ROUNDS)
        say(f"cold restores, chunks here: {[round(ms) for ms in local]} ms; in the store: {[round(ms) for ms in stored]} ms")
        local, stored = statistics.median(local), statistics.median(stored)
        say(f"bench: restore_local_cold_ms {local:.0f} ms")
        say(f"bench: restore_s3_cold_ms {stored:.0f} ms")
        say(f"bench: restore_s3_over_local_cold {stored / local:.2f} ratio")
    finally:
        if service is not None:
            service.stop()
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
