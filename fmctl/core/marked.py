# SPDX-License-Identifier: Apache-2.0
"""GPUs and partitions as an operator sees them: who has them, and why they are set aside.

`control.marks` makes these values, `rpc` carries them, and `cli` shows them.
"""

from __future__ import annotations

from dataclasses import dataclass

from fmctl.core.book import Mark, MarkKind
from fmctl.core.partition import Partition
from fmctl.core.pci import Bdf

SHOWN = (MarkKind.CORDONED, MarkKind.QUARANTINED, MarkKind.CLEANING)
"""The kinds of marks that set a GPU or a partition aside."""


@dataclass(frozen=True)
class HostGpu:
    """A GPU of the board. What is not known is None; `held_by` is empty where nobody has its IOMMU group open."""

    physical_id: int | None = None
    address: Bdf | None = None
    iommu_group: int | None = None
    numa_node: int | None = None
    driver: str = ""
    held_by: str | None = None


@dataclass(frozen=True)
class MarkedGpu:
    """A GPU with the lease that holds it, if one does, and its marks; `spare` is held beside and given to nobody."""

    gpu: HostGpu
    lease_id: str = ""
    owner: str = ""
    spare: bool = False
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class MarkedPartition:
    """A partition with its lease and its own marks, and in words all that keeps it from being granted now."""

    partition: Partition
    lease_id: str = ""
    owner: str = ""
    marks: tuple[Mark, ...] = ()
    blocks: tuple[str, ...] = ()
