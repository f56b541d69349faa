# SPDX-License-Identifier: Apache-2.0
"""The agent: Fabric Manager's calls one to one, and what can be told of its state. The daemon does the judging."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence

from fmctl import __version__
from fmctl.core.answers import AgentStatus, FabricState
from fmctl.core.errors import FabricBusy, FmctlError
from fmctl.core.outcome import state_behind
from fmctl.core.partition import PartitionList
from fmctl.core.ports import FabricManager


class LocalAgent:
    """The port `Agent` beside Fabric Manager itself."""

    def __init__(
        self,
        fabric_manager: FabricManager,
        *,
        library: str,
        call_timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """No call takes longer than `call_timeout` seconds, whatever its caller allows."""
        self._fabric_manager = fabric_manager
        self._library = library
        self._call_timeout = call_timeout
        self._clock = clock
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

    def status(self, *, timeout: float) -> AgentStatus:
        """Fabric Manager's state, from how it answers a list now; the last known one while it serves another call."""
        return self.recent_status(0.0, timeout=timeout)

    def recent_status(self, max_age: float, *, timeout: float) -> AgentStatus:
        """Fabric Manager's state, from a list that anyone asked for in the last `max_age` seconds, or from one now."""
        if self._clock() - self._asked >= max_age:
            with contextlib.suppress(FmctlError):
                self.list_partitions(timeout=timeout)
        return self._last

    def _note(self, state: FabricState, message: str, *, simulated: bool) -> None:
        self._asked = self._clock()
        self._last = AgentStatus(__version__, state, message, self._library, simulated)
