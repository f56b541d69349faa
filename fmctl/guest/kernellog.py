# SPDX-License-Identifier: Apache-2.0
"""The kernel's SXid lines, from /dev/kmsg; `core.sxid` knows them, and `guest.fmlog` follows the other log."""

from __future__ import annotations

import logging
import os
import re
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fmctl.core import sxid

log = logging.getLogger(__name__)

Add = Callable[[float, str], None]
"""Takes a line and its time in seconds since the epoch."""

READ_SIZE = 8192
"""Bytes that a record may take (the kernel's CONSOLE_EXT_LOG_MAX)."""
IDLE_INTERVAL = 0.5
"""Seconds between two looks where the kernel does not tell that there is more."""

_RECORD = re.compile(r"(?P<prefix>\d+),(?P<sequence>\d+),(?P<time>\d+),[^;]*;(?P<text>.*)")


class KernelLog:
    """Follows the file in a thread of its own; as a context manager it runs for as long as the block."""

    def __init__(self, path: Path, add: Add, *, wall: Callable[[], float] | None = None) -> None:
        """`wall` tells the time of the kernel's boot."""
        self._path = path
        self._add = add
        self._wall = wall or (lambda: time.time() - time.clock_gettime(time.CLOCK_MONOTONIC))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kernel log", daemon=True)
        self._sequence: int | None = None

    def _run(self) -> None:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            log.warning("the kernel's log is not followed: %s: %s", self._path, error.strerror)
            return
        try:
            self._follow(descriptor)
        except OSError as error:
            log.warning("the kernel's log is followed no more: %s: %s", self._path, error.strerror)
        finally:
            os.close(descriptor)

    def _follow(self, descriptor: int) -> None:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        rest = b""
        while not self._stopping.is_set():
            poller.poll(1000 * IDLE_INTERVAL)
            try:
                chunk = os.read(descriptor, READ_SIZE)
            except BlockingIOError:
                continue
            except BrokenPipeError:
                continue  # records were overwritten: the next one's number tells how many
            if not chunk:
                self._stopping.wait(IDLE_INTERVAL)
                continue
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._take(line.decode(errors="replace"))

    def _take(self, line: str) -> None:
        """Take a record's first line; what follows it are its properties."""
        found = _RECORD.fullmatch(line)
        if found is None:
            return
        sequence, seconds = int(found["sequence"]), int(found["time"]) / 1e6
        when = self._wall() + seconds
        lost = 0 if self._sequence is None else sequence - self._sequence - 1
        if lost > 0:
            self._add(when, f"{_stamp(seconds)} {lost} kernel messages were overwritten before they were read")
        self._sequence = sequence
        if sxid.parse(found["text"]):
            self._add(when, f"{_stamp(seconds)} {found['text']}")

    def __enter__(self) -> KernelLog:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join(timeout=5.0)


def _stamp(seconds: float) -> str:
    """The kernel's own time of a message, which is the same at each reading."""
    return f"[{seconds:12.6f}]"
