#!/usr/bin/env python3
"""Runs the parts of `make demo` and `make test`: those that need nothing of one another side by side, as far as the
processors go, and prints a table of them at its end.

    parts.py [--stream] PART...      the parts, and first what they need
    parts.py --list

A part is a command. Its output goes to target/parts/PART.log and is printed when it ends (`--stream`: at once, each line with
the part's name). A part that fails keeps only those from running that need it; the exit code is 1 when any part failed or was
kept from running.

What a part tells of itself, in its output: nextest's and pytest's closing lines, and lines `part: key=value …` with the keys
`tests`, `failed`, `skipped` and `losses` (machines that the emulator lost, and that the part survived).
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "target" / "parts"

# One test compile serves nextest, the nested host and the lints' dependencies: one profile, one feature set.
TESTS = "cargo test --locked --workspace --no-run"
NEXTEST = "cargo nextest run --locked --workspace"
# Tests that start machines keep both processors busy. All others share the processors with one other part; so do the two
# end-to-end tests that wait most of their time. The two filters are complements: each test runs in exactly one of the parts, but for
# what LONG leaves to `make test-long`.
MACHINES = ("(binary(e2e) & not (test(growth::) | test(a_finished_builds_log_and))) | binary(conformance) | binary(qemu_host) | binary(firecracker_host) | "
            "(package(nullspace-init) & (binary(qemu) | binary(halt))) | (package(nullspace-rootfs) & kind(test))")
SOAKS = ("test(machines_come_and_go) | test(however_the_store_fails) | test(however_often_the_service_is_killed) | "
         "test(a_killed_server_leaves_no_short_object) | test(a_context_of_thousands_of_files_is_built) | "
         "test(every_port_does_on_postgresql) | test(dockerfiles_make_the_files_that_docker_makes) | test(/^readiness::/) | test(the_request_overrides_user_and_folder) | "
         "test(the_disk_has_the_size_that_was_asked_for) | test(a_step_that_fails_says_which) | (binary(e2e) & (test(pauses::) | test(stop::))) | "
         "(binary(e2e) & test(builders::)) | (binary(conformance) & test(pauses::))")
# Only in `make test-long`: some thirteen minutes of a processor. docs/building.md says which tests of `make test` they follow from.
LONG = ("test(every_step_makes_the_files_that_its_dockerfile_makes) | test(builds_end_and_artifacts_are_whole_however_the_store_fails) | "
        "test(a_trial_whose_machine_is_killed_is_repeated) | test(a_step_that_fails_says_which) | test(the_disk_has_the_size_that_was_asked_for) | "
        "test(each_kind_of_readiness_waits) | test(the_request_overrides_user_and_folder) | test(a_context_of_thousands_of_files_is_built) | "
        "test(no_more_builds_run_than_the_setting_says) | test(names_are_reserved_requests_are_repeated)")
# Space that services in tests need beside what is compiled: with less, they refuse work, as they should.
LITTLE = 4 << 30
# Nothing is skipped for a program or a file that is missing.
COMPLETE = {"NULLSPACE_TEST_COMPLETE": "1"}


@dataclass
class Part:
    """A command, what it needs, how many processors it keeps busy, and how long it may take at the most (seconds)."""

    command: str
    needs: tuple = ()
    cores: int = 2
    limit: int = 1200
    env: dict = field(default_factory=dict)


PARTS = {
    # What is downloaded or made from packages: the network's time more than the processors'.
    "base": Part("scripts/root-image.sh base target/guest/base.tar", cores=0),
    "builder": Part("scripts/root-image.sh builder target/guest/builder.tar", needs=("base",), cores=0),
    "demo-files": Part("scripts/demo-files.sh target/demo-files", cores=0),
    "fetch": Part("scripts/fetch-docker.sh && scripts/fetch-firecracker.sh && scripts/seaweedfs.sh", cores=0),
    # The emulated host's tests take longest: its image comes first. Two that unpack Debian at once disturb each other.
    "nested-image": Part("tools/nested_host.py --build-only", needs=("base",), cores=0),
    "fetch-client": Part("tests/sdk/published.py --fetch", needs=("nested-image",), cores=0),
    # Compiling.
    "build": Part("scripts/build.sh", limit=2400),
    "guest": Part("scripts/guest-image.sh target/guest", needs=("build",), cores=0),
    "tests": Part(TESTS, needs=("build",), limit=2400),
    "fmt": Part("cargo fmt --all --check", cores=0),
    "clippy": Part("cargo clippy --locked --workspace --all-targets -- -D warnings", needs=("tests",)),
    "doc": Part("cargo doc --locked --workspace --no-deps --document-private-items --quiet", needs=("clippy",),
                env={"RUSTDOCFLAGS": "-D warnings"}),
    # Tests. The emulated host has one processor, and the client's tests do one thing at a time. Parts of one processor come in
    # an order in which two of them at a time end together: `machines` waits for the last.
    "firecracker": Part("tests/nested/run.sh", needs=("tests", "guest", "nested-image", "fetch"), cores=1, limit=3000),
    # Fifty machines that come and go; every filesystem and the way without a jailer with more tests.
    "firecracker-long": Part("tests/nested/run.sh", needs=("tests", "guest", "nested-image", "fetch"), cores=1, limit=7200,
                             env={"NULLSPACE_TEST_LONG": "1", "NULLSPACE_NESTED_TIMEOUT": "7000"}),
    # What `unit` and `machines` do a few times, done often, and what they do with less, at its full size.
    "soak": Part(f"{NEXTEST} -E '{SOAKS} | {LONG}'", needs=("tests", "guest", "base", "builder", "fetch"), limit=7200,
                 env={**COMPLETE, "NULLSPACE_TEST_LONG": "1", "NULLSPACE_TEST_CYCLES": "50"}),
    # Every service of the end-to-end tests on an S3 store of its own; two at a time.
    "s3": Part(f"{NEXTEST} -E 'binary(e2e)'", needs=("tests", "guest", "base", "fetch"), limit=7200,
               env={**COMPLETE, "NULLSPACE_TEST_STORE": "s3"}),
    "client": Part("tests/sdk/published.py", needs=("guest", "base", "fetch", "fetch-client"), cores=1, limit=2700),
    "packages-long": Part("tests/sdk/packages.py", needs=("guest", "base", "fetch", "fetch-client"), env={"NULLSPACE_TEST_LONG": "1"}),
    "client-soak": Part("tests/sdk/published.py -k Soak", needs=("guest", "base", "fetch", "fetch-client"), cores=1,
                        env={"NULLSPACE_FIRECRACKER_SOAK": "1"}),
    # Two gigabytes into a sandbox and out of it by each way; the service's memory as a figure.
    "files-soak": Part("tests/sdk/soak_files.py", needs=("guest", "base"), cores=1, limit=7200),
    # Not in `make test`: its counters need every dependency compiled once more, ten minutes of a processor.
    "fuzz-build": Part("scripts/fuzz.sh --build", limit=2400),
    "fuzz": Part("scripts/fuzz.sh", needs=("fuzz-build",), cores=1, limit=4000),
    "unit": Part(f"{NEXTEST} -E 'not ({MACHINES})'", needs=("tests", "guest", "base", "fetch"), cores=1, limit=2400, env=COMPLETE),
    "browser": Part("tests/sdk/browser.py", needs=("guest", "base"), cores=1),
    "packages": Part("tests/sdk/packages.py", needs=("guest", "base", "fetch", "fetch-client"), cores=1),
    "fuzz-api": Part("tests/sdk/contract_fuzz.py", needs=("guest", "base"), cores=1),
    # nextest does not run examples in documentation. All packages, so that features are those of `tests`.
    "doctests": Part("cargo test --locked --workspace --doc --quiet", needs=("tests",), cores=1),
    "machines": Part(f"{NEXTEST} -E '({MACHINES}) & not ({LONG})'", needs=("tests", "guest", "base", "fetch"), limit=3000, env=COMPLETE),
}
TARGETS = {
    "demo": ("base", "builder", "demo-files", "guest"),
    "lint": ("fmt", "clippy", "doc"),
    "test-client": ("client", "fuzz-api", "packages"),
    "test-firecracker": ("firecracker",),
    "nextest": ("unit", "machines"),
    # Clippy compiles every dependency's metadata, which nothing else needs: five minutes of two processors.
    "test": ("fmt", "doctests", "firecracker", "client", "fuzz-api", "browser", "packages", "unit", "machines"),
}


@dataclass
class Outcome:
    """How a part ended."""

    state: str  # "passed", "failed" or "not run"
    seconds: float = 0.0
    why: str = ""
    counts: dict = field(default_factory=dict)


def wanted(names):
    """These parts and all that they need, in the order of PARTS."""
    found = set()

    def add(name):
        if name not in found:
            found.add(name)
            for needed in PARTS[name].needs:
                add(needed)

    for name in names:
        for part in TARGETS.get(name, (name,)):
            if part not in PARTS:
                sys.exit(f"parts: no part is called {part}; see parts.py --list")
            add(part)
    return [name for name in PARTS if name in found]


def counted(text, filtered=False):
    """What a part's output says of its tests. nextest calls skipped what its filter leaves out, too: such a part has no skipped."""
    counts = {}

    def add(key, number):
        counts[key] = counts.get(key, 0) + int(number)

    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    for line in re.findall(r"^\s*Summary \[.*\] (.*)$", text, re.M):
        for number, key in re.findall(r"(\d+) (tests? run|failed|skipped)", line):
            if key != "skipped" or not filtered:
                add("tests" if key.startswith("test") else key, number)
    for line in re.findall(r"^=*\s*((?:\d+ [a-z]+,? ?)+)in [\d.]+s.*$", text, re.M):  # pytest
        for number, key in re.findall(r"(\d+) (passed|failed|errors?|skipped|deselected)", line):
            if key in ("passed", "failed", "error", "errors"):
                add("tests", number)
            if key in ("failed", "error", "errors"):
                add("failed", number)
            if key == "skipped":
                add("skipped", number)
    stated = re.findall(r"^part: (.*)$", text, re.M)
    if stated:
        # What the part says itself wins over what the runners inside it said.
        counts = {}
        for line in stated:
            for key, number in re.findall(r"(tests|failed|skipped|losses)=(\d+)", line):
                add(key, number)
    return counts


class Runner:
    """Starts parts when what they need has passed and processors are free."""

    def __init__(self, names, cores, stream):
        self.left, self.cores, self.stream = list(names), cores, stream
        self.outcomes, self.running = {}, {}
        self.least_free = shutil.disk_usage(ROOT).free
        self.lock = threading.Condition()

    def run(self):
        LOGS.mkdir(parents=True, exist_ok=True)
        with self.lock:
            while self.left or self.running:
                self.start_what_can()
                self.least_free = min(self.least_free, shutil.disk_usage(ROOT).free)
                if self.running:
                    self.lock.wait(60) or self.say_what_runs()
        return self.outcomes

    def start_what_can(self):
        for name in list(self.left):
            part = PARTS[name]
            broken = [n for n in part.needs if n in self.outcomes and self.outcomes[n].state != "passed"]
            if broken:
                self.left.remove(name)
                self.outcomes[name] = Outcome("not run", why=f"needs {broken[0]}")
                return self.start_what_can()
            if any(n not in self.outcomes for n in part.needs):
                continue
            busy = sum(min(PARTS[n].cores, self.cores) for n, _ in self.running.values())
            if part.cores and busy + min(part.cores, self.cores) > self.cores:
                continue
            self.left.remove(name)
            print(f"== {name}: {part.command}", flush=True)
            process = subprocess.Popen(
                ["bash", "-c", part.command], cwd=ROOT, env={**os.environ, **part.env}, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
            self.running[process.pid] = (name, process)
            threading.Thread(target=self.follow, args=(name, part, process), daemon=True).start()

    def follow(self, name, part, process):
        began, late = time.monotonic(), []

        def give_up():
            late.append(True)
            signal_group(process, signal.SIGTERM)

        timer = threading.Timer(part.limit, give_up)
        timer.start()
        log = LOGS / f"{name}.log"
        with open(log, "wb") as file:
            for line in process.stdout:
                file.write(line)
                file.flush()
                if self.stream:
                    sys.stdout.write(f"{name} | {line.decode('utf-8', 'replace')}")
                    sys.stdout.flush()
        code = process.wait()
        timer.cancel()
        text = log.read_text(errors="replace")
        why = f"took over {part.limit} s" if late else "" if code == 0 else f"exit code {code}"
        outcome = Outcome("failed" if why else "passed", time.monotonic() - began, why, counted(text, " -E " in part.command))
        with self.lock:
            if not self.stream:
                sys.stdout.write(text)
            print(f"== {name} {outcome.state} after {outcome.seconds:.0f} s {why}", flush=True)
            del self.running[process.pid]
            self.outcomes[name] = outcome
            self.lock.notify()

    def say_what_runs(self):
        if not self.stream:
            print("== running: " + ", ".join(name for name, _ in self.running.values()), flush=True)

    def stop(self):
        for _, process in list(self.running.values()):
            signal_group(process, signal.SIGTERM)


def signal_group(process, number):
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def reasons(lines, each=3, most=40):
    """The panics and failed assertions of a log, with the lines after them. A reader whose copy of the log is cut needs them most."""
    found = []
    for at, line in enumerate(lines):
        if re.search(r"panicked at|^E   |^--- failed: ", line):
            found += [part[:300] for part in lines[at : at + (1 if line.startswith(("E ", "---")) else each)]]
    return found[-most:]


def table(outcomes, order, seconds):
    print(f"\n{'part':<14}{'result':<10}{'seconds':>8}{'tests':>8}{'failed':>8}{'skipped':>8}{'losses':>8}")
    total = {}
    for name in order:
        outcome = outcomes[name]
        row = "".join(f"{outcome.counts.get(key, ''):>8}" for key in ("tests", "failed", "skipped", "losses"))
        print(f"{name:<14}{outcome.state:<10}{outcome.seconds:>8.0f}{row}  {outcome.why}".rstrip())
        for key, number in outcome.counts.items():
            total[key] = total.get(key, 0) + number
    print(f"{'all':<24}{seconds:>8.0f}")
    for name in order:
        if outcomes[name].state == "failed":
            print(f"\n{name} failed ({outcomes[name].why}): target/parts/{name}.log; its end:")
            lines = (LOGS / f"{name}.log").read_text(errors="replace").splitlines()
            print("\n".join(lines[-30:]))
            print(f"\n{name}, what its tests died of:\n" + "\n".join(reasons(lines)))
    if total.get("tests"):
        failed = total.get("failed", 0)
        print(f"\ntotal: {total['tests'] - failed} passed, {failed} failed, {total.get('skipped', 0)} skipped")


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--stream", action="store_true", help="print output as it comes")
    parser.add_argument("--list", action="store_true", help="name the parts and targets")
    parser.add_argument("parts", nargs="*", metavar="PART")
    args = parser.parse_args()
    if args.list or not args.parts:
        for name, part in PARTS.items():
            print(f"{name:<14}{part.command}")
        for name, parts in TARGETS.items():
            print(f"{name + ':':<20}{' '.join(parts)}")
        return 0
    # Make's jobserver is not for cargo: it would leave one processor idle.
    for variable in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
        os.environ.pop(variable, None)
    order = wanted(args.parts)
    runner = Runner(order, max(2, os.cpu_count() or 2), args.stream)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    try:
        outcomes = runner.run()
    finally:
        runner.stop()
    print(f"\ndisk: {runner.least_free / (1 << 30):.1f} GiB were free at least")
    if runner.least_free < LITTLE:
        print("disk: that is little: tests fail for want of space. Compiling from cold takes 20 GiB; `target/debug/incremental` can go.")
    table(outcomes, order, time.monotonic() - began)
    return 0 if all(outcome.state == "passed" for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
