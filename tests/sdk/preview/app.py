"""A web app in a sandbox: a page, a WebSocket that echoes, server-sent events, a large download. Keeps what the page found out."""

import base64
import hashlib
import struct
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LARGE = 100_000_000
HERE = Path(__file__).parent


class App(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, kind, body):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/":
            self.answer("text/html; charset=utf-8", (HERE / "index.html").read_bytes())
        elif self.path == "/seen":
            self.answer("text/plain", str(self.headers).encode())
        elif self.path == "/events":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for number in range(5):
                self.wfile.write(f"data: {number}\n\n".encode())
                self.wfile.flush()
                time.sleep(0.3)
            self.close_connection = True
        elif self.path == "/large":
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(LARGE))
            self.end_headers()
            piece = bytes(1 << 16)
            for begin in range(0, LARGE, len(piece)):
                self.wfile.write(piece[: LARGE - begin])
        elif self.path == "/socket":
            self.echo()
        else:
            self.send_error(404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        (HERE / "found.part").write_bytes(body)
        (HERE / "found.part").rename(HERE / "found.json")
        self.answer("text/plain", b"kept")

    def echo(self):
        """RFC 6455, with short messages only."""
        proof = hashlib.sha1((self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(proof).decode())
        self.end_headers()
        self.close_connection = True
        while head := self.rfile.read(2):
            length = head[1] & 127
            if length == 126:
                length = struct.unpack(">H", self.rfile.read(2))[0]
            mask = self.rfile.read(4)
            body = bytes(byte ^ mask[at % 4] for at, byte in enumerate(self.rfile.read(length)))
            self.wfile.write(head[:1] + (bytes([length]) if length < 126 else b"\x7e" + struct.pack(">H", length)) + body)
            if head[0] & 15 == 8:
                return

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", 8080), App).serve_forever()
