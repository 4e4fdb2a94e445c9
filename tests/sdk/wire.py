"""What the attacks share: raw connections to the service, WebSockets, and a template with a sandbox to attack with."""

import base64
import contextlib
import json
import os
import resource
import socket
import struct
import time
from urllib.parse import urlsplit



def allow_descriptors():
    """Both ends of thousands of connections are on this host."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def address(service):
    parts = urlsplit(service.url)
    return parts.hostname, parts.port


def connect(service, data=b"", source=None, timeout=10):
    """A connection on which `data` was sent; from another address of loopback when `source` is given."""
    stream = socket.create_connection(address(service), timeout, source_address=(source, 0) if source else None)
    if data:
        stream.sendall(data)
    return stream


def head(method, path, key=None, **headers):
    lines = [f"{method} {path} HTTP/1.1", "host: x"]
    if key:
        lines.append(f"authorization: Bearer {key}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def status(stream, timeout=10):
    """The status of the answer that comes; 0 when the connection ends without one."""
    stream.settimeout(timeout)
    try:
        answer = stream.recv(64)
    except OSError:
        return 0
    return int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def http2(service, requests, window):
    """A connection with HTTP/2 and requests on it, whose client opens this window for each answer and no more."""

    def frame(kind, flags, stream, payload):
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    def field(name, value):
        # Without an index and without Huffman's code (RFC 7541, 6.2.2).
        def text(word):
            size = bytes([len(word)]) if len(word) < 127 else bytes([127, (len(word) - 127) % 128 | 128, (len(word) - 127) // 128])
            return size + word.encode()

        return b"\0" + text(name) + text(value)

    data = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, struct.pack(">HI", 4, window)) + frame(4, 1, 0, b"")
    for number, fields in enumerate(requests):
        names = {":scheme": "http", ":authority": "x", **fields}
        data += frame(1, 5, 2 * number + 1, b"".join(field(*one) for one in sorted(names.items())))
    return connect(service, data)


def drop(connections):
    for stream in connections:
        with contextlib.suppress(OSError):
            stream.close()


class WebSocket:
    """Just enough of RFC 6455: text out, frames in."""

    def __init__(self, service, key, path):
        nonce = base64.b64encode(os.urandom(16)).decode()
        ask = head("GET", path, key, upgrade="websocket", connection="Upgrade", sec_websocket_version=13, sec_websocket_key=nonce)
        self.stream = connect(service, ask)
        self.pending = b""
        while b"\r\n\r\n" not in self.pending:
            piece = self.stream.recv(4096)
            if not piece:
                break
            self.pending += piece
        answer, _, self.pending = self.pending.partition(b"\r\n\r\n")
        self.status = int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.1 ") else 0

    def say(self, message):
        data = json.dumps(message).encode()
        size = bytes([0x80 | len(data)]) if len(data) < 126 else bytes([0x80 | 126]) + struct.pack(">H", len(data))
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
        self.stream.sendall(b"\x81" + size + mask + masked)

    def _take(self, count):
        while len(self.pending) < count:
            piece = self.stream.recv(65536)
            if not piece:
                raise ConnectionError("the socket ended")
            self.pending += piece
        taken, self.pending = self.pending[:count], self.pending[count:]
        return taken

    def frame(self):
        """Kind and payload of the next frame."""
        first, size = self._take(2)
        size &= 0x7F
        if size == 126:
            (size,) = struct.unpack(">H", self._take(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self._take(8))
        return first & 0x0F, self._take(size)

    def message(self, kind, timeout=60):
        """The next message of this type."""
        self.stream.settimeout(timeout)
        while True:
            opcode, data = self.frame()
            if opcode == 8:
                raise ConnectionError(f"closed with {data!r}")
            if opcode == 1 and (message := json.loads(data))["type"] == kind:
                return message

    def closed(self, timeout):
        """Waits until the other side closes; its code, 0 without one."""
        until = time.monotonic() + timeout
        while True:
            self.stream.settimeout(max(0.01, until - time.monotonic()))
            try:
                opcode, data = self.frame()
            except TimeoutError:
                raise
            except OSError:
                return 0
            if opcode == 8:
                return struct.unpack(">H", data[:2])[0] if len(data) >= 2 else 0


class Target:
    """A tenant's template, a sandbox of it, and a build that goes on until it is cancelled."""

    def __init__(self, service, hub, tenant, endless=True):
        self.service = service
        self.tenant = tenant
        self.key = service.key(tenant)
        image = f"{hub.address}/box:1"
        size = {"memory_mib": 192}
        template = self.finished(self.build({"name": "box", "base_image": image, "build_config": size}))
        code, made = service.request(self.key, "POST", "/v1/sandboxes", {"template": template, "timeout_ms": 3_600_000})
        if code != 201:
            raise SystemExit(f"no sandbox: {made}")
        self.sandbox = made["id"]
        self.endless = None
        if endless:
            steps = [{"action": "run", "command": "echo it goes on; sleep 40"}]
            self.endless = self.build({"name": "endless", "base_image": image, "steps": steps, "build_config": size})
            self.until_said(self.endless, "it goes on")

    def build(self, definition):
        code, build = self.service.request(self.key, "POST", "/v1/templates/builds", definition)
        if code != 202:
            raise SystemExit(f"no build: {build}")
        return build["build_id"]

    def look(self, build):
        return self.service.request(self.key, "GET", f"/v1/templates/builds/{build}")[1]

    def finished(self, build, seconds=300):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            seen = self.look(build)
            if seen["build"]["status"] == "ready":
                return seen["build"]["template_id"]
            if seen["build"]["status"] in ("error", "cancelled"):
                raise SystemExit(f"the build failed: {seen['entries'][-1]}")
            time.sleep(0.2)
        raise SystemExit("the build does not end")

    def until_said(self, build, text, seconds=300):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if any(entry["message"] == text for entry in self.look(build)["entries"]):
                return
            time.sleep(0.2)
        raise SystemExit(f"the build does not say {text!r}")

    def exec(self, line, key=None):
        body = {"command": line, "shell": True, "timeout_secs": 60}
        return self.service.request(key or self.key, "POST", f"/v1/sandboxes/{self.sandbox}/exec", body)

    def serve(self):
        """A server on port 8000 of the sandbox. What is below `cgi-bin` runs as a program: `wait` does not answer, `socket` agrees on a
        WebSocket and says nothing. Both outlive who asked, as programs of busybox's server do, but by 40 s at most: their memory is the
        sandbox's. Returns the path of the port."""
        lines = [
            "busybox mkdir -p /www/cgi-bin",
            "echo small > /www/small",
            "busybox ln -sf /big /www/big",
            "printf '#!/bin/sh\\nexec busybox sleep 40\\n' > /www/cgi-bin/wait",
            "printf '#!/bin/sh\\nprintf \"HTTP/1.1 101 Switching Protocols\\\\r\\\\nUpgrade: websocket\\\\r\\\\nConnection: Upgrade\\\\r\\\\n"
            "Sec-WebSocket-Accept: x\\\\r\\\\n\\\\r\\\\n\"\\nexec busybox sleep 40\\n' > /www/cgi-bin/socket",
            "busybox chmod 755 /www/cgi-bin/wait /www/cgi-bin/socket",
            "busybox httpd -p 8000 -h /www",
        ]
        code, answer = self.exec(" && ".join(lines))
        if code != 200 or answer["exit_code"] != 0:
            raise SystemExit(f"no server: {code} {answer}")
        return f"/p/{self.sandbox}/8000"

    def end(self):
        if self.endless:
            self.service.request(self.key, "POST", f"/v1/templates/builds/{self.endless}/cancel", {})
        self.service.request(self.key, "DELETE", f"/v1/sandboxes/{self.sandbox}")
