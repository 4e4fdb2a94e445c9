"""What is known of the tests of one run, kept outside the nested host, so that it outlives it.

A script in L1 tells of its tests by lines on the control port:

    begin NAME
    end NAME pass|fail SECONDS
    lost NAME WHY        the emulator spoiled a guest; the script then waits, and its host is ended

A host that is lost takes nothing along but the test that was running: the next host is told which tests are finished.
"""

import dataclasses
import shlex

# So often may the emulator lose its host, or a guest, under one test.
LOSSES = 5


@dataclasses.dataclass
class Test:
    verdict: str = "running"
    seconds: float = 0.0
    losses: int = 0


class Ledger:
    def __init__(self, emulator):
        self.emulator = emulator  # its name and version, for messages
        self.tests = {}
        self.running = None
        self.losses = []  # what was lost, in order
        self.outside = 0  # losses in a row while no test ran

    def line(self, text):
        """Takes a line of the control port in. -> why the host must be ended, or None."""
        words = text.split()
        match words:
            case ["begin", name]:
                self.tests.setdefault(name, Test())
                self.running = name
            case ["end", name, ("pass" | "fail") as verdict, seconds]:
                test = self.tests.setdefault(name, Test())
                test.verdict, test.seconds = verdict, float(seconds)
                self.running, self.outside = None, 0
            case ["lost", _, *why]:
                return "the emulator lost a guest: " + " ".join(why)
        return None

    def lost(self, why):
        """A host is gone. -> what to tell."""
        if self.running is None:
            self.outside += 1
            where, count = "while no test ran", self.outside
        else:
            test = self.tests[self.running]
            test.losses += 1
            where, count = f"in {self.running}", test.losses
        self.losses.append(f"{where}: {why}")
        told = f"host lost {where} ({count} of {LOSSES}): {why}"
        if self.running is not None and count >= LOSSES:
            self.tests[self.running].verdict = "given up"
            told += f"\n{self.running} is given up: under {self.emulator} it lost its host {LOSSES} times; " \
                    "nothing is known of what it tests (docs/nested-host.md)"
        self.running = None
        return told

    def may_go_on(self):
        """Whether another host is worth its start: one that is lost before any test fails again and again is not."""
        return self.outside < LOSSES

    def finished(self):
        """Names of the tests that the next host leaves out."""
        return [name for name, test in self.tests.items() if test.verdict != "running"]

    def failed(self):
        return [name for name, test in self.tests.items() if test.verdict != "pass"]

    def passed(self):
        return sum(test.verdict == "pass" for test in self.tests.values())

    def table(self):
        """A line for each test, the slowest first."""
        rows = sorted(self.tests.items(), key=lambda row: -row[1].seconds)
        return "\n".join(f"{test.seconds:7.1f} s  {test.verdict:8}  {name}"
                         + (f"  ({test.losses} losses)" if test.losses else "") for name, test in rows)

    def part(self, name, seconds):
        """The line that machines read."""
        return f"part: {shlex.quote(name)} tests={len(self.tests)} passed={self.passed()} failed={len(self.failed())} " \
               f"losses={len(self.losses)} seconds={seconds:.0f}"
