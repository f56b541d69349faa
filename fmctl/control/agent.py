# SPDX-License-Identifier: Apache-2.0
"""The agent: Fabric Manager's calls one to one, and what can be told of its state. The daemon does the judging."""

from __future__ import annotations

from collections.abc import Sequence

from fmctl import __version__
from fmctl.core.errors import FmctlError, VersionMismatch
from fmctl.core.fmcode import INITIALISING, FmCode
from fmctl.core.partition import PartitionList
from fmctl.core.ports import AgentStatus, FabricManager, FabricState


class LocalAgent:
    """The port `Agent` beside Fabric Manager itself."""

    def __init__(self, fabric_manager: FabricManager, *, library: str, call_timeout: float) -> None:
        """No call takes longer than `call_timeout` seconds, whatever its caller allows."""
        self._fabric_manager = fabric_manager
        self._library = library
        self._call_timeout = call_timeout
        self._simulated = False

    def list_partitions(self, *, timeout: float) -> PartitionList:
        """The partitions."""
        listed = self._fabric_manager.list_partitions(timeout=min(timeout, self._call_timeout))
        self._simulated = listed.simulated
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
        """Fabric Manager's state, from how it answers a list."""
        try:
            self.list_partitions(timeout=timeout)
        except FmctlError as error:
            return self._status(state_behind(error), str(error))
        return self._status(FabricState.READY, "")

    def _status(self, state: FabricState, message: str) -> AgentStatus:
        return AgentStatus(__version__, state, message, self._library, self._simulated)


def state_behind(error: FmctlError) -> FabricState:
    """Fabric Manager's state, from the error that a list ended in."""
    if error.fm_code in INITIALISING:
        return FabricState.INITIALISING
    if isinstance(error, VersionMismatch):
        return FabricState.FAILED
    if error.fm_code is None or error.fm_code == FmCode.CONNECTION_NOT_VALID:
        return FabricState.UNREACHABLE
    return FabricState.FAILED
