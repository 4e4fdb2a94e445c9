"""A service under attack, and what its attackers share."""

import sqlite3
import subprocess
import time
from pathlib import Path

from running import PROGRAM, Service

OVER = ("ready", "error", "cancelled")


class Fault(Exception):
    """Something that must hold does not."""


def check(holds, what):
    if not holds:
        raise Fault(what)


def until(condition, what, seconds=60):
    """The first true answer of `condition`."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        check(time.monotonic() < deadline, f"in {seconds} s: {what}")
        time.sleep(0.05)


def descendants(pid):
    """Processes below this one, as (pid, start time): no other process has both."""
    found, parents = set(), [pid]
    while parents:
        parent = parents.pop()
        try:
            threads = list(Path(f"/proc/{parent}/task").iterdir())
        except OSError:
            continue
        for thread in threads:
            try:
                children = (thread / "children").read_text().split()
            except OSError:
                continue
            for child in children:
                identity = started(int(child))
                if identity is not None:
                    found.add((int(child), identity))
                    parents.append(int(child))
    return found


def started(pid):
    """When a process began; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


class Victim(Service):
    """`nullspace serve`, with one tenant."""

    def __enter__(self):
        super().__enter__()
        self.tenant = self.key("victim")
        return self

    @property
    def data(self):
        return Path(self.env["NULLSPACE_DATA_DIR"])

    def api(self, method, path, body=None):
        return self.request(self.tenant, method, path, body)

    def kill(self):
        """SIGKILL; returns when nothing of the service runs any more."""
        below = descendants(self.process.pid)
        self.process.kill()
        self.process.wait()
        until(lambda: all(started(pid) != when for pid, when in below), "machines of the killed service run on", 20)

    def stop(self):
        """SIGTERM, and a look at the end."""
        self.process.terminate()
        code = self.process.wait(120)
        check(code == 0, f"the service ended with {code}")

    def store(self, command, *more):
        """`nullspace store …`, which must succeed."""
        done = subprocess.run([PROGRAM, "store", command, *more], env=self.env, capture_output=True, text=True)
        check(done.returncode == 0, f"store {command}: {done.stdout}{done.stderr}")
        return done.stdout

    def rows(self, query, *values):
        """What the database itself has, while no service runs or beside it."""
        with sqlite3.connect(self.data / "nullspace.db", timeout=30) as database:
            found = database.execute(query, values).fetchall()
        database.close()
        return found

    def status(self, build):
        code, answer = self.api("GET", f"/v1/templates/builds/{build}")
        check(code == 200, f"build {build} is gone: {code} {answer}")
        return answer

    def finished(self, build, seconds=300):
        """A build's status with its log, once it is over."""

        def over():
            answer = self.status(build)
            return answer if answer["build"]["status"] in OVER else None

        return until(over, f"build {build} does not end", seconds)

    def sh(self, sandbox, line, timeout_secs=60):
        """Exit code and output of a line of shell."""
        body = {"command": line, "shell": True, "timeout_secs": timeout_secs}
        code, answer = self.api("POST", f"/v1/sandboxes/{sandbox}/exec", body)
        return (answer["exit_code"], answer["stdout"]) if code == 200 else (None, f"{code} {answer}")

    def sandbox(self, template):
        code, answer = self.api("POST", "/v1/sandboxes", {"template": template, "timeout_ms": 3 * 3600 * 1000})
        check(code in (200, 201), f"no sandbox of {template}: {code} {answer}")
        return answer["id"]

    def ready(self):
        """The status of /readyz."""
        return self.request("", "GET", "/readyz")[0]


def request(name, steps=0, kind="", **more):
    """A small build whose service says that it was started once."""
    lines = [f"head -c 700000 /dev/urandom > /layer{number} # {kind}" for number in range(steps)]
    return {
        "name": name,
        "base_image": "box:1",
        "steps": [{"action": "run", "command": line} for line in lines],
        "build_config": {"memory_mib": 128, "disk_mb": 512},
        "start_cmd": "printf started >> /starts; echo $$ > /pid; exec sleep 1000000",
        "runtime_config": {"readiness": {"kind": "command", "command": "test -s /pid"}},
        **more,
    }
