# SPDX-License-Identifier: Apache-2.0
"""What a person sets aside and gives back: GPUs and partitions, each for a reason, each change an audited entry.

`control.chooser` grants nothing that is marked. Marks change with the turn, so that once a call returns nothing is
granted by what was before it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace

from fmctl.control.chooser import Chooser
from fmctl.control.fabric import Fabric, Turn
from fmctl.control.gpus import Gpus
from fmctl.core import clean
from fmctl.core.book import Book, Entry, Kind, Mark, MarkKind, of_mark, of_unmark
from fmctl.core.errors import FmctlError, NoSuchGpu, VmRunning
from fmctl.core.marked import SHOWN, HostGpu, MarkedGpu, MarkedPartition
from fmctl.core.partition import PartitionList
from fmctl.core.ports import Store


class Marks:
    """GPUs and partitions with their marks. Every method may be called from any thread."""

    def __init__(
        self,
        store: Store,
        fabric: Fabric,
        gpus: Gpus,
        chooser: Chooser,
        turn: Turn,
        *,
        cleans: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`cleans` tells that GPUs are cleaned here, so that one which a person releases is cleaned once more."""
        self._cleans = cleans
        self._store = store
        self._fabric = fabric
        self._gpus = gpus
        self._chooser = chooser
        self._turn = turn
        self._now = now

    def gpus(self, *, timeout: float) -> tuple[MarkedGpu, ...]:
        """Every GPU of the board and of Fabric Manager's table, by physical id, those without one last."""
        seen = self._gpus.seen()
        found = {gpu.physical_id: gpu for gpu in seen if gpu.physical_id is not None}
        unnamed = [gpu for gpu in seen if gpu.physical_id is None]
        with contextlib.suppress(FmctlError):  # a board is shown while Fabric Manager does not answer, too
            for physical_id in _ids(self._listed(timeout)):
                found.setdefault(physical_id, HostGpu(physical_id))
        book = self._store.book
        return tuple(_marked(gpu, book) for gpu in [*(found[key] for key in sorted(found)), *unnamed])

    def gpu(self, physical_id: int, *, timeout: float) -> MarkedGpu:
        """One GPU; raises NoSuchGpu."""
        for each in self.gpus(timeout=timeout):
            if each.gpu.physical_id == physical_id:
                return each
        raise NoSuchGpu(
            f"there is no GPU {physical_id}",
            why="neither the GPU map nor Fabric Manager's table has that physical id",
            fix="see `fmctl gpu list`",
        )

    def cordon_gpu(self, physical_id: int, reason: str, *, actor: str, timeout: float) -> MarkedGpu:
        """Let it be granted to nobody, for good once this returns; raises NoSuchGpu."""
        found = self.gpu(physical_id, timeout=timeout / 2)
        with self._turn.within(timeout / 2):
            self._set(Kind.GPU, physical_id, reason, actor)
        return _marked(found.gpu, self._store.book)

    def uncordon_gpu(self, physical_id: int, reason: str, *, actor: str, timeout: float) -> MarkedGpu:
        """Let it be granted again; raises NoSuchGpu."""
        found = self.gpu(physical_id, timeout=timeout / 2)
        with self._turn.within(timeout / 2):
            self._clear(Kind.GPU, physical_id, MarkKind.CORDONED, reason, actor)
        return _marked(found.gpu, self._store.book)

    def unquarantine(self, physical_id: int, reason: str, *, actor: str, timeout: float) -> MarkedGpu:
        """Let a GPU that could not be cleaned be granted again, once it is clean where GPUs are cleaned.

        Raises NoSuchGpu, BadRequest without a reason, and VmRunning while it is open.
        """
        found = self.gpu(physical_id, timeout=timeout / 2)
        held = self._gpus.open()
        with self._turn.within(timeout / 2):
            if held is None or physical_id in held:
                raise VmRunning(
                    f"GPU {physical_id} stays in quarantine",
                    why=f"{held[physical_id]} has it open" if held else "who has GPUs open cannot be told",
                    fix="stop that VM first" if held else "see the daemon's log",
                )
            if (Kind.GPU, str(physical_id), MarkKind.QUARANTINED) in self._store.book.marks:
                entries = clean.unquarantined(self._store.book, physical_id, reason, self._now(), actor=actor)
                self._store.commit(entries if self._cleans else entries[:1], at=self._now())
        return _marked(found.gpu, self._store.book)

    def partitions(self, *, timeout: float) -> tuple[MarkedPartition, ...]:
        """Every partition, with its marks; raises what a list does."""
        listed = self._fabric.peek(timeout)
        return tuple(self._partition(partition.id, listed) for partition in listed.partitions)

    def partition(self, partition_id: int, *, timeout: float) -> MarkedPartition:
        """One partition; raises NoSuchPartition, and what a list does."""
        return self._partition(partition_id, self._fabric.peek(timeout))

    def cordon_partition(self, partition_id: int, reason: str, *, actor: str, timeout: float) -> MarkedPartition:
        """Let it be granted to nobody, for good once this returns; raises NoSuchPartition."""
        with self._turn.within(timeout) as budget:
            listed = self._fabric.known(budget.look())
            listed.get(partition_id)
            self._set(Kind.PARTITION, partition_id, reason, actor)
        return self._partition(partition_id, listed)

    def uncordon_partition(self, partition_id: int, reason: str, *, actor: str, timeout: float) -> MarkedPartition:
        """Let it be granted again, also where fmctl itself cordoned it; raises NoSuchPartition."""
        with self._turn.within(timeout) as budget:
            listed = self._fabric.known(budget.look())
            listed.get(partition_id)
            self._clear(Kind.PARTITION, partition_id, MarkKind.CORDONED, reason, actor)
        return self._partition(partition_id, listed)

    def _listed(self, timeout: float) -> PartitionList:
        return self._fabric.seen or self._fabric.peek(timeout)

    def _partition(self, partition_id: int, listed: PartitionList) -> MarkedPartition:
        partition, book = listed.get(partition_id), self._store.book
        lease = book.holder(partition_id)
        blocks = self._chooser.available(listed).blocks(partition)
        return MarkedPartition(
            partition,
            lease.id if lease else "",
            lease.owner if lease else "",
            _marks(book, Kind.PARTITION, partition_id),
            tuple(map(str, blocks)),
        )

    def _set(self, kind: Kind, number: int, reason: str, actor: str) -> None:
        mark = Mark(MarkKind.CORDONED, reason, self._now())
        known = self._store.book.marks.get((kind, str(number), MarkKind.CORDONED))
        if known is None or known.reason != reason:
            self._commit(of_mark(kind, str(number), replace(mark, since=known.since) if known else mark, actor=actor))

    def _clear(self, kind: Kind, number: int, mark: MarkKind, reason: str, actor: str) -> None:
        if (kind, str(number), mark) in self._store.book.marks:
            self._commit(of_unmark(kind, str(number), mark, actor=actor, detail=reason))

    def _commit(self, entry: Entry) -> None:
        self._store.commit((entry,), at=self._now())


def _ids(listed: PartitionList) -> set[int]:
    return {gpu for partition in listed.partitions for gpu in partition.gpu_ids}


def _marked(gpu: HostGpu, book: Book) -> MarkedGpu:
    if gpu.physical_id is None:
        return MarkedGpu(gpu)
    lease, marks = book.held.get(gpu.physical_id), _marks(book, Kind.GPU, gpu.physical_id)
    if lease is None:
        return MarkedGpu(gpu, marks=marks)
    return MarkedGpu(gpu, lease.id, lease.owner, spare=gpu.physical_id in lease.spare, marks=marks)


def _marks(book: Book, kind: Kind, number: int) -> tuple[Mark, ...]:
    return tuple(mark for each in SHOWN if (mark := book.marks.get((kind, str(number), each))) is not None)
