# SPDX-License-Identifier: Apache-2.0
"""The agent's audit trail: a file in the Service VM's memory, which outlives the agent and ends with the boot.

Its root is read-only. What must outlast the boot is on the console, which the host keeps, and in the daemon's journal.
"""

from __future__ import annotations

import os
from pathlib import Path

from fmctl.core.errors import FmctlError

_MODE = 0o600
_NEWLINE = b"\n"


class AuditFile:
    """The port `AuditTrail` over one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self) -> tuple[str, ...]:
        """Every line, oldest first; none where the file cannot be read."""
        try:
            return tuple(self._path.read_text(encoding="utf-8", errors="replace").splitlines())
        except OSError:
            return ()

    def append(self, line: str) -> None:
        """Write a line behind all others; raises FmctlError where it cannot be written."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
            try:
                size = os.fstat(descriptor).st_size
                is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != _NEWLINE
                rest = _NEWLINE * is_torn + line.encode() + _NEWLINE
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise FmctlError(
                f"{self._path} cannot be written",
                why=error.strerror or str(error),
                fix="make room in the Service VM's memory: nothing is changed unrecorded",
            ) from error
