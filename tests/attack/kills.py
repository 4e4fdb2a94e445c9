#!/usr/bin/env python3
"""SIGKILL at random moments of builds, sandboxes, deletes and collection, each time followed by a start on the same data.

    build     up to three builds run, some with steps that are kept as layers
    sandbox   a sandbox is being made, or ended
    delete    a template is being deleted
    collect   artifacts, root images and chunks are being collected: their time of keeping is put into the past

After each kill: no machine runs on, what is stored is whole, every accepted build and template is there, no log has
changed, no sandbox counts as living. At the end every build has ended, the folders hold what the database names and nothing
else, and templates work. `tried N survived M`.

    kills.py [--kills 200] [--seed N]
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sdk"))

from bench_api import busybox  # noqa: E402
from running import Registry  # noqa: E402
from victim import OVER, Fault, Victim, check, request, until  # noqa: E402

MODES = ["build", "build", "sandbox", "delete", "collect"]
UNFINISHED = 3
TEMPLATES = 6
DAY = 24 * 3600 * 1_000_000


class Attack:
    def __init__(self, victim, chance):
        self.victim = victim
        self.chance = chance
        self.number = 0
        # Build -> messages of its log seen so far, and whether it is over.
        self.builds = {}
        # Name -> artifact, of templates that are ready and that nobody has asked to delete.
        self.templates = {}
        self.sandboxes = set()
        self.taken_over = []

    def observe(self):
        """Reads every build that is not over; returns how many are not."""
        unfinished = 0
        for build, seen in self.builds.items():
            if seen["over"]:
                continue
            answer = self.victim.status(build)
            entries = [(entry["offset"], entry["message"]) for entry in answer["entries"]]
            check(entries[: len(seen["entries"])] == seen["entries"], f"the log of {build} has changed")
            seen["entries"] = entries
            status = answer["build"]["status"]
            seen["over"] = status in OVER
            unfinished += not seen["over"]
            if status == "ready":
                # A name that was built twice leads to the newer artifact.
                self.templates.setdefault(seen["name"], None)
            elif seen["over"]:
                detail = answer["build"].get("error_detail") or {}
                reason = (detail.get("details") or {}).get("reason")
                check(reason == "attempts_spent", f"build {build} ended as {status}: {detail}")
        return unfinished

    def begin(self):
        """Accepts one more build."""
        self.number += 1
        chance = self.chance
        body = request(f"t{self.number}", steps=chance.randrange(3), kind=chance.randrange(2), skip_cache=chance.random() < 0.3)
        code, answer = self.victim.api("POST", "/v1/templates/builds", body)
        check(code == 202, f"a build is refused: {code} {answer}")
        self.builds[answer["build_id"]] = {"name": body["name"], "entries": [], "over": False}

    def in_background(self, work):
        """Runs a request that the kill may cut off."""

        def run():
            try:
                work()
            except (OSError, ValueError, KeyError):
                pass

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def delete_one(self):
        """Asks for one template to be deleted; from now on it may or may not be there."""
        name = self.chance.choice(sorted(self.templates))
        del self.templates[name]
        return self.in_background(lambda: self.victim.api("DELETE", f"/v1/templates/{name}"))

    def make_sandbox(self):
        name = self.chance.choice(sorted(self.templates))

        def make():
            code, answer = self.victim.api("POST", "/v1/sandboxes", {"template": name})
            if code in (200, 201):
                self.sandboxes.add(answer["id"])

        return self.in_background(make)

    def round(self, mode):
        victim, chance = self.victim, self.chance
        unfinished = self.observe()
        for _ in range(unfinished, UNFINISHED):
            self.begin()
        if mode != "build" and not self.templates:
            mode = "build"
        threads, moment = [], chance.uniform(0.05, 5)
        if mode == "sandbox":
            threads, moment = [self.make_sandbox()], chance.uniform(0, 0.6)
            if self.sandboxes and chance.random() < 0.5:
                one = chance.choice(sorted(self.sandboxes))
                threads.append(self.in_background(lambda: victim.api("DELETE", f"/v1/sandboxes/{one}")))
        elif mode == "delete":
            threads, moment = [self.delete_one()], chance.uniform(0, 0.1)
        elif mode == "collect":
            # The end of a template or sandbox wakes the collector.
            while len(self.templates) > TEMPLATES // 2:
                threads.append(self.delete_one())
            moment = chance.uniform(0, 0.4)
        time.sleep(moment)
        victim.kill()
        for thread in threads:
            thread.join(30)
        self.after()
        return mode

    def after(self):
        victim = self.victim
        victim.store("verify")
        # What is unused has been so for long, from now on.
        victim.rows("UPDATE rootfs SET last_used_at = last_used_at - ?", 2 * DAY)
        held = victim.rows("SELECT id, lease_epoch FROM builds WHERE status = 'building'")
        victim.start()
        began = time.monotonic()
        if held:
            # The dead owner's leases are not waited for: each of its builds has a higher epoch (free for a worker, or in its
            # next attempt), or is over.
            query = "SELECT count(*) FROM builds WHERE id = ? AND status = 'building' AND lease_epoch = ?"
            until(lambda: not any(victim.rows(query, *one)[0][0] for one in held), "builds of the dead keep their leases", 25)
            self.taken_over.append((time.monotonic() - began) * 1000)
        code, living = victim.api("GET", "/v1/sandboxes?limit=1000")
        check(code == 200, f"sandboxes cannot be listed: {code}")
        living = [one["id"] for one in (living["items"] if isinstance(living, dict) else living)]
        check(not living, f"sandboxes of the dead count as living: {living}")
        self.sandboxes.clear()
        code, there = victim.api("GET", "/v1/templates")
        check(code == 200, f"templates cannot be listed: {code}")
        names = {template["name"] for template in there}
        missing = set(self.templates) - names
        check(not missing, f"templates are gone: {missing}")
        self.observe()

    def end(self):
        """From here on in peace."""
        victim = self.victim
        for build, seen in self.builds.items():
            if not seen["over"]:
                victim.finished(build)
        self.observe()
        for name in self.chance.sample(sorted(self.templates), min(3, len(self.templates))):
            sandbox = victim.sandbox(name)
            code, said = victim.sh(sandbox, "cat /starts")
            check((code, said) == (0, "started"), f"a sandbox of {name} says {code} {said}")
            code, answer = victim.api("DELETE", f"/v1/sandboxes/{sandbox}")
            check(code == 200, f"a sandbox does not end: {code} {answer}")
        victim.stop()
        victim.store("gc")
        victim.store("verify")
        streams = {row[0] for row in victim.rows("SELECT streams FROM artifacts WHERE purged_at IS NULL")}
        roots = {row[0] for row in victim.rows("SELECT manifest FROM rootfs")}
        named = roots | {manifest for text in streams for manifest in json.loads(text).values()}
        on_disk = {path.name for path in (victim.data / "chunks" / "manifests").iterdir()}
        # Manifests under others that are named stay too.
        check(named <= on_disk, f"named and missing: {named - on_disk}")
        snapshots = len(list((victim.data / "snapshots").iterdir()))
        check(snapshots <= len(streams), f"{snapshots} raw snapshots of {len(streams)} that are named")
        files = {row[0] for row in victim.rows("SELECT file FROM rootfs")}
        raw = {path.name for path in (victim.data / "rootfs").iterdir()}
        check(raw <= files, f"raw root images that nothing names: {raw - files}")
        left = [path.name for path in (victim.data / "work").iterdir()]
        check(not left, f"left in work/: {left}")
        unfinished = victim.rows("SELECT count(*) FROM builds WHERE finished_at IS NULL")[0][0]
        check(unfinished == 0, f"{unfinished} builds never end")
        victim.start()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    chance = random.Random(options.seed)
    kills = {}
    with tempfile.TemporaryDirectory() as folder, Registry() as hub:
        hub.push("library/box", "1", busybox(folder), Cmd=["/bin/sh"])
        settings = {"build_concurrency": 2, "requests_per_second": 100000, "log": "info"}
        with Victim(hub, **settings) as victim:
            attack = Attack(victim, chance)
            survived, fault = 0, None
            try:
                for number in range(options.kills):
                    mode = attack.round(MODES[number % len(MODES)])
                    kills[mode] = kills.get(mode, 0) + 1
                    survived += 1
                    if number % 20 == 19:
                        print(f"{number + 1} kills, {len(attack.builds)} builds, {len(attack.templates)} templates", flush=True)
                attack.end()
            except Fault as found:
                fault = found
                print("\n".join(victim.lines[-60:]))
                if victim.process.poll() is not None:
                    victim.start()
            took = attack.taken_over
            ready = sum(seen["over"] for seen in attack.builds.values())
            for mode, count in sorted(kills.items()):
                print(f"{mode:8} {count} kills")
            print(f"{len(attack.builds)} builds accepted, {ready} over")
            if took:
                print(f"bench: takeover_p50_ms {statistics.median(took):.0f} ms")
            if fault is not None:
                print(f"FAULT: {fault}")
            print(f"tried {options.kills} survived {survived if fault is None else min(survived, options.kills - 1)}")
            return 1 if fault is not None else 0


if __name__ == "__main__":
    sys.exit(main())
