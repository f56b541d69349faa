# SPDX-License-Identifier: Apache-2.0
"""What a program of ours tells the service manager that started it, as sd_notify(3) describes it.

`watchdog` keeps the manager's watchdog quiet through this. Where no manager listens, nothing is said.
"""

from __future__ import annotations

import array
import logging
import os
import re
import select
import socket
from collections.abc import Collection, MutableMapping
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

SOCKET = "NOTIFY_SOCKET"
WATCHDOG = "WATCHDOG_USEC"
WATCHDOG_PROCESS = "WATCHDOG_PID"
STATUS_LIMIT = 1024
"""Characters of a status text; a longer one is cut."""
_FIRST_DESCRIPTOR = 3
"""The first that a manager passes on."""
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

    def store(self, name: str, descriptor: int) -> None:
        """Have the manager hold an open file while this program is started again, under that name.

        It hands the file over to the next process, and is not to watch it, since not every file can be.
        """
        self._send("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", descriptor=descriptor)

    def discard(self, names: Collection[str]) -> None:
        """Have the manager close what it holds under these names; it has once this returns, or does not answer."""
        if not self.address:
            return
        for name in names:
            self._send("FDSTOREREMOVE=1", f"FDNAME={name}")
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            self._send("BARRIER=1", descriptor=writing)
        finally:
            os.close(writing)
        waiting = select.poll()
        waiting.register(reading, 0)
        waiting.poll(_TIMEOUT * 1000)
        os.close(reading)

    def _send(self, *assignments: str, descriptor: int | None = None) -> None:
        if not self.address or not assignments:
            return
        message = ["\n".join(assignments).encode()]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_TIMEOUT)
                if descriptor is None:
                    sender.sendto(message[0], _sockaddr(self.address))
                else:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
                    sender.sendmsg(message, rights, 0, _sockaddr(self.address))
        except OSError as error:
            if not self._failed:
                log.warning("the service manager does not hear at %s: %s", self.address, error.strerror or error)
            self._failed = True
        else:
            self._failed = False


def stored(environment: MutableMapping[str, str] = os.environ) -> dict[str, int]:
    """The open files that the manager held for this program, by name, taken out of the environment as by `take`.

    As sd_listen_fds(3) describes it. Of several with one name the first counts, and the others are closed.
    """
    count, names, process = (environment.pop(f"LISTEN_{key}", "") for key in ("FDS", "FDNAMES", "PID"))
    found: dict[str, int] = {}
    if process != str(os.getpid()) or not re.fullmatch("[0-9]{1,4}", count):
        return found
    for number, name in enumerate(names.split(":")[: int(count)]):
        descriptor = _FIRST_DESCRIPTOR + number
        os.set_inheritable(descriptor, False)  # noqa: FBT003
        if found.setdefault(name, descriptor) != descriptor:
            os.close(descriptor)
    return found


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
