#!/usr/bin/env python3
"""What the edge costs: requests to a port of a sandbox, against a plain TCP proxy (socat) in front of the same server.

    wrk ── HTTP ──> service: edge ── agent ──> 127.0.0.1:8080 in the sandbox ─┐
    wrk ── HTTP ──> socat, in the machine's own namespace ── tap ──> :8080 ───┴─> one asyncio server

Both in turns, in one run, with the same connections. The machine's namespace lets nothing in, so this program opens the one port in it; where
there is no such namespace (network = "user"), socat stands before the same server on this host, which is said, and is faster than a server
in a sandbox can be. At the end, 200 streams are held open, and the memory of the service is read before and meanwhile. The last lines are
`bench: <figure> <value> <unit>`.
"""

import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from running import Service, end

ROUNDS = 3
SECONDS = 10
CONNECTIONS = 16
HELD = 200
PORT, PLAIN = 8080, 8081

SERVER = """
import asyncio

ANSWER = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\nContent-Length: 12\\r\\n\\r\\nhello, world"
STREAM = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n8\\r\\ndata: 1\\n\\r\\n"


async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            if head.startswith(b"GET /hold"):
                writer.write(STREAM)
                await writer.drain()
                await reader.read()
                return
            writer.write(ANSWER)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "0.0.0.0", 8080, backlog=512)
    await server.serve_forever()


asyncio.run(main())
"""


def need(*programs):
    for program in programs:
        if shutil.which(program) is None:
            raise SystemExit(f"bench: {program} is not installed (Debian has it as a package of that name)")


class Bench:
    def __init__(self, service):
        self.service, self.key = service, service.key("bench")

    def ask(self, method, path, body=None, patient=False):
        for _ in range(600 if patient else 1):
            status, answer = self.service.request(self.key, method, path, body)
            if status < 300:
                return answer
            time.sleep(1)
        raise SystemExit(f"{method} {path}: {status} {answer}")

    def sandbox(self):
        request = {"template": "base", "timeout_ms": 3_600_000}
        # The base template is built once, when the service first starts.
        made = self.ask("POST", "/v1/sandboxes", request, patient=True)["id"]
        self.ask("POST", f"/v1/sandboxes/{made}/files/write", {"path": "/workspace/server.py", "content": SERVER})
        run = {"command": "python3", "args": ["/workspace/server.py"], "background": True}
        self.ask("POST", f"/v1/sandboxes/{made}/exec", run)
        ready = self.ask("POST", f"/v1/sandboxes/{made}/ports/{PORT}/readiness", {"kind": "http", "path": "/", "timeout_secs": 60})
        if not ready["ready"]:
            raise SystemExit(f"the server in the sandbox does not answer: {ready}")
        return made


def namespaces(service):
    """The process of the service's machine that has a network namespace of its own, if there is one. A machine is a child of the service,
    and has no path of it in its command or its root."""
    own = os.readlink("/proc/self/ns/net")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            parent = int(re.search(r"^PPid:\s*(\d+)", (process / "status").read_text(), re.M)[1])
            is_machine = b"qemu-system" in command or b"firecracker" in command
            if is_machine and parent == service.process.pid and os.readlink(process / "ns/net") != own:
                return process.name
        except OSError:
            continue
    return None


def answers(command):
    probe = subprocess.run([*command, "curl", "-fsS", "-m", "10", f"http://127.0.0.1:{PLAIN}/"], capture_output=True, text=True)
    return probe.stdout == "hello, world"


def plain(service, folder):
    """A socat before the server: how programs are run beside it, the processes, and where the server is."""
    listen = f"TCP-LISTEN:{PLAIN},bind=127.0.0.1,reuseaddr,fork,nodelay,backlog=512"
    machine = namespaces(service) if os.geteuid() == 0 else None
    if machine:
        inside = ["nsenter", f"--net=/proc/{machine}/ns/net"]
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=False)
        tables = subprocess.run([*inside, "nft", "list", "ruleset"], capture_output=True, text=True).stdout
        for family, table in re.findall(r"^table (\S+) (\S+) \{", tables, re.M):
            for rule in ("iif lo accept", f"tcp sport {PORT} accept", f"tcp dport {PLAIN} accept"):
                subprocess.run([*inside, "nft", "insert", "rule", family, table, "input", *rule.split()], capture_output=True)
        route = subprocess.run([*inside, "ip", "-4", "-o", "addr"], capture_output=True, text=True).stdout
        for address in re.findall(r"inet (172\.30\.255\.\d+)/29", route):
            guest = address.rsplit(".", 1)[0] + ".2"
            process = subprocess.Popen([*inside, "socat", listen, f"TCP:{guest}:{PORT},nodelay"])
            time.sleep(0.5)
            if answers(inside):
                return inside, [process], "sandbox"
            end(process)
    script = Path(folder) / "server.py"
    script.write_text(SERVER)
    server = subprocess.Popen(["python3", script])
    process = subprocess.Popen(["socat", listen, f"TCP:127.0.0.1:{PORT},nodelay"])
    time.sleep(1)
    if not answers([]):
        end(process), end(server)
        raise SystemExit("socat does not answer")
    return [], [process, server], "host"


def load(command, url):
    """Requests in a second, and the 99th percentile in milliseconds."""
    wrk = [*command, "wrk", "-t2", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "--latency", "--timeout", "30s", url]
    said = subprocess.run(wrk, check=True, capture_output=True, text=True).stdout
    if re.search(r"Non-2xx|Socket errors", said):
        print(said)
    rate = float(re.search(r"Requests/sec:\s*([\d.]+)", said)[1])
    number, unit = re.search(r"99%\s*([\d.]+)(us|ms|s)", said).groups()
    return rate, float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


def rss(process):
    """Resident memory in MiB."""
    return int(re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]) / 1024


def hold(service, path):
    """Memory of the service before and with open streams, MiB."""
    before, address = rss(service.process), urlsplit(service.url)
    held = []
    for _ in range(HELD):
        stream = socket.create_connection((address.hostname, address.port), 60)
        stream.sendall(f"GET {path}hold HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
        held.append(stream)
    for stream in held:
        stream.settimeout(120)
        read = b""
        while b"data: 1" not in read:
            piece = stream.recv(4096)
            if not piece:
                raise SystemExit(f"a held stream ended: {read}")
            read += piece
    meanwhile = rss(service.process)
    for stream in held:
        stream.close()
    return before, meanwhile


def main():
    need("wrk", "socat", "curl")
    network = "namespaces" if os.geteuid() == 0 else "user"
    with tempfile.TemporaryDirectory() as folder, Service(network=network, requests_per_second=100000) as service:
        bench = Bench(service)
        sandbox = bench.sandbox()
        path = f"/p/{sandbox}/{PORT}/"
        beside, processes, where = plain(service, folder)
        try:
            through, direct = [], []
            load([], service.url + path)
            for _ in range(ROUNDS):
                through.append(load([], service.url + path))
                direct.append(load(beside, f"http://127.0.0.1:{PLAIN}/"))
        finally:
            for process in processes:
                end(process)
        before, meanwhile = hold(service, path)
        bench.ask("DELETE", f"/v1/sandboxes/{sandbox}")
    for name, runs in (("edge", through), ("socat", direct)):
        print(f"{name}: " + ", ".join(f"{rate:.0f}/s p99 {p99:.1f} ms" for rate, p99 in runs))
    if where == "host":
        print("socat stood before a server on this host, not in the sandbox: the ratios are no comparison of the proxies alone")
    rate, p99 = ([statistics.median(run[at] for run in runs) for runs in (through, direct)] for at in (0, 1))
    print(f"service: {before:.0f} MiB, with {HELD} streams {meanwhile:.0f} MiB")
    print(f"bench: port_rps_over_socat {rate[0] / rate[1]:.2f} ratio")
    print(f"bench: port_p99_over_socat {p99[0] / p99[1]:.2f} ratio")
    print(f"bench: port_200_connections_rss_mib {meanwhile - before:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
