# SPDX-License-Identifier: Apache-2.0
"""Follows Fabric Manager's log through rotation and truncation; `guest.kernellog` follows the other log."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fmctl.core import fmlog

log = logging.getLogger(__name__)

Add = Callable[[float, str], None]
"""Takes a line and its time in seconds since the epoch."""

INTERVAL = 0.5
"""Seconds between two looks."""
CHUNK = 64 * 1024
TAIL = 64 * 1024
"""Bytes that are read of what stands in the file before the agent starts."""
MAX_LINE = 16 * 1024
"""Bytes after which a line without an end is taken as it is."""


class FmLog:
    """Follows the file in a thread of its own; as a context manager it runs for as long as the block."""

    def __init__(
        self, path: Path, add: Add, *, interval: float = INTERVAL, wall: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._add = add
        self._interval = interval
        self._wall = wall
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="Fabric Manager's log", daemon=True)
        self._descriptor = -1
        self._offset = 0
        self._rest = b""
        self._when: float | None = None
        self._skipping = False
        self._first = True
        self._trouble = ""

    def look(self) -> None:
        """Take what was written since the last look."""
        try:
            if self._descriptor < 0:
                self._open(tail=TAIL if self._first else None)
            self._first = False
            while self._descriptor >= 0:
                self._read()
                if not self._has_successor():
                    break
                self._end_line()
                self._close()
                self._open()
            self._trouble = ""
        except OSError as error:
            self._close()
            trouble = f"{self._path} cannot be followed: {error.strerror or error}"
            if trouble != self._trouble:
                log.warning("%s", trouble)
            self._trouble = trouble

    def _open(self, tail: int | None = None) -> None:
        """Open the file, if there is one: from its start, or from `tail` bytes before its end."""
        with contextlib.suppress(FileNotFoundError):
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            size = os.fstat(self._descriptor).st_size
            self._offset = 0 if tail is None else max(0, size - tail)
            self._skipping = self._offset > 0
            self._rest = b""

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _has_successor(self) -> bool:
        """Whether another file has the name now."""
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def _read(self) -> None:
        if os.fstat(self._descriptor).st_size < self._offset:
            self._end_line()
            self._offset = 0
        while (chunk := os.pread(self._descriptor, CHUNK, self._offset)) and not self._stopping.is_set():
            self._offset += len(chunk)
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                self._take(line)
            if len(self._rest) > MAX_LINE:
                self._end_line()

    def _end_line(self) -> None:
        """Take what has no end of line, and will have none."""
        if self._rest:
            self._take(self._rest)
        self._rest = b""

    def _take(self, line: bytes) -> None:
        if self._skipping:  # the rest of a line whose start was not read
            self._skipping = False
            return
        text = line.decode("utf-8", errors="replace").rstrip()
        entry = fmlog.parse(text)
        if entry is not None:
            self._when = entry.when.timestamp()
        if text:
            self._add(self._wall() if self._when is None else self._when, text)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.look()
            self._stopping.wait(self._interval)

    def __enter__(self) -> FmLog:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join(timeout=5.0)
        self._close()
