# SPDX-License-Identifier: Apache-2.0
"""Leases for what was there before fmctl, or before its store: active partitions, and the VMs that hold their GPUs.

Pure. It activates, resets, rebinds and restarts nothing, and what is ambiguous is reported and left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fmctl.core import owner as owners
from fmctl.core import plan
from fmctl.core.book import Book, Entry, of_lease, of_map
from fmctl.core.errors import BadRequest
from fmctl.core.lease import Ending, Lease, LeaseState
from fmctl.core.partition import Partition, PartitionList
from fmctl.core.plan import Vm


@dataclass(frozen=True)
class Owners:
    """Whose VMs are whose, by UUID or name; written `tenant-1: acme`, a line for each VM."""

    by_vm: Mapping[str, str]

    @classmethod
    def parse(cls, value: object) -> Owners:
        """Read a mapping of VMs to owners; raises ValueError."""
        if not isinstance(value, dict) or not all(isinstance(text, str) for pair in value.items() for text in pair):
            raise ValueError("a line such as tenant-1: acme is wanted for each VM")
        return cls(value)


@dataclass(frozen=True)
class Adoption:
    """The entries to commit, in words what each makes, and what is left, with the reason."""

    entries: tuple[Entry, ...] = ()
    made: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def adopt(
    book: Book,
    listed: PartitionList,
    vms: Sequence[Vm],
    named: Mapping[str, str],
    *,
    now: float,
    generation: int,
    new_id: Callable[[], str],
    unsettled: Collection[int] = (),
) -> Adoption:
    """A lease for each active partition that no lease holds and whose GPUs exactly one running VM has, all of them.

    No lease may have one of these GPUs, nor may a call about the partition take effect yet, as those do that are
    `unsettled`. The owner is whom `named` says for the VM's UUID or name, else whom the domain's own metadata names.
    """
    entries, made, left = [], [], []
    for partition in plan.unowned(book, listed):
        vm, why = _holder(partition, vms)
        if taken := _taken(partition, book, unsettled):
            left.append(f"partition {partition.id}: {taken}")
            continue
        owner = _owner(vm, named) if vm else ""
        if vm is None:
            left.append(f"partition {partition.id}: {why}")
            continue
        if not owner:
            left.append(f"partition {partition.id}: nobody says who the owner of {vm.name} is")
            continue
        lease_id = new_id()
        lease = Lease(
            id=lease_id,
            owner=owner,
            request_id=f"adopted-{lease_id}",
            request="{}",
            state=LeaseState.ACTIVE,
            partitions=(partition.id,),
            gpus=partition.gpu_ids,
            created=now,
            vm_uuid=vm.uuid,
            vm_seen=True,
            vm_instance=vm.instance,
            generation=generation,
            vm_generation=generation,
        )
        entries.append(of_lease(lease, "adopted", actor=plan.ACTOR, detail=vm.name))
        made.append(f"partition {partition.id}: a lease of {owner}, for {vm.name}")
    return Adoption(tuple(entries), tuple(made), tuple(left))


def from_journal(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """What puts into an empty book the leases, the marks and the GPU map that stood at the end of a journal.

    A lease that was not ACTIVE yet had not been acknowledged, and is undone.
    """
    book = Book()
    for number, entry in enumerate(entries, 1):
        book = book.after([entry.committed(number, entry.time)])
    made = [of_lease(_standing(lease), "rebuilt", actor=plan.ACTOR) for lease in book.leases.values()]
    marks = [
        Entry(kind, subject, mark.kind.value, plan.ACTOR, mark.reason, mark=mark)
        for (kind, subject, _), mark in book.marks.items()
    ]
    maps = [] if book.gpu_map is None else [of_map(book.gpu_map, "GPU map rebuilt", actor=plan.ACTOR)]
    return (*made, *marks, *maps)


def _standing(lease: Lease) -> Lease:
    if lease.state in (LeaseState.ACTIVE, LeaseState.RELEASING) or lease.unattended:
        return lease
    return replace(lease, state=LeaseState.RELEASING, ending=Ending.UNDONE)


def _holder(partition: Partition, vms: Sequence[Vm]) -> tuple[Vm | None, str]:
    """The VM that has exactly these GPUs, or why there is none."""
    wanted = set(partition.gpu_ids)
    users = [vm for vm in vms if vm.gpus & wanted]
    exact = [vm for vm in users if vm.gpus == wanted]
    if len(users) == 1 and exact:
        return exact[0], ""
    if not users:
        return None, "it is active, and no running VM has its GPUs"
    names = ", ".join(f"{vm.name} with {','.join(map(str, sorted(vm.gpus)))}" for vm in users)
    return None, f"its GPUs {','.join(map(str, sorted(wanted)))} are not those of one VM: {names}"


def _taken(partition: Partition, book: Book, unsettled: Collection[int]) -> str:
    """Why a partition cannot be given to anybody now; empty where it can."""
    if partition.id in unsettled:
        return "a call to Fabric Manager that was given up may take effect yet"
    held = book.held
    leases = dict.fromkeys(held[gpu].id for gpu in partition.gpu_ids if gpu in held)
    return f"lease {', '.join(leases)} has its GPUs" if leases else ""


def _owner(vm: Vm, named: Mapping[str, str]) -> str:
    owner = named.get(vm.uuid) or named.get(vm.name) or vm.owner
    try:
        return owners.check(owner) if owner else ""
    except BadRequest:
        return ""
