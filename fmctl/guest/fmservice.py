# SPDX-License-Identifier: Apache-2.0
"""Fabric Manager's own process: the port `FabricProcess`. `control.agent` says when it starts, and how.

Fabric Manager outlives the agent, since traffic must not hang on a restart of ours: it is started without a lifeline,
and a record of it in a folder that ends with the guest's boot lets the next agent find it again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
from collections.abc import Sequence
from pathlib import Path

from fmctl import process
from fmctl.core.answers import FabricFacts, ProcessState
from fmctl.core.errors import FmctlError

log = logging.getLogger(__name__)

STOP_GRACE = 10.0
"""Seconds that Fabric Manager has to end by itself."""


class FmService:
    """Starts and stops the process that `command` runs in the foreground."""

    def __init__(self, command: Sequence[str], record: Path, *, stop_grace: float = STOP_GRACE) -> None:
        """`record` lies in a folder that a reboot empties, such as /run/fmctl.

        A process that is to end has `stop_grace` seconds to do so by itself.
        """
        self._command = tuple(command)
        self._record = record
        self._stop_grace = stop_grace
        self._child: process.Child | None = None

    def state(self) -> ProcessState:
        """Whether it runs, or ran in this boot."""
        if not self._command:
            return ProcessState.UNMANAGED
        if self._child is not None and self._child.poll() is None:
            return ProcessState.RUNNING
        if not self._record.exists():
            return ProcessState.NOT_STARTED
        return ProcessState.RUNNING if self._recorded() else ProcessState.ENDED

    def facts(self) -> FabricFacts:
        """What is known of it."""
        return FabricFacts()

    def start(self, *, restart: bool) -> None:
        """Start it, in the place of one that runs; with `restart` it takes up its state file and waits for a list.

        Raises FmctlError where it cannot be started or ended.
        """
        if not self._command:
            raise FmctlError(
                "this agent does not start Fabric Manager",
                why="its setting fm_command is empty",
                fix="set fm_command in the Service VM, or start Fabric Manager there",
            )
        self._stop()
        child = process.Child([*self._command, *(["--restart"] if restart else [])], lifeline=False)
        self._child = child
        self._write(child.pid)
        log.info("started Fabric Manager %s as process %d", "to take up its state" if restart else "fresh", child.pid)

    def _stop(self) -> None:
        running = self._child is not None and self._child.poll() is None
        pid = self._child.pid if running and self._child is not None else self._recorded()
        if pid is None:
            return
        log.info("ending Fabric Manager, process %d", pid)
        if not _ended(pid, self._stop_grace):
            raise FmctlError(f"Fabric Manager, process {pid}, does not end", fix="reboot the Service VM")
        if self._child is not None:
            self._child.wait(self._stop_grace)

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
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(timeout * 1000))
