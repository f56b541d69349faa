# SPDX-License-Identifier: Apache-2.0
"""The service of GPUs and partitions: each call one call of `control.marks`. `rpc.mark_client` is the other side."""

from __future__ import annotations

import grpc

from fmctl.control.controller import FabricController
from fmctl.rpc import convert_host, convert_lease, convert_mark
from fmctl.rpc.fmctl.v1 import gpu_pb2 as messages
from fmctl.rpc.fmctl.v1.gpu_pb2_grpc import GpuServiceServicer
from fmctl.rpc.server import time_left


class GpuServicer(GpuServiceServicer):
    """fmctl.v1.GpuService."""

    def __init__(self, controller: FabricController) -> None:
        self._controller = controller
        self._marks = controller.marks

    def ListGpus(self, request: messages.ListGpusRequest, context: grpc.ServicerContext) -> messages.ListGpusResponse:
        """All GPUs, or one."""
        timeout = time_left(context)
        if request.HasField("physical_id"):
            found = [self._marks.gpu(request.physical_id, timeout=timeout)]
        else:
            found = [*self._marks.gpus(timeout=timeout)]
        return messages.ListGpusResponse(gpus=map(convert_mark.gpu_to, found), simulated=self._simulated)

    def CordonGpu(
        self, request: messages.CordonGpuRequest, context: grpc.ServicerContext
    ) -> messages.CordonGpuResponse:
        """Grant a GPU to nobody."""
        reason, actor = convert_host.reason(request.reason), convert_lease.who(request.actor)
        gpu = self._marks.cordon_gpu(request.physical_id, reason, actor=actor, timeout=time_left(context))
        return messages.CordonGpuResponse(gpu=convert_mark.gpu_to(gpu), simulated=self._simulated)

    def UncordonGpu(
        self, request: messages.UncordonGpuRequest, context: grpc.ServicerContext
    ) -> messages.UncordonGpuResponse:
        """Grant a GPU again."""
        reason, actor = _reason(request.reason), convert_lease.who(request.actor)
        gpu = self._marks.uncordon_gpu(request.physical_id, reason, actor=actor, timeout=time_left(context))
        return messages.UncordonGpuResponse(gpu=convert_mark.gpu_to(gpu), simulated=self._simulated)

    def UnquarantineGpu(
        self, request: messages.UnquarantineGpuRequest, context: grpc.ServicerContext
    ) -> messages.UnquarantineGpuResponse:
        """Grant a GPU again that could not be cleaned."""
        reason, actor = convert_host.reason(request.reason), convert_lease.who(request.actor)
        gpu = self._marks.unquarantine(request.physical_id, reason, actor=actor, timeout=time_left(context))
        return messages.UnquarantineGpuResponse(gpu=convert_mark.gpu_to(gpu), simulated=self._simulated)

    def ListHostPartitions(
        self, request: messages.ListHostPartitionsRequest, context: grpc.ServicerContext
    ) -> messages.ListHostPartitionsResponse:
        """All partitions, or one."""
        timeout = time_left(context)
        if request.HasField("partition_id"):
            found = [self._marks.partition(request.partition_id, timeout=timeout)]
        else:
            found = [*self._marks.partitions(timeout=timeout)]
        shown = map(convert_mark.partition_to, found)
        return messages.ListHostPartitionsResponse(partitions=shown, simulated=self._simulated)

    def CordonPartition(
        self, request: messages.CordonPartitionRequest, context: grpc.ServicerContext
    ) -> messages.CordonPartitionResponse:
        """Grant a partition to nobody."""
        reason, actor = convert_host.reason(request.reason), convert_lease.who(request.actor)
        found = self._marks.cordon_partition(request.partition_id, reason, actor=actor, timeout=time_left(context))
        shown = convert_mark.partition_to(found)
        return messages.CordonPartitionResponse(partition=shown, simulated=self._simulated)

    def UncordonPartition(
        self, request: messages.UncordonPartitionRequest, context: grpc.ServicerContext
    ) -> messages.UncordonPartitionResponse:
        """Grant a partition again."""
        reason, actor = _reason(request.reason), convert_lease.who(request.actor)
        found = self._marks.uncordon_partition(request.partition_id, reason, actor=actor, timeout=time_left(context))
        shown = convert_mark.partition_to(found)
        return messages.UncordonPartitionResponse(partition=shown, simulated=self._simulated)

    @property
    def _simulated(self) -> bool:
        return self._controller.simulated


def _reason(text: str) -> str:
    """A reason that need not be given; raises BadRequest."""
    return convert_host.reason(text) if text else ""
