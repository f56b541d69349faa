# SPDX-License-Identifier: Apache-2.0
"""Commands in the emulated host, over a virtio port: `hostvm/usr/lib/lab/channel.py` runs them."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARGIN = 20.0
"""Seconds that an answer may take beyond its command's deadline, before the emulated host counts as dead."""


class HostDead(Exception):
    """The emulated host does not answer at all."""


@dataclass(frozen=True)
class Answer:
    """What a command did; `status` is negative for a signal."""

    status: int
    timed_out: bool
    out: str
    err: str


class Channel:
    """One command at a time. Every wait has a deadline."""

    def __init__(self, path: Path, deadline: float) -> None:
        """Connect, and wait until the emulated host has booted so far; `deadline` is of time.monotonic()."""
        self._socket = _connect(path, deadline)
        self._pending = b""
        self._receive(deadline)

    def run(self, command: str, timeout: float) -> Answer:
        """Run a line of bash and wait for its end; raises HostDead."""
        return self._call({"command": command, "timeout": timeout})

    def fmctl(self, arguments: Sequence[str], timeout: float) -> Answer:
        """Run fmctl and wait for its end; raises HostDead. Its imports were made before, and it is forked."""
        return self._call({"fmctl": arguments, "timeout": timeout})

    def _call(self, asked: dict[str, Any]) -> Answer:
        self._socket.settimeout(MARGIN)
        try:
            self._socket.sendall(json.dumps(asked).encode() + b"\n")
        except OSError as error:
            raise HostDead("the emulated host is gone") from error
        answer = self._receive(time.monotonic() + asked["timeout"] + MARGIN)
        if answer.get("hello"):
            raise HostDead("the emulated host booted again by itself")
        return Answer(**answer)

    def reboot(self, timeout: float) -> None:
        """Let the emulated host boot again, and wait until it has so far; raises HostDead."""
        self.run("systemctl reboot", MARGIN)
        if not self._receive(time.monotonic() + timeout).get("hello"):
            raise HostDead("the emulated host does not boot again")

    def close(self) -> None:
        self._socket.close()

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._pending:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                chunk = self._socket.recv(1 << 16)
            except OSError as error:
                raise HostDead(f"the emulated host does not answer: {error}") from error
            if not chunk:
                raise HostDead("the emulated host is gone")
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _connect(path: Path, deadline: float) -> socket.socket:
    """QEMU makes the socket when it starts."""
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            if time.monotonic() > deadline:
                raise HostDead(f"QEMU does not start: {error}") from error
            time.sleep(0.05)
        else:
            return connection
