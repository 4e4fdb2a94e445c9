#!/usr/bin/env python3
"""The service as a tenant's way to what only its host reaches, and digests as a tenant's way to another's image.

    tenant ──base_image──> service ──> loopback, private and link-local addresses: a trap that counts who comes
    tenant ──base_image──> service ──> a registry of the tenant's: redirects, token realms ──> the trap
    tenant ──base_image──> service ──> a name that is public once and loopback later ──> the trap
    tenant ──base_image──> service ──> a registry of the tenant's with another's manifest and config, without layers

An attack that survives is one that got nothing: no connection to the trap, one text whatever is behind the port, and no
image without its layers. Needs root for the names (a resolver of its own in a mount namespace); without root they are
left out, and said to be.
"""

import base64
import gzip
import hashlib
import json
import os
import re
import socket
import struct
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SDK = Path(__file__).resolve().parents[1] / "sdk"
sys.path.insert(0, str(SDK))

# A service in a mount namespace whose resolver is ours. `exec` all the way: the process that is ended is the service.
RESOLVER = "127.0.0.9"
WRAPPER = """#!/bin/sh
exec unshare -m sh -c 'mount --make-rprivate / && mount --bind {conf} /etc/resolv.conf && exec {program} "$@"' sh "$@"
"""

LIMIT = 240
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


class Result:
    """Counts, and says what did not hold."""

    def __init__(self):
        self.tried = self.survived = 0
        self.failures = []

    def case(self, name, held, why=""):
        self.tried += 1
        if held:
            self.survived += 1
        else:
            self.failures.append(f"{name}: {why}")
            print(f"FAILED {name}: {why}", flush=True)


class Trap:
    """A port that should never be reached; answers anything like a registry that has everything."""

    def __init__(self, address="127.0.0.1"):
        self.reached = []
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.listener = socket.socket(family)
        self.listener.bind((address, 0))
        self.listener.listen(64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            connection.settimeout(2)
            try:
                said = connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            except OSError:
                said = b""
            self.reached.append(said.split(b"\r\n")[0])
            connection.close()


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Hostile:
    """A registry whose answers are the attacker's: `answer(path, headers)` gives status, headers and body."""

    def __init__(self, answer):
        hostile = self
        self.asked = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hostile.asked.append(self.path)
                status, headers, body = answer(self.path, self.headers)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.address = f"127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Names:
    """A resolver. `answers[name]` is a list of address lists, taken in turn, the last one for ever."""

    def __init__(self):
        self.answers = {}
        self.turn = {}
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((RESOLVER, 53))
        threading.Thread(target=self.serve, daemon=True).start()

    def addresses(self, name, kind):
        turns = self.answers.get(name)
        if turns is None:
            return None
        # A and AAAA of one lookup are two questions: each kind counts for itself.
        number = self.turn.get((name, kind), 0)
        self.turn[(name, kind)] = number + 1
        found = turns[min(number, len(turns) - 1)]
        return [address for address in found if (":" in address) == (kind == 28)]

    def serve(self):
        while True:
            question, peer = self.socket.recvfrom(1024)
            labels, at = [], 12
            while question[at]:
                labels.append(question[at + 1 : at + 1 + question[at]].decode("ascii", "replace").lower())
                at += 1 + question[at]
            (kind,) = struct.unpack(">H", question[at + 1 : at + 3])
            found = self.addresses(".".join(labels), kind)
            records = b""
            for address in found or []:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                data = socket.inet_pton(family, address)
                records += b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 0, len(data)) + data
            flags = 0x8183 if found is None else 0x8180
            head = question[:2] + struct.pack(">HHHHH", flags, 1, len(found or []), 0, 0)
            self.socket.sendto(head + question[12 : at + 5] + records, peer)


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Image:
    """One layer, a config and a manifest."""

    def __init__(self, tar):
        raw = Path(tar).read_bytes()
        self.layer = gzip.compress(raw, 1, mtime=0)
        config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sleep", "1000000"]},
                  "rootfs": {"type": "layers", "diff_ids": [digest(raw)]}}
        self.config = json.dumps(config).encode()
        described = {"mediaType": CONFIG, "digest": digest(self.config), "size": len(self.config)}
        layer = {"mediaType": LAYER, "digest": digest(self.layer), "size": len(self.layer)}
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": [layer]}
        self.manifest = json.dumps(manifest).encode()

    def answer(self, path, layers=True):
        if "/manifests/" in path:
            return 200, {"Content-Type": MANIFEST, "Docker-Content-Digest": digest(self.manifest)}, self.manifest
        name = path.rsplit("/", 1)[-1]
        if name == digest(self.config):
            return 200, {}, self.config
        if layers and name == digest(self.layer):
            return 200, {}, self.layer
        return (200, {}, b"{}") if path == "/v2/" else (404, {}, b"")


def build(service, key, reference, auth=None):
    """A finished build: its status, the detail of its failure, and its log as one text."""
    request = {"base_image": reference, "build_config": {"memory_mib": 192}}
    if auth:
        request["base_image_auth"] = {"kind": "basic", "username": auth[0], "password": auth[1]}
    return finished(service, key, request)


def finished(service, key, request):
    status, started = service.request(key, "POST", "/v1/templates/builds", request)
    if status != 202:
        return "refused", {"message": json.dumps(started)}, ""
    path = f"/v1/templates/builds/{started['build_id']}"
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        status, answer = service.request(key, "GET", path)
        if status == 200 and answer["build"]["status"] in ("ready", "error", "cancelled"):
            log = "\n".join(entry["message"] for entry in answer["entries"])
            return answer["build"]["status"], answer["build"].get("error_detail") or {}, log
        time.sleep(0.1)
    raise SystemExit(f"the build of {request} does not end")


def same(texts):
    """What is said, without the hosts and ports that the attacker wrote himself."""
    return {re.sub(r"\S*\d+\S*", "HOST", text) for text in texts}


def deputy(service, key, result, pool):
    """Addresses that the service's host reaches, named outright: with somebody there, and with nobody."""
    traps = {"127.0.0.1": Trap(), "127.0.0.2": Trap("127.0.0.2")}
    try:
        traps["::1"] = Trap("::1")
    except OSError:
        pass
    shut = closed_port()
    hosts = ["127.0.0.1", "127.0.0.2", "127.1", "0x7f.1", "0.0.0.0", "localhost", "a.localhost", "[::1]", "[::ffff:7f00:1]",
             "[64:ff9b::7f00:1]", "169.254.169.254", "168.63.129.16", "100.100.100.200", "10.0.0.1", "172.16.0.1", "192.168.0.1",
             "[fd00::1]", "[fe80::1]", "224.0.0.1", "255.255.255.255"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # No packet is sent: this only asks which address of ours leads out.
            probe.connect(("192.0.2.1", 9))
            hosts.append(probe.getsockname()[0])
        except OSError:
            pass
    jobs = []
    for host in hosts:
        open_port = traps["127.0.0.2" if host == "127.0.0.2" else "::1" if host == "[::1]" and "::1" in traps else "127.0.0.1"].port
        jobs.append((host, [pool.submit(build, service, key, f"{host}:{port}/app:1") for port in (open_port, shut)]))
    texts = set()
    for host, both in jobs:
        answers = [job.result() for job in both]
        details = [detail for _, detail, _ in answers]
        said = same(detail.get("message", "") for detail in details)
        reasons = {(detail.get("details") or {}).get("reason") for detail in details}
        held = all(status == "error" for status, _, _ in answers) and len(said) == 1 and reasons == {"address_not_allowed"}
        result.case(f"{host} by address", held, f"{[detail.get('message') for detail in details]} {reasons}")
        texts |= said
    result.case("one text for all addresses", len(texts) == 1, str(texts))
    for name, trap in traps.items():
        result.case(f"nothing reached the trap on {name}", not trap.reached, str(trap.reached))
    # What looks only, and builds nothing.
    for host in ("127.0.0.1", "localhost"):
        plans = []
        for port in (traps["127.0.0.1"].port, shut):
            _, plan = service.request(key, "POST", "/v1/templates/plan", {"base_image": f"{host}:{port}/app:1"})
            plans.append(json.dumps(plan.get("warnings", plan)))
        result.case(f"{host} in a plan", len(same(plans)) == 1 and not traps["127.0.0.1"].reached, str(plans))


def led_astray(service, key, hostile_answers, hostile, result, pool):
    """A registry that may be asked, and that leads elsewhere."""
    trap, shut = Trap(), closed_port()
    image = Image(IMAGE)
    jobs = []
    for target in ("127.0.0.1", "localhost", "[::1]", "10.0.0.1", "169.254.169.254"):
        for kind in ("realm", "manifest", "blob", "token", "chain"):
            both = []
            for port in (trap.port, shut):
                name = f"{kind}{len(hostile_answers)}"
                hostile_answers[name] = misleading(kind, f"http://{target}:{port}", image, hostile, name)
                both.append(pool.submit(build, service, key, f"{hostile.address}/{name}:1", ("user", "canary-password")))
            jobs.append((f"{kind} to {target}", both))
    for name, both in jobs:
        answers = [job.result() for job in both]
        messages = [re.sub(r"of \w+ at", "of NAME at", detail.get("message", "")) for _, detail, _ in answers]
        held = all(status == "error" for status, _, _ in answers) and len(same(messages)) == 1
        result.case(name, held, f"{[status for status, _, _ in answers]} {messages}")
    result.case("nothing was led to the trap", not trap.reached, str(trap.reached))


def misleading(kind, elsewhere, image, hostile, name):
    challenge = lambda realm: (401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="x"'}, b"{}")
    to = lambda place: (307, {"Location": place}, b"")

    def answer(path, headers):
        if path == "/v2/":
            return 200, {}, b"{}"
        if kind == "realm":
            return challenge(f"{elsewhere}/token")
        if kind == "manifest" and "/manifests/" in path:
            return to(f"{elsewhere}/secret")
        if kind == "blob" and "/blobs/" in path and path.endswith(digest(image.layer)):
            return to(f"{elsewhere}/secret")
        if kind == "token":
            return to(f"{elsewhere}/token") if "/token" in path else challenge(f"http://{hostile.address}/v2/{name}/token")
        if kind == "chain":
            return to(f"{elsewhere}/secret") if path.endswith("/next") else to(f"http://{hostile.address}/v2/{name}/next")
        return image.answer(path)

    return answer


def rebinding(service, key, names, result, pool):
    """Names that mean one thing when they are judged and another later, and names that tell what there is."""
    trap = Trap()
    # Public, and nobody's: unallocated global unicast.
    public = "3000::1"
    names.answers.update({
        "inside.attack.test": [["127.0.0.1"]],
        "private.attack.test": [["10.0.0.1", "fd00::1"]],
        "mapped.attack.test": [["::ffff:127.0.0.1"]],
        "mixed.attack.test": [[public, "127.0.0.1"]],
        "later.attack.test": [[public], ["127.0.0.1"]],
        "flapping.attack.test": [[public], ["127.0.0.1"], [public], ["127.0.0.1"], [public]],
    })
    hosts = [*names.answers, "nothing.attack.test"]
    jobs = {host: pool.submit(build, service, key, f"{host}:{trap.port}/app:1") for host in hosts}
    answers = {host: job.result() for host, job in jobs.items()}
    for host, (status, detail, _) in answers.items():
        result.case(f"{host} by name", status == "error" and not trap.reached, f"{status} {detail} {trap.reached}")
    alike = ["inside.attack.test", "private.attack.test", "mapped.attack.test", "nothing.attack.test"]
    said = {answers[host][1].get("message", "").replace(host, "NAME") for host in alike}
    result.case("closed names and unknown ones are told alike", len(said) == 1, str(said))
    asked = sum(names.turn.values())
    result.case("the names were looked up", asked >= len(hosts), str(names.turn))


def claimed(service, hostile_answers, hostile, result):
    """Another tenant's private image by its manifest and config alone."""
    image = Image(IMAGE)
    login = "Basic " + base64.b64encode(b"a:canary-password").decode()

    def private(path, headers):
        if path != "/v2/" and headers.get("Authorization") != login:
            return 401, {"WWW-Authenticate": 'Basic realm="x"'}, b"{}"
        return image.answer(path)

    hostile_answers["private"] = private
    hostile_answers["claimed"] = lambda path, headers: image.answer(path, layers=False)
    owner, stranger = service.key("owner"), service.key("stranger")
    auth = ("a", "canary-password")
    began = time.monotonic()
    status, detail, log = build(service, owner, f"{hostile.address}/private:1", auth)
    took = time.monotonic() - began
    result.case("the owner builds", status == "ready", f"{status} {detail} {log}")
    for name, reference, given in [
        ("a claimed tag", f"{hostile.address}/claimed:1", None),
        ("a claimed digest", f"{hostile.address}/claimed@{digest(image.manifest)}", None),
        ("a claim with credentials", f"{hostile.address}/claimed:1", ("x", "y")),
        ("the repository without credentials", f"{hostile.address}/private:1", None),
        ("the repository with wrong credentials", f"{hostile.address}/private:1", ("a", "wrong")),
    ]:
        status, detail, log = build(service, stranger, reference, given)
        held = status == "error" and "imported before" not in log
        result.case(f"{name} gives a stranger nothing", held, f"{status} {detail} {log}")
    before = len(hostile.asked)
    status, detail, log = build(service, stranger, f"{hostile.address}/private:1", auth)
    fetched = any(path.endswith(digest(image.layer)) for path in hostile.asked[before:])
    result.case("who may have it builds it, from layers of its own", status == "ready" and fetched, f"{status} {detail} {log}")
    # What everybody may have is fetched once for all: by tenants that have had nothing of it yet.
    hostile_answers["public"] = lambda path, headers: image.answer(path)
    for tenant, hit in ((service.key("third"), None), (service.key("fourth"), True)):
        status, detail, log = build(service, tenant, f"{hostile.address}/public:1")
        held = status == "ready" and (hit is None or "imported before" in log)
        result.case("a public image is shared", held, f"{status} {detail} {log}")
    return took


def main():
    global IMAGE
    from running import PROGRAM

    result = Result()
    root = os.geteuid() == 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nullspace-attack-") as folder:
        names = None
        if root:
            conf = Path(folder) / "resolv.conf"
            conf.write_text(f"nameserver {RESOLVER}\noptions timeout:1 attempts:1\n")
            wrapper = Path(folder) / "nullspace"
            wrapper.write_text(WRAPPER.format(conf=conf, program=PROGRAM))
            wrapper.chmod(0o755)
            names = Names()
        import running
        from bench_api import busybox

        if root:
            running.PROGRAM = wrapper
        IMAGE = busybox(folder)
        answers = {}

        def hostile_answer(path, headers):
            if path == "/v2/":
                return 200, {}, b"{}"
            name = path.split("/")[2]
            return answers.get(name, lambda *_: (404, {}, b""))(path, headers)

        hostile = Hostile(hostile_answer)
        settings = {"private_registries": hostile.address, "build_concurrency": 16, "requests_per_second": 100000, "buildkit": "off"}
        with running.Service(**settings) as service, ThreadPoolExecutor(32) as pool:
            key = service.key("attacker")
            deputy(service, key, result, pool)
            led_astray(service, key, answers, hostile, result, pool)
            if names is None:
                print("left out: names (no root)")
            else:
                rebinding(service, key, names, result, pool)
            took = claimed(service, answers, hostile, result)
            lines = "\n".join(service.lines)
            result.case("no password in the service's log", "canary-password" not in lines, "it is there")
            result.case("no panic", "panicked" not in lines, "it is there")
    print(f"registry: tried {result.tried} survived {result.survived}")
    print(f"bench: attack_registry_tried {result.tried}")
    print(f"bench: attack_registry_survived {result.survived}")
    print(f"bench: attack_registry_seconds {time.monotonic() - began:.0f}")
    print(f"bench: attack_registry_build_seconds {took:.1f}")
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
