# SPDX-License-Identifier: Apache-2.0
"""Clients of the two services: the daemon's port onto the agent, and the CLI's onto the daemon.

Each answers in core values and fails in core errors; `rpc.server` is the other side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import grpc

from fmctl.core.address import Address, UnixAddress, VsockAddress
from fmctl.core.answers import Changed, DaemonStatus, Listed
from fmctl.core.errors import AgentUnreachable, BadRequest, FmctlError
from fmctl.core.partition import PartitionList
from fmctl.core.ports import AgentStatus
from fmctl.rpc import convert, errors
from fmctl.rpc.fmctl.v1 import fabric_controller_pb2 as controller
from fmctl.rpc.fmctl.v1 import fabric_controller_pb2_grpc as controller_grpc
from fmctl.rpc.fmctl.v1 import fabric_manager_pb2 as manager
from fmctl.rpc.fmctl.v1 import fabric_manager_pb2_grpc as manager_grpc

_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
)


def target(address: Address) -> str:
    """gRPC's name for the address; raises BadRequest for vsock, which grpcio cannot dial."""
    if isinstance(address.where, VsockAddress):
        raise BadRequest(f"{address} cannot be dialled", why="grpcio knows no vsock", fix="use unix:PATH or HOST:PORT")
    return str(address)


class _Client:
    """A channel, and calls over it that end in values or in core errors."""

    def __init__(self, address: Address, who: str) -> None:
        """Dial when first needed; `who` names the other side in messages."""
        is_unix = isinstance(address.where, UnixAddress)
        authority = (("grpc.default_authority", "localhost"),) if is_unix else ()
        self._who = f"{who} at {address}"
        self._channel = grpc.insecure_channel(target(address), options=(*_OPTIONS, *authority))

    def close(self) -> None:
        """Close the channel; calls under way fail."""
        self._channel.close()

    def _call(self, method: Callable[..., Any], request: Any, timeout: float, *, changes: bool = False) -> Any:
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise errors.from_rpc_error(cast("grpc.Call", error), who=self._who, changes=changes) from None


class AgentClient(_Client):
    """The port `Agent`, over gRPC."""

    def __init__(self, address: Address) -> None:
        super().__init__(address, "the agent")
        self._stub = manager_grpc.FabricManagerServiceStub(self._channel)

    def list_partitions(self, *, timeout: float) -> PartitionList:
        """The partitions."""
        return convert.list_from(
            self._call(self._stub.ListFabricPartitions, manager.ListFabricPartitionsRequest(), timeout)
        )

    def activate(self, partition_id: int, *, timeout: float) -> None:
        """Activate a partition."""
        request = manager.ActivateFabricPartitionRequest(partition_id=partition_id)
        self._call(self._stub.ActivateFabricPartition, request, timeout, changes=True)

    def deactivate(self, partition_id: int, *, timeout: float) -> None:
        """Deactivate a partition."""
        request = manager.DeactivateFabricPartitionRequest(partition_id=partition_id)
        self._call(self._stub.DeactivateFabricPartition, request, timeout, changes=True)

    def set_activated(self, partition_ids: Sequence[int], *, timeout: float) -> None:
        """Tell a restarted Fabric Manager which partitions are active."""
        request = manager.SetActivatedFabricPartitionsRequest(partition_ids=partition_ids)
        self._call(self._stub.SetActivatedFabricPartitions, request, timeout, changes=True)

    def status(self, *, timeout: float) -> AgentStatus:
        """The agent's state and Fabric Manager's; raises AgentUnreachable, and nothing else."""
        try:
            answer = self._call(self._stub.GetAgentStatus, manager.GetAgentStatusRequest(), timeout)
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


class ControllerClient(_Client):
    """The daemon's API, as the CLI uses it."""

    def __init__(self, address: Address) -> None:
        super().__init__(address, "fmctld")
        self._stub = controller_grpc.FabricControllerServiceStub(self._channel)

    def list_partitions(self, *, timeout: float) -> Listed:
        """Every partition, with its owner."""
        answer = self._call(self._stub.ListPartitions, controller.ListPartitionsRequest(), timeout)
        owners = {message.id: message.owner for message in answer.partitions if message.owner}
        return Listed(convert.list_from(answer), owners)

    def activate(
        self, owner: str, *, partition_id: int | None = None, gpu_ids: Sequence[int] = (), timeout: float
    ) -> Changed:
        """Activate a partition, named by its id or by exactly its GPUs."""
        request = controller.ActivatePartitionRequest(owner=owner)
        if partition_id is None:
            request.gpus.physical_ids.extend(gpu_ids)
        else:
            request.partition_id = partition_id
        return _changed(self._call(self._stub.ActivatePartition, request, timeout, changes=True))

    def deactivate(self, owner: str, partition_id: int, *, timeout: float) -> Changed:
        """Deactivate a partition."""
        request = controller.DeactivatePartitionRequest(owner=owner, partition_id=partition_id)
        return _changed(self._call(self._stub.DeactivatePartition, request, timeout, changes=True))

    def status(self, *, timeout: float) -> DaemonStatus:
        """The daemon's state, and what it sees behind it."""
        return convert.status_from(self._call(self._stub.GetStatus, controller.GetStatusRequest(), timeout))


def _changed(answer: controller.ActivatePartitionResponse | controller.DeactivatePartitionResponse) -> Changed:
    partition = convert.partition_from(answer.partition)
    return Changed(partition, answer.partition.owner, answer.already, answer.simulated)
