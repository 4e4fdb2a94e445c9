#!/usr/bin/env python3
"""A browser opens a web app in a sandbox: by host name and by path, with and without a token.

    chromium ── http://8080-sb_….preview.test, http://…/p/sb_…/8080/ ──> service ──> sandbox: preview/app.py
        └─ page: WebSocket echo, server-sent events, 100 MB ── what it found ──> the app keeps it ──> read by the API
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from running import Service

APP = Path(__file__).parent / "preview"
DOMAIN = "preview.test"
LARGE = 100_000_000
# Seconds until a page has found out everything. An emulated guest sends the large file at some MB a second on a busy machine.
PATIENCE = 240


def browser():
    """Debian's name of it, or another's."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if program := shutil.which(name):
            return program
    raise SystemExit("browser: chromium is not installed")


class Sandbox:
    """A sandbox in which the app runs."""

    def __init__(self, service, key, **more):
        self.service, self.key = service, key
        self.id = self.create({"template": "base", "timeout_ms": 1_800_000, **more})
        for name in ("app.py", "index.html"):
            content = (APP / name).read_text()
            self.ask("POST", f"/v1/sandboxes/{self.id}/files/write", {"path": f"/workspace/{name}", "content": content})
        run = {"command": "python3", "args": ["/workspace/app.py"], "background": True}
        self.ask("POST", f"/v1/sandboxes/{self.id}/exec", run)
        ready = self.ask("POST", f"/v1/sandboxes/{self.id}/ports/8080/readiness", {"kind": "http", "path": "/seen", "timeout_secs": 60})
        assert ready["ready"], ready

    def create(self, request):
        """Also while the built-in template is being built, which takes a minute."""
        deadline = time.monotonic() + PATIENCE
        while True:
            status, answer = self.service.request(self.key, "POST", "/v1/sandboxes", request)
            if status == 201:
                return answer["id"]
            assert status == 503 and time.monotonic() < deadline, (status, answer)
            time.sleep(1)

    def ask(self, method, path, body=None, expected=200):
        status, answer = self.service.request(self.key, method, path, body)
        assert status == expected, (method, path, status, answer)
        return answer

    def found(self):
        """What the page has found out, once it has."""
        status, answer = self.service.request(
            self.key, "POST", f"/v1/sandboxes/{self.id}/files/read", {"path": "/workspace/found.json"})
        return json.loads(answer["content"]) if status == 200 else None

    def end(self):
        self.ask("DELETE", f"/v1/sandboxes/{self.id}")


def visit(sandbox, url):
    """Opens a page and waits for what it finds out."""
    sandbox.ask("POST", f"/v1/sandboxes/{sandbox.id}/exec", {"command": "rm", "args": ["-f", "/workspace/found.json"]})
    with tempfile.TemporaryDirectory(prefix="nullspace-browser-", ignore_cleanup_errors=True) as profile:
        command = [
            browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--no-proxy-server", "--remote-debugging-port=0",
            f"--user-data-dir={profile}", f"--host-resolver-rules=MAP *.{DOMAIN} 127.0.0.1", url,
        ]
        with open(Path(profile) / "log", "w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            try:
                deadline = time.monotonic() + PATIENCE
                while time.monotonic() < deadline and process.poll() is None:
                    if found := sandbox.found():
                        return found
                    time.sleep(0.5)
                log.seek(0)
                raise AssertionError(f"{url}: the page found nothing out in {PATIENCE} s:\n{log.read()[-2000:]}")
            finally:
                # Its helpers are of its session.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def judge(found, token=None):
    """What a page must have found out; each line is a fault."""
    faults = []
    if found["echo"] != [3, 300, 5]:
        faults.append(f"WebSocket: {found['echo']}")
    times = found["events"]
    # Sent 1.2 s apart: what arrives at once was held up on the way.
    if not isinstance(times, list) or times[-1] - times[0] < 600:
        faults.append(f"server-sent events: {times}")
    if found["large"] != LARGE:
        faults.append(f"download: {found['large']}")
    for secret in ("edge_token", "ns_edge", "ns_live", *([token] if token else [])):
        if secret in found["seen"]:
            faults.append(f"the app was shown {secret}: {found['seen']}")
        if secret in found["address"] or secret in found["cookie"]:
            faults.append(f"the page was shown {secret}: {found['address']} {found['cookie']}")
    return faults


def main():
    pages, wrong = 0, []
    with Service(preview_domain=DOMAIN, preview_scheme="http", preview_paths="true") as service:
        key = service.key("first")
        port = urlsplit(service.url).port
        public = Sandbox(service, key)
        closed = Sandbox(service, key, network={"allow_public_traffic": False})
        grant = closed.ask("POST", f"/v1/sandboxes/{closed.id}/ports/8080/signed-preview-url", {"expires_in_seconds": 1800})
        token = dict(pair.split("=", 1) for pair in urlsplit(grant["url"]).query.split("&"))["edge_token"]
        asked = urlencode({"edge_token": token})
        for name, sandbox, url, secret in [
            ("by host name", public, f"http://8080-{public.id}.{DOMAIN}:{port}/", None),
            ("by path", public, f"{service.url}/p/{public.id}/8080/", None),
            ("by host name, with a token", closed, f"http://8080-{closed.id}.{DOMAIN}:{port}/?{asked}", token),
            ("by path, with a token", closed, f"{service.url}/p/{closed.id}/8080/?{asked}", token),
        ]:
            began = time.monotonic()
            pages += 1
            faults = judge(visit(sandbox, url), secret)
            wrong += [f"{name}: {fault}" for fault in faults]
            print(f"browser: {name}: {'as it should be' if not faults else 'wrong'}, {time.monotonic() - began:.1f} s", flush=True)
        public.end()
        closed.end()
    for line in wrong:
        print("browser: " + line, file=sys.stderr)
    print(f"part: tests={pages} failed={len({line.split(':')[0] for line in wrong})}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
