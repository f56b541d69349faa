# SPDX-License-Identifier: Apache-2.0
"""GPUs and partitions with their marks as text: pure functions, as in `cli.render`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fmctl.cli.leaserender import ids, moment
from fmctl.cli.render import document
from fmctl.cli.table import table
from fmctl.core.book import Mark
from fmctl.core.marked import MarkedGpu, MarkedPartition

_GPU_COLUMNS = ("GPU", "PCI ADDRESS", "DRIVER", "HELD BY", "OWNER", "SET ASIDE")
_GPU_WIDE = ("IOMMU GROUP", "NUMA NODE", "LEASE", "WHY")
_PARTITION_COLUMNS = ("PARTITION ID", "STATUS", "GPUs", "OWNER", "SET ASIDE")
_PARTITION_WIDE = ("LEASE", "WHY", "IN THE WAY")


def gpus(found: Sequence[MarkedGpu], style: str, *, simulated: bool) -> str:
    """GPUs in one of the formats of `fmctl gpu list`."""
    if style in ("json", "yaml"):
        return document({"gpus": [gpu_plain(each) for each in found], "simulated": simulated}, style)
    if style == "wide":
        return table([*_GPU_COLUMNS, *_GPU_WIDE], [[*_gpu_cells(each), *_gpu_wide(each)] for each in found])
    return table(_GPU_COLUMNS, [_gpu_cells(each) for each in found])


def gpu(found: MarkedGpu, style: str) -> str:
    """One GPU, all of it."""
    if style in ("json", "yaml"):
        return document(gpu_plain(found), style)
    cells = dict(zip([*_GPU_COLUMNS, *_GPU_WIDE], [*_gpu_cells(found), *_gpu_wide(found)], strict=True))
    return _rows(cells, found.marks)


def partitions(found: Sequence[MarkedPartition], style: str, *, simulated: bool) -> str:
    """Partitions in one of the formats of `fmctl partition list`."""
    if style in ("json", "yaml"):
        return document({"partitions": [partition_plain(each) for each in found], "simulated": simulated}, style)
    if style == "wide":
        rows = [[*_partition_cells(each), *_partition_wide(each)] for each in found]
        return table([*_PARTITION_COLUMNS, *_PARTITION_WIDE], rows)
    return table(_PARTITION_COLUMNS, [_partition_cells(each) for each in found])


def partition(found: MarkedPartition, style: str) -> str:
    """One partition, all of it."""
    if style in ("json", "yaml"):
        return document(partition_plain(found), style)
    columns = [*_PARTITION_COLUMNS, *_PARTITION_WIDE]
    return _rows(dict(zip(columns, [*_partition_cells(found), *_partition_wide(found)], strict=True)), found.marks)


def gpu_plain(found: MarkedGpu) -> dict[str, Any]:
    """A GPU as plain data; null where something is not known."""
    gpu = found.gpu
    return {
        "physical_id": gpu.physical_id,
        "address": None if gpu.address is None else str(gpu.address),
        "iommu_group": gpu.iommu_group,
        "numa_node": gpu.numa_node,
        "driver": gpu.driver,
        "held_by": gpu.held_by,
        "lease": found.lease_id,
        "owner": found.owner,
        "spare": found.spare,
        "marks": _plain(found.marks),
    }


def partition_plain(found: MarkedPartition) -> dict[str, Any]:
    """A partition as plain data."""
    return {
        "id": found.partition.id,
        "status": "active" if found.partition.active else "inactive",
        "gpus": list(found.partition.gpu_ids),
        "lease": found.lease_id,
        "owner": found.owner,
        "marks": _plain(found.marks),
        "blocks": list(found.blocks),
    }


def _plain(marks: Iterable[Mark]) -> list[dict[str, str]]:
    return [{"kind": mark.kind.value, "reason": mark.reason, "since": moment(mark.since)} for mark in marks]


def _gpu_cells(found: MarkedGpu) -> list[str]:
    gpu = found.gpu
    held = "unknown" if gpu.held_by is None else gpu.held_by or "-"
    spare = " (spare)" if found.spare else ""
    owner = f"{found.owner}{spare}" or "-"
    return [_or_dash(gpu.physical_id), _or_dash(gpu.address), gpu.driver or "-", held, owner, _kinds(found.marks)]


def _gpu_wide(found: MarkedGpu) -> list[str]:
    gpu = found.gpu
    return [_or_dash(gpu.iommu_group), _or_dash(gpu.numa_node), found.lease_id or "-", _why(found.marks)]


def _partition_cells(found: MarkedPartition) -> list[str]:
    status = "Active" if found.partition.active else "Inactive"
    cells = [str(found.partition.id), status, ids(found.partition.gpu_ids), found.owner or "-"]
    return [*cells, _kinds(found.marks)]


def _partition_wide(found: MarkedPartition) -> list[str]:
    return [found.lease_id or "-", _why(found.marks), "; ".join(found.blocks) or "-"]


def _kinds(marks: Sequence[Mark]) -> str:
    return ",".join(mark.kind.value for mark in marks) or "-"


def _why(marks: Sequence[Mark]) -> str:
    return "; ".join(f"{mark.reason} (since {moment(mark.since)})" for mark in marks) or "-"


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _rows(cells: dict[str, str], marks: Sequence[Mark]) -> str:
    """Each cell a line under its column's name, and each mark a line of its own."""
    shown = {name: value for name, value in cells.items() if name not in ("SET ASIDE", "WHY")}
    lines = [f"{name.lower():<12} {value}" for name, value in shown.items()]
    lines += [f"{mark.kind.value:<12} {mark.reason} (since {moment(mark.since)})" for mark in marks]
    return "".join(f"{line}\n" for line in lines)
