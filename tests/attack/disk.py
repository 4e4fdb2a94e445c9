#!/usr/bin/env python3
"""The disk under the data folder is filled at sixteen points, and room is made again.

The data folder is on a small tmpfs of its own (needs root). After each point: what was running has ended with the reason
`host_disk_full` or has gone on, `/readyz` says 200, a new build becomes ready, and a sandbox from before that did not
fill the disk answers. `tried N survived M`.

    disk.py [--points 1,2,…] [--size-mib 900]
"""

import argparse
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sdk"))

from bench_api import busybox  # noqa: E402
from running import Registry  # noqa: E402
from victim import OVER, Fault, Victim, check, request, until  # noqa: E402

# How long the disk stays full.
HELD = 3
# Writes for ever, as quickly as an emulated guest can.
FILLS = "while :; do cat /bin/busybox; done"


class Disk:
    """A small file system, and a file that fills it."""

    def __init__(self, folder, size_mib):
        self.folder = Path(folder)
        self.ballast = self.folder / "ballast"
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=700", "attacked", folder], check=True)

    def free(self):
        stat = os.statvfs(self.folder)
        return stat.f_bavail * stat.f_frsize

    def fill(self, leave=0):
        """Takes all room but `leave` bytes, also what is given back meanwhile."""
        with open(self.ballast, "ab") as file:
            for _ in range(50):
                more = self.free() - leave
                if more <= 4096:
                    return
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, more)
                except OSError:
                    # Something else was quicker with a part of it.
                    try:
                        os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, 4096)
                    except OSError:
                        return

    @contextlib.contextmanager
    def kept_full(self, leave=0):
        """Takes what is given back, too: the service makes room at any time."""
        over = threading.Event()

        def keep():
            while not over.wait(0.005):
                self.fill(leave)

        self.fill(leave)
        keeper = threading.Thread(target=keep)
        keeper.start()
        try:
            yield
        finally:
            over.set()
            keeper.join()

    def make_room(self):
        self.ballast.unlink(missing_ok=True)

    def unmount(self):
        subprocess.run(["umount", "--lazy", self.folder], check=True)


class Attack:
    def __init__(self, victim, disk):
        self.victim = victim
        self.disk = disk
        self.number = 0

    def start(self, **more):
        self.number += 1
        code, answer = self.victim.api("POST", "/v1/templates/builds", request(f"d{self.number}", **more))
        check(code == 202, f"a build is refused: {code} {answer}")
        return answer["build_id"]

    def full_for_a_while(self):
        """Keeps the disk full; a service that looks away would see it for longer than a tick."""
        with self.disk.kept_full():
            time.sleep(HELD)

    def said(self, build, words, seconds=90):
        """Waits until the build's log says one of the words, or the build is over."""

        def there():
            answer = self.victim.status(build)
            entries = [entry["message"] for entry in answer["entries"]]
            return answer["build"]["status"] in OVER or any(word in entry for entry in entries for word in words)

        until(there, f"the log of {build} says none of {words}", seconds)

    def refused(self, code, answer):
        check(code == 503, f"with a full disk: {code} {answer}")
        check(answer["code"] == "capacity_exceeded" and "disk" in answer["error"], f"the refusal does not say why: {answer}")

    def ends_well(self, build):
        """The build is ready, or has failed for want of room, retryable."""
        answer = self.victim.finished(build)
        if answer["build"]["status"] == "ready":
            return "ready"
        detail = answer["build"].get("error_detail") or {}
        reason = (detail.get("details") or {}).get("reason")
        check(reason == "host_disk_full" and detail.get("retryable"), f"build {build} ended otherwise: {detail}")
        return reason

    # ---- the points ----

    def idle(self):
        with self.disk.kept_full():
            self.refused(*self.victim.api("POST", "/v1/templates/builds", request("refused")))
            code, answer = self.victim.api("POST", "/v1/templates/builds", request("refused"))
        reason = answer["error_detail"]["details"]["reason"]
        check(reason == "host_disk_full", f"the refusal of a build has no reason: {answer}")
        self.full_for_a_while()
        return "refused"

    def nearly_full(self):
        """188 KiB were enough for a build to be accepted."""
        with self.disk.kept_full(leave=188 << 10):
            self.refused(*self.victim.api("POST", "/v1/templates/builds", request("refused")))
            self.refused(*self.victim.api("POST", "/v1/sandboxes", {"template": "quiet"}))
        return "refused"

    def during(self, words, after=0.0, **more):
        build = self.start(skip_cache=True, **more)
        self.said(build, words)
        time.sleep(after)
        self.full_for_a_while()
        self.disk.make_room()
        return self.ends_well(build)

    def waiting(self):
        builds = [self.start(skip_cache=True, steps=1) for _ in range(4)]
        self.full_for_a_while()
        self.disk.make_room()
        return ", ".join(sorted({self.ends_well(build) for build in builds}))

    def upload(self):
        """The body stops half-way, the disk fills, the body goes on."""
        data = os.urandom(8 << 20)
        digest = hashlib.sha256(data).hexdigest()
        half = threading.Event()
        full = threading.Event()

        def body():
            yield data[: len(data) // 2]
            half.set()
            full.wait(60)
            yield data[len(data) // 2 :]

        found = {}

        def send():
            url = f"{self.victim.url}/v1/templates/blobs/sha256-{digest}-{len(data)}"
            headers = {"Authorization": f"Bearer {self.victim.tenant}", "Content-Length": str(len(data)),
                       "Content-Type": "application/octet-stream"}
            try:
                with urllib.request.urlopen(urllib.request.Request(url, data=body(), method="PUT", headers=headers)) as answer:
                    found["code"] = answer.status
            except urllib.error.HTTPError as error:
                found["code"] = error.code
            except OSError as error:
                found["code"] = str(error)

        sending = threading.Thread(target=send)
        sending.start()
        check(half.wait(60), "an upload does not begin")
        time.sleep(0.3)
        with self.disk.kept_full():
            full.set()
            sending.join(60)
        check(found.get("code") == 503, f"an upload without room: {found}")
        return "refused"

    def creating(self):
        codes = []

        def create():
            code, answer = self.victim.api("POST", "/v1/sandboxes", {"template": "quiet"})
            codes.append(code)
            if code in (200, 201):
                self.victim.api("DELETE", f"/v1/sandboxes/{answer['id']}")

        threads = [threading.Thread(target=create) for _ in range(4)]
        for thread in threads:
            thread.start()
        self.full_for_a_while()
        self.disk.make_room()
        for thread in threads:
            thread.join(120)
        check(set(codes) <= {200, 201, 404, 503}, f"sandboxes on a full disk: {codes}")
        return str(sorted(codes))

    def from_inside(self):
        """Root in a sandbox writes until nothing is left."""
        greedy = self.victim.sandbox("greedy")
        # Its own disk is larger than what is left for all.
        self.disk.fill(leave=300 << 20)
        line = f"({FILLS} > /big) > /dev/null 2>&1 &"
        code, said = self.victim.sh(greedy, line)
        check(code == 0, f"the disk cannot be filled: {code} {said}")

        def ended():
            code, answer = self.victim.api("GET", f"/v1/sandboxes/{greedy}")
            return answer if code == 200 and answer["status"] not in ("creating", "running") else None

        answer = until(ended, "a sandbox fills the disk of all", 120)
        check(answer["status"] == "error", f"the sandbox that filled the disk ended as {answer}")
        kept = self.victim.rows("SELECT reason FROM sandboxes WHERE id = ?", greedy)
        check("host_disk_full" in (kept[0][0] or ""), f"and for another reason: {kept}")
        return "ended"

    def from_a_step(self):
        """A step of a build does the same."""
        self.disk.fill(leave=300 << 20)
        more = {"steps": [{"action": "run", "command": f"{FILLS} > /big"}]}
        self.number += 1
        body = request(f"d{self.number}") | more | {"build_config": {"memory_mib": 128, "disk_mb": 700}}
        code, answer = self.victim.api("POST", "/v1/templates/builds", body)
        check(code == 202, f"a build is refused: {code} {answer}")
        return self.ends_well(answer["build_id"])

    def storing(self, act):
        """A sandbox that cannot be stored goes on: with a disk that is full before, and one that fills up meanwhile."""
        sandbox = self.victim.sandbox("quiet")
        path, body = f"/v1/sandboxes/{sandbox}/{act}", {}
        if act == "promote":
            code, snapshot = self.victim.api("POST", f"/v1/sandboxes/{sandbox}/snapshots", {})
            check(code == 201, f"no snapshot to promote: {code} {snapshot}")
            path, body = f"/v1/snapshots/{snapshot['id']}/promote", {"name": "promoted"}
        # What must be written of its memory.
        code, said = self.victim.sh(sandbox, "i=0; while [ $i -lt 20 ]; do i=$((i+1)); cat /bin/busybox; done > /filler")
        check(code == 0, f"the sandbox cannot be used: {code} {said}")

        def answers():
            code, said = self.victim.sh(sandbox, "cat /starts")
            check((code, said) == (0, "started"), f"after a refused {act} the sandbox says {code} {said}")

        with self.disk.kept_full():
            self.refused(*self.victim.api("POST", path, body))
            answers()
        self.disk.make_room()
        found = {}
        asking = threading.Thread(target=lambda: found.update(answer=self.victim.api("POST", path, body)))
        asking.start()
        time.sleep(0.05)
        self.full_for_a_while()
        self.disk.make_room()
        asking.join(120)
        check("answer" in found, f"{act} does not end")
        code, answer = found["answer"]
        if code not in (200, 201):
            self.refused(code, answer)
            answers()
        elif act == "snapshots":
            self.victim.api("DELETE", f"/v1/snapshots/{answer['id']}")
        elif act == "fork":
            self.victim.api("DELETE", f"/v1/sandboxes/{answer['id']}")
        elif act == "promote":
            self.victim.api("DELETE", "/v1/templates/promoted")
        if act == "promote":
            self.victim.api("DELETE", f"/v1/snapshots/{snapshot['id']}")
        self.victim.api("DELETE", f"/v1/sandboxes/{sandbox}")
        return "refused, then " + ("done" if code in (200, 201) else "refused")

    def points(self):
        return [
            ("idle", self.idle),
            ("188 KiB free", self.nearly_full),
            ("builds wait and run", self.waiting),
            ("resolving and importing", lambda: self.during(["Resolving"])),
            ("machine boots", lambda: self.during(["No finished artifact", "Finished artifacts: cache bypassed"], after=0.3)),
            ("a step runs", lambda: self.during(["Step 1/1"], after=0.2, steps=1)),
            ("start command and readiness", lambda: self.during(["Running start command"])),
            ("snapshot and publishing", lambda: self.during(["Ready after"])),
            ("an upload", self.upload),
            ("sandboxes are made", self.creating),
            ("from inside a sandbox", self.from_inside),
            ("from inside a step", self.from_a_step),
            ("a pause", lambda: self.storing("hibernate")),
            ("a snapshot", lambda: self.storing("snapshots")),
            ("a fork", lambda: self.storing("fork")),
            ("a promotion", lambda: self.storing("promote")),
        ]

    def afterwards(self, quiet):
        """What must hold once there is room."""
        victim = self.victim
        self.disk.make_room()
        until(lambda: victim.ready() == 200, "/readyz does not recover", 30)
        build = until(self.accepted, "builds are refused although there is room", 30)
        answer = victim.finished(build)
        check(answer["build"]["status"] == "ready", f"a build after it: {answer['build'].get('error_detail')}")
        code, said = victim.sh(quiet, "cat /starts")
        check((code, said) == (0, "started"), f"a sandbox from before says {code} {said}")
        self.tidy()

    def tidy(self):
        """Deletes the templates that were made, which would fill the small disk by themselves."""
        for number in range(1, self.number + 1):
            self.victim.api("DELETE", f"/v1/templates/d{number}")

    def accepted(self):
        self.number += 1
        code, answer = self.victim.api("POST", "/v1/templates/builds", request(f"d{self.number}"))
        check(code in (202, 503), f"after it a build is answered with {code} {answer}")
        return answer["build_id"] if code == 202 else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", default="", help="numbers, from 1; default: all")
    parser.add_argument("--size-mib", type=int, default=900)
    options = parser.parse_args()
    wanted = [int(number) for number in options.points.split(",") if number]
    if os.geteuid() != 0:
        raise SystemExit("disk.py mounts a file system: it needs root")
    # An end from outside is an exception, so that the file system is unmounted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("disk.py was ended"))
    tried = survived = 0
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(prefix="nullspace-full-") as mounted, Registry() as hub:
        hub.push("library/box", "1", busybox(folder), Cmd=["/bin/sh"])
        disk = Disk(mounted, options.size_mib)
        try:
            with Victim(hub, data_dir=f"{mounted}/data", build_concurrency=2, requests_per_second=100000) as victim:
                attack = Attack(victim, disk)
                for name, disk_mb in [("quiet", 512), ("greedy", 700)]:
                    body = request(name) | {"build_config": {"memory_mib": 128, "disk_mb": disk_mb}}
                    code, answer = victim.api("POST", "/v1/templates/builds", body)
                    check(code == 202, f"{code} {answer}")
                    check(victim.finished(answer["build_id"])["build"]["status"] == "ready", f"{name} is not ready")
                quiet = victim.sandbox("quiet")
                for number, (point, run) in enumerate(attack.points(), 1):
                    if wanted and number not in wanted:
                        continue
                    tried += 1
                    try:
                        how = run()
                        attack.afterwards(quiet)
                        survived += 1
                        print(f"{number:2} {point:30} {how}", flush=True)
                    except Fault as fault:
                        print(f"{number:2} {point:30} FAULT: {fault}", flush=True)
                        said = [line for line in victim.lines if "answered status=200" not in line]
                        print("\n".join(said[-40:]), flush=True)
                        disk.make_room()
                        attack.tidy()
                print(f"bench: disk_points_survived {survived} points")
        finally:
            disk.unmount()
    print(f"tried {tried} survived {survived}")
    return 0 if tried == survived else 1


if __name__ == "__main__":
    sys.exit(main())
