# SPDX-License-Identifier: Apache-2.0
"""A pretended QEMU process: a thread that has hostdevs open and a guest in it. `sim.hypervisor` starts and ends it.

One in which no guest does anything is no thread, so that tests with many of them wait for nothing.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum

from fmctl.core.domain import Domain
from fmctl.core.errors import FmctlError

log = logging.getLogger(__name__)

Guest = Callable[[Domain], AbstractContextManager[object]]
"""What runs in a domain: entered when the guest boots, left when it reboots or its domain ends."""


def _nothing(domain: Domain) -> None:
    pass


@dataclass(frozen=True)
class Hardware:
    """Who hears that a domain opens its hostdevs, and that it has closed them; `opened` may refuse with FmctlError."""

    opened: Callable[[Domain], None] = _nothing
    closed: Callable[[Domain], None] = _nothing


NO_HARDWARE = Hardware()


class _Order(Enum):
    REBOOT = "reboot"
    END = "end"


class Process:
    """One domain's process."""

    def __init__(self, domain: Domain, guest: Guest, hardware: Hardware, noted: Callable[[Process], None]) -> None:
        """`noted` hears of each reboot and of the end."""
        self.domain = domain
        self.ended = False
        self.shut_down = False
        """Whether it ends, or has ended, because its guest switched itself off."""
        self._guest = guest
        self._hardware = hardware
        self._noted = noted
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"simulated {domain.name}", daemon=True)

    def start(self) -> None:
        """Open the hostdevs, and let the guest boot; raises FmctlError."""
        try:
            self._hardware.opened(self.domain)
        except FmctlError:
            self.ended = True
            raise
        self._thread.start()

    def end(self) -> None:
        """Let it end, soon."""
        self._orders.put(_Order.END)

    def reboot(self) -> None:
        """Let its guest be left and entered again, soon."""
        self._orders.put(_Order.REBOOT)

    def wait(self, timeout: float) -> bool:
        """Whether it has ended within so many seconds."""
        self._thread.join(timeout)
        return self.ended

    def _run(self) -> None:
        try:
            while self._booted() is _Order.REBOOT:
                self._noted(self)
        except Exception:
            log.exception("the guest of %s failed", self.domain.name)
        finally:
            self._hardware.closed(self.domain)
            self.ended = True
            self._noted(self)

    def _booted(self) -> _Order:
        """Run the guest until there is an order, and tell it."""
        with self._guest(self.domain):
            return self._orders.get()


class IdleProcess(Process):
    """A process whose guest does nothing, so that each order is carried out at once, by who gives it."""

    def __init__(self, domain: Domain, hardware: Hardware, noted: Callable[[Process], None]) -> None:
        super().__init__(domain, nullcontext, hardware, noted)

    def start(self) -> None:
        """Open the hostdevs; raises FmctlError."""
        try:
            self._hardware.opened(self.domain)
        except FmctlError:
            self.ended = True
            raise

    def end(self) -> None:
        """End now."""
        if not self.ended:
            self.ended = True
            self._hardware.closed(self.domain)
            self._noted(self)

    def reboot(self) -> None:
        """Boot again, of which nobody sees more than that it happened."""
        self._noted(self)

    def wait(self, timeout: float) -> bool:
        """Whether it has ended."""
        return self.ended
