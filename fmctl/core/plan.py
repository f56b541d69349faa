# SPDX-License-Identifier: Apache-2.0
"""What must happen so that active partitions and leases are the same set: observe, plan, take a step, record.

Pure; `control.reconciler` observes and takes the steps. A crash at any step leaves a state that this plan knows. What
is not known is no reason to act: without Fabric Manager's list, or without libvirt, only what needs neither is done.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fmctl.core import clean
from fmctl.core.book import Book, Entry, of_lease
from fmctl.core.lease import Ending, Lease, LeaseState
from fmctl.core.partition import Partition, PartitionList
from fmctl.core.rules import Rules, Unowned

ACTOR = clean.ACTOR
"""Who is named in the journal for what nobody asked for."""
LATE = 75.0
"""Seconds after which a call that was given up cannot come to anything: libnvfm itself gives up after 70 s."""


@dataclass(frozen=True)
class Vm:
    """A running VM, with the physical ids of the GPUs that it was given, and whom its own metadata names as owner.

    `instance` and `rebooted` are as in `core.domain.Domain`.
    """

    uuid: str
    name: str
    instance: int
    gpus: frozenset[int] = frozenset()
    owner: str = ""
    rebooted: float | None = None


@dataclass(frozen=True)
class Observed:
    """One look at everything, at `now` in seconds since the epoch.

    `listed` is None where Fabric Manager does not answer, `vms` where libvirt does not, and `open` where it cannot be
    told whose VFIO groups are open; it has the physical ids of those that are. No call is under way: a lease that is
    not ACTIVE yet has nobody who works on it. `unsettled` tells of a partition until when a call that was given up may
    take effect.
    """

    now: float
    listed: PartitionList | None = None
    vms: tuple[Vm, ...] | None = None
    open: frozenset[int] | None = None
    generation: int = 0
    unsettled: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Activate:
    """Let Fabric Manager activate a partition for a lease."""

    lease_id: str
    partition_id: int


@dataclass(frozen=True)
class Deactivate:
    """Let Fabric Manager deactivate a partition; `lease_id` is empty for one that no lease holds."""

    lease_id: str
    partition_id: int


@dataclass(frozen=True)
class Write:
    """Write into the book."""

    entries: tuple[Entry, ...]


Step = Activate | Deactivate | Write


@dataclass(frozen=True)
class Plan:
    """The steps, in order, after each of which the rest must be planned anew, and what nothing is done about."""

    steps: tuple[Step, ...] = ()
    drift: tuple[str, ...] = ()


def plan(book: Book, seen: Observed, rules: Rules) -> Plan:
    """What to do next, for every lease and every partition that none holds."""
    leases = sorted(book.leases.values(), key=lambda lease: (lease.created, lease.id))
    return _plan(
        (*(each for lease in leases for each in _lease(book, lease, seen, rules)), *_unowned(book, seen, rules))
    )


def plan_for(book: Book, lease: Lease, seen: Observed, rules: Rules) -> Plan:
    """What to do next for one lease of the book."""
    return _plan(tuple(_lease(book, lease, seen, rules)))


def _plan(found: Sequence[Step | str]) -> Plan:
    steps = [each for each in found if not isinstance(each, str)]
    return Plan(
        tuple(sorted(steps, key=lambda step: _ORDER.index(type(step)))),
        tuple(each for each in found if isinstance(each, str)),
    )


_ORDER = (Write, Deactivate, Activate)
"""What was recorded is seen by what follows, and what is freed can be taken."""


def _lease(book: Book, lease: Lease, seen: Observed, rules: Rules) -> Iterator[Step | str]:
    if lease.state is LeaseState.RELEASING:
        yield from _release(lease, seen, rules)
    elif lease.state is LeaseState.ACTIVE:
        yield from _keep(lease, seen, rules)
    elif lease.unattended:
        yield from _complete(book, lease, seen)
    else:
        yield _write(
            lease, "given up", "whoever asked for it is gone", state=LeaseState.RELEASING, ending=Ending.UNDONE
        )


def _write(lease: Lease, what: str, detail: str = "", **changes: Any) -> Write:
    return Write((of_lease(replace(lease, **changes), what, actor=ACTOR, detail=detail),))


def _complete(book: Book, lease: Lease, seen: Observed) -> Iterator[Step | str]:
    """Bring a lease that nobody waits for to ACTIVE."""
    if seen.listed is None:
        return
    if odd := _table_changed(lease, seen.listed) or _used_meanwhile(book, lease):
        yield _given_up(lease, odd, seen.now)
    elif lease.state is LeaseState.PENDING:
        yield _begin(lease, seen.listed, seen.now)
    elif not _all_active(lease, seen.listed):
        yield from _activate(lease, seen.listed)
    else:
        yield _write(lease, "active", state=LeaseState.ACTIVE, **_activated(lease, seen))


def _begin(lease: Lease, listed: PartitionList, now: float) -> Write:
    """What is active before Fabric Manager was asked is somebody's: not to be taken, nor ended with the lease."""
    taken = [partition.id for partition in _partitions(lease, listed) if partition.active]
    if not taken:
        return _write(lease, "activating", state=LeaseState.ACTIVATING)
    return _given_up(lease, f"partition {_ids(taken)} is active for somebody whom fmctl does not know", now)


def _given_up(lease: Lease, why: str, now: float) -> Write:
    """Nothing was begun for a PENDING lease, so what is active of it is not ended."""
    if lease.state is LeaseState.PENDING:
        return _write(lease, "failed", why, state=LeaseState.FAILED, reason=why, ended=now)
    return _write(lease, "given up", why, state=LeaseState.RELEASING, ending=Ending.FAILED, reason=why)


def _activated(lease: Lease, seen: Observed) -> dict[str, Any]:
    """What is noted of a lease once its partitions are active: under which fabric only after its VM was looked for."""
    noted = {"unsettled_until": _settles(lease, seen)}
    if lease.state is LeaseState.ACTIVE and seen.vms is None:
        return noted
    return noted | {"generation": seen.generation}


def _settles(lease: Lease, seen: Observed) -> float:
    """From when on no call about its partitions that was given up can take effect."""
    return max((lease.unsettled_until, *(seen.unsettled.get(partition, 0.0) for partition in lease.partitions)))


def _activate(lease: Lease, listed: PartitionList) -> Iterator[Step | str]:
    for partition in _partitions(lease, listed):
        blockers = [other.id for other in listed.blockers(partition) if other.id not in lease.partitions]
        if partition.active:
            continue
        if blockers:
            yield f"partition {partition.id} of lease {lease.id} is blocked by the active {_ids(blockers)}"
        else:
            yield Activate(lease.id, partition.id)


INTERRUPTED = "its partitions were not active, so its NVLink traffic was interrupted"


def _keep(lease: Lease, seen: Observed, rules: Rules) -> Iterator[Step | str]:
    """See that what an ACTIVE lease holds is active, follow its VM, and end it where it is to end."""
    if seen.listed is not None:
        if odd := _table_changed(lease, seen.listed):
            yield f"lease {lease.id}: {odd}"
            if lease.reason != odd:
                yield _write(lease, "affected", odd, reason=odd)
            return
        if not _all_active(lease, seen.listed):
            if lease.reason == INTERRUPTED:
                yield from _activate(lease, seen.listed)
            else:
                yield _write(lease, "interrupted", INTERRUPTED, reason=INTERRUPTED)
        elif lease.reason or (lease.generation < seen.generation and seen.vms is not None):
            yield from _follow_vm(lease, seen, rules)
            yield _write(lease, "active again", reason="", **_activated(lease, seen))
            return
    yield from _follow_vm(lease, seen, rules)


def _follow_vm(lease: Lease, seen: Observed, rules: Rules) -> Iterator[Step | str]:
    if seen.vms is None:
        return
    vm = vm_of(lease, seen.vms)
    if vm is not None:
        yield from _vm_runs(lease, vm)
    elif seen.open is None or not seen.open.isdisjoint(lease.held):
        return
    elif lease.vm_seen:
        yield from _vm_gone(lease, seen, rules)
    elif lease.expires is not None and seen.now >= lease.expires:
        why = "it expired, and no VM ever started under it"
        yield _write(lease, "expired", why, state=LeaseState.RELEASING, reason=why)


def _vm_runs(lease: Lease, vm: Vm) -> Iterator[Step]:
    """Of a VM that runs before its partitions are active in a new fabric, the fabric is the one before.

    A reboot in the same process is a start, too, for it resets the GPUs. One that nobody saw is not guessed.
    """
    started = lease.vm_instance != vm.instance
    if started or vm.rebooted not in (None, lease.vm_rebooted):
        again = "its VM started again" if started else "its VM rebooted"
        what = again if lease.vm_seen else "its VM started"
        yield _write(
            lease,
            what,
            vm.name,
            vm_seen=True,
            vm_instance=vm.instance,
            vm_rebooted=vm.rebooted,
            vm_generation=lease.generation,
            vm_gone=None,
        )
    elif lease.vm_gone is not None:
        yield _write(lease, "its VM is back", vm.name, vm_gone=None)


def _vm_gone(lease: Lease, seen: Observed, rules: Rules) -> Iterator[Step | str]:
    """A VM that stopped may start again, so its lease stays, unless a setting says otherwise."""
    if lease.vm_gone is None:
        yield _write(lease, "its VM is gone", vm_gone=seen.now)
    elif rules.release_gone_after is not None and seen.now - lease.vm_gone >= rules.release_gone_after:
        why = f"its VM has been gone for {rules.release_gone_after:g} s"
        yield _write(lease, "released", why, state=LeaseState.RELEASING, reason=why)
    else:
        yield f"lease {lease.id} of {lease.owner} is kept, and its VM is gone"


def _release(lease: Lease, seen: Observed, rules: Rules) -> Iterator[Step | str]:
    if seen.listed is None:
        return
    active = [p for p in _partitions(lease, seen.listed) if p.active]
    if active and (odd := _table_changed(lease, seen.listed)):
        yield f"lease {lease.id}: {odd}"
    elif seen.open is None:
        yield f"lease {lease.id}: who holds its GPUs is not known"
    elif in_use := seen.open.intersection(lease.held):
        yield f"lease {lease.id}: a VM holds the GPUs {_ids(in_use)}"
    elif active and lease.ending is Ending.UNDONE:
        yield _write(lease, "being undone", ending=Ending.UNDOING)
    elif active:
        for partition in active:
            yield Deactivate(lease.id, partition.id)
    elif seen.now < _settles(lease, seen):
        yield f"lease {lease.id}: a call to Fabric Manager that was given up may take effect yet"
    else:
        yield _ended(lease, seen.now, rules)


def _ended(lease: Lease, now: float, rules: Rules) -> Write:
    """The lease is over, and in the same commit its GPUs are to be cleaned; not those of one that was never ACTIVE."""
    state = LeaseState.RELEASED if lease.ending is Ending.RELEASED else LeaseState.FAILED
    what = Ending.UNDONE.value if lease.ending.leaves_nothing else lease.ending.value
    over = of_lease(replace(lease, state=state, ended=now), what, actor=ACTOR, forget=lease.ending.leaves_nothing)
    used = rules.clean and lease.ending is Ending.RELEASED
    return Write((over, *(clean.marked(lease.held, f"lease {lease.id} of {lease.owner} ended", now) if used else ())))


def _unowned(book: Book, seen: Observed, rules: Rules) -> Iterator[Step | str]:
    """Active partitions that no lease holds."""
    if seen.listed is None:
        return
    for partition in unowned(book, seen.listed):
        users = [vm.name for vm in seen.vms or () if not vm.gpus.isdisjoint(partition.gpu_ids)]
        free = seen.open is not None and seen.open.isdisjoint(partition.gpu_ids) and seen.vms is not None and not users
        if rules.unowned is Unowned.DEACTIVATE and free:
            yield Deactivate("", partition.id)
        else:
            by = f", and {', '.join(users)} has its GPUs" if users else ""
            yield f"partition {partition.id} is active, and no lease holds it{by}"


def unowned(book: Book, listed: PartitionList) -> tuple[Partition, ...]:
    """The active partitions that no lease holds."""
    held = {partition for lease in book.leases.values() for partition in lease.partitions}
    return tuple(partition for partition in listed.partitions if partition.active and partition.id not in held)


def in_use(listed: PartitionList, held: Collection[int] | None) -> str:
    """What shows that a host without leases is in use; empty where nothing does."""
    found = []
    active = [partition.id for partition in listed.partitions if partition.active]
    if active:
        found.append(f"partition{'s' * (len(active) > 1)} {_ids(active)} {'are' if len(active) > 1 else 'is'} active")
    if held:
        found.append(f"somebody holds the GPUs {_ids(held)}")
    if held is None:
        found.append("who holds GPUs is not known")
    return "; ".join(found)


def vm_of(lease: Lease, vms: Iterable[Vm]) -> Vm | None:
    """The running VM that a lease is for: that of its UUID, else the one that has its GPUs and no others."""
    if lease.vm_uuid:
        return next((vm for vm in vms if vm.uuid == lease.vm_uuid), None)
    return next((vm for vm in vms if vm.gpus and vm.gpus <= set(lease.gpus)), None)


def to_set(book: Book, seen: PartitionList | None) -> tuple[int, ...]:
    """The partitions that a Fabric Manager which takes up its state must be told are active.

    Those of a lease that ends, too, for a partition that it thinks inactive is never unprogrammed: they are deactivated
    afterwards. Those of a lease that begins only as far as they were last seen active.
    """
    active = {p.id for p in seen.partitions if p.active} if seen else None
    ends = (LeaseState.RELEASING, LeaseState.ACTIVATING)
    return tuple(
        sorted(
            partition
            for lease in book.leases.values()
            for partition in lease.partitions
            if lease.state is LeaseState.ACTIVE or (lease.state in ends and (active is None or partition in active))
        )
    )


def unfinished(book: Book) -> tuple[int, ...]:
    """The partitions about which Fabric Manager may have been asked when the process died that wrote this book."""
    return tuple(
        partition
        for lease in book.leases.values()
        if lease.state in (LeaseState.ACTIVATING, LeaseState.RELEASING) or lease.reason == INTERRUPTED
        for partition in lease.partitions
    )


def _partitions(lease: Lease, listed: PartitionList) -> list[Partition]:
    return [found for partition in lease.partitions if (found := listed.find(partition)) is not None]


def _all_active(lease: Lease, listed: PartitionList) -> bool:
    return all(partition.active for partition in _partitions(lease, listed))


def _table_changed(lease: Lease, listed: PartitionList) -> str:
    """How the table differs from the one by which the lease was made; empty where its partitions are as they were."""
    found = _partitions(lease, listed)
    gpus = {gpu for partition in found for gpu in partition.gpu_ids}
    if len(found) == len(lease.partitions) and gpus == set(lease.held):
        return ""
    return f"the partition table has no partitions {_ids(lease.partitions)} with the GPUs {_ids(lease.held)} any more"


def _used_meanwhile(book: Book, lease: Lease) -> str:
    """Why a lease that is not ACTIVE yet must not be any more; empty where its GPUs are as they were granted."""
    aside = clean.aside(book, lease.held)
    return f"the GPUs {_ids(aside)} were set aside after they were granted: somebody else may have used them" * bool(
        aside
    )


def _ids(ids: Iterable[int]) -> str:
    return ",".join(map(str, sorted(ids)))
