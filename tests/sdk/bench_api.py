#!/usr/bin/env python3
"""200 clients poll and stream one build's log while 20 builds run: `bench: status_p99_ms …`, `bench: log_lines_per_s …`."""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from running import PROGRAM, Registry, Service

CLIENTS = os.environ.get("BENCH_CLIENTS", "200")
BUILDS = os.environ.get("BENCH_BUILDS", "20")


def busybox(folder):
    """A tar of the smallest root that runs a shell."""
    path = Path(folder) / "busybox.tar"
    with tarfile.open(path, "w") as tar:
        for name in ["bin", "etc", "tmp", "dev", "proc", "sys", "root", "workspace"]:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add("/bin/busybox", "bin/busybox")
        for name in ["sh", "sleep", "echo", "cat"]:
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
        data = b"root:x:0:0:root:/root:/bin/sh\n"
        entry = tarfile.TarInfo("etc/passwd")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return path


def main():
    with tempfile.TemporaryDirectory() as folder, Registry() as hub:
        hub.push("box", "1", busybox(folder), Cmd=["/bin/sh"])
        with Service(hub, requests_per_second=100000, build_concurrency=2) as service:
            env = {**os.environ, "NULLSPACE_API_KEY": service.key("bench")}
            program = PROGRAM.parent / "examples" / "bench_api"
            return subprocess.run([program, service.url, f"{hub.address}/box:1", CLIENTS, BUILDS], env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
