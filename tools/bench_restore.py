#!/usr/bin/env python3
"""Measure what a sandbox costs, against the same QEMU driven by nothing but a script.

    registry (this process) --two images--> service --build--> snapshot of a 200 MB root, snapshot of a 2 GB root
                                               |
        ours:  POST /v1/sandboxes, POST .../exec `true`         one keep-alive connection, as a client has
        bare:  qemu-system-x86_64 by itself, same snapshot      taken in turns, each pair in the other order
        pool:  as ours, from a warm pool of one machine         that is full again before the next turn

The bare side is QEMU with the command line of a sandbox that the service has just made (crates/nullspace-vmm,
qemu/args.rs), read from /proc so that the two cannot drift apart. What is the same: binary, devices and their order,
memory size, CPU model, accelerator, cache modes; guest memory is the snapshot's file mapped privately, the disk a new
empty qcow2 overlay over the snapshot's over the root image, the state comes in over a descriptor. The script fills the
sockets before QEMU starts, speaks the agent's protocol itself, and waits as a client does: for the new identity (what a
create waits for), then for the exec's exit. What is left out: HTTP, keys and database; the uid, the seccomp sandbox
(-sandbox), resource limits and the network namespace of each machine (its tap is made once, outside the measured time,
in a namespace that leads nowhere); the sealed copy of the memory file.

Both sides end their machine and rest outside the measured time. In that rest the service also refills its stock of
network namespaces: the figure is that of a sandbox now and then, not of a burst.
"""

import argparse
import base64
import contextlib
import ctypes
import fcntl
import hashlib
import http.client
import http.server
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
TARGET = REPOSITORY / "target"
BENCH = TARGET / "bench"
DATA = BENCH / "data"
SERVICE = TARGET / "release" / "nullspace"
BASE_TAR = TARGET / "guest" / "base.tar"

# Bound of the whole run, seconds.
LIMIT = 450
WARM_UP = 3
# Rest after each measurement, seconds: the machine's remains are removed, a spare namespace is made.
REST = 0.4
FILLER_FILES, FILLER_FILE_BYTES = 180, 10 << 20
START_CMD = "cd /workspace && exec python3 -m http.server 8000"
EXEC = {"command": "true"}


def say(text):
    print(text, flush=True)


def ms(seconds):
    return f"{seconds * 1000:.1f}"


# ---- Images -----------------------------------------------------------------------------------------------------------


def sha256_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def filler_layer():
    """A layer of 1.8 GB that does not compress, made once."""
    path, digest = BENCH / "filler.tar", BENCH / "filler.tar.sha256"
    size = FILLER_FILES * FILLER_FILE_BYTES
    if path.exists() and digest.exists() and path.stat().st_size > size:
        return path, digest.read_text().strip()
    say(f"making a layer of {size >> 20} MiB in {path.relative_to(REPOSITORY)} (once)")
    part = path.with_suffix(".part")
    block = os.urandom(FILLER_FILE_BYTES + FILLER_FILES * 4096)
    with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index in range(FILLER_FILES):
            info = tarfile.TarInfo(f"opt/filler/{index:03}.bin")
            info.size, info.mode = FILLER_FILE_BYTES, 0o644
            data = memoryview(block)[index * 4096 :][:FILLER_FILE_BYTES]
            tar.addfile(info, ReadBuffer(data))
    digest.write_text(sha256_of(part))
    part.rename(path)
    return path, digest.read_text()


class ReadBuffer:
    """The one method that tarfile asks of a file, over memory."""

    def __init__(self, data):
        self.data = data

    def read(self, count):
        taken, self.data = self.data[:count], self.data[count:]
        return bytes(taken)


class Registry:
    """Just enough of the OCI distribution protocol to pull from: the layers are the files where they lie."""

    def __init__(self):
        self.blobs, self.manifests = {}, {}
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body):
                parts = self.path.split("/")
                found = (b"{}", "application/json") if self.path == "/v2/" else None
                if len(parts) > 3 and parts[-2] == "manifests":
                    found = registry.manifests.get(parts[-1])
                elif len(parts) > 3 and parts[-2] == "blobs":
                    found = registry.blobs.get(parts[-1])
                if found is None:
                    return self.send_error(404)
                content, media_type = found
                self.send_response(200)
                self.send_header("Content-Type", media_type)
                is_file = isinstance(content, pathlib.Path)
                self.send_header("Content-Length", str(content.stat().st_size if is_file else len(content)))
                if not is_file:
                    self.send_header("Docker-Content-Digest", "sha256:" + hashlib.sha256(content).hexdigest())
                self.end_headers()
                if body and is_file:
                    with open(content, "rb") as file:
                        self.wfile.flush()
                        self.connection.sendfile(file)
                elif body:
                    self.wfile.write(content)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add_image(self, tag, layers):
        """`layers`: (path, sha256) of plain tars, the lowest first."""
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest for _, digest in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self.blob(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
            "layers": [self.layer(path, digest) for path, digest in layers],
        }
        text = json.dumps(manifest).encode()
        found = (text, manifest["mediaType"])
        self.manifests[tag] = self.manifests["sha256:" + hashlib.sha256(text).hexdigest()] = found
        return f"{self.address}/bench/root:{tag}"

    def blob(self, content, media_type):
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        self.blobs[digest] = (content, media_type)
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def layer(self, path, digest):
        media_type = "application/vnd.oci.image.layer.v1.tar"
        self.blobs["sha256:" + digest] = (path, media_type)
        return {"mediaType": media_type, "digest": "sha256:" + digest, "size": path.stat().st_size}

    def close(self):
        self.server.shutdown()
        self.server.server_close()


# ---- Our side ---------------------------------------------------------------------------------------------------------


class Service:
    """`nullspace serve` with a data folder, a port and a network of its own."""

    def __init__(self):
        letters = "abcdefghijklmnopqrstuvwxyz"
        pid = os.getpid()
        suffix = "".join(letters[(pid // 26**place) % 26] for place in range(4))
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("NULLSPACE_")}
        self.environment.update(
            NULLSPACE_NETWORK_PREFIX="nsb" + suffix,
            NULLSPACE_NETWORK_POOL=f"100.{98 + pid % 16}.0.0/16",
            NULLSPACE_VMM="qemu",
            NULLSPACE_PRIVATE_REGISTRIES="127.0.0.1",
            NULLSPACE_BUILDKIT="off",
        )
        self.environment.update({key: os.environ[key] for key in ("NULLSPACE_QEMU", "NULLSPACE_ACCEL") if key in os.environ})
        self.process = self.connection = self.key = None
        self.log = BENCH / "service.log"

    def start(self):
        with open(self.log, "ab") as log:
            start = log.tell()
            self.process = subprocess.Popen(
                [SERVICE, "serve", "--data-dir", DATA, "--listen", "127.0.0.1:0"],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )
        deadline = time.monotonic() + 60
        while True:
            with open(self.log, "rb") as log:
                log.seek(start)
                found = re.search(rb"listening on http://[^:]*:(\d+)", log.read())
            if found:
                break
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the service does not start:\n" + self.last_words())
            time.sleep(0.05)
        if self.key is None:
            command = [SERVICE, "keys", "create", "--tenant", "bench", "--label", "bench", "--data-dir", DATA]
            made = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True, timeout=30)
            self.key = made.stdout.strip()
        # TCP_NODELAY is http.client's default.
        self.connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)

    def stop(self):
        if self.process is None:
            return
        if self.connection:
            self.connection.close()
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def last_words(self):
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if " method=GET " not in line][-20:])

    def call(self, method, path, body=None):
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        text = None if body is None else json.dumps(body)
        self.connection.request(method, path, body=text, headers=headers)
        response = self.connection.getresponse()
        answer = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {answer.decode(errors='replace')}")
        return json.loads(answer) if answer else None

    def wait_for(self, reference):
        deadline = time.monotonic() + 120
        while True:
            try:
                return self.call("GET", f"/v1/templates/{reference}")
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.25)

    def build(self, name, base, **more):
        """Builds a template; its id, and how long its snapshot took, ms."""
        request = {
            "name": name, "base_image": base, "start_cmd": START_CMD,
            "runtime_config": {"readiness": {"kind": "tcp", "port": 8000}}, **more,
        }
        began = time.monotonic()
        build = self.call("POST", "/v1/templates/builds", request)
        status = f"/v1/templates/builds/{build['build_id']}"
        while True:
            snapshot = self.call("GET", status)
            state = snapshot["build"]["status"]
            if state not in ("waiting", "building"):
                break
            time.sleep(0.25)
        if state != "ready":
            raise RuntimeError(f"build of {name}: {state}: {snapshot['build'].get('error')}")
        log = "\n".join(entry["message"] for entry in snapshot["entries"])
        taken = int(re.search(r"Snapshot taken in (\d+) ms", log)[1])
        say(f"built {name} in {time.monotonic() - began:.1f} s, snapshot taken in {taken} ms")
        return snapshot["build"]["template_id"], taken

    def create(self, template):
        return self.call("POST", "/v1/sandboxes", {"template": template})["id"]

    def delete(self, sandbox):
        self.call("DELETE", f"/v1/sandboxes/{sandbox}")

    def measure(self, template):
        began = time.perf_counter()
        sandbox = self.create(template)
        created = time.perf_counter()
        answer = self.call("POST", f"/v1/sandboxes/{sandbox}/exec", EXEC)
        answered = time.perf_counter()
        self.delete(sandbox)
        if answer["exit_code"] != 0:
            raise RuntimeError(f"exec: {answer}")
        return {"create": created - began, "exec": answered - created, "total": answered - began}

    def pool(self, template):
        """A warm pool of one machine."""
        request = {"name": "bench", "template_ref": template, "min_ready": 1, "max_ready": 1, "resources": {"vcpus": 1, "memory_mb": 512}}
        return self.call("POST", "/v1/template-warm-pools", request)["id"]

    def full(self, pool):
        deadline = time.monotonic() + 60
        while self.call("GET", f"/v1/template-warm-pools/{pool}/status")["ready"] < 1:
            if time.monotonic() > deadline:
                raise RuntimeError("the warm pool does not become full")
            time.sleep(0.05)

    def measure_pool(self, template, pool):
        """As `measure`, from a pool that is full; and returns when it is full again, so that it takes no other side's processor."""
        self.full(pool)
        began = time.perf_counter()
        request = {"template": template, "warm_pool": {"id": pool, "mode": "require"}}
        sandbox = self.call("POST", "/v1/sandboxes", request)["id"]
        created = time.perf_counter()
        answer = self.call("POST", f"/v1/sandboxes/{sandbox}/exec", EXEC)
        answered = time.perf_counter()
        self.delete(sandbox)
        if answer["exit_code"] != 0:
            raise RuntimeError(f"exec: {answer}")
        self.full(pool)
        return {"create": created - began, "exec": answered - created, "total": answered - began}

    def measure_create(self, template):
        began = time.perf_counter()
        sandbox = self.create(template)
        created = time.perf_counter()
        self.delete(sandbox)
        return created - began

    def resident(self):
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return {name: int(value) for name, value in re.findall(r"(VmRSS|RssAnon|RssFile):\s+(\d+) kB", text)}

    def machine(self):
        """Pid of the one QEMU that the service runs."""
        found = []
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == self.process.pid and os.readlink(folder / "exe").rpartition("/")[2].startswith("qemu"):
                    found.append(int(folder.name))
        if len(found) != 1:
            raise RuntimeError(f"the service runs {len(found)} machines, not one")
        return found[0]


# ---- The bare side ----------------------------------------------------------------------------------------------------

MAGIC = 0x31534E9D
HELLO, HELLO_ACK, OPEN, END = 1, 2, 3, 10
HEADER = struct.Struct("<IQIBBHI")


def frame(session, channel, kind, message=None):
    payload = b"" if message is None else json.dumps(message).encode()
    return HEADER.pack(MAGIC, session, channel, kind, 0, 0, len(payload)) + payload


class AgentLink:
    """The host's end of the guest agent's protocol (crates/nullspace-guest), no more of it than is needed here."""

    def __init__(self, connection):
        self.connection, self.buffer = connection, b""
        self.session = random.getrandbits(64)

    def send(self, *frames):
        self.connection.sendall(b"".join(frames))

    def wait_end(self, channel):
        """Reads up to the end of a channel; its outcome."""
        while True:
            while len(self.buffer) >= HEADER.size:
                magic, session, number, kind, _, _, length = HEADER.unpack_from(self.buffer)
                if magic != MAGIC or session != self.session:
                    self.buffer = self.buffer[1:]  # what an older session left half sent
                    continue
                if len(self.buffer) < HEADER.size + length:
                    break
                payload = self.buffer[HEADER.size :][:length]
                self.buffer = self.buffer[HEADER.size + length :]
                if kind == END and number == channel:
                    return json.loads(payload)
            self.buffer += self.read()

    def read(self):
        data = self.connection.recv(1 << 16)
        if not data:
            raise RuntimeError("the bare QEMU has ended")
        return data


class Monitor:
    """QEMU's machine protocol: commands are sent ahead; of the answers only an error matters."""

    def __init__(self, connection):
        self.connection, self.buffer, self.migration = connection, b"", None

    def send(self, *commands):
        self.connection.sendall(b"".join(json.dumps(command).encode() + b"\n" for command in commands))

    def wait(self, condition):
        while not condition(self):
            line, newline, rest = self.buffer.partition(b"\n")
            if not newline:
                data = self.connection.recv(1 << 16)
                if not data:
                    raise RuntimeError("the bare QEMU has ended")
                self.buffer += data
                continue
            self.buffer = rest
            told = json.loads(line)
            if "error" in told:
                raise RuntimeError(f"the bare QEMU refuses: {told['error']}")
            if told.get("event") == "MIGRATION":
                self.migration = told["data"]["status"]
                if self.migration == "failed":
                    raise RuntimeError("the bare QEMU cannot load the state")


def open_tap():
    """A tap in a network namespace that has nothing else: the interface is up, and leads nowhere."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_network = 0x40000000  # CLONE_NEWNET

    def check(result):
        if result != 0:
            raise RuntimeError(f"make a tap: {os.strerror(ctypes.get_errno())}")

    with open("/proc/thread-self/ns/net") as home:
        check(libc.unshare(new_network))
        try:
            tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            tun_set_iff, flags = 0x400454CA, 0x0002 | 0x1000 | 0x4000  # IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
            fcntl.ioctl(tap, tun_set_iff, struct.pack("16sH22x", b"tap0", flags))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
                set_flags, up = 0x8914, 0x1
                fcntl.ioctl(any_socket, set_flags, struct.pack("16sH22x", b"tap0", up))
        finally:
            check(libc.setns(home.fileno(), new_network))
    return tap


class Bare:
    """QEMU as a script would start it, after the model of a machine that the service runs."""

    def __init__(self, model):
        folder = pathlib.Path(f"/proc/{model}")
        text = (folder / "cmdline").read_bytes().decode().split("\0")[:-1]
        self.binary = os.readlink(folder / "exe")
        self.options = []
        words = text[1:]
        for word, following in zip(words, [*words[1:], "-"]):
            if word.startswith("-") and word != "-sandbox":
                value = None if following.startswith("-") else following
                self.options.append((word, "bare" if word == "-name" else value))
        # QEMU keeps copies of the disk's descriptors under other numbers: the files are told apart by where they lie.
        links = {link: os.readlink(link) for link in (folder / "fd").iterdir()}
        places = ((DATA / "rootfs", "/"), (DATA / "snapshots", "/disk.qcow2"), (DATA / "work", "/"))
        files = []
        for place, mark in places:
            found = [link for link, path in links.items() if path.startswith(f"{place}/") and mark in path]
            if not found:
                raise RuntimeError(f"the model has nothing of {place} open")
            files.append(found[0])
        numbers = [int(re.search(r"fd=(\d+)", value)[1]) for word, value in self.options if word == "-add-fd"]
        if len(numbers) != 3:
            raise RuntimeError(f"the model's disk has {len(numbers)} layers, not root image, snapshot and its own")
        self.files = {number: links[link] for number, link in zip(numbers[:2], files)}
        self.overlay = numbers[2]
        self.snapshot = pathlib.Path(links[files[1]]).parent
        self.overlay_header = self.empty_overlay(files[2])
        self.tap = None
        for word, value in self.options:
            if word == "-netdev" and value.startswith("tap,"):
                self.tap = open_tap()

    @staticmethod
    def empty_overlay(model):
        """What the driver writes into a new overlay: the same header and reference counts, over nothing."""
        with open(model, "rb") as file:
            header = bytearray(file.read(104))
            size, l1_entries, l1_offset = (
                int.from_bytes(header[24:32], "big"), int.from_bytes(header[36:40], "big"), int.from_bytes(header[40:48], "big"),
            )
        cluster = 1 << int.from_bytes(header[20:24], "big")
        clusters = l1_offset // cluster + -(-l1_entries * 8 // cluster)
        # The model's guest has written since: its tables may have moved, the dirty bit may be set.
        if l1_offset != 3 * cluster or size == 0:
            raise RuntimeError("the model's overlay is not laid out as expected")
        counts = b"\0\1" * clusters
        return [(0, bytes(header)), (cluster, (2 * cluster).to_bytes(8, "big")), (2 * cluster, counts)], clusters * cluster

    def new_overlay(self):
        pieces, length = self.overlay_header
        file = tempfile.TemporaryFile(dir=DATA / "work", buffering=0)
        file.truncate(length)
        for offset, data in pieces:
            os.pwrite(file.fileno(), data, offset)
        return file

    def measure(self):
        marks = {}
        began = time.perf_counter()

        def mark(name):
            marks[name] = time.perf_counter() - began

        opened, sockets = [], {}
        overlay = process = None
        try:
            def descriptor(number):
                opened.append(number)
                return number

            overlay = self.new_overlay()
            replace = {self.overlay: overlay.fileno()}
            for number, path in self.files.items():
                replace[number] = descriptor(os.open(path, os.O_RDONLY))
            memory = descriptor(os.open(self.snapshot / "memory", os.O_RDWR))
            state = descriptor(os.open(self.snapshot / "state", os.O_RDONLY))
            passed = [memory, state, *replace.values()]
            arguments = [self.binary]
            for word, value in self.options:
                arguments.append(word)
                if value is None:
                    continue
                if word == "-object" and "mem-path=" in value:
                    value = re.sub(r"(mem-path=/proc/self/fd/)\d+", rf"\g<1>{memory}", value)
                elif word == "-add-fd":
                    value = re.sub(r"fd=(\d+)", lambda found: f"fd={replace[int(found[1])]}", value)
                elif word == "-netdev" and self.tap is not None:
                    value = re.sub(r"fd=\d+", f"fd={self.tap}", value)
                    passed.append(self.tap)
                elif word == "-chardev":
                    name = re.search(r"id=(\w+)", value)[1]
                    ours, theirs = socket.socketpair()
                    ours.settimeout(30)
                    sockets[name] = ours
                    value = re.sub(r"fd=\d+", f"fd={theirs.fileno()}", value)
                    passed.append(descriptor(theirs.detach()))
                arguments.append(value)

            monitor, agent = Monitor(sockets["monitor"]), AgentLink(sockets["agent"])
            capabilities = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
            monitor.send(
                {"execute": "qmp_capabilities"},
                {"execute": "migrate-set-capabilities", "arguments": {"capabilities": capabilities}},
                {"execute": "migrate-incoming", "arguments": {"uri": f"fd:{state}"}},
            )
            identity = {
                "op": "restored", "hostname": "bare", "machine_id": os.urandom(16).hex(),
                "entropy": base64.b64encode(os.urandom(64)).decode(), "unix_time_ns": time.time_ns(),
                "network": {"address": "172.30.255.2/29", "gateway": "172.30.255.1", "dns": ["172.30.255.1", "172.30.255.3"]},
            }
            agent.send(frame(agent.session, 0, HELLO), frame(agent.session, 1, OPEN, identity))
            with open(BENCH / "bare.log", "wb") as log:
                process = subprocess.Popen(
                    arguments, pass_fds=passed, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={}, cwd="/",
                )
            mark("started")
            monitor.wait(lambda monitor: monitor.migration == "completed")
            mark("loaded")
            monitor.send(
                {"execute": "set_link", "arguments": {"name": "net0", "up": True}}, {"execute": "cont"},
            )
            restored = agent.wait_end(1)
            mark("create")
            agent.send(frame(agent.session, 2, OPEN, {
                "op": "exec", "argv": [EXEC["command"]], "cwd": "/workspace", "timeout_ms": 30_000, "stdin": False,
                "envs": {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            }))
            exited = agent.wait_end(2)
            mark("total")
            if restored != {"is": "done"} or exited.get("code") != 0:
                raise RuntimeError(f"the bare guest answered {restored}, {exited}")
            marks["exec"] = marks["total"] - marks["create"]
            return marks
        except (RuntimeError, TimeoutError) as error:
            raise RuntimeError(f"{error}\n{(BENCH / 'bare.log').read_text(errors='replace')}") from error
        finally:
            for number in opened:
                os.close(number)
            if overlay is not None:
                overlay.close()
            if process is not None:
                process.kill()
                process.wait()
            for connection in sockets.values():
                connection.close()

    def close(self):
        if self.tap is not None:
            os.close(self.tap)


# ---- The run ----------------------------------------------------------------------------------------------------------


def in_turns(rounds, *sides):
    """Runs all sides in each round, every second round backwards; a list of results for each side."""
    results = [[] for _ in sides]
    for round_number in range(rounds):
        order = list(enumerate(sides))
        for index, side in order if round_number % 2 == 0 else reversed(order):
            results[index].append(side())
            time.sleep(REST)
    return results


def median_of(results, name):
    return statistics.median(result[name] for result in results)


def run(service, arguments):
    base = (BASE_TAR, sha256_of(BASE_TAR))
    filler = filler_layer()
    registry = Registry()
    try:
        small = registry.add_image("200m", [base])
        large = registry.add_image("2g", [base, filler])
        service.start()
        service.wait_for("nullspace%2Fbase")
        small_id, first = service.build("bench-200m", small)
        large_id, second = service.build("bench-2g", large)
        # The same image once more: other variables make it another template, so that a machine is snapshotted.
        _, third = service.build("bench-again", small, build_envs={"AGAIN": "1"})
    finally:
        registry.close()
    snapshots = [first, second, third]

    model = service.create(small_id)
    bare = Bare(service.machine())
    try:
        service.delete(model)
        for _ in range(WARM_UP):
            in_turns(1, lambda: service.measure(small_id), bare.measure, lambda: service.measure_create(large_id))
        say(f"{arguments.pairs} turns of create -> first exec answered")
        pool = service.pool(small_id)
        service.measure_pool(small_id, pool)
        ours, bares, pooled = in_turns(
            arguments.pairs, lambda: service.measure(small_id), bare.measure, lambda: service.measure_pool(small_id, pool)
        )
        service.call("DELETE", f"/v1/template-warm-pools/{pool}")
    finally:
        bare.close()
    say(f"{arguments.creates} pairs of create, from the small and from the large image")
    small_creates, large_creates = in_turns(
        arguments.creates, lambda: service.measure_create(small_id), lambda: service.measure_create(large_id)
    )

    # A new process: nothing is loaded, the templates are there, one request was answered.
    service.stop()
    service.start()
    service.wait_for("nullspace%2Fbase")
    time.sleep(2)
    resident = service.resident()
    service.stop()

    say("\nmedians, ms          create     exec    total")
    for name, results in (("ours", ours), ("bare", bares), ("pool", pooled)):
        create, execute, total = (ms(median_of(results, part)) for part in ("create", "exec", "total"))
        say(f"  {name:<16} {create:>8} {execute:>8} {total:>8}")
    say(f"  bare, in detail: QEMU started {ms(median_of(bares, 'started'))}, state loaded {ms(median_of(bares, 'loaded'))}, "
        f"new identity {ms(median_of(bares, 'create'))}, exec answered {ms(median_of(bares, 'total'))}")
    # Of each pair, whose two sides ran in the same second: load that comes and goes does not decide.
    over_bare = statistics.median(one["total"] / other["total"] for one, other in zip(ours, bares))
    pool_over_bare = statistics.median(one["total"] / other["total"] for one, other in zip(pooled, bares))
    large_over_small = statistics.median(large / small for large, small in zip(large_creates, small_creates))
    of_medians = median_of(ours, "total") / median_of(bares, "total")
    say(f"  the ratio below is the median of the pairs' ratios; that of the medians is {of_medians:.3f}")
    say(f"  create from 200 MB {ms(statistics.median(small_creates))}, from 2 GB {ms(statistics.median(large_creates))}")
    say(f"  snapshots {snapshots} ms; idle: {resident} kB\n")

    figures = [
        ("restore_over_bare", over_bare, ".3f", "ratio"),
        ("create_2g_over_200m", large_over_small, ".3f", "ratio"),
        ("create_to_exec_over_bare_pool", pool_over_bare, ".3f", "ratio"),
        ("create_to_exec_ms", median_of(ours, "total") * 1000, ".1f", "ms"),
        ("create_to_exec_pool_ms", median_of(pooled, "total") * 1000, ".1f", "ms"),
        ("snapshot_ms", statistics.median(snapshots), ".0f", "ms"),
        ("idle_rss_mib", resident["VmRSS"] / 1024, ".1f", "MiB"),
    ]
    for name, value, digits, unit in figures:
        say(f"bench: {name} {value:{digits}} {unit}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=40, help="pairs of ours and bare (default 40)")
    parser.add_argument("--creates", type=int, default=20, help="pairs of small and large image (default 20)")
    arguments = parser.parse_args()

    def end(number, _frame):
        raise TimeoutError(f"{LIMIT} s are over" if number == signal.SIGALRM else "stopped")

    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    signal.alarm(LIMIT)
    BENCH.mkdir(parents=True, exist_ok=True)
    lock = open(BENCH / "lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"bench-restore: another run uses {BENCH}")
    shutil.rmtree(DATA, ignore_errors=True)
    service = Service()
    service.log.write_bytes(b"")
    try:
        run(service, arguments)
    except (RuntimeError, TimeoutError, OSError) as error:
        sys.exit(f"bench-restore: {error}\nThe service's log ends with:\n{service.last_words()}")
    finally:
        signal.alarm(0)
        service.stop()
        shutil.rmtree(DATA, ignore_errors=True)


if __name__ == "__main__":
    main()
