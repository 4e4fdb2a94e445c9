#!/usr/bin/env python3
"""Gigabytes into a sandbox and out of it, and what the service holds in memory meanwhile.

    8 MiB parts, four at a time, twice in part ──> upload session ──> file ──> GET, Range, four ranges at a time
    one PUT ──> signed URL ──> file ──> GET of a signed URL

What arrives is compared with what was sent. NULLSPACE_SOAK_BYTES is the size of the file, by default 2 GiB. The last lines are
`bench: <figure> <value> <unit>`; the service may not grow by more than 256 MiB.
"""

import hashlib
import http.client
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from running import Memory, Service, resident

SIZE = int(os.environ.get("NULLSPACE_SOAK_BYTES", 2 << 30))
MIB = 1 << 20
PIECE = 8 * MIB
# Of one download by ranges. No multiple of a piece.
RANGE = 64 * MIB + 1
AT_A_TIME = 4
# Most that the service may grow by, MiB.
GROWTH = 256
# A busy machine whose guest is emulated writes some MB a second.
PATIENCE = 600


def piece(number):
    """A piece of the file: no two are the same."""
    length = min(PIECE, SIZE - number * PIECE)
    block = hashlib.shake_128(str(number).encode()).digest(MIB)
    return (block * (PIECE // MIB))[:length]


def pieces():
    return (piece(number) for number in range((SIZE + PIECE - 1) // PIECE))


def span(start, end):
    """The bytes of the file from start to before end."""
    first = start // PIECE
    content = b"".join(piece(number) for number in range(first, (end - 1) // PIECE + 1))
    return content[start - first * PIECE:end - first * PIECE]


class Soak:
    def __init__(self, service):
        self.service, self.key = service, service.key("soak")
        self.host = urlsplit(service.url).netloc
        self.own = {"Authorization": f"Bearer {self.key}"}
        service.wait_for_base(self.key)
        # The file, the parts of an upload, and the template.
        made = self.ask("POST", "/v1/sandboxes", {"template": "base", "timeout_ms": 7_200_000})
        self.sandbox = f"/v1/sandboxes/{made['id']}"

    def ask(self, method, path, body=None):
        status, answer = self.service.request(self.key, method, path, body)
        if status >= 300:
            raise SystemExit(f"{method} {path}: {status} {answer}")
        return answer

    def send(self, method, path, body=None, headers=None):
        """A request on a connection of its own: the connection and the answer, whose body is not read."""
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE)
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        if answer.status >= 300:
            raise SystemExit(f"{method} {path.split('?')[0]}: {answer.status} {answer.read(1000)}")
        return connection, answer

    def part(self, upload, number):
        content = piece(number)
        headers = {**self.own, "Content-Type": "application/octet-stream",
                   "x-nullspace-part-sha256": hashlib.sha256(content).hexdigest()}
        connection, answer = self.send("PUT", f"{upload}/parts/{number}", content, headers)
        answer.read()
        connection.close()

    def upload(self, whole):
        begun = self.ask("POST", f"{self.sandbox}/uploads", {
            "kind": "file", "source_kind": "restartable_file", "target_path": "/workspace/large", "content_length": SIZE,
            "conflict": "error", "checksum_algorithm": "sha256", "whole_checksum_sha256": whole})["session"]
        assert begun["part_size"] == PIECE, begun
        upload = f"{self.sandbox}/uploads/{begun['upload_id']}"
        with ThreadPoolExecutor(AT_A_TIME) as threads:
            # From the end on, and the last eight once more: as after a lost connection.
            for _ in threads.map(lambda number: self.part(upload, number), reversed(range(begun["part_count"]))):
                pass
            for _ in threads.map(lambda number: self.part(upload, number), range(begun["part_count"])[-8:]):
                pass
        assert self.ask("GET", upload).get("next_part") is None
        self.ask("POST", f"{upload}/complete", {})

    def download_by_ranges(self):
        def one(start):
            end = min(start + RANGE, SIZE)
            path = f"{self.sandbox}/file?path=/workspace/large"
            connection, answer = self.send("GET", path, headers={**self.own, "Range": f"bytes={start}-{end - 1}"})
            assert answer.status == 206 and answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{SIZE}", answer.headers
            content = answer.read()
            connection.close()
            assert content == span(start, end), f"the bytes from {start} to {end} are others"

        with ThreadPoolExecutor(AT_A_TIME) as threads:
            for _ in threads.map(one, range(0, SIZE, RANGE)):
                pass

    def signed(self, direction):
        url = urlsplit(self.ask("POST", f"{self.sandbox}/files/{direction}-url", {"path": "/workspace/signed"})["url"])
        return f"{url.path}?{url.query}"

    def upload_by_signed_url(self):
        headers = {"Content-Length": str(SIZE), "Content-Type": "application/octet-stream"}
        connection, answer = self.send("PUT", self.signed("upload"), pieces(), headers)
        answer.read()
        connection.close()

    def download_by_signed_url(self, whole):
        connection, answer = self.send("GET", self.signed("download"))
        seen, digest = 0, hashlib.sha256()
        while content := answer.read(MIB):
            seen += len(content)
            digest.update(content)
        connection.close()
        assert (seen, digest.hexdigest()) == (SIZE, whole), f"{seen} of {SIZE} bytes arrived, or others"


def main():
    digest = hashlib.sha256()
    for content in pieces():
        digest.update(content)
    whole = digest.hexdigest()
    figures = []
    with Service(requests_per_second=100000) as service:
        soak = Soak(service)
        before = resident(service.process.pid) / MIB

        def measured(name, work, *more):
            began = time.monotonic()
            with Memory(service.process.pid) as memory:
                work(*more)
            took = time.monotonic() - began
            print(f"soak: {name}: {SIZE / MIB / took:.1f} MiB/s, the service had {memory.most / MIB:.0f} MiB at most", flush=True)
            figures.append((name, memory.most / MIB - before))

        measured("upload_parts", soak.upload, whole)
        measured("download_ranges", soak.download_by_ranges)
        soak.ask("POST", f"{soak.sandbox}/files/remove", {"path": "/workspace/large"})
        measured("upload_signed", soak.upload_by_signed_url)
        measured("download_signed", soak.download_by_signed_url, whole)
        soak.ask("DELETE", soak.sandbox)
        faults = [line for line in service.lines if " ERROR " in line or "panicked" in line]
    faults += [f"{name}: the service grew by {growth:.0f} MiB" for name, growth in figures if growth > GROWTH]
    for fault in faults:
        print(f"soak: {fault}", file=sys.stderr)
    print(f"part: tests={len(figures)} failed={len(faults)}")
    for name, growth in figures:
        print(f"bench: soak_{name}_rss_growth_mib {growth:.0f} MiB")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
