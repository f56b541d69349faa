# SPDX-License-Identifier: Apache-2.0
"""The book of a host: its leases that hold something, what is set aside and why, and every change as an entry.

The port `Store` keeps the book. A change is a sequence of entries, each of which is at once what is written, what the
audit journal says, and what watchers hear, so nothing can change unrecorded. Entries become durable together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from fmctl.core.lease import Lease
from fmctl.core.mapsource import MapRecord


class Kind(str, Enum):
    """What an entry is about. A subject is a lease's id, a partition's id, a GPU's physical id, or empty."""

    HOST = "host"
    FABRIC = "fabric"
    SERVICE_VM = "service-vm"
    GPU = "gpu"
    PARTITION = "partition"
    LEASE = "lease"


class MarkKind(str, Enum):
    """Why something is not handed out although nobody holds it."""

    CORDONED = "cordoned"
    QUARANTINED = "quarantined"
    CLEANING = "cleaning"
    OBSERVED = "observed"
    """Of the host: nothing is changed on it until `fmctl reconcile --accept`."""
    MET = "met"
    """Of the host: it was looked at before anything was changed on it. Of the fabric: which generation was met."""
    BREAK_GLASS = "break glass"
    """Of a partition: the newest record of a change past the daemon that this book has; it sets nothing aside."""
    LAYOUT = "layout"
    """Of the host: only the partitions of a layout are used. The reason is a `core.layout.Applied`."""


@dataclass(frozen=True)
class Mark:
    """What is set aside, why, and since when in seconds since the epoch."""

    kind: MarkKind
    reason: str
    since: float


@dataclass(frozen=True)
class Entry:
    """One change, by `actor`, in words (`what`), with more about it in `detail`.

    Of a lease: `lease` is how it is from now on; one with `forget` leaves the store, as an undone request does. Of a
    mark: `mark` is how it is from now on, and `unmark` that there is none of `unmark`'s kind. Of the host: `gpu_map` is
    what is kept of the GPU map from now on. An entry with none of them only tells. `revision` and `time` are the
    store's, 0 before the entry is committed.
    """

    kind: Kind
    subject: str
    what: str
    actor: str = ""
    detail: str = ""
    lease: Lease | None = None
    forget: bool = False
    mark: Mark | None = None
    unmark: MarkKind | None = None
    gpu_map: MapRecord | None = None
    revision: int = 0
    time: float = 0.0

    def committed(self, revision: int, at: float) -> Entry:
        """The entry as a store has it, and its lease with the same revision."""
        lease = None if self.lease is None else replace(self.lease, revision=revision)
        return replace(self, lease=lease, revision=revision, time=at)


def of_lease(lease: Lease, what: str, *, actor: str = "", detail: str = "", forget: bool = False) -> Entry:
    """A lease is now so; with `forget`, it was, and is gone."""
    return Entry(Kind.LEASE, lease.id, what, actor, detail, lease=lease, forget=forget)


def of_mark(kind: Kind, subject: str, mark: Mark, *, actor: str = "") -> Entry:
    """Something is set aside."""
    return Entry(kind, subject, mark.kind.value, actor, mark.reason, mark=mark)


def of_unmark(kind: Kind, subject: str, unmark: MarkKind, *, actor: str = "", detail: str = "") -> Entry:
    """Something is no longer set aside for that reason."""
    return Entry(kind, subject, f"no longer {unmark.value}", actor, detail, unmark=unmark)


def of_map(record: MapRecord, what: str, *, actor: str = "", detail: str = "") -> Entry:
    """What is kept of the GPU map is now so."""
    return Entry(Kind.HOST, "", what, actor, detail, gpu_map=record)


MarkKey = tuple[Kind, str, MarkKind]


@dataclass(frozen=True)
class Book:
    """The state that decisions are made on: immutable, and small, since a lease that is over is not in it.

    `revision` is that of the last entry, and `store_id` names the store whose revisions these are.
    """

    store_id: str = ""
    revision: int = 0
    leases: Mapping[str, Lease] = field(default_factory=dict)
    marks: Mapping[MarkKey, Mark] = field(default_factory=dict)
    gpu_map: MapRecord | None = None

    def after(self, entries: Iterable[Entry]) -> Book:
        """The book with those entries, which have their revisions, added."""
        leases, marks, revision = dict(self.leases), dict(self.marks), self.revision
        gpu_map = self.gpu_map
        for entry in entries:
            revision = entry.revision
            if entry.lease is not None:
                leases.pop(entry.lease.id, None)
                if not entry.lease.state.over and not entry.forget:
                    leases[entry.lease.id] = replace(entry.lease, revision=entry.revision)
            if entry.mark is not None:
                marks[entry.kind, entry.subject, entry.mark.kind] = entry.mark
            if entry.unmark is not None:
                marks.pop((entry.kind, entry.subject, entry.unmark), None)
            gpu_map = entry.gpu_map or gpu_map
        return replace(self, revision=revision, leases=leases, marks=marks, gpu_map=gpu_map)

    def without_mark(self, kind: Kind, mark: MarkKind) -> Book:
        """The book in which nothing of that kind is marked so."""
        return replace(self, marks={key: value for key, value in self.marks.items() if key[::2] != (kind, mark)})

    def marked(self, kind: Kind, mark: MarkKind) -> dict[str, Mark]:
        """Every mark of one kind on one kind of subject, by subject."""
        return {key[1]: value for key, value in self.marks.items() if key[0] is kind and key[2] is mark}

    def holder(self, partition_id: int) -> Lease | None:
        """The lease that holds a partition."""
        return next((lease for lease in self.leases.values() if partition_id in lease.partitions), None)

    @property
    def held(self) -> dict[int, Lease]:
        """The lease that holds each GPU, by physical id."""
        return {gpu: lease for lease in self.leases.values() for gpu in lease.held}
