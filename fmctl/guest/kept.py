# SPDX-License-Identifier: Apache-2.0
"""A process that outlives the agent, since traffic must not hang on a restart of ours.

It is started without a lifeline, and a record of it in a folder that ends with the guest's boot lets the next agent
find it again. `guest.fmservice` and `guest.nvlink5` keep one each.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from fmctl import process
from fmctl.core.answers import ProcessState
from fmctl.core.errors import FmctlError

log = logging.getLogger(__name__)

STOP_GRACE = 10.0
"""Seconds that it has to end by itself."""


class KeptProcess:
    """One process at a time, of that name, in the foreground."""

    def __init__(self, name: str, record: Path, *, stop_grace: float = STOP_GRACE) -> None:
        """`record` lies in a folder that a reboot empties, such as /run/fmctl."""
        self._name = name
        self._record = record
        self._stop_grace = stop_grace
        self._child: process.Child | None = None

    def state(self) -> ProcessState:
        """Whether it runs, or ran in this boot."""
        if self._child is not None and self._child.poll() is None:
            return ProcessState.RUNNING
        if not self._record.exists():
            return ProcessState.NOT_STARTED
        return ProcessState.RUNNING if self._recorded() else ProcessState.ENDED

    def start(self, argv: Sequence[str]) -> int:
        """Start it, with none running; returns its process id. Raises FmctlError where it cannot be started."""
        child = process.Child(argv, lifeline=False)
        self._child = child
        self._write(child.pid)
        threading.Thread(target=self._watch, args=(child.pid,), name=f"watch {self._name}", daemon=True).start()
        return child.pid

    def stop(self) -> None:
        """End the one that runs; raises FmctlError where it does not end."""
        child = self._child
        pid = child.pid if child is not None and child.poll() is None else self._recorded()
        if pid is not None:
            log.info("ending %s, process %d", self._name, pid)
            if not _ended(pid, self._stop_grace):
                raise FmctlError(f"{self._name}, process {pid}, does not end", fix="reboot the Service VM")
        if child is not None:
            child.wait(self._stop_grace)
            child.stop()
            self._child = None

    def _watch(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                _await(descriptor, None)
            finally:
                os.close(descriptor)
        log.warning("%s, process %d, ended", self._name, pid)

    def _write(self, pid: int) -> None:
        """Note the process by its id and start time, which no other process of this boot has both of."""
        self._record.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._record.with_suffix(".new")
        temporary.write_text(json.dumps({"pid": pid, "started": self._started(pid)}))
        temporary.replace(self._record)

    def _recorded(self) -> int | None:
        """The process of the record if it is alive."""
        try:
            noted = json.loads(self._record.read_text())
            pid, started = int(noted["pid"]), noted["started"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return pid if started is not None and self._started(pid) == started else None

    @staticmethod
    def _started(pid: int) -> str | None:
        """When it started, in clock ticks since boot (proc(5)); None where it is gone or a zombie."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]


def _ended(pid: int, grace: float) -> bool:
    """Whether the process ended: on request, or after `grace` seconds without mercy."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return any(_signalled(descriptor, number, grace) for number in (signal.SIGTERM, signal.SIGKILL))
    finally:
        os.close(descriptor)


def _signalled(descriptor: int, number: signal.Signals, timeout: float) -> bool:
    """Whether the process ended within `timeout` seconds of the signal."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, number)
    return _await(descriptor, timeout)


def _await(descriptor: int, timeout: float | None) -> bool:
    """Whether the process of a descriptor has ended, after `timeout` seconds at most."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(None if timeout is None else timeout * 1000))
