# SPDX-License-Identifier: Apache-2.0
"""The daemon's port onto the agent; `rpc.manager` is the other side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fmctl.core.address import Address
from fmctl.core.answers import AgentStatus, StartMode
from fmctl.core.errors import AgentUnreachable, FmctlError
from fmctl.core.partition import PartitionList
from fmctl.rpc import convert, keepalive
from fmctl.rpc.client import Client
from fmctl.rpc.fmctl.v1 import fabric_manager_pb2 as manager
from fmctl.rpc.fmctl.v1 import fabric_manager_pb2_grpc as manager_grpc


class AgentClient(Client):
    """The port `Agent`, over gRPC."""

    def __init__(
        self, address: Address, *, name: str = "", failure: Callable[[], FmctlError | None] = lambda: None
    ) -> None:
        """`name` is the address to tell of, where another is dialled; `failure` tells why it was not reached."""
        super().__init__(address, "the agent", name, keepalive.client())
        self._failure = failure
        self._stub = manager_grpc.FabricManagerServiceStub(self.channel)

    def call(self, method: Callable[..., Any], request: Any, timeout: float, *, changes: bool = False) -> Any:
        """One call; what stands between may know better than gRPC why the agent was not reached."""
        try:
            return super().call(method, request, timeout, changes=changes)
        except AgentUnreachable as error:
            reason = self._failure()
            if reason is None:
                raise
            raise AgentUnreachable(error.what, why=str(reason), fix=reason.fix or error.fix) from reason

    def list_partitions(self, *, timeout: float) -> PartitionList:
        """The partitions."""
        return convert.list_from(
            self.call(self._stub.ListFabricPartitions, manager.ListFabricPartitionsRequest(), timeout)
        )

    def activate(self, partition_id: int, *, timeout: float) -> None:
        """Activate a partition."""
        request = manager.ActivateFabricPartitionRequest(partition_id=partition_id)
        self.call(self._stub.ActivateFabricPartition, request, timeout, changes=True)

    def deactivate(self, partition_id: int, *, timeout: float) -> None:
        """Deactivate a partition."""
        request = manager.DeactivateFabricPartitionRequest(partition_id=partition_id)
        self.call(self._stub.DeactivateFabricPartition, request, timeout, changes=True)

    def set_activated(self, partition_ids: Sequence[int], *, timeout: float) -> None:
        """Tell a restarted Fabric Manager which partitions are active."""
        request = manager.SetActivatedFabricPartitionsRequest(partition_ids=partition_ids)
        self.call(self._stub.SetActivatedFabricPartitions, request, timeout, changes=True)

    def status(self, *, timeout: float) -> AgentStatus:
        """The agent's state and Fabric Manager's; raises AgentUnreachable, and nothing else."""
        try:
            answer = self.call(self._stub.GetAgentStatus, manager.GetAgentStatusRequest(), timeout)
        except AgentUnreachable:
            raise
        except FmctlError as error:
            raise AgentUnreachable(error.what, why=error.why, fix=error.fix) from error
        return AgentStatus(
            answer.version,
            convert.state_from(answer.fabric_state),
            answer.fabric_message,
            answer.library,
            answer.simulated,
        )

    def start_fabric_manager(self, mode: StartMode, active: Sequence[int], *, timeout: float) -> None:
        """Start Fabric Manager, in the place of one that runs."""
        request = manager.StartFabricManagerRequest(mode=_MODES[mode], active_partition_ids=active)
        self.call(self._stub.StartFabricManager, request, timeout, changes=True)

    def restart(self, *, timeout: float) -> None:
        """End the agent, to be started again."""
        self.call(self._stub.RestartAgent, manager.RestartAgentRequest(), timeout)


_MODES = {StartMode.FRESH: manager.START_MODE_FRESH, StartMode.RESTART: manager.START_MODE_RESTART}
