"""Whether a host that is silent is hung, told from looks at its emulated CPU over QEMU's monitor.

QEMU 7.2 loses an interrupt now and then while KVM runs in the emulated machine (docs/nested-host.md): the CPU then halts, with
interrupts enabled, while its local APIC holds a vector that it would take. A loaded machine delays heartbeats too; its CPU moves.
"""

import dataclasses
import re

# Looks in a row that must say the same, and the processor seconds that QEMU may use meanwhile if its CPU is to count as hung:
# on a loaded machine a look may well fall between an interrupt and the moment when the emulating thread gets a processor.
SAME, MUTE, IDLE = 4, 2, 0.3


@dataclasses.dataclass
class Look:
    """One look. `rip` is None when the monitor did not answer."""
    rip: int | None
    halted: bool = False
    enabled: bool = False  # interrupts: RFLAGS.IF
    vector: int = -1  # the highest that is pending, -1 for none
    priority: int = 0  # the processor's
    used: float = 0.0  # processor seconds that QEMU has used so far

    def takes_nothing(self):
        """The CPU sleeps through an interrupt that it would take."""
        return self.rip is not None and self.halted and self.enabled and self.vector >> 4 > self.priority >> 4


def look(registers, lapic, used=0.0):
    """A look from the answers to `info registers` and `info lapic`, of the first CPU; either is None without an answer."""
    place = re.search(r"[RE]IP=([0-9a-f]+) [RE]FL=([0-9a-f]+).* HLT=(\d)", registers or "")
    if not place:
        return Look(None)
    pending = re.search(r"^IRR\s+(.*)$", lapic or "", re.M)
    vectors = [int(word) for word in re.findall(r"\d+", pending[1])] if pending else []
    priority = re.search(r"PPR 0x([0-9a-f]+)", lapic or "")
    return Look(int(place[1], 16), place[3] == "1", bool(int(place[2], 16) & 0x200), max(vectors, default=-1),
                int(priority[1], 16) if priority else 0, used)


def verdict(looks):
    """Why the host is lost, from the looks since its last heartbeat, or None."""
    def last(count, test):
        return len(looks) >= count and all(test(one) for one in looks[-count:])

    if last(MUTE, lambda one: one.rip is None):
        return "the emulator does not answer its monitor"
    if last(SAME, Look.takes_nothing) and looks[-1].used - looks[-SAME].used < IDLE:
        return f"the emulated CPU is halted and does not take the pending vector {looks[-1].vector}"
    if last(SAME, lambda one: one.rip is not None and one.rip == looks[-SAME].rip and not one.halted):
        return f"the emulated CPU stays at {looks[-1].rip:#x}"
    return None
