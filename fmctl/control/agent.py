# SPDX-License-Identifier: Apache-2.0
"""The agent: Fabric Manager's calls one to one, its process, and what can be told of its state.

The daemon does the judging, and says when Fabric Manager starts and how.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from fmctl import __version__
from fmctl.control.logbuffer import LogBuffer
from fmctl.core import fmversion
from fmctl.core.answers import AgentStatus, FabricState, ProcessState, StartMode
from fmctl.core.errors import BadRequest, FabricBusy, FmctlError
from fmctl.core.loglines import LogPosition, LogSource, LogStream
from fmctl.core.outcome import state_behind
from fmctl.core.partition import PartitionList
from fmctl.core.ports import AgentPackage, FabricManager, FabricProcess

TELL_INTERVAL = 0.1
"""Seconds between two attempts to tell a restarted Fabric Manager its active partitions."""
SHOWN_LINES = 20
"""Lines of Fabric Manager's log in a status."""


class LocalAgent:
    """The port `Agent` beside Fabric Manager itself."""

    def __init__(
        self,
        fabric_manager: FabricManager,
        fabric_process: FabricProcess,
        end: Callable[[], None],
        *,
        library: str,
        call_timeout: float,
        package: AgentPackage | None = None,
        logs: LogBuffer | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """No call takes longer than `call_timeout` seconds, whatever its caller allows; `end` ends the agent.

        Without a package the agent cannot be replaced.
        """
        self._fabric_manager = fabric_manager
        self._process = fabric_process
        self._package = package
        self._logs = logs or LogBuffer()
        self._end = end
        self._starting = threading.Lock()
        self._awaiting = False
        self._library = library
        self._call_timeout = call_timeout
        self._clock = clock
        self._pause = pause
        self._asked = -math.inf
        self._last = AgentStatus(__version__, FabricState.UNREACHABLE, "not asked yet", library)

    def list_partitions(self, *, timeout: float) -> PartitionList:
        """The partitions."""
        try:
            listed = self._fabric_manager.list_partitions(timeout=min(timeout, self._call_timeout))
        except FabricBusy:
            raise
        except FmctlError as error:
            self._note(state_behind(error), str(error), simulated=self._last.simulated)
            raise
        self._note(FabricState.READY, "", simulated=listed.simulated)
        return listed

    def activate(self, partition_id: int, *, timeout: float) -> None:
        """Activate a partition."""
        self._fabric_manager.activate(partition_id, timeout=min(timeout, self._call_timeout))

    def deactivate(self, partition_id: int, *, timeout: float) -> None:
        """Deactivate a partition."""
        self._fabric_manager.deactivate(partition_id, timeout=min(timeout, self._call_timeout))

    def set_activated(self, partition_ids: Sequence[int], *, timeout: float) -> None:
        """Tell a restarted Fabric Manager which partitions are active."""
        self._fabric_manager.set_activated(partition_ids, timeout=min(timeout, self._call_timeout))

    def start_fabric_manager(self, mode: StartMode, active: Sequence[int], *, timeout: float) -> None:
        """Start Fabric Manager; for a restart, tell it the active partitions as soon as it takes calls."""
        if not self._starting.acquire(blocking=False):
            raise FabricBusy("Fabric Manager is being started", why="another call does so", fix="wait for it")
        try:
            deadline = self._clock() + timeout
            self._awaiting = mode is StartMode.RESTART
            self._process.start(restart=self._awaiting)
            if self._awaiting:
                self._tell(active, deadline)
        finally:
            self._awaiting = False
            self._starting.release()

    def restart(self, *, timeout: float) -> None:
        """End the agent, which is then started again by who keeps it."""
        self._end()

    def replace(self, archive: bytes, digest: str, *, timeout: float) -> None:
        """End the agent, which is then started again from this archive."""
        if self._package is None:
            raise BadRequest("the agent is not replaced", why="it keeps no archives", fix="replace it where it runs")
        self._package.put(archive, digest)
        self._end()

    def logs(self, after: LogPosition) -> LogStream:
        """The lines after that position: what is kept, then each new one."""
        return self._logs.read(after)

    def status(self, *, timeout: float) -> AgentStatus:
        """Everything that the daemon is told; that it asks shows that an agent on trial can be reached.

        Fabric Manager's state is from how it answers a list now, or the last known one while it serves another call.
        """
        status = self.recent_status(0.0, timeout=timeout)
        facts = self._process.facts()
        if self._package is not None:
            self._package.confirm()
        return replace(
            status,
            digest=self._package.digest if self._package else "",
            fm_version=facts.fm_version,
            driver_version=facts.driver_version,
            versions_differ=fmversion.difference(facts.fm_version, facts.driver_version),
            fm_log=self._logs.last(LogSource.FABRIC_MANAGER, SHOWN_LINES),
            fm_config=facts.config,
            nvlsm=facts.nvlsm,
            fabric_start=facts.fabric_start,
            has_daemon=self._logs.awaited == math.inf,
        )

    def recent_status(self, max_age: float, *, timeout: float) -> AgentStatus:
        """Fabric Manager's state, from a list that anyone asked for in the last `max_age` seconds, or from one now."""
        known = self._known()
        if known is not None:
            return replace(self._last, state=known[0], message=known[1])
        if self._clock() - self._asked >= max_age:
            with contextlib.suppress(FmctlError):
                self.list_partitions(timeout=timeout)
        return self._last

    def _known(self) -> tuple[FabricState, str] | None:
        """What needs no question to Fabric Manager."""
        if self._awaiting:
            return FabricState.AWAITING_ACTIVE_LIST, "it was started to take up its state"
        process = self._process.state()
        if process is ProcessState.NOT_STARTED:
            return FabricState.NOT_STARTED, "it starts when the daemon says so"
        if process is ProcessState.ENDED:
            return FabricState.ENDED, "its process is gone; active partitions go on without it"
        return None

    def _tell(self, active: Sequence[int], deadline: float) -> None:
        """Set the list until Fabric Manager took it: a list that it answers shows that it waits no more."""
        while True:
            try:
                return self.set_activated(active, timeout=max(0.1, deadline - self._clock()))
            except FmctlError as error:
                failure = error
            with contextlib.suppress(FmctlError):
                self._fabric_manager.list_partitions(timeout=max(0.1, deadline - self._clock()))
                return
            if self._process.state() is ProcessState.ENDED:
                raise FmctlError("Fabric Manager ended before it took the active partitions") from failure
            if self._clock() >= deadline:
                raise failure
            self._pause(TELL_INTERVAL)

    def _note(self, state: FabricState, message: str, *, simulated: bool) -> None:
        self._asked = self._clock()
        self._last = AgentStatus(__version__, state, message, self._library, simulated)
