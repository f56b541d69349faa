# SPDX-License-Identifier: Apache-2.0
"""What of Fabric Manager's table is free, and what is in the way of the rest.

`core.allocate` chooses from it, `core.explain` tells why, and `core.packing` counts what fits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from functools import cached_property

from fmctl.core.partition import Partition


class Cause(str, Enum):
    """Why a GPU or a partition is not free."""

    QUARANTINED = "quarantined"
    CLEANING = "being cleaned"
    BUSY = "busy"
    CORDONED = "cordoned"
    OUTSIDE = "outside the layout"


class Distance(IntEnum):
    """How far GPUs are from the preferred NUMA node, and from each other; less is better.

    GPUs whose node is not known count as on several.
    """

    PREFERRED = 0
    ONE_NODE = 1
    SEVERAL_NODES = 2


@dataclass(frozen=True)
class Block:
    """One thing in the way of a partition, the GPUs that it concerns, and its reason where one was given."""

    cause: Cause
    gpus: tuple[int, ...]
    reason: str = ""

    def __str__(self) -> str:
        if self.cause is Cause.OUTSIDE:
            return f"the partition is not in the layout {self.reason}"
        subject = "the partition is" if self.cause is Cause.CORDONED else _gpus_are(self.gpus)
        return f"{subject} {self.cause.value}" + (f" ({self.reason})" if self.reason else "")


@dataclass(frozen=True)
class Availability:
    """Fabric Manager's table, and what is in the way of its rows.

    `busy` are physical ids. `cordoned` gives a reason for each partition id that is not to be granted, `quarantined`
    and `cleaning` for each such physical id. `nodes` is the NUMA node of each physical id, where it is known. Ids that
    the table lacks change nothing. Where this host has a `layout`, the partitions `outside` of it are not offered.
    """

    partitions: Sequence[Partition]
    busy: Collection[int] = frozenset()
    cordoned: Mapping[int, str] = field(default_factory=dict)
    quarantined: Mapping[int, str] = field(default_factory=dict)
    cleaning: Mapping[int, str] = field(default_factory=dict)
    nodes: Mapping[int, int] = field(default_factory=dict)
    layout: str = ""
    outside: Collection[int] = frozenset()

    @cached_property
    def gpus(self) -> tuple[int, ...]:
        """Every physical id of the table, ascending."""
        return tuple(sorted({gpu for partition in self.partitions for gpu in partition.gpu_ids}))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Every number of GPUs that a partition has which is offered, ascending."""
        return tuple(sorted({len(partition.gpus) for partition in self.offered if partition.gpus}))

    @cached_property
    def offered(self) -> tuple[Partition, ...]:
        """The partitions that are used on this host, whether they are free or not, in the table's order."""
        return tuple(partition for partition in self.partitions if partition.id not in self.outside)

    @cached_property
    def free(self) -> tuple[Partition, ...]:
        """The partitions that can be granted now, in the table's order."""
        return tuple(p for p in self.offered if p.id not in self.cordoned and not any(map(self._gpu_cause, p.gpu_ids)))

    def causes(self) -> dict[int, Cause | None]:
        """Why each GPU of the table is not free, and None where it is.

        A GPU is cordoned when every partition that is offered and has it is, and outside where none that is offered
        has it. Whoever says that a GPU is quarantined or being cleaned knows more of it than that it is busy.
        """
        laid_out = {gpu for p in self.offered for gpu in p.gpu_ids}
        granted = {gpu for p in self.offered if p.id not in self.cordoned for gpu in p.gpu_ids}

        def by_partitions(gpu: int) -> Cause | None:
            return (None if gpu in granted else Cause.CORDONED) if gpu in laid_out else Cause.OUTSIDE

        return {gpu: self._gpu_cause(gpu) or by_partitions(gpu) for gpu in self.gpus}

    def blocks(self, partition: Partition) -> tuple[Block, ...]:
        """All that is in the way of that partition; nothing where it is free."""
        gpus = tuple(sorted(partition.gpu_ids))
        found = []
        if partition.id in self.outside:
            found.append(Block(Cause.OUTSIDE, gpus, self.layout))
        if partition.id in self.cordoned:
            found.append(Block(Cause.CORDONED, gpus, self.cordoned[partition.id]))
        for cause, reasons in ((Cause.QUARANTINED, self.quarantined), (Cause.CLEANING, self.cleaning)):
            found += [Block(cause, (gpu,), reasons[gpu]) for gpu in gpus if self._gpu_cause(gpu) is cause]
        busy = tuple(gpu for gpu in gpus if self._gpu_cause(gpu) is Cause.BUSY)
        return (*found, Block(Cause.BUSY, busy)) if busy else tuple(found)

    def taking(self, *partitions: Partition) -> Availability:
        """What is left once these are taken."""
        return replace(self, busy={*self.busy, *(gpu for partition in partitions for gpu in partition.gpu_ids)})

    def distance(self, gpus: Collection[int], node: int | None) -> Distance:
        """How far these GPUs are from that NUMA node, or from each other where none is preferred."""
        nodes = {self.nodes.get(gpu) for gpu in gpus}
        if len(nodes) != 1 or None in nodes:
            return Distance.SEVERAL_NODES
        return Distance.PREFERRED if nodes == {node} else Distance.ONE_NODE

    def nearest(self, gpus: Collection[int], count: int, node: int | None) -> tuple[int, ...]:
        """`count` of these GPUs, ascending, on as few NUMA nodes as possible.

        Of nodes that serve as well the preferred one goes first, then the lower; of GPUs the lower physical id. GPUs
        whose node is not known go last.
        """
        on_node = Counter(self.nodes[gpu] for gpu in gpus if gpu in self.nodes)

        def order(gpu: int) -> tuple[bool, int, bool, int, int]:
            own = self.nodes.get(gpu)
            return (True, 0, True, 0, gpu) if own is None else (False, -min(count, on_node[own]), own != node, own, gpu)

        return tuple(sorted(sorted(gpus, key=order)[:count]))

    def _gpu_cause(self, gpu: int) -> Cause | None:
        if gpu in self.quarantined:
            return Cause.QUARANTINED
        if gpu in self.cleaning:
            return Cause.CLEANING
        return Cause.BUSY if gpu in self.busy else None


def _gpus_are(gpus: Sequence[int]) -> str:
    return f"GPU{'' if len(gpus) == 1 else 's'} {','.join(map(str, gpus))} {'is' if len(gpus) == 1 else 'are'}"
