# SPDX-License-Identifier: Apache-2.0
"""What must always hold of leases, judged by what truly is: at each call, each commit, each answer, and once settled.

The judge sees what no daemon can: the VMs and partitions themselves, and the calls that will come true late. It hears
of calls and commits at the moment they are made, so it needs no trust in what the daemon says afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fmctl.core import plan
from fmctl.core.book import Entry, Kind, MarkKind
from fmctl.core.fmcode import Operation
from fmctl.core.lease import Ending, Lease, LeaseState
from fmctl.core.plan import ACTOR, INTERRUPTED, Vm
from fmctl.core.rules import Mode, Unowned
from tests.control.leasing import World, uuid_of

Key = tuple[str, str]
"""An owner, and the id of one of its requests."""
NEXT: dict[LeaseState | None, set[LeaseState]] = {
    None: {LeaseState.PENDING, LeaseState.ACTIVATING},
    LeaseState.PENDING: {LeaseState.PENDING, LeaseState.ACTIVATING, LeaseState.FAILED, LeaseState.RELEASED},
    LeaseState.ACTIVATING: {
        *(LeaseState.ACTIVATING, LeaseState.ACTIVE, LeaseState.RELEASING, LeaseState.FAILED),
    },
    LeaseState.ACTIVE: {LeaseState.ACTIVE, LeaseState.RELEASING},
    LeaseState.RELEASING: {
        *(LeaseState.RELEASING, LeaseState.ACTIVATING, LeaseState.RELEASED, LeaseState.FAILED),
    },
    LeaseState.RELEASED: set(),
    LeaseState.FAILED: set(),
}
"""What a lease may become."""


@dataclass(frozen=True)
class Ran:
    """A VM that started under an ACTIVE lease: in which fabric, and whether the lease was known to be whole in it."""

    lease_id: str
    generation: int
    whole: bool


class Judge:
    """Follows one world from its beginning."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.to_end: set[str] = set()
        """Leases that a person asks to end just now."""
        self.to_deactivate: set[int] = set()
        """Partitions without lease that a person asks to deactivate just now."""
        self.sees = True
        self.hears_libvirt = True
        self._last: dict[str, Lease] = {}
        self._accepted: dict[Key, str] = {}
        self._foreign: set[int] = set()
        self._left: set[str] = set()
        """Leases of which some daemon left it open whether Fabric Manager was asked for them."""
        self._ran: dict[str, Ran] = {}
        world.line.heard = self._heard
        world.store.committed = self._committed

    # What the machine tells.

    def foreign_activated(self, partition_id: int) -> None:
        """Another tool activated a partition, for itself unless Fabric Manager may have been asked for it before."""
        lease = self.world.store.book.holder(partition_id)
        if lease is None or lease.state is LeaseState.PENDING:
            self._foreign.add(partition_id)

    def vm_started(self, name: str) -> None:
        """A VM started. Of several under one lease none is followed."""
        for lease in self.world.leases:
            beside = [n for n, gpus in self.world.vms.items() if n != name and not set(lease.held).isdisjoint(gpus)]
            if beside and plan.vm_of(lease, [self._vm(name)]):
                self.vm_changed(lease.id)
            elif lease.state is LeaseState.ACTIVE and plan.vm_of(lease, [self._vm(name)]):
                generation = self.world.gate.generation
                whole = lease.generation == generation and set(lease.partitions) <= (self.world.active or set())
                self._ran[name] = Ran(lease.id, generation, whole)

    def vm_stopped(self, name: str) -> None:
        """A VM is gone."""
        self._ran.pop(name, None)

    def vm_changed(self, lease_id: str) -> None:
        """A lease is for another VM now, or for several."""
        self._ran = {name: ran for name, ran in self._ran.items() if ran.lease_id != lease_id}

    def answered(self, key: Key, lease: Lease) -> None:
        """A request was answered with a lease."""
        assert self._accepted.get(key, lease.id) == lease.id, "a request meets one lease"
        assert self.world.lease(lease.id) == lease, "what is answered is what stands"
        (entry,) = self.world.store.entries(lease.revision - 1, limit=1)
        assert entry.lease == lease, "what is answered was recorded before"

    def lease_of(self, key: Key) -> str | None:
        """The id of the lease that a request was promised."""
        return self._accepted.get(key)

    def restarted(self, told: Sequence[int]) -> None:
        """Fabric Manager took up its state, and was told these partitions."""
        if not self._observing:
            held = {p for lease in self.world.leases for p in lease.partitions}
            kept = {p for lease in self.world.leases if lease.state is LeaseState.ACTIVE for p in lease.partitions}
            assert kept <= set(told) <= held, "a restarted Fabric Manager is told what leases hold"

    # What is judged.

    def check(self) -> None:
        """What holds at any time."""
        self._no_gpu_is_in_two_partitions()
        self._calls_in_flight_are_held()
        for lease in self._last.values():
            assert self.world.lease(lease.id) == lease, "what was committed stands"
            if lease.state in (LeaseState.ACTIVATING, LeaseState.RELEASING):
                self._left.add(lease.id)

    def settled(self, *, activates: bool = True) -> None:
        """What holds once nothing fails and nothing is left to do; where nothing `activates`, as far as that goes."""
        self.check()
        world, active = self.world, self.world.active
        assert active is not None
        promised = set(self._accepted.values())
        left = [lease for lease in world.store.leases(over=True) if lease.id not in promised]
        in_use = [lease.id for lease in left if world.held & set(lease.held)]
        assert len(left) == len(in_use), "a request that failed leaves nothing, unless somebody has its GPUs"
        if self._observing:
            return
        held = {p for lease in world.leases for p in lease.partitions}
        strays = active - held
        for lease in world.leases:
            self._lease_is_settled(lease, active, strays, activates=activates)
        assert strays <= self._foreign, "what no lease holds, another tool activated"
        if world.rules.unowned is Unowned.DEACTIVATE:
            used = world.held | {gpu for gpus in world.vms.values() for gpu in gpus}
            assert all(used & set(world.gpus_of(stray)) for stray in strays), "what nobody uses is deactivated"
        self._older_vms_are_interrupted()

    def _lease_is_settled(self, lease: Lease, active: set[int], strays: set[int], *, activates: bool) -> None:
        blocked = not activates or any(set(self.world.gpus_of(stray)) & set(lease.held) for stray in strays)
        if lease.state is LeaseState.ACTIVE:
            whole = set(lease.partitions) <= active
            assert whole or blocked, "what an ACTIVE lease holds is active"
            assert not whole or not lease.reason, "a lease that is whole again says so"
        elif lease.state is LeaseState.RELEASING:
            assert self.world.held & set(lease.held), "a lease ends unless somebody has its GPUs"
        else:
            assert lease.unattended and blocked, "a lease is brought up or undone unless something is in its way"

    def _older_vms_are_interrupted(self) -> None:
        generation = self.world.gate.generation
        for ran in self._ran.values():
            lease = self.world.lease(ran.lease_id)
            if lease.state is not LeaseState.ACTIVE or len(lease.held) < 2 or lease.reason:
                continue
            told = lease.interrupted(generation)
            assert told or ran.generation == generation, "a VM that is older than the fabric is interrupted"
            assert not told or not (ran.whole and ran.generation == generation), "a VM of this fabric is not"

    def _heard(self, operation: Operation, partition_id: int) -> None:
        """Fabric Manager is about to be asked for a change."""
        self._prune()
        world, lease = self.world, self.world.store.book.holder(partition_id)
        gpus = set(world.gpus_of(partition_id))
        assert not self._observing, "an observed host is never changed"
        assert world.rules.mode is not Mode.AUTO or self._has_met, "a host is looked at before it is changed"
        if operation is Operation.ACTIVATE:
            assert lease is not None, "a partition is activated for a lease"
            begins = lease.state is LeaseState.ACTIVATING
            assert begins or (lease.state is LeaseState.ACTIVE and lease.reason == INTERRUPTED)
            assert gpus <= set(lease.held), "a lease has the GPUs that are activated for it"
            return
        assert self.sees, "nothing is deactivated while nobody can tell who has the GPUs"
        assert not world.held & gpus, "nothing is deactivated while somebody has its GPUs open"
        if lease is not None:
            assert lease.state is LeaseState.RELEASING, "only what ends is deactivated"
            return
        told = [e.what for e in world.store.entries(0, limit=10_000) if (e.kind, e.subject) == _partition(partition_id)]
        assert told[-1:] == ["to be deactivated"], "what no lease holds is recorded before it is deactivated"
        if partition_id not in self.to_deactivate:
            assert world.rules.unowned is Unowned.DEACTIVATE, "what nobody holds is left unless a setting says so"
            assert self.hears_libvirt, "nothing is deactivated while libvirt is away"
            assert not any(gpus & set(has) for has in world.vms.values())

    def _committed(self, entries: Sequence[Entry]) -> None:
        """Entries were just written."""
        self._prune()
        for entry in entries:
            if entry.lease is not None:
                self._lease_committed(entry, entry.lease, self._last.get(entry.subject))
        self._no_two_leases_hold_a_gpu()
        self._calls_in_flight_are_held()

    def _lease_committed(self, entry: Entry, lease: Lease, before: Lease | None) -> None:
        key, adopted = (lease.owner, lease.request_id), entry.what == "adopted"
        assert adopted or lease.state in NEXT[before.state if before else None], f"a lease cannot be {entry.what}"
        assert not self._observing or adopted or entry.what == "updated", "nothing is changed on an observed host"
        if before is not None and before.state is LeaseState.ACTIVE:
            assert (lease.partitions, lease.gpus, lease.owner) == (before.partitions, before.gpus, before.owner)
            if lease.state is LeaseState.RELEASING:
                self._may_end(before, entry)
            elif entry.what == "interrupted":
                assert not set(lease.partitions) <= (self.world.active or set()), "only what is lost is interrupted"
        elif lease.state is LeaseState.ACTIVE and not adopted:
            self._is_good(lease)
        if lease.state is LeaseState.RELEASING and before and before.state is LeaseState.RELEASING:
            undone = (Ending.UNDONE, Ending.UNDOING)
            assert lease.ending is before.ending or (before.ending, lease.ending) == undone, "an end stays what it is"
        if lease.state is LeaseState.ACTIVE or lease.unattended or entry.what == "releasing":
            assert self._accepted.setdefault(key, lease.id) == lease.id, "a request meets one lease"
        if entry.forget:
            assert self._accepted.get(key) != lease.id, "what was promised is not forgotten"
            self._last.pop(lease.id, None)
        else:
            self._last[lease.id] = lease
        if lease.state.over:
            self.world.line.doubtful.difference_update(lease.partitions)
            self._is_free(lease)

    def _is_good(self, lease: Lease) -> None:
        """A lease is acknowledged."""
        assert set(lease.partitions) <= (self.world.active or set()), "what is acknowledged is active"
        taken = self._foreign.intersection(lease.partitions) - self.world.line.doubtful
        assert not taken or lease.id in self._left, "what another tool activated is given to nobody"

    def _is_free(self, lease: Lease) -> None:
        """A lease is over. One that was only asked for never had its partitions."""
        mine = set(lease.partitions) - self._foreign
        assert not mine & (self.world.active or set()), "what a lease had is inactive when it is over"

    def _may_end(self, lease: Lease, entry: Entry) -> None:
        """An acknowledged lease ends."""
        assert self.sees and not self.world.held & set(lease.held), "no lease ends under who has its GPUs"
        assert entry.lease is not None and entry.lease.ending is Ending.RELEASED
        if entry.actor != ACTOR:
            assert lease.id in self.to_end, "nobody asked for its end"
            return
        assert self.hears_libvirt, "nothing ends by itself while libvirt is away"
        assert plan.vm_of(lease, [self._vm(name) for name in self.world.vms]) is None, "its VM runs"
        if lease.vm_seen:
            after = self.world.rules.release_gone_after
            assert after is not None and lease.vm_gone is not None and self.world.now - lease.vm_gone >= after
        else:
            assert lease.expires is not None and self.world.now >= lease.expires, "a lease ends when it expires"

    def _calls_in_flight_are_held(self) -> None:
        """While a call may come true, its lease holds the GPUs."""
        running, leases = self.world.line.running(), self.world.store.book.leases
        for landing in self.world.line.landings:
            if landing.fabric_manager is not running:
                continue
            assert landing.lease_id in ("", *leases), "while a call may come true, its lease holds the GPUs"
            ends = landing.operation is Operation.DEACTIVATE
            gpus = set(self.world.gpus_of(landing.partition_id))
            for lease in leases.values():
                if lease.id == landing.lease_id:
                    assert not ends or lease.state is not LeaseState.ACTIVE, "a call may yet end what is good"
                elif ends:
                    assert landing.partition_id not in lease.partitions, "a call may yet end what is another's"
                else:
                    assert gpus.isdisjoint(lease.held), "a call may yet take another's GPUs"

    def _no_two_leases_hold_a_gpu(self) -> None:
        held = [gpu for lease in self.world.store.book.leases.values() for gpu in lease.held]
        assert len(held) == len(set(held)), "no two leases hold a GPU"

    def _no_gpu_is_in_two_partitions(self) -> None:
        gpus = [gpu for partition in self.world.active or () for gpu in self.world.gpus_of(partition)]
        assert len(gpus) == len(set(gpus)), "no GPU is in two active partitions"

    # What is there.

    @property
    def _observing(self) -> bool:
        marked = (Kind.HOST, "", MarkKind.OBSERVED) in self.world.store.book.marks
        return self.world.rules.mode is Mode.OBSERVE or marked

    @property
    def _has_met(self) -> bool:
        return (Kind.HOST, "", MarkKind.MET) in self.world.store.book.marks

    def _prune(self) -> None:
        """Forget what another tool activated once it is inactive."""
        if self.world.active is not None:
            self._foreign &= self.world.active

    def _vm(self, name: str) -> Vm:
        return Vm(uuid_of(name), name, 0, frozenset(self.world.vms[name]))


def _partition(partition_id: int) -> tuple[Kind, str]:
    return Kind.PARTITION, str(partition_id)
