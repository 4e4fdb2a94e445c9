#!/usr/bin/env python3
"""Floods of connections, bodies, followers, sockets, answers, visitors of ports, terminals, watches, parts of uploads and webhooks, by
strangers and by one tenant, while another tenant works.

For each flood: how many were tried and how many the service holds at the flood's end, what the service's memory (RSS) grew by
at most, and how long /healthz, another tenant's requests and a visitor of another tenant's port took, each on a connection of its own.
Exits with 1 when one of those fails, or when the memory grows beyond its bound: what the README says that requests may hold, a
connection's 64 KiB, and what the allocator does not give back at once.

    floods.py [TEXT...]      only floods whose name contains one of the texts
"""

import concurrent.futures
import contextlib
import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sdk"))

from bench_api import busybox  # noqa: E402
from running import Registry, Service, resident  # noqa: E402
from wire import Target, WebSocket, allow_descriptors, connect, drop, head, http2, status  # noqa: E402

# How long a flood stands once it is there, seconds.
STANDS = 5
# Seconds after which an attacked sandbox must answer again.
RECOVERS = 60
# Longest that another's request may take, seconds.
PATIENCE = 10
MIB = 1 << 20
# What one tenant's requests may hold (`request_memory_mib_per_tenant`).
TENANT = 128
# A connection's task, its buffers of ordinary size, and what the allocator keeps of both.
CONNECTION = 48 / 1024
# A request over HTTP/2 whose answer waits for its client.
STREAM = 8 / 1024
# What one connection into a sandbox may have on its way, in both directions.
WINDOWS = 512 / 1024
# Output of commands and terminals that a WebSocket may have on its way.
MIB_OF_A_SOCKET = 1
SLACK = 48


def rss(service):
    return resident(service.process.pid) / MIB


class Others:
    """Another tenant, a visitor of its port, a supervisor, and the service's memory, looked at until told to stop."""

    def __init__(self, service, key, port):
        self.service = service
        self.took = {"health": [], "tenant": [], "visitor": []}
        self.failed = []
        self.most = self.before = rss(service)
        self.stop = threading.Event()
        asks = [
            ("health", head("GET", "/healthz", connection="close")),
            ("tenant", head("GET", "/v1/templates", key, connection="close")),
            ("visitor", head("GET", f"{port}/small", connection="close")),
        ]
        self.threads = [threading.Thread(target=self.ask, args=ask) for ask in asks]
        self.threads.append(threading.Thread(target=self.measure))

    def ask(self, who, request):
        while not self.stop.wait(0.05):
            began = time.monotonic()
            answer = "no connection"
            with contextlib.suppress(OSError):
                stream = connect(self.service, request, timeout=PATIENCE)
                answer = status(stream, PATIENCE)
                stream.close()
            self.took[who].append(time.monotonic() - began)
            if answer != 200:
                self.failed.append(f"{who}: {answer}")

    def measure(self):
        while not self.stop.wait(0.02):
            self.most = max(self.most, rss(self.service))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()


def many(count, make, workers=16):
    """What `make(number)` gives for each number, made side by side; those that fail are left out."""

    def one(number):
        try:
            return make(number)
        except OSError:
            return None

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return [made for made in pool.map(one, range(count)) if made is not None]


def is_open(stream):
    """Whether the other side holds a connection still."""
    stream.setblocking(False)
    try:
        while piece := stream.recv(1 << 20):
            pass
        return bool(piece)
    except BlockingIOError:
        return True
    except OSError:
        return False


def send_much(stream, data, times):
    """Sends as much as the other side takes."""
    stream.settimeout(2)
    with contextlib.suppress(OSError):
        for _ in range(times):
            stream.sendall(data)
    return stream


class Floods:
    def __init__(self, service, target, port, receiver):
        self.service, self.target, self.key = service, target, target.key
        self.sandbox, self.port, self.receiver = f"/v1/sandboxes/{target.sandbox}", port, receiver

    def silent(self, number):
        return connect(self.service)

    def silent_from_many(self, number):
        return connect(self.service, source=f"127.0.1.{1 + number % 8}")

    def half_heads(self, number):
        return connect(self.service, head("GET", "/v1/templates")[:-2] + b"x-long: " + b"a" * 60_000)

    def strangers_bodies(self, number):
        ask = head("POST", "/v1/templates/builds", "ns_live_nobody", content_type="application/json", content_length=15_000_000)
        return connect(self.service, ask + b" " * 20_000)

    def followers(self, number):
        return connect(self.service, head("GET", f"/v1/templates/builds/{self.target.endless}/logs?follow=true", self.key))

    def bodies(self, number):
        size = 15_000_000
        stream = connect(self.service, head("POST", "/v1/templates/builds", self.key, content_type="application/json", content_length=size))
        return send_much(stream, b" " * 100_000, 149)

    def thick_bodies(self, number):
        data = b'{"metadata":{"a":[' + b"0," * 4_000_000 + b"0]}}"
        stream = connect(self.service, head("POST", "/v1/sandboxes", self.key, content_type="application/json", content_length=len(data)))
        return send_much(stream, data, 1)

    def forms(self, number):
        sandbox = self.sandbox if number % 2 else "/v1/sandboxes/sb_nobodys"
        kind = "multipart/form-data; boundary=XX"
        stream = connect(self.service, head("POST", f"{sandbox}/file?path=/tmp/x", self.key, content_type=kind, transfer_encoding="chunked"))
        begin = b"--XX\r\ncontent-disposition: form-data; name=\"file\"\r\nx-endless: "
        send_much(stream, b"%x\r\n%s\r\n" % (len(begin), begin), 1)
        return send_much(stream, b"100000\r\n" + b"a" * MIB + b"\r\n", 40)

    def sockets(self, number):
        socket = WebSocket(self.service, self.key, f"{self.sandbox}/ws?channel=exec")
        return socket.stream

    def outputs(self, number):
        line = b'{"command": "cat /big /big /big /big >&2; cat /big /big /big /big", "shell": true, "timeout_secs": 120}'
        ask = head("POST", f"{self.sandbox}/exec", self.key, content_type="application/json", content_length=len(line))
        return connect(self.service, ask + line)

    def slow_readers(self, number):
        line = b'{"path": "/big"}'
        ask = head("POST", f"{self.sandbox}/files/read", self.key, content_type="application/json", content_length=len(line))
        return connect(self.service, ask + line)

    def many_answers(self, number):
        return http2(self.service, 64 * [{":method": "GET", ":path": "/v1/templates"}], 0)

    def many_answers_of_one(self, number):
        ask = {":method": "GET", ":path": "/v1/templates", "authorization": f"Bearer {self.key}"}
        return http2(self.service, 64 * [ask], 0)

    def visit(self, number, method, path, **headers):
        return connect(self.service, head(method, self.port + path, **headers), source=f"127.0.1.{1 + number % 8}")

    def visitors(self, number):
        return self.visit(number, "GET", "/cgi-bin/wait")

    def slow_visitors(self, number):
        return self.visit(number, "GET", "/big")

    def visitors_bodies(self, number):
        return send_much(self.visit(number, "POST", "/cgi-bin/wait", content_length=1 << 30), b"a" * MIB, 8)

    def visitors_sockets(self, number):
        asks = {"upgrade": "websocket", "connection": "Upgrade", "sec_websocket_version": 13, "sec_websocket_key": "dGhlIHNhbXBsZSBub25jZQ=="}
        return self.visit(number, "GET", "/cgi-bin/socket", **asks)

    def terminals(self, number):
        terminal = WebSocket(self.service, self.key, f"{self.sandbox}/ws?channel=pty")
        if terminal.status == 101:
            terminal.say({"type": "pty_start", "id": "a", "cols": 80, "rows": 24})
            terminal.say({"type": "pty_input", "id": "a", "data": "exec busybox yes\n"})
        return terminal.stream

    def watches(self, number):
        watch = WebSocket(self.service, self.key, f"{self.sandbox}/ws?channel=files")
        if watch.status == 101:
            for at in range(16):
                watch.say({"type": "file_watch", "id": str(at), "path": "/", "recursive": True})
        return watch.stream

    def parts(self, number):
        """Parts of uploads that end in the middle."""
        asked = {"kind": "file", "source_kind": "restartable_file", "target_path": f"/tmp/part{number}", "content_length": 16 * MIB}
        asked |= {"conflict": "merge", "checksum_algorithm": "sha256"}
        code, begun = self.service.request(self.key, "POST", f"{self.sandbox}/uploads", asked)
        upload = begun["session"]["upload_id"] if code == 200 else "up_none"
        part = head("PUT", f"{self.sandbox}/uploads/{upload}/parts/0", self.key, content_length=8 * MIB)
        return send_much(connect(self.service, part), b"a" * MIB, 7)

    def webhooks(self, number):
        """Events for receivers that never answer."""
        asked = {"url": f"http://127.0.0.1:{self.receiver}/{number}", "signing_secret": "secret", "operations": ["timeout_updated"]}
        self.service.request(self.key, "POST", "/v1/lifecycle/webhooks", asked)
        for _ in range(8):
            self.service.request(self.key, "POST", f"{self.sandbox}/timeout", {"timeout_ms": 3_600_000})
        return connect(self.service)

    def all(self):
        """Name, how, how many, and what the service's memory may grow by, MiB."""
        heads = 64 / 1024
        return [
            ("silent connections, no key", self.silent, 3000, 1024 * CONNECTION),
            ("silent, from 8 addresses", self.silent_from_many, 6000, 4096 * CONNECTION),
            ("heads that do not end, no key", self.half_heads, 1500, 1024 * (heads + CONNECTION)),
            ("bodies that do not end, no key", self.strangers_bodies, 1200, 1024 * (heads + CONNECTION)),
            ("log followers, one key", self.followers, 1040, TENANT + 256 * CONNECTION),
            ("bodies that do not end, one key", self.bodies, 60, TENANT + 60 * (heads + CONNECTION)),
            ("bodies of many small parts", self.thick_bodies, 40, TENANT + 40 * (heads + CONNECTION)),
            ("form heads that do not end", self.forms, 40, 40 * (heads + CONNECTION)),
            ("WebSockets, one key", self.sockets, 300, 16 * (heads + CONNECTION)),
            ("10 MiB of output, twice each", self.outputs, 48, TENANT + 48 * CONNECTION),
            ("answers that nobody takes", self.slow_readers, 64, TENANT + 64 * CONNECTION),
            ("HTTP/2, no window, no key", self.many_answers, 200, 200 * (64 * STREAM + CONNECTION)),
            ("HTTP/2, no window, one key", self.many_answers_of_one, 40, 40 * (64 * STREAM + CONNECTION)),
            ("visitors of a silent port", self.visitors, 320, 320 * (heads + CONNECTION)),
            ("visitors that take nothing", self.slow_visitors, 200, 200 * (heads + WINDOWS + CONNECTION)),
            ("visitors' bodies, not read", self.visitors_bodies, 100, 100 * (heads + WINDOWS + CONNECTION)),
            ("visitors' WebSockets", self.visitors_sockets, 200, 200 * (heads + CONNECTION)),
            ("terminals that nobody reads", self.terminals, 40, 16 * (heads + WINDOWS + MIB_OF_A_SOCKET + CONNECTION)),
            ("watches", self.watches, 40, 16 * (heads + WINDOWS + CONNECTION)),
            ("parts that do not end", self.parts, 24, 24 * (heads + WINDOWS + CONNECTION)),
            ("webhooks without an answer", self.webhooks, 24, 24 * CONNECTION + 20),
        ]


def main():
    allow_descriptors()
    faults, worst = [], {"health": 0.0, "tenant": 0.0, "rss": 0.0}
    tenants, tried, floods = [], 0, 0
    with tempfile.TemporaryDirectory() as folder, Registry() as hub:
        hub.push("box", "1", busybox(folder), Cmd=["/bin/sh"])
        receiver = socket.create_server(("127.0.0.1", 0), backlog=1000)
        settings = {"requests_per_second": 100_000, "private_webhooks": "127.0.0.1", "preview_paths": "true"}
        with receiver, Service(hub, **settings) as service:
            target = Target(service, hub, "attacker")
            other = Target(service, hub, "other", endless=False)
            ports = target.serve(), other.serve()
            code, answer = target.exec("busybox yes | busybox head -c 3000000 > /big; busybox wc -c /big")
            if code != 200:
                raise SystemExit(f"no large file: {answer}")
            print(
                f"{'flood':34}{'tried':>6}{'held':>6}{'RSS before':>12}{'grew':>7}{'bound':>7}   healthz max   other's p50    max"
                "   its port's p50    max, ms"
            )
            wanted = sys.argv[1:]
            for name, make, count, bound in Floods(service, target, ports[0], receiver.getsockname()[1]).all():
                if wanted and not any(text in name for text in wanted):
                    continue
                bound += SLACK
                with Others(service, other.key, ports[1]) as others:
                    made = many(count, make)
                    time.sleep(STANDS)
                    held = sum(map(is_open, made))
                    drop(made)
                    time.sleep(1)
                grew = others.most - others.before
                ms = {who: sorted(1000 * seconds for seconds in took) for who, took in others.took.items()}
                half = {who: took[len(took) // 2] for who, took in ms.items()}
                print(
                    f"{name:34}{count:6}{held:6}{others.before:12.0f}{grew:7.0f}{bound:7.0f}{ms['health'][-1]:14.0f}{half['tenant']:14.0f}"
                    f"{ms['tenant'][-1]:7.0f}{half['visitor']:17.0f}{ms['visitor'][-1]:7.0f}",
                    flush=True,
                )
                tried, floods = tried + count, floods + 1
                tenants += ms["tenant"]
                worst = {
                    "health": max(worst["health"], ms["health"][-1]),
                    "tenant": max(worst["tenant"], ms["tenant"][-1]),
                    "rss": max(worst["rss"], grew),
                }
                if others.failed:
                    faults.append(f"{name}: {len(others.failed)} of another's requests failed: {others.failed[:3]}")
                if grew > bound:
                    faults.append(f"{name}: memory grew by {grew:.0f} MiB, its bound is {bound:.0f}")
                if service.process.poll() is not None:
                    raise SystemExit(f"{name}: the service has ended")
            # The guest may still end the commands of the last flood.
            until = time.monotonic() + RECOVERS

            def alive():
                code, answer = target.exec("echo alive")
                return None if (code, answer.get("stdout")) == (200, "alive\n") else f"{code} {answer}"

            while (wrong := alive()) and time.monotonic() < until:
                time.sleep(1)
            if wrong:
                faults.append(f"the attacked sandbox answers {wrong}")
            target.end()
            other.end()
    for fault in faults:
        print(f"FAULT: {fault}")
    tenants.sort()
    print(f"tried {floods} survived {floods - len({fault.split(':')[0] for fault in faults})}")
    print(f"bench: flood_requests {tried} requests")
    print(f"bench: flood_rss_growth_max {worst['rss']:.0f} MiB")
    print(f"bench: flood_healthz_max {worst['health']:.0f} ms")
    print(f"bench: flood_other_tenant_p99 {tenants[len(tenants) * 99 // 100]:.0f} ms")
    return 1 if faults else 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
