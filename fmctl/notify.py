# SPDX-License-Identifier: Apache-2.0
"""What a program of ours tells the service manager that started it, as sd_notify(3) describes it.

`watchdog` keeps the manager's watchdog quiet through this. Where no manager listens, nothing is said.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

SOCKET = "NOTIFY_SOCKET"
WATCHDOG = "WATCHDOG_USEC"
WATCHDOG_PROCESS = "WATCHDOG_PID"
STATUS_LIMIT = 1024
"""Characters of a status text; a longer one is cut."""
_TIMEOUT = 1.0
"""Seconds that a manager may take to make room for a message."""


@dataclass
class Notifier:
    """The way to the service manager; an empty address is none.

    A message that cannot be sent is logged once and lost: who serves must not fail for want of a listener.
    """

    address: str = ""
    watchdog_s: float | None = None
    """Seconds within which the manager wants to hear a ping, again and again; None where it wants none."""
    _failed: bool = field(default=False, init=False, repr=False)

    def ready(self, status: str = "") -> None:
        """Tell that this program serves; what waits for it may start now."""
        self._send("READY=1", *_status(status))

    def status(self, text: str) -> None:
        """Tell in one line how it is; `systemctl status` shows it."""
        self._send(*_status(text))

    def stopping(self, status: str = "") -> None:
        """Tell that it ends of its own will, or on a signal."""
        self._send("STOPPING=1", *_status(status))

    def ping(self) -> None:
        """Tell the watchdog that it lives."""
        self._send("WATCHDOG=1")

    def _send(self, *assignments: str) -> None:
        if not self.address or not assignments:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_TIMEOUT)
                sender.sendto("\n".join(assignments).encode(), _sockaddr(self.address))
        except OSError as error:
            if not self._failed:
                log.warning("the service manager does not hear at %s: %s", self.address, error.strerror or error)
            self._failed = True
        else:
            self._failed = False


def take(environment: MutableMapping[str, str] = os.environ) -> Notifier:
    """The way to the manager that started this process, taken out of the environment.

    So no child can speak, or be taken, for this process. To be called once, before there are threads or children.
    """
    address = environment.pop(SOCKET, "")
    period = environment.pop(WATCHDOG, "")
    process = environment.pop(WATCHDOG_PROCESS, "")
    if not address.startswith(("/", "@")):
        return Notifier()
    ours = process in ("", str(os.getpid()))
    wanted = ours and re.fullmatch("[1-9][0-9]{0,15}", period)
    return Notifier(address, int(period) / 1e6 if wanted else None)


def _sockaddr(address: str) -> bytes:
    """The kernel's form of an address, which begins with a zero byte where it is abstract."""
    name = os.fsencode(address)
    return b"\0" + name[1:] if name.startswith(b"@") else name


def _status(text: str) -> tuple[str, ...]:
    """A status text as one line: what it quotes may come from a guest, and a line of its own would be a message."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return (f"STATUS={line[:STATUS_LIMIT]}",) if line else ()
