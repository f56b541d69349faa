# SPDX-License-Identifier: Apache-2.0
"""The daemon's GPUs and partitions, as an operator's tools use them; `rpc.marks` is the other side."""

from __future__ import annotations

from fmctl.core.address import Address
from fmctl.core.marked import MarkedGpu, MarkedPartition
from fmctl.rpc import convert_mark
from fmctl.rpc.dial import Client
from fmctl.rpc.fmctl.v1 import gpu_pb2 as messages
from fmctl.rpc.fmctl.v1.gpu_pb2_grpc import GpuServiceStub


class MarkClient(Client):
    """What is set aside on a host, and why."""

    def __init__(self, address: Address) -> None:
        super().__init__(address, "fmctld")
        self._stub = GpuServiceStub(self.channel)

    def gpus(self, physical_id: int | None = None, *, timeout: float) -> tuple[tuple[MarkedGpu, ...], bool]:
        """All GPUs or one, and whether they are simulated; raises NoSuchGpu."""
        request = messages.ListGpusRequest(physical_id=physical_id)
        answer = self.call(self._stub.ListGpus, request, timeout)
        return tuple(map(convert_mark.gpu_from, answer.gpus)), answer.simulated

    def cordon_gpu(self, physical_id: int, reason: str, *, actor: str, timeout: float) -> MarkedGpu:
        """Let a GPU be granted to nobody."""
        request = messages.CordonGpuRequest(physical_id=physical_id, reason=reason, actor=actor)
        return convert_mark.gpu_from(self.call(self._stub.CordonGpu, request, timeout, changes=True).gpu)

    def uncordon_gpu(self, physical_id: int, reason: str, *, actor: str, timeout: float) -> MarkedGpu:
        """Let a GPU be granted again."""
        request = messages.UncordonGpuRequest(physical_id=physical_id, reason=reason, actor=actor)
        return convert_mark.gpu_from(self.call(self._stub.UncordonGpu, request, timeout, changes=True).gpu)

    def unquarantine(self, physical_id: int, reason: str, *, actor: str, timeout: float) -> MarkedGpu:
        """Let a GPU be granted again that could not be cleaned."""
        request = messages.UnquarantineGpuRequest(physical_id=physical_id, reason=reason, actor=actor)
        return convert_mark.gpu_from(self.call(self._stub.UnquarantineGpu, request, timeout, changes=True).gpu)

    def partitions(
        self, partition_id: int | None = None, *, timeout: float
    ) -> tuple[tuple[MarkedPartition, ...], bool]:
        """All partitions or one, and whether they are simulated; raises NoSuchPartition."""
        request = messages.ListHostPartitionsRequest(partition_id=partition_id)
        answer = self.call(self._stub.ListHostPartitions, request, timeout)
        return tuple(map(convert_mark.partition_from, answer.partitions)), answer.simulated

    def cordon_partition(self, partition_id: int, reason: str, *, actor: str, timeout: float) -> MarkedPartition:
        """Let a partition be granted to nobody."""
        request = messages.CordonPartitionRequest(partition_id=partition_id, reason=reason, actor=actor)
        answer = self.call(self._stub.CordonPartition, request, timeout, changes=True)
        return convert_mark.partition_from(answer.partition)

    def uncordon_partition(self, partition_id: int, reason: str, *, actor: str, timeout: float) -> MarkedPartition:
        """Let a partition be granted again."""
        request = messages.UncordonPartitionRequest(partition_id=partition_id, reason=reason, actor=actor)
        answer = self.call(self._stub.UncordonPartition, request, timeout, changes=True)
        return convert_mark.partition_from(answer.partition)
