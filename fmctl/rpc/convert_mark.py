# SPDX-License-Identifier: Apache-2.0
"""GPUs and partitions with their marks to messages and back."""

from __future__ import annotations

from collections.abc import Iterable

from fmctl.core.book import Mark, MarkKind
from fmctl.core.marked import HostGpu, MarkedGpu, MarkedPartition
from fmctl.core.pci import Bdf
from fmctl.rpc import convert
from fmctl.rpc.fmctl.v1 import gpu_pb2 as messages

_KINDS = {
    MarkKind.CORDONED: messages.MARK_KIND_CORDONED,
    MarkKind.QUARANTINED: messages.MARK_KIND_QUARANTINED,
    MarkKind.CLEANING: messages.MARK_KIND_CLEANING,
}
_KINDS_BACK = {message: kind for kind, message in _KINDS.items()}


def gpu_to(marked: MarkedGpu) -> messages.HostGpu:
    """The message of a GPU."""
    gpu = marked.gpu
    return messages.HostGpu(
        physical_id=gpu.physical_id,
        address=str(gpu.address or ""),
        iommu_group=gpu.iommu_group,
        numa_node=gpu.numa_node,
        driver=gpu.driver,
        held_by=gpu.held_by,
        lease_id=marked.lease_id,
        owner=marked.owner,
        spare=marked.spare,
        marks=map(_mark_to, marked.marks),
    )


def gpu_from(message: messages.HostGpu) -> MarkedGpu:
    """The GPU of a message."""
    gpu = HostGpu(
        message.physical_id if message.HasField("physical_id") else None,
        Bdf.parse(message.address) if message.address else None,
        message.iommu_group if message.HasField("iommu_group") else None,
        message.numa_node if message.HasField("numa_node") else None,
        message.driver,
        message.held_by if message.HasField("held_by") else None,
    )
    return MarkedGpu(gpu, message.lease_id, message.owner, spare=message.spare, marks=_marks_from(message.marks))


def partition_to(marked: MarkedPartition) -> messages.HostPartition:
    """The message of a partition."""
    return messages.HostPartition(
        partition=convert.partition_to(marked.partition, marked.owner),
        lease_id=marked.lease_id,
        marks=map(_mark_to, marked.marks),
        blocks=marked.blocks,
    )


def partition_from(message: messages.HostPartition) -> MarkedPartition:
    """The partition of a message."""
    return MarkedPartition(
        convert.partition_from(message.partition),
        message.lease_id,
        message.partition.owner,
        _marks_from(message.marks),
        tuple(message.blocks),
    )


def _mark_to(mark: Mark) -> messages.Mark:
    message = messages.Mark(kind=_KINDS[mark.kind], reason=mark.reason)
    message.since.FromMicroseconds(round(mark.since * 1e6))
    return message


def _marks_from(marks: Iterable[messages.Mark]) -> tuple[Mark, ...]:
    """The marks; one of a kind that a newer side may name and this one does not know counts as a cordon."""
    return tuple(
        Mark(_KINDS_BACK.get(mark.kind, MarkKind.CORDONED), mark.reason, mark.since.ToMicroseconds() / 1e6)
        for mark in marks
    )
