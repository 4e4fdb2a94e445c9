"""An S3 server for benchmarks: SeaweedFS on free loopback ports, in a folder of its own.

    with Server(folder) as server:
        service with server.settings("prefix")
        server.objects("prefix/packs")          the names below a folder of the bucket, as the server's filer has them
"""

import ctypes
import json
import os
import pathlib
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc", "s3.port.grpc", "s3.port")
BUCKET = "bucket"
# From the start to the first answer, seconds.
START = 90
LISTED = 100_000
PR_SET_PDEATHSIG = 1


def free_ports(count):
    """Ports that nobody uses now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Server:
    """A running server with one bucket. Its end is the block's."""

    def __init__(self, folder):
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir(parents=True)
        self.ports = dict(zip(PORTS, free_ports(len(PORTS))))
        self.process = None

    def __enter__(self):
        program = subprocess.run([REPOSITORY / "scripts" / "seaweedfs.sh"], check=True, capture_output=True, text=True).stdout.strip()
        identity = {"name": "bench", "credentials": [{"accessKey": "bench", "secretKey": "bench-secret"}], "actions": ["Read", "Write", "List"]}
        identities = self.folder / "s3.json"
        identities.write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
        arguments = [f"-{name}={port}" for name, port in self.ports.items()]
        arguments += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false"]
        arguments += ["-master.peers=none", "-master.telemetry=false", "-volume.max=40", "-master.volumeSizeLimitMB=256"]
        arguments += ["-volume.minFreeSpacePercent=0", f"-dir={self.data}", f"-s3.config={identities}"]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [program, "server", *arguments], env={"HOME": str(self.folder)}, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, preexec_fn=lambda: ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
        try:
            self.answered(self.ports["s3.port"], "/healthz")
            # A bucket is a folder of the filer.
            self.answered(self.ports["filer.port"], f"/buckets/{BUCKET}/", method="POST")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        # Its sockets have a fixed folder, and its ports in their names.
        for port in self.ports.values():
            for left in pathlib.Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)

    def answered(self, port, path, method="GET"):
        deadline = time.monotonic() + START
        while True:
            try:
                request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
                with urllib.request.urlopen(request, timeout=10):
                    return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("SeaweedFS does not answer: " + (self.folder / "log").read_text(errors="replace")[-2000:]) from None
                time.sleep(0.1)

    def settings(self, prefix):
        """The environment of a service with a store below this prefix."""
        return {
            "NULLSPACE_S3_BUCKET": BUCKET,
            "NULLSPACE_S3_ENDPOINT": f"http://127.0.0.1:{self.ports['s3.port']}",
            "NULLSPACE_S3_PREFIX": prefix,
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench-secret",
        }

    def objects(self, folder):
        """The names of the objects below a folder of the bucket, without folders in it."""
        url = f"http://127.0.0.1:{self.ports['filer.port']}/buckets/{BUCKET}/{folder}/?limit={LISTED}"
        request = urllib.request.Request(url, headers={"accept": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                entries = json.loads(answer.read())["Entries"] or []
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return set()
            raise
        return {pathlib.PurePosixPath(entry["FullPath"]).name for entry in entries}
