"""A running service, and a registry that plays Docker Hub, for tests that are not in Rust.

    with Registry() as hub, Service(hub) as service: …      # both end with the block, and leave nothing behind
"""

import gzip
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "target"
PROGRAM = Path(os.environ.get("NULLSPACE_PROGRAM", TARGET / "debug" / "nullspace"))
GUEST = TARGET / "guest"


def venv(name, *requirements):
    """The Python of a virtual environment under target/ that has these requirements."""
    folder = TARGET / name
    stamp = folder / "requirements"
    wanted = "\n".join(requirements)
    python = folder / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        # Debian's python3 comes without venv, and with virtualenv as a program of its own.
        maker = ["virtualenv", "--quiet"] if shutil.which("virtualenv") else ["python3", "-m", "venv"]
        subprocess.run([*maker, folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements], check=True)
        stamp.write_text(wanted)
    return python


def end(process, seconds=60):
    process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def resident(pid):
    """The resident set of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Memory:
    """The most memory that a process holds meanwhile, in bytes: its resident set, looked at four times a second."""

    def __init__(self, pid):
        self.pid, self.most, self.over = pid, 0, threading.Event()

    def watch(self):
        while True:
            try:
                self.most = max(self.most, resident(self.pid))
            except OSError:
                return
            if self.over.wait(0.25):
                return

    def __enter__(self):
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


class Registry:
    """docker-registry on a loopback port, with images pushed by its HTTP API."""

    def __init__(self):
        self.layers = {}

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="nullspace-hub-")
        self.log = open(Path(self.folder.name) / "log", "w+")
        settings = Path(self.folder.name) / "config.yml"
        settings.write_text(
            "version: 0.1\nlog: {level: warn}\n"
            f"storage: {{filesystem: {{rootdirectory: {self.folder.name}/data}}}}\n"
            "http: {addr: '127.0.0.1:0'}\n"
        )
        # It does not say which port it was given, so one is chosen that was free a moment ago.
        for _ in range(20):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.address = "127.0.0.1:%d" % probe.getsockname()[1]
            env = {**os.environ, "REGISTRY_HTTP_ADDR": self.address, "OTEL_TRACES_EXPORTER": "none"}
            self.process = subprocess.Popen(["docker-registry", "serve", settings], stdout=self.log, stderr=self.log, env=env)
            for _ in range(100):
                if self.process.poll() is not None:
                    break
                try:
                    urllib.request.urlopen(f"http://{self.address}/v2/", timeout=2).close()
                    return self
                except OSError:
                    time.sleep(0.05)
            end(self.process)
        raise SystemExit("docker-registry does not start")

    def __exit__(self, *_):
        end(self.process)
        self.log.close()
        self.folder.cleanup()

    def _send(self, method, url, body, headers):
        if not url.startswith("http"):
            url = f"http://{self.address}{url}"
        request = urllib.request.Request(url, data=body, method=method, headers=headers)
        return urllib.request.urlopen(request, timeout=120)

    def _blob(self, name, data):
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        with self._send("POST", f"/v2/{name}/blobs/uploads/", b"", {}) as begun:
            place = begun.headers["Location"]
        place += ("&" if "?" in place else "?") + "digest=" + digest
        self._send("PUT", place, data, {"Content-Type": "application/octet-stream"}).close()
        return {"digest": digest, "size": len(data)}

    def _layer(self, name, tar):
        """The descriptor of a layer, and the digest of its tar. What a repository has is not sent again."""
        raw = Path(tar).read_bytes()
        digest = "sha256:" + hashlib.sha256(raw).hexdigest()
        if (name, digest) not in self.layers:
            layer = self._blob(name, gzip.compress(raw, 1))
            layer["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip"
            self.layers[name, digest] = layer
        return self.layers[name, digest], digest

    def push(self, name, tag, *tars, **config):
        """An image of one layer for each tar file."""
        layers = [self._layer(name, tar) for tar in tars]
        image = {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [digest for _, digest in layers]},
        }
        described = self._blob(name, json.dumps(image).encode())
        described["mediaType"] = "application/vnd.oci.image.config.v1+json"
        kind = "application/vnd.oci.image.manifest.v1+json"
        manifest = {"schemaVersion": 2, "mediaType": kind, "config": described, "layers": [layer for layer, _ in layers]}
        self._send("PUT", f"/v2/{name}/manifests/{tag}", json.dumps(manifest).encode(), {"Content-Type": kind}).close()


class Docker:
    """Debian's Docker Engine, unpacked, on a socket and with a state of its own, whose Docker Hub is a registry of ours."""

    def __init__(self, hub):
        self.hub = hub

    def __enter__(self):
        subprocess.run([ROOT / "scripts" / "fetch-docker.sh"], check=True)
        self.folder = tempfile.TemporaryDirectory(prefix="nullspace-docker-")
        self.socket = Path(self.folder.name) / "docker.sock"
        self.address = f"unix://{self.socket}"
        # Ports of containers are published by a program: the firewall of this machine is not touched.
        self.process = subprocess.Popen(
            [ROOT / "scripts" / "dockerd.sh", self.folder.name, f"--registry-mirror=http://{self.hub.address}", "--userland-proxy=true"],
            stdout=subprocess.DEVNULL,
        )
        for _ in range(600):
            if self.process.poll() is not None:
                break
            try:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(str(self.socket))
                return self
            except OSError:
                time.sleep(0.1)
        end(self.process)
        self.folder.cleanup()
        raise SystemExit("no Docker Engine: it needs root")

    def env(self):
        """With which the `docker` command, and what runs it, finds this engine and no other."""
        path = f"{TARGET}/docker/usr/bin:{os.environ['PATH']}"
        return {"DOCKER_HOST": self.address, "DOCKER_CONFIG": f"{self.folder.name}/client", "PATH": path}

    def __exit__(self, *_):
        end(self.process)
        self.folder.cleanup()


class Service:
    """`nullspace serve` with a data folder of its own."""

    def __init__(self, hub=None, env=None, **settings):
        self.more = env or {}
        self.settings = {name.upper(): str(value) for name, value in settings.items()}
        if hub is not None:
            self.settings["REGISTRY_MIRRORS"] = f"docker.io=http://{hub.address}"

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="nullspace-test-")
        defaults = {
            "DATA_DIR": self.folder.name + "/data",
            "GUEST_DIR": str(GUEST),
            "ACCEL": "tcg",
            "NETWORK": "user",
            "LISTEN": "127.0.0.1:0",
            # Registries of tests are on loopback, each on a port of its own.
            "PRIVATE_REGISTRIES": "127.0.0.1",
            # The published client's tests reach ports at a host of their own. Guests of these tests reach the loopback, so it must be said.
            "LOCAL_PORTS": "true",
            # Tests that build Dockerfiles name the BuildKit: whatever is installed beside them, they use no other.
            "BUILDKIT": "off",
        }
        env = {key: value for key, value in os.environ.items() if not key.startswith("NULLSPACE_")}
        env.update(self.more)
        for name, value in {**defaults, **self.settings}.items():
            env["NULLSPACE_" + name] = value
        self.env = env
        self.lines = []
        self.start()
        return self

    def start(self):
        """Runs the program, also after it was ended or killed: on the same data."""
        self.process = subprocess.Popen([PROGRAM, "serve"], env=self.env, stderr=subprocess.PIPE, text=True)
        listening = threading.Event()
        process = self.process

        def follow():
            for line in process.stderr:
                self.lines.append(line.rstrip())
                found = re.search(r"listening on (http://\S+)", line)
                if found:
                    self.url = re.sub(r"\x1b\[[0-9;]*m", "", found[1])
                    listening.set()

        threading.Thread(target=follow, daemon=True).start()
        if not listening.wait(60):
            end(self.process)
            raise SystemExit("the service does not listen:\n" + "\n".join(self.lines))

    def key(self, tenant):
        made = subprocess.run([PROGRAM, "keys", "create", "--tenant", tenant], env=self.env, check=True, capture_output=True, text=True)
        return made.stdout.strip()

    def request(self, key, method, path, body=None):
        """Status and JSON of an answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers)
        try:
            # Longer than a command may take in a sandbox (five minutes, in packages.py).
            with urllib.request.urlopen(request, timeout=330) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def wait_for_base(self, key, seconds=600):
        """Waits until sandboxes start from the built-in template, which is built when the service first starts."""
        deadline = time.monotonic() + seconds
        while True:
            status, answer = self.request(key, "POST", "/v1/sandboxes", {"template": "base"})
            if status == 201:
                self.request(key, "DELETE", f"/v1/sandboxes/{answer['id']}")
                return
            if status != 503 or time.monotonic() > deadline:
                raise SystemExit(f"the built-in template is not there after {seconds} s: {status} {answer}")
            time.sleep(1)

    def __exit__(self, *_):
        code = end(self.process)
        self.folder.cleanup()
        if code != 0:
            raise SystemExit(f"the service ended with {code}:\n" + "\n".join(self.lines[-50:]))
