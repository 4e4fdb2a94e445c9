"""Hangs made on purpose, to show that a run survives them."""

import random
import signal

from .image import log


class Injection:
    """Stops the emulator by a signal at a random moment of a host, in each of the next hosts until `count` are used up."""

    def __init__(self, count, spread=60):
        self.count, self.spread, self.at = count, spread, None

    def maybe(self, qemu, ready, now):
        if not ready or self.count == 0:
            return
        if self.at is None:
            self.at = now + random.uniform(0, self.spread)
        if now >= self.at:
            self.count, self.at = self.count - 1, None
            log(f"injected: the emulator is stopped ({self.count} more to come)")
            qemu.send_signal(signal.SIGSTOP)
