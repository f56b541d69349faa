# SPDX-License-Identifier: Apache-2.0
"""Leases on request: the procedure behind the calls that make, change and end them.

Intent is written before Fabric Manager is asked, and the outcome before the caller is answered. What a call leaves
unfinished, `control.reconciler` brings to its end.
"""

from __future__ import annotations

import dataclasses
import logging
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence

from fmctl.control.admission import Admission
from fmctl.control.bringup import BringUp
from fmctl.control.chooser import Chooser
from fmctl.control.fabric import Budget, Fabric, Turn
from fmctl.control.newleases import NewLeases
from fmctl.control.reconciler import Reconciler
from fmctl.control.watch import WatchedStore
from fmctl.core import clean, layouts, outcome
from fmctl.core import owner as owners
from fmctl.core.allocate import Grant
from fmctl.core.errors import (
    BadRequest,
    FabricNotReady,
    NoSuchLease,
    PartitionHeld,
    PolicyDenied,
    RequestIdReused,
    VmRunning,
)
from fmctl.core.lease import Ending, Lease, LeaseState
from fmctl.core.request import MAX_LIFETIME, Request, labels_problem, vm_problem

log = logging.getLogger(__name__)


PATIENCE = 10.0
"""Seconds that a deactivation waits for its GPUs to be clean; what takes longer is not its caller's concern."""


class Leases:
    """Makes, changes and ends leases. Every method may be called from any thread."""

    def __init__(
        self,
        store: WatchedStore,
        fabric: Fabric,
        turn: Turn,
        chooser: Chooser,
        reconciler: Reconciler,
        admission: Admission,
        *,
        generation: Callable[[], int] = lambda: 0,
        now: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        """`wake` lets the reconciler look at once."""
        self._starter = BringUp(fabric, chooser, reconciler, generation=generation, now=now, wake=wake)
        self._new = NewLeases(
            store, fabric, chooser, reconciler, admission, generation=generation, now=now, new_id=new_id
        )
        self._store = store
        self._fabric = fabric
        self._turn = turn
        self._chooser = chooser
        self._reconciler = reconciler
        self._admission = admission
        self._now = now
        self._new_id = new_id
        self._wake = wake

    def allocate(
        self,
        request: Request,
        *,
        timeout: float,
        wait: bool = True,
        alive: Callable[[], bool] = lambda: True,
    ) -> Lease:
        """The lease that serves the request: ACTIVE, or PENDING without `wait`.

        The same request again gets the same lease, also one that is over. `alive` tells whether the caller still waits;
        one that does not before the lease is ACTIVE leaves nothing. Raises RequestIdReused, HostCordoned, PolicyDenied,
        MapUnverified, VersionMismatch, NoCapacity, Fragmented, PartitionHeld, NoSuchPartition, ActivationFailed,
        FabricNotReady, AgentUnreachable, or OutcomeUnknown, after which the same request settles the matter.
        """
        request.check()
        with self._turn.within(timeout) as budget:
            met = self._met(request)
            if met is None or _is_left(met):
                self._admit(request, budget)
            if met is None:
                lease, stood = self._new.begin(request, budget, alive, unattended=not wait)
            else:
                lease = self._again(met) if _is_left(met) else met
                stood = lease.partitions
            if lease.state.over or lease.state in (LeaseState.ACTIVE, LeaseState.RELEASING):
                return lease
            if wait:
                return self._starter.bring_up(lease, budget, alive, stood=stood)
            if not lease.unattended:
                lease = self._reconciler.put(dataclasses.replace(lease, unattended=True), "unattended", lease.owner)
            self._wake()
            return lease

    def try_out(self, request: Request, *, timeout: float) -> Grant:
        """What the request would get now; raises what `allocate` does before it changes anything."""
        request.check()
        with self._turn.within(timeout) as budget:
            self._admission.admit(request)
            return self._chooser.grant(request, budget)

    def release(self, lease_id: str, *, actor: str, timeout: float, owner: str = "", wait: bool = False) -> Lease:
        """Begin to end a lease, for good once this returns; with `wait`, once its GPUs are free.

        One that ends or is over is answered as it is. With `owner` it must be that owner's. Raises NoSuchLease,
        PartitionHeld, VmRunning, and FabricNotReady where its GPUs are neither free nor quarantined in time.
        """
        deadline = time.monotonic() + timeout
        lease = self._ended(lease_id, actor, timeout, owner, wait=wait)
        if wait:
            lease = self._over(lease, deadline)
        if wait and (dirty := self._dirty(lease.held, lease.ended or 0.0, deadline)):
            raise FabricNotReady(
                f"GPU {','.join(map(str, dirty))} of lease {lease.id} is not free yet",
                why="the lease is over, and the GPU is being cleaned",
                fix="see `fmctl reconcile --dry-run` for what is in the way",
            )
        return lease if wait else self._store.lease(lease_id)

    def _ended(self, lease_id: str, actor: str, timeout: float, owner: str, *, wait: bool) -> Lease:
        """The lease, whose end is begun, and with `wait` is gone on with as far as it can be now."""
        with self._turn.within(timeout) as budget:
            lease = self._of(lease_id, owner)
            if lease.state.over:
                return lease
            if lease.state is not LeaseState.RELEASING:
                self._admission.refuse_changes()
                self._reconciler.refuse_open(lease.held)
                if lease.state is LeaseState.PENDING:  # nothing was begun, and what is active is somebody else's
                    ends = dataclasses.replace(lease, state=LeaseState.RELEASED, ended=self._now())
                    return self._reconciler.put(ends, "released", actor)
                ends = dataclasses.replace(lease, state=LeaseState.RELEASING)
                self._reconciler.put(ends, "releasing", actor)
            if wait:
                self._reconciler.advance(lease_id, budget)
            if not wait or layouts.applied(self._store.book):
                self._wake()
        return lease

    def update(
        self,
        lease_id: str,
        etag: str,
        *,
        actor: str,
        timeout: float,
        owner: str = "",
        vm_uuid: str | None = None,
        lifetime: float | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Lease:
        """Bind a VM, renew the expiry (0 for none), or set labels: all that are given, or nothing.

        Raises NoSuchLease, BadRequest, and VmRunning where another VM runs under the lease. With `owner` the lease must
        be that owner's, and an etag that is not empty that of the lease as it is, or PartitionHeld is raised.
        """
        problem = vm_problem(vm_uuid or "") or labels_problem(labels or {})
        if lifetime is not None and not 0 <= lifetime <= MAX_LIFETIME:
            problem = f"its lifetime must be at most {MAX_LIFETIME:.0f} s"
        if problem:
            raise BadRequest("the lease is not changed", why=problem, fix="correct the call")
        with self._turn.within(timeout):
            lease = self._of(lease_id, owner)
            if lease.state.over:
                raise NoSuchLease(
                    f"lease {lease_id} is not changed", why=f"it is {lease.state.value}", fix="allocate another"
                )
            if etag and etag != lease.etag:
                raise PartitionHeld(
                    f"lease {lease_id} is not changed",
                    why=f"it was changed meanwhile: its etag is {lease.etag}, not {etag}",
                    fix="read it again, and decide anew",
                )
            changes: dict[str, object] = {}
            if vm_uuid is not None and vm_uuid != lease.vm_uuid:
                if lease.vm_seen and lease.vm_gone is None:
                    raise VmRunning(f"lease {lease_id} is not changed", why="its VM runs", fix="stop that VM first")
                changes |= {
                    "vm_uuid": vm_uuid,
                    "vm_gone": self._now() if lease.vm_seen else None,
                    "vm_instance": 0,
                    "vm_generation": 0,
                }
            if lifetime is not None:
                changes["expires"] = self._now() + lifetime if lifetime else None
            if labels is not None:
                changes["labels"] = dict(labels)
            return self._reconciler.put(dataclasses.replace(lease, **changes), "updated", actor) if changes else lease  # type: ignore[arg-type]

    def activate(
        self,
        owner: str,
        *,
        partition_id: int | None = None,
        gpu_ids: Sequence[int] = (),
        timeout: float,
        alive: Callable[[], bool] = lambda: True,
    ) -> tuple[Lease, bool]:
        """A lease on that partition for the owner, and whether it was there before; raises as `allocate` does."""
        request = Request(owner, self._new_id(), partition_id=partition_id, gpu_ids=tuple(gpu_ids)).check()
        with self._turn.within(timeout) as budget:
            partition = self._chooser.named(partition_id, gpu_ids, budget)
            held = self._store.book.holder(partition.id)
            if held is not None and held.owner == owner:
                if held.state is LeaseState.ACTIVE:
                    return held, True
                if _is_left(held) and held.partitions == (partition.id,):
                    self._admit(request, budget)
                    held = self._again(held)
                if held.state is not LeaseState.RELEASING:
                    return self._starter.bring_up(held, budget, alive, stood=held.partitions), False
            self._admit(request, budget)
            lease, stood = self._new.begin(request, budget, alive, unattended=False)
            if lease.state is not LeaseState.ACTIVE:
                lease = self._starter.bring_up(lease, budget, alive, stood=stood)
            return lease, False

    def deactivate(self, owner: str, partition_id: int, *, timeout: float, force: bool = False) -> bool:
        """End the lease that holds a partition; whether it was inactive before.

        One that is active for nobody known is deactivated for anybody, and another owner's with `force`, yet never
        under a running VM. GPUs that are not clean by then are cleaned later. Raises as `release` does.
        """
        owners.check(owner)
        deadline = time.monotonic() + timeout
        with self._turn.within(timeout) as budget:
            partition = self._chooser.named(partition_id, (), budget)
            lease = self._store.book.holder(partition_id)
            already = lease is None and self._deactivate_stray(partition.id, budget, actor=owner)
        if lease is not None:
            if lease.owner != owner and not force:
                raise outcome.held(partition, lease.owner)
            if len(lease.partitions) > 1:
                raise PartitionHeld(
                    f"partition {partition_id} is one of several of a lease",
                    why=f"lease {lease.id} holds the partitions {', '.join(map(str, lease.partitions))}",
                    fix=f"end the whole lease: fmctl release {lease.id}",
                    partition_id=partition_id,
                )
            self._over(self._ended(lease.id, owner, timeout, "", wait=True), deadline)
        self._dirty(partition.gpu_ids, self._now(), min(deadline, time.monotonic() + PATIENCE))
        return already

    def _deactivate_stray(self, partition_id: int, budget: Budget, *, actor: str) -> bool:
        listed = self._fabric.look(budget.look())
        partition = listed.get(partition_id)
        if not partition.active:
            return True
        self._reconciler.meet(listed)
        self._admission.refuse_changes()
        self._reconciler.refuse_open(partition.gpu_ids)
        return self._reconciler.deactivate_stray(partition_id, budget, actor=actor)

    def _met(self, request: Request) -> Lease | None:
        """The lease that stands for the request already; raises RequestIdReused."""
        lease = self._store.by_request(request.owner, request.request_id)
        if lease is not None and lease.request != request.canonical():
            raise RequestIdReused(
                f"the request id {request.request_id!r} stands for another request",
                why=f"lease {lease.id} was made for {lease.request}",
                fix="give each request an id of its own",
            )
        return lease

    def _again(self, lease: Lease) -> Lease:
        """The lease, which is left and asked for again.

        Raises FabricNotReady where a part of it is gone or may be, or is set aside.
        """
        if aside := clean.aside(self._store.book, lease.held):
            raise FabricNotReady(
                f"the request {lease.request_id!r} is being undone",
                why=f"the GPUs {','.join(map(str, aside))} were set aside after they were granted",
                fix="make it again",
            )
        if lease.state is LeaseState.ACTIVATING:
            return lease
        if lease.ending is Ending.UNDOING and self._fabric.may_end(lease.partitions):
            raise FabricNotReady(
                f"the request {lease.request_id!r} is being undone",
                why="a call to Fabric Manager that was given up may deactivate what it holds yet",
                fix="make it again",
            )
        count = Request.from_canonical(lease.owner, lease.request_id, lease.request).count
        if count is not None and count != len(lease.gpus):
            raise FabricNotReady(
                f"the request {lease.request_id!r} is being undone",
                why="a part of what was activated for it is given back already",
                fix="make it again",
            )
        again = dataclasses.replace(lease, state=LeaseState.ACTIVATING, ending=Ending.RELEASED, reason="")
        return self._reconciler.put(again, "asked for again", lease.owner)

    def _admit(self, request: Request, budget: Budget) -> None:
        self._reconciler.meet(self._fabric.known(budget.look()))
        self._admission.admit(request)

    def _of(self, lease_id: str, owner: str) -> Lease:
        """A lease that may be changed, also one that is over.

        Raises PartitionHeld where an owner is named and it is another's, and PolicyDenied for one of fmctl's own.
        """
        lease = self._store.lease(lease_id)
        if owner and lease.owner != owner:
            raise _not_yours(lease)
        if owners.is_system(lease.owner):
            raise PolicyDenied(
                f"lease {lease.id} is left to fmctl",
                why=f"it is of {lease.owner}, and comes and goes with the layout",
                fix="see `fmctl layout --help`; `fmctl layout apply none` ends the layout",
            )
        return lease

    def _over(self, lease: Lease, deadline: float) -> Lease:
        """The lease once it is over, even if nothing stays of it; raises FabricNotReady where that is not in time."""
        while True:
            try:
                lease = self._store.lease(lease.id)
            except NoSuchLease:
                return dataclasses.replace(lease, state=LeaseState.FAILED)
            if lease.state.over:
                return lease
            left = deadline - time.monotonic()
            if left <= 0:
                raise FabricNotReady(
                    f"lease {lease.id} is not over yet",
                    why="its end is recorded, and goes on by itself",
                    fix="see `fmctl reconcile --dry-run` for what is in the way",
                )
            self._wake()
            self._store.wait_after(self._store.book.revision, min(left, 1.0))

    def _dirty(self, gpus: Collection[int], ended: float, deadline: float) -> tuple[int, ...]:
        """Those GPUs that were to be cleaned at that time, and still are at the deadline, until which it waits."""
        while dirty := clean.being_cleaned(book := self._store.book, gpus, ended):
            left = deadline - time.monotonic()
            if left <= 0:
                return dirty
            self._wake()
            self._store.wait_after(book.revision, min(left, 1.0))
        return ()


def _is_left(lease: Lease) -> bool:
    """Whether its caller was gone before it was ACTIVE, so that nothing stays of it unless it is asked for again."""
    undone = lease.state is LeaseState.RELEASING and lease.ending.leaves_nothing
    return undone or (lease.state is LeaseState.ACTIVATING and not lease.unattended)


def _not_yours(lease: Lease) -> PartitionHeld:
    return PartitionHeld(
        f"lease {lease.id} is held", why=f"it is of owner {lease.owner!r}", fix="name that owner, or another lease"
    )
