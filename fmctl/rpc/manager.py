# SPDX-License-Identifier: Apache-2.0
"""The agent's service: each call one call of the port `Agent`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import grpc

from fmctl.core.answers import StartMode
from fmctl.core.errors import BadRequest
from fmctl.core.fmcode import Operation
from fmctl.core.loglines import LogLine, LogPosition, LogSource
from fmctl.core.ports import KeptAgent
from fmctl.rpc import convert
from fmctl.rpc.fmctl.v1 import fabric_manager_pb2 as messages
from fmctl.rpc.fmctl.v1.fabric_manager_pb2_grpc import FabricManagerServiceServicer
from fmctl.rpc.server import time_left

if TYPE_CHECKING:
    from fmctl.control.breakglass import BreakGlass


class FabricManagerServicer(FabricManagerServiceServicer):
    """fmctl.v1.FabricManagerService."""

    def __init__(self, agent: KeptAgent, break_glass: Callable[[], BreakGlass] | None = None) -> None:
        """`break_glass` is called when it is needed; without it nothing is changed past the daemon."""
        self._agent = agent
        self._break_glass = break_glass

    def ListFabricPartitions(
        self, request: messages.ListFabricPartitionsRequest, context: grpc.ServicerContext
    ) -> messages.ListFabricPartitionsResponse:
        """The partitions."""
        listed = self._agent.list_partitions(timeout=time_left(context))
        return messages.ListFabricPartitionsResponse(
            partitions=convert.partitions_to(listed, {}),
            max_partitions=listed.max_partitions,
            simulated=listed.simulated,
        )

    def ActivateFabricPartition(
        self, request: messages.ActivateFabricPartitionRequest, context: grpc.ServicerContext
    ) -> messages.ActivateFabricPartitionResponse:
        """Activate a partition."""
        self._agent.activate(request.partition_id, timeout=time_left(context))
        return messages.ActivateFabricPartitionResponse()

    def DeactivateFabricPartition(
        self, request: messages.DeactivateFabricPartitionRequest, context: grpc.ServicerContext
    ) -> messages.DeactivateFabricPartitionResponse:
        """Deactivate a partition."""
        self._agent.deactivate(request.partition_id, timeout=time_left(context))
        return messages.DeactivateFabricPartitionResponse()

    def SetActivatedFabricPartitions(
        self, request: messages.SetActivatedFabricPartitionsRequest, context: grpc.ServicerContext
    ) -> messages.SetActivatedFabricPartitionsResponse:
        """Tell a restarted Fabric Manager which partitions are active."""
        self._agent.set_activated(list(request.partition_ids), timeout=time_left(context))
        return messages.SetActivatedFabricPartitionsResponse()

    def GetAgentStatus(
        self, request: messages.GetAgentStatusRequest, context: grpc.ServicerContext
    ) -> messages.GetAgentStatusResponse:
        """The agent's state and Fabric Manager's."""
        status = self._agent.status(timeout=time_left(context))
        return messages.GetAgentStatusResponse(
            version=status.version,
            fabric_state=convert.state_to(status.state),
            fabric_message=status.message,
            library=status.library,
            simulated=status.simulated,
            digest=status.digest,
            fm_version=status.fm_version,
            driver_version=status.driver_version,
            versions_differ=status.versions_differ,
            fm_log=status.fm_log,
            fm_config=status.fm_config,
            nvlsm=status.nvlsm,
            fabric_start=status.fabric_start,
            has_daemon=status.has_daemon,
        )

    def StartFabricManager(
        self, request: messages.StartFabricManagerRequest, context: grpc.ServicerContext
    ) -> messages.StartFabricManagerResponse:
        """Start Fabric Manager."""
        mode = _MODES.get(request.mode)
        active = list(request.active_partition_ids)
        if mode is None or (mode is StartMode.FRESH and active):
            why = "a fresh start has no active partitions" if mode else "the mode is not set"
            raise BadRequest("Fabric Manager is not started", why=why, fix="correct the call")
        self._agent.start_fabric_manager(mode, active, timeout=time_left(context))
        return messages.StartFabricManagerResponse()

    def RestartAgent(
        self, request: messages.RestartAgentRequest, context: grpc.ServicerContext
    ) -> messages.RestartAgentResponse:
        """End the agent, to be started again."""
        self._agent.restart(timeout=time_left(context))
        return messages.RestartAgentResponse()

    def ReplaceAgent(
        self, request: messages.ReplaceAgentRequest, context: grpc.ServicerContext
    ) -> messages.ReplaceAgentResponse:
        """End the agent, to be started again from another archive."""
        self._agent.replace(request.archive, request.digest, timeout=time_left(context))
        return messages.ReplaceAgentResponse()

    def BreakGlass(
        self, request: messages.BreakGlassRequest, context: grpc.ServicerContext
    ) -> messages.BreakGlassResponse:
        """A person's change where there is no daemon."""
        named = request.WhichOneof("change")
        if self._break_glass is None or named is None:
            why = "no change is named" if self._break_glass else "this agent keeps no record of such changes"
            raise BadRequest("nothing is changed past fmctld", why=why, fix="correct the call")
        changed = self._break_glass().change(
            Operation(named),
            getattr(request, named),
            user=request.user,
            reason=request.reason,
            timeout=time_left(context),
        )
        return messages.BreakGlassResponse(
            partition=convert.partition_to(changed.partition), already=changed.already, simulated=changed.simulated
        )

    def StreamLogs(
        self, request: messages.StreamLogsRequest, context: grpc.ServicerContext
    ) -> Iterator[messages.StreamLogsResponse]:
        """The logs, until the caller or the agent ends."""
        stream = self._agent.logs(LogPosition(request.instance, request.after))
        if not context.add_callback(stream.close):
            stream.close()  # the caller is gone already
        yield from map(_line, stream)


def _line(line: LogLine) -> messages.StreamLogsResponse:
    message = messages.StreamLogsResponse(
        instance=line.instance,
        sequence=line.sequence,
        dropped=line.dropped,
        source=_SOURCES[line.source],
        text=line.text,
    )
    message.time.FromMicroseconds(round(line.time * 1e6))
    return message


_SOURCES = {
    LogSource.FABRIC_MANAGER: messages.LOG_SOURCE_FABRIC_MANAGER,
    LogSource.KERNEL: messages.LOG_SOURCE_KERNEL,
    LogSource.BREAK_GLASS: messages.LOG_SOURCE_BREAK_GLASS,
}
_MODES = {messages.START_MODE_FRESH: StartMode.FRESH, messages.START_MODE_RESTART: StartMode.RESTART}
