# SPDX-License-Identifier: Apache-2.0
"""The port onto the agent, for the daemon, and for a person where there is none; `rpc.manager` is the other side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import grpc

from fmctl.core.address import Address
from fmctl.core.answers import AgentStatus, Changed, StartMode
from fmctl.core.errors import AgentUnreachable, FmctlError
from fmctl.core.fmcode import Operation
from fmctl.core.loglines import LogLine, LogPosition, LogSource
from fmctl.core.partition import PartitionList
from fmctl.rpc import convert, errors, keepalive
from fmctl.rpc.dial import Client
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
            answer.digest,
            answer.fm_version,
            answer.driver_version,
            answer.versions_differ,
            tuple(answer.fm_log),
            dict(answer.fm_config),
            answer.nvlsm,
            answer.fabric_start,
            answer.has_daemon,
        )

    def start_fabric_manager(self, mode: StartMode, active: Sequence[int], *, timeout: float) -> None:
        """Start Fabric Manager, in the place of one that runs."""
        request = manager.StartFabricManagerRequest(mode=_MODES[mode], active_partition_ids=active)
        self.call(self._stub.StartFabricManager, request, timeout, changes=True)

    def restart(self, *, timeout: float) -> None:
        """End the agent, to be started again."""
        self.call(self._stub.RestartAgent, manager.RestartAgentRequest(), timeout)

    def replace(self, archive: bytes, digest: str, *, timeout: float) -> None:
        """Let another agent be tried in the place of this one."""
        request = manager.ReplaceAgentRequest(archive=archive, digest=digest)
        self.call(self._stub.ReplaceAgent, request, timeout, changes=True)

    def break_glass(
        self, operation: Operation, partition_id: int, *, user: str, reason: str, timeout: float
    ) -> Changed:
        """A person's change where there is no daemon; raises as `control.breakglass` does."""
        request = manager.BreakGlassRequest(user=user, reason=reason)
        if operation is Operation.ACTIVATE:
            request.activate = partition_id
        else:
            request.deactivate = partition_id
        answer = self.call(self._stub.BreakGlass, request, timeout, changes=True)
        partition = convert.partition_from(answer.partition)
        return Changed(partition, already=answer.already, simulated=answer.simulated)

    def logs(self, after: LogPosition) -> LogCall:
        """The lines of the logs after that position."""
        request = manager.StreamLogsRequest(instance=after.instance, after=after.sequence)
        return LogCall(self._stub.StreamLogs(request), self._who)


class LogCall:
    """The port `LogStream`: a call under way, whose connection keepalive watches."""

    def __init__(self, call: Any, who: str) -> None:
        self._call = call
        self._who = who

    def __iter__(self) -> LogCall:
        return self

    def __next__(self) -> LogLine:
        """The next line; raises FmctlError where the agent cannot tell it."""
        try:
            return _line(next(self._call))
        except grpc.RpcError as error:
            raise errors.from_rpc_error(cast("grpc.Call", error), who=self._who, changes=False) from None

    def close(self) -> None:
        """End the call."""
        self._call.cancel()


def _line(message: manager.StreamLogsResponse) -> LogLine:
    return LogLine(
        _SOURCES.get(message.source, LogSource.FABRIC_MANAGER),
        message.time.ToMicroseconds() / 1e6,
        message.text,
        message.sequence,
        message.instance,
        message.dropped,
    )


_SOURCES = {
    manager.LOG_SOURCE_FABRIC_MANAGER: LogSource.FABRIC_MANAGER,
    manager.LOG_SOURCE_KERNEL: LogSource.KERNEL,
    manager.LOG_SOURCE_BREAK_GLASS: LogSource.BREAK_GLASS,
}
_MODES = {StartMode.FRESH: manager.START_MODE_FRESH, StartMode.RESTART: manager.START_MODE_RESTART}
