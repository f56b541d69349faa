# SPDX-License-Identifier: Apache-2.0
"""The daemon's service: each call one call of `control.controller`."""

from __future__ import annotations

import grpc

from fmctl.control.controller import FabricController
from fmctl.core.answers import Changed
from fmctl.core.errors import BadRequest
from fmctl.rpc import convert
from fmctl.rpc.fmctl.v1 import fabric_controller_pb2 as messages
from fmctl.rpc.fmctl.v1.fabric_controller_pb2_grpc import FabricControllerServiceServicer
from fmctl.rpc.server import time_left


class FabricControllerServicer(FabricControllerServiceServicer):
    """fmctl.v1.FabricControllerService."""

    def __init__(self, controller: FabricController) -> None:
        self._controller = controller

    def ListPartitions(
        self, request: messages.ListPartitionsRequest, context: grpc.ServicerContext
    ) -> messages.ListPartitionsResponse:
        """Every partition, with its owner."""
        listed = self._controller.list_partitions(timeout=time_left(context))
        return messages.ListPartitionsResponse(
            partitions=convert.partitions_to(listed.list, listed.owners),
            max_partitions=listed.list.max_partitions,
            simulated=self._controller.simulated,
        )

    def GetPartition(
        self, request: messages.GetPartitionRequest, context: grpc.ServicerContext
    ) -> messages.GetPartitionResponse:
        """One partition, with its owner."""
        listed = self._controller.list_partitions(timeout=time_left(context))
        partition = listed.list.get(request.partition_id)
        return messages.GetPartitionResponse(
            partition=convert.partition_to(partition, listed.owners.get(partition.id, "")),
            simulated=self._controller.simulated,
        )

    def ActivatePartition(
        self, request: messages.ActivatePartitionRequest, context: grpc.ServicerContext
    ) -> messages.ActivatePartitionResponse:
        """Activate a partition for an owner."""
        changed = self._activate(request, context)
        return messages.ActivatePartitionResponse(
            partition=convert.partition_to(changed.partition, changed.owner),
            already=changed.already,
            simulated=changed.simulated,
        )

    def DeactivatePartition(
        self, request: messages.DeactivatePartitionRequest, context: grpc.ServicerContext
    ) -> messages.DeactivatePartitionResponse:
        """Deactivate a partition of an owner's, of nobody's, or with `force` of anybody's."""
        changed = self._controller.deactivate(
            request.owner, request.partition_id, timeout=time_left(context), force=request.force
        )
        return messages.DeactivatePartitionResponse(
            partition=convert.partition_to(changed.partition, changed.owner),
            already=changed.already,
            simulated=changed.simulated,
        )

    def GetStatus(
        self, request: messages.GetStatusRequest, context: grpc.ServicerContext
    ) -> messages.GetStatusResponse:
        """The daemon's state, and what it sees behind it."""
        return convert.status_to(self._controller.status(timeout=time_left(context)))

    def _activate(self, request: messages.ActivatePartitionRequest, context: grpc.ServicerContext) -> Changed:
        target = request.WhichOneof("target")
        gpu_ids = tuple(request.gpus.physical_ids)
        if target != "partition_id" and (not gpu_ids or len(set(gpu_ids)) != len(gpu_ids)):
            raise BadRequest(
                "the partition is not named",
                why="a GPU stands twice" if gpu_ids else "neither partition_id nor gpus is set",
                fix="give a partition id, or the physical ids of its GPUs",
            )
        return self._controller.activate(
            request.owner,
            partition_id=request.partition_id if target == "partition_id" else None,
            gpu_ids=gpu_ids,
            timeout=time_left(context),
            alive=context.is_active,
        )
