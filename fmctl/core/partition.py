# SPDX-License-Identifier: Apache-2.0
"""Partitions as Fabric Manager reports them.

Never assume that ids start at 0 or are contiguous, nor that pairs are neighbours: each board has its own table
(FM User Guide, chapter "GPU Partitions").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from fmctl.core.errors import NoSuchPartition

MAX_PARTITIONS = 64
"""Rows that Fabric Manager's list can hold (SDK header)."""
MAX_GPUS = 16
"""GPUs that a board, and so one row, can have (SDK header)."""
MAX_NVLINKS = 64
"""NVLink ports that one device can have (SDK header)."""


class Gpu(NamedTuple):
    """A GPU as a member of one partition (`fmFabricPartitionGpuInfo_t`).

    `physical_id` is the GPU's module id, 1-based. `uuid` and `pci_bus_id` are empty or zero on NVLink 4 and later.
    `nvlinks` counts the links that the partition gives the GPU, at `line_rate_mbps` megabytes per second each.
    """

    physical_id: int
    nvlinks: int = 0
    nvlinks_max: int = 0
    line_rate_mbps: int = 0
    uuid: str = ""
    pci_bus_id: str = ""


@dataclass(frozen=True)
class Partition:
    """A row of Fabric Manager's table."""

    id: int
    gpus: tuple[Gpu, ...]
    active: bool = False

    @property
    def gpu_ids(self) -> tuple[int, ...]:
        """Physical ids, in Fabric Manager's order."""
        return tuple(gpu.physical_id for gpu in self.gpus)

    @property
    def nvlinks(self) -> int:
        """NVLinks of all its GPUs together."""
        return sum(gpu.nvlinks for gpu in self.gpus)

    def overlaps(self, other: Partition) -> bool:
        """Whether the two share a GPU."""
        return not set(self.gpu_ids).isdisjoint(other.gpu_ids)

    def with_active(self, *, active: bool) -> Partition:
        """The same row in the other state."""
        return replace(self, active=active)


@dataclass(frozen=True)
class PartitionList:
    """One answer of `fmGetSupportedFabricPartitions`.

    `max_partitions` is Fabric Manager's own upper count. `simulated` tells that the library behind it is the
    simulator's, so that no real NVSwitch stands behind the answer.
    """

    partitions: tuple[Partition, ...]
    max_partitions: int = 0
    simulated: bool = False

    def find(self, partition_id: int) -> Partition | None:
        """The partition with that id, if the board has one."""
        return next((p for p in self.partitions if p.id == partition_id), None)

    def get(self, partition_id: int) -> Partition:
        """The partition with that id; raises NoSuchPartition."""
        found = self.find(partition_id)
        if found is None:
            ids = ", ".join(str(p.id) for p in self.partitions)
            raise NoSuchPartition(
                f"there is no partition {partition_id}",
                why=f"this board has partitions {ids}" if ids else "Fabric Manager reports no partition",
                fix="choose one that `fmctl list` shows",
                partition_id=partition_id,
            )
        return found

    def with_gpus(self, gpu_ids: Iterable[int]) -> Partition:
        """The partition of exactly these GPUs, in any order; raises NoSuchPartition."""
        wanted = set(gpu_ids)
        for partition in self.partitions:
            if set(partition.gpu_ids) == wanted:
                return partition
        same_size = [p for p in self.partitions if len(p.gpus) == len(wanted)]
        sets = " ".join("{" + ",".join(map(str, p.gpu_ids)) + "}" for p in same_size)
        raise NoSuchPartition(
            f"no partition has exactly the GPUs {','.join(map(str, sorted(wanted)))}",
            why=f"partitions of {len(wanted)} on this board: {sets}"
            if sets
            else f"this board has no partition of {len(wanted)} GPUs",
            fix="choose a set of GPUs that `fmctl list` shows",
        )

    def blockers(self, partition: Partition) -> tuple[Partition, ...]:
        """The other active partitions that share a GPU with this one."""
        return tuple(p for p in self.partitions if p.active and p.id != partition.id and p.overlaps(partition))

    def with_active(self, partition_id: int, *, active: bool) -> PartitionList:
        """The list after that partition changed its state."""
        return replace(
            self, partitions=tuple(p.with_active(active=active) if p.id == partition_id else p for p in self.partitions)
        )
