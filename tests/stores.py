# SPDX-License-Identifier: Apache-2.0
"""What tests of the store write, among it one of each kind of value with no field at its default."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from dataclasses import replace

from fmctl.core.book import Entry, Kind, Mark, MarkKind, of_lease
from fmctl.core.fingerprint import Fingerprint, GpuPrint
from fmctl.core.lease import Ending, Lease, LeaseState
from fmctl.core.mapsource import Acceptance, MapRecord, Source, SourceKind
from fmctl.core.pci import Bdf, PciId
from fmctl.core.ports import Store

T0 = 1_700_000_000.25
"""A time that is a whole number of microseconds."""
BIG = "x" * 2000

FULL_LEASE = Lease(
    id="6d0f8a86-0000-4000-8000-000000000001",
    owner="tenant-ä",
    request_id="request \N{SNOWMAN} 'x'",
    request='{"gpus": 2}',
    state=LeaseState.ACTIVE,
    partitions=(3, 4),
    gpus=(1, 2),
    spare=(5,),
    created=T0 + 0.1,
    ended=T0 + 0.3,
    expires=T0 + 1 / 3,
    vm_uuid="a5d6e0c2-0000-4000-8000-000000000002",
    vm_seen=True,
    labels={"team": "ml", "": "\N{SNOWMAN}"},
    unattended=True,
    reason='two\nlines and a "quote"',
    ending=Ending.FAILED,
    unsettled_until=T0 + 0.2,
    generation=7,
    vm_generation=6,
    vm_instance=12,
    vm_rebooted=T0 + 0.5,
    vm_gone=T0 + 0.6,
    fm_version="570.86.15",
    required_guest_driver="570",
    revision=99,
)
GPU = GpuPrint(Bdf(0, 0x1B, 0, 0), (Bdf(0, 0, 1, 0),), PciId(0x10DE, 0x2330), PciId(0x10DE, 0x16C1), "48-b0")
FULL_MAP = MapRecord(
    Fingerprint("1.2 ☃", "chassis 7", (GPU, GpuPrint(Bdf(0, 0x43, 0, 0), (), GPU.id, None))),
    "a boot",
    (Source(SourceKind.FILE, {GPU.bdf: 3}, T0 + 0.7, "another boot", "map.yaml", "digest"),),
    {Bdf(0, 0x43, 0, 0): "a VM has it"},
    Acceptance("a person", T0 + 0.8, "4f2a-9c01-77be"),
    {GPU.bdf: 3},
)
FULL_ENTRY = Entry(
    kind=Kind.GPU,
    subject="5",
    what="quarantined",
    actor="unix:0",
    detail="of \N{SNOWMAN}",
    lease=replace(FULL_LEASE, id="6d0f8a86-0000-4000-8000-000000000003", request_id="another"),
    forget=True,
    mark=Mark(MarkKind.QUARANTINED, "its memory is not zero", T0 + 0.4),
    unmark=MarkKind.CLEANING,
    gpu_map=FULL_MAP,
    revision=98,
    time=T0 + 0.5,
)


def lease(name: str, state: LeaseState = LeaseState.ACTIVE, *, owner: str = "a", request: str = "") -> Lease:
    """A lease of that id, for a request of its own unless one is named; over since T0 if it is over."""
    ended = T0 if state.over else None
    return Lease(name, owner, request or f"for {name}", "{}", state, (3,), (1, 2), created=T0, ended=ended)


def made(name: str, state: LeaseState = LeaseState.ACTIVE, *, owner: str = "a", request: str = "") -> Entry:
    """The entry that says that such a lease is now so."""
    return of_lease(lease(name, state, owner=owner, request=request), state.value)


def note(what: str) -> Entry:
    """An entry that only tells."""
    return Entry(Kind.HOST, "", what)


def all_entries(store: Store) -> tuple[Entry, ...]:
    return store.entries(0, limit=1 << 30)


@contextlib.contextmanager
def longest_file(size: int) -> Iterator[None]:
    """Let every write behind that many bytes of a file fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
