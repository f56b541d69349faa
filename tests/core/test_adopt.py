# SPDX-License-Identifier: Apache-2.0
"""Which leases are made of what was there before fmctl, and what is left."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import replace

import pytest

from fmctl.core import adopt
from fmctl.core.adopt import Adoption
from fmctl.core.book import Book, Entry, Kind, Mark, MarkKind, of_lease, of_mark, of_unmark
from fmctl.core.lease import Ending, Lease, LeaseState
from fmctl.core.partition import Gpu, Partition, PartitionList
from fmctl.core.plan import Vm

UUID = "11111111-2222-3333-4444-555555555555"
PAIR = Partition(3, (Gpu(1), Gpu(3)), active=True)
OTHER = Partition(4, (Gpu(2), Gpu(4)), active=False)
LISTED = PartitionList((PAIR, OTHER))
VM = Vm(UUID, "tenant", 7, frozenset({1, 3}), "a")
LEASE = Lease("l", "a", "r", "{}", LeaseState.ACTIVE, (3,), (1, 3))


def adopted(
    *vms: Vm, book: Book | None = None, named: Mapping[str, str] | None = None, unsettled: Collection[int] = ()
) -> Adoption:
    ids = itertools.count(1)
    return adopt.adopt(
        book or Book(),
        LISTED,
        vms,
        named or {},
        now=9.0,
        generation=2,
        new_id=lambda: f"id-{next(ids)}",
        unsettled=unsettled,
    )


def test_an_active_partition_is_the_lease_of_the_one_vm_that_has_exactly_its_gpus() -> None:
    found = adopted(VM)
    (entry,) = found.entries
    assert entry.lease == Lease(
        id="id-1",
        owner="a",
        request_id="adopted-id-1",
        request="{}",
        state=LeaseState.ACTIVE,
        partitions=(3,),
        gpus=(1, 3),
        created=9.0,
        vm_uuid=UUID,
        vm_seen=True,
        vm_instance=7,
        generation=2,
        vm_generation=2,
    )
    assert (found.made, found.left) == (("partition 3: a lease of a, for tenant",), ())


def test_who_is_named_for_the_vm_goes_before_its_metadata() -> None:
    (entry,) = adopted(VM, named={"tenant": "b"}).entries
    assert entry.lease is not None
    assert entry.lease.owner == "b"
    (entry,) = adopted(replace(VM, owner=""), named={UUID: "c"}).entries
    assert entry.lease is not None
    assert entry.lease.owner == "c"


@pytest.mark.parametrize(
    ("vms", "why"),
    [
        ((), "no running VM has its GPUs"),
        ((replace(VM, gpus=frozenset({1})),), "are not those of one VM: tenant with 1"),
        ((replace(VM, gpus=frozenset({1, 2, 3})),), "are not those of one VM: tenant with 1,2,3"),
        ((VM, Vm("other", "other", 1, frozenset({3}))), "are not those of one VM"),
        ((replace(VM, owner=""),), "nobody says who the owner of tenant is"),
        ((replace(VM, owner="system:layout"),), "nobody says who the owner of tenant is"),
    ],
)
def test_what_is_ambiguous_is_left_with_the_reason(vms: tuple[Vm, ...], why: str) -> None:
    found = adopted(*vms)
    assert (found.entries, found.made) == ((), ())
    assert why in found.left[0]


def test_what_a_lease_holds_is_not_adopted_again() -> None:
    assert adopted(VM, book=Book(leases={"l": LEASE})) == Adoption()


def test_nothing_is_adopted_whose_gpus_a_lease_has_or_that_a_late_call_may_change() -> None:
    wider = replace(LEASE, partitions=(1,), gpus=(1, 2, 4), spare=(3,))
    assert adopted(VM, book=Book(leases={"l": wider})).left == ("partition 3: lease l has its GPUs",)
    found = adopted(VM, unsettled=(3,))
    assert (found.entries, "may take effect yet" in found.left[0]) == ((), True)


def test_a_journal_s_last_word_on_each_lease_and_mark_counts() -> None:
    mark = Mark(MarkKind.CORDONED, "why", 1.0)
    over = replace(LEASE, id="over", request_id="o", state=LeaseState.RELEASED)
    begun = replace(LEASE, id="begun", request_id="b", state=LeaseState.ACTIVATING)
    journal = [
        of_lease(replace(LEASE, state=LeaseState.ACTIVATING), "activating"),
        of_lease(replace(over, state=LeaseState.ACTIVE), "active"),
        of_mark(Kind.PARTITION, "3", mark),
        of_mark(Kind.PARTITION, "4", mark),
        of_unmark(Kind.PARTITION, "4", MarkKind.CORDONED),
        Entry(Kind.FABRIC, "", "ready"),
        of_lease(over, "released"),
        of_lease(LEASE, "active"),
        of_lease(begun, "activating"),
    ]
    made = adopt.from_journal(journal)
    leases = {entry.lease.id: entry.lease for entry in made if entry.lease}
    assert set(leases) == {"l", "begun"}
    assert leases["l"].state is LeaseState.ACTIVE
    assert (leases["begun"].state, leases["begun"].ending) == (LeaseState.RELEASING, Ending.UNDONE)
    assert [(entry.subject, entry.mark) for entry in made if entry.mark] == [("3", mark)]
