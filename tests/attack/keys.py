#!/usr/bin/env python3
"""A key is revoked while sockets (of commands, terminals, watches and events), followers, commands and uploads that it opened are under
way: all end within seconds.

Prints a line for each, and `bench: revoked_key_seconds …`, the longest that one of them went on. Exits with 1 when one does
not end in time, when its command runs on in the sandbox, or when what another key of the tenant has open ends, too.
"""

import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sdk"))

from bench_api import busybox  # noqa: E402
from running import PROGRAM, Registry, Service  # noqa: E402
from wire import Target, WebSocket, connect, drop, head  # noqa: E402

# Longest that anything may go on with a revoked key, seconds. Keys are looked at every two seconds.
MOST = 15


def key_id(service, key):
    """The id under which operators know a key."""
    listed = subprocess.run([PROGRAM, "keys", "list"], env=service.env, check=True, capture_output=True, text=True).stdout
    (line,) = [line for line in listed.splitlines() if key[:12] in line]
    return line.split()[0]


class Open:
    """Something under way, watched from a thread until it ends."""

    def __init__(self, what, wait):
        self.what, self.ended, self.how = what, None, None

        def watch():
            try:
                self.how = wait()
            except OSError as error:
                self.how = f"{type(error).__name__}"
            self.ended = time.monotonic()

        self.thread = threading.Thread(target=watch, daemon=True)
        self.thread.start()


def to_the_end(stream):
    """Reads until the other side ends it; the first line."""
    stream.settimeout(None)
    data = b""
    while piece := stream.recv(65536):
        data = (data + piece)[:64]
    return data.split(b"\r\n")[0].decode(errors="replace") or "closed"


def trickle(stream):
    """Sends a byte now and then, until the other side ends it."""
    with contextlib.suppress(OSError):
        while True:
            stream.sendall(b"1\r\nx\r\n")
            time.sleep(0.1)
    return "closed"


def under_way(service, target, key):
    """One of each kind of request that lasts, with this key."""
    commands = f"/v1/sandboxes/{target.sandbox}"
    socket = WebSocket(service, key, f"{commands}/ws?channel=exec")
    socket.say({"type": "exec_start", "id": "a", "command": "while :; do echo on; sleep 1; done", "shell": True, "timeout_secs": 3000})
    socket.message("exec_started")
    idle = WebSocket(service, key, f"{commands}/ws?channel=exec")
    terminal = WebSocket(service, key, f"{commands}/ws?channel=pty")
    terminal.say({"type": "pty_start", "id": "a", "cols": 80, "rows": 24})
    terminal.message("pty_started")
    terminal.say({"type": "pty_input", "id": "a", "data": "while :; do echo on; sleep 1; done\n"})
    watch = WebSocket(service, key, f"{commands}/ws?channel=files")
    watch.say({"type": "file_watch", "id": "a", "path": "/tmp", "recursive": True})
    watch.message("file_watch_started")
    events = WebSocket(service, key, "/v1/lifecycle/ws")
    events.say({"type": "subscribe"})
    events.message("subscribed")
    body = b'{"command": "sleep", "args": ["7654"], "timeout_secs": 3000}'
    command = connect(service, head("POST", f"{commands}/exec", key, content_type="application/json", content_length=len(body),
                                   connection="close") + body)
    log = connect(service, head("GET", f"/v1/templates/builds/{target.endless}/logs?follow=true", key))
    upload = connect(service, head("PUT", f"{commands}/file?path=/tmp/trickle", key, transfer_encoding="chunked"))
    return [
        Open("a socket with a command", lambda: socket.closed(3600)),
        Open("a socket without one", lambda: idle.closed(3600)),
        Open("a terminal", lambda: terminal.closed(3600)),
        Open("a watch", lambda: watch.closed(3600)),
        Open("a follower of events", lambda: events.closed(3600)),
        Open("a command that is waited for", lambda: to_the_end(command)),
        Open("a follower of a log", lambda: to_the_end(log)),
        Open("an upload", lambda: trickle(upload)),
    ], [socket.stream, idle.stream, terminal.stream, watch.stream, events.stream, command, log, upload]


def main():
    faults = []
    with tempfile.TemporaryDirectory() as folder, Registry() as hub:
        hub.push("box", "1", busybox(folder), Cmd=["/bin/sh"])
        with Service(hub) as service:
            target = Target(service, hub, "first")
            key = service.key("first")
            revoked, streams = under_way(service, target, key)
            others, more = under_way(service, target, target.key)
            time.sleep(3)
            faults += [f"{one.what} has ended before its key was revoked: {one.how}" for one in revoked if one.ended]
            count = int(target.exec("busybox ps | busybox grep -c '[7]654'")[1]["stdout"])
            if count != 2:
                faults.append(f"{count} commands run, not 2")

            subprocess.run([PROGRAM, "keys", "revoke", key_id(service, key)], env=service.env, check=True, capture_output=True)
            began = time.monotonic()
            for one in revoked:
                one.thread.join(max(0.1, began + MOST - time.monotonic()))
            longest = 0.0
            for one in revoked:
                if one.ended is None:
                    faults.append(f"{one.what} goes on {MOST} s after its key was revoked")
                    continue
                longest = max(longest, one.ended - began)
                print(f"{one.what:32} ended after {one.ended - began:5.2f} s: {one.how}")
            if (code := service.request(key, "GET", "/v1/templates")[0]) != 401:
                faults.append(f"the revoked key is answered with {code}")
            until = time.monotonic() + MOST
            while (left := int(target.exec("busybox ps | busybox grep -c '[7]654'")[1]["stdout"])) != 1 and time.monotonic() < until:
                time.sleep(0.2)
            if left != 1:
                faults.append(f"{left} commands run that were waited for, not 1")
            faults += [f"{one.what} of another key has ended: {one.how}" for one in others if one.ended]
            drop(streams + more)
            target.end()
    for fault in faults:
        print(f"FAULT: {fault}")
    print(f"tried {len(revoked)} survived {len(revoked) - sum(one.ended is None for one in revoked)}")
    print(f"bench: revoked_key_seconds {longest:.2f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
