# SPDX-License-Identifier: Apache-2.0
"""The daemon's API as the CLI uses it, and what every client has in common.

A client answers in core values and fails in core errors. `rpc.agent_client` is the other one; `rpc.server` serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import grpc

from fmctl.core.address import Address, UnixAddress, VsockAddress
from fmctl.core.answers import Changed, DaemonStatus, Listed
from fmctl.core.errors import BadRequest
from fmctl.rpc import convert, errors
from fmctl.rpc.fmctl.v1 import fabric_controller_pb2 as controller
from fmctl.rpc.fmctl.v1 import fabric_controller_pb2_grpc as controller_grpc

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


class Client:
    """A channel, and calls over it that end in values or in core errors."""

    def __init__(self, address: Address, who: str) -> None:
        """Dial when first needed; `who` names the other side in messages."""
        is_unix = isinstance(address.where, UnixAddress)
        authority = (("grpc.default_authority", "localhost"),) if is_unix else ()
        self._who = f"{who} at {address}"
        self.channel = grpc.insecure_channel(target(address), options=(*_OPTIONS, *authority))

    def close(self) -> None:
        """Close the channel; calls under way fail."""
        self.channel.close()

    def call(self, method: Callable[..., Any], request: Any, timeout: float, *, changes: bool = False) -> Any:
        """One call; `changes` tells whether it may change something."""
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise errors.from_rpc_error(cast("grpc.Call", error), who=self._who, changes=changes) from None


class ControllerClient(Client):
    """The daemon's API, as the CLI uses it."""

    def __init__(self, address: Address) -> None:
        super().__init__(address, "fmctld")
        self._stub = controller_grpc.FabricControllerServiceStub(self.channel)

    def list_partitions(self, *, timeout: float) -> Listed:
        """Every partition, with its owner."""
        answer = self.call(self._stub.ListPartitions, controller.ListPartitionsRequest(), timeout)
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
        return _changed(self.call(self._stub.ActivatePartition, request, timeout, changes=True))

    def deactivate(self, owner: str, partition_id: int, *, timeout: float) -> Changed:
        """Deactivate a partition."""
        request = controller.DeactivatePartitionRequest(owner=owner, partition_id=partition_id)
        return _changed(self.call(self._stub.DeactivatePartition, request, timeout, changes=True))

    def status(self, *, timeout: float) -> DaemonStatus:
        """The daemon's state, and what it sees behind it."""
        return convert.status_from(self.call(self._stub.GetStatus, controller.GetStatusRequest(), timeout))


def _changed(answer: controller.ActivatePartitionResponse | controller.DeactivatePartitionResponse) -> Changed:
    partition = convert.partition_from(answer.partition)
    return Changed(partition, answer.partition.owner, answer.already, answer.simulated)
