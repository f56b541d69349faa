# SPDX-License-Identifier: Apache-2.0
"""Makes active partitions and leases the same set: observes, lets `core.plan` decide, takes one step, and records it.

`control.leases` changes leases on request, under the same turn, and has a lease brought to its end here.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from fmctl.control.chooser import Chooser
from fmctl.control.discovery import NoBoard
from fmctl.control.fabric import Budget, Fabric, Turn
from fmctl.control.gpus import Gpus
from fmctl.core import adopt, clean, plan
from fmctl.core import owner as owners
from fmctl.core.adopt import Adoption
from fmctl.core.book import Entry, Kind, Mark, MarkKind, of_lease, of_mark
from fmctl.core.errors import ActivationFailed, FabricNotReady, FmctlError, OutcomeUnknown, VmRunning
from fmctl.core.fmcode import FmCode
from fmctl.core.lease import Ending, Lease, LeaseState
from fmctl.core.partition import PartitionList
from fmctl.core.plan import ACTOR, Activate, Deactivate, Observed, Plan, Step, Vm, Write
from fmctl.core.ports import Store
from fmctl.core.rules import Mode, Rules

log = logging.getLogger(__name__)

MAX_STEPS = 1000
"""Steps of one reconciliation, which no board needs."""
TURN_TIMEOUT = 120.0
"""Seconds that a step may take, the wait for its turn included."""
LIST_TIMEOUT = 30.0
"""Seconds that Fabric Manager has to list its partitions."""
STRAY_ENDS = "to be deactivated"
"""What is recorded of a partition that no lease holds before Fabric Manager is asked."""
LAST_ENTRIES = 256
"""Entries among which that is looked for after a start."""
BACK_OFF = 1.0
"""Seconds before a step that failed is tried again, doubled for each further time up to `MAX_BACK_OFF`."""
MAX_BACK_OFF = 60.0


@dataclass(frozen=True)
class _Failure:
    text: str
    count: int
    again: float
    since: float


class Reconciler:
    """Takes the steps of plans."""

    def __init__(
        self,
        store: Store,
        fabric: Fabric,
        gpus: Gpus,
        turn: Turn,
        rules: Rules,
        *,
        generation: Callable[[], int] = lambda: 0,
        now: Callable[[], float] = time.time,
        beside: Callable[[Observed], Plan] = lambda seen: Plan(),
    ) -> None:
        """`generation` tells the fabric generation, and `now` is in seconds since the epoch.

        `beside` plans what is done before what leases need: the layout's own leases. Its steps are only written.
        What the book shows unfinished, another process may have asked Fabric Manager for just before it died.
        """
        self._store = store
        self._fabric = fabric
        self._gpus = gpus
        self._turn = turn
        self._rules = rules
        self._generation = generation
        self._now = now
        self._beside = beside
        self._chooser = Chooser(store, fabric, gpus)
        self._failures: dict[Activate | Deactivate, _Failure] = {}
        self._drift: tuple[str, ...] = ()
        self.delayed: Callable[[], Iterable[str]] = tuple
        """What else waits, and why: the GPUs that `control.clean` cannot clean now."""
        fabric.unsettle((*plan.unfinished(store.book), *self._strays_asked_for()))

    def _strays_asked_for(self) -> tuple[int, ...]:
        """The partitions without lease about which Fabric Manager may have been asked when another process died."""
        count = LAST_ENTRIES
        while count:
            try:
                entries = self._store.entries(max(0, self._store.book.revision - count), limit=count)
                since = self._now() - plan.LATE
                return tuple(int(e.subject) for e in entries if e.what == STRAY_ENDS and e.time > since)
            except FmctlError:  # so many are not there any more
                count //= 2
        return ()

    @property
    def drift(self) -> tuple[str, ...]:
        """What the last look found that nothing is done about."""
        return self._drift

    @property
    def is_observing(self) -> bool:
        """Whether nothing is changed on this host until a person accepts it."""
        return bool(self.observed)

    @property
    def must_observe(self) -> bool:
        """Whether a setting lets nothing be changed, whatever a person accepts."""
        return self._rules.mode is Mode.OBSERVE

    @property
    def observed(self) -> str:
        """Why nothing is changed on this host; empty where something is."""
        if self.must_observe:
            return "the setting mode says so"
        mark = self._store.book.marks.get((Kind.HOST, "", MarkKind.OBSERVED))
        return "" if mark is None else mark.reason

    @property
    def is_unmet(self) -> bool:
        """Whether nobody has seen yet whether this host was in use before."""
        return self._is_new

    def meet(self, listed: PartitionList) -> None:
        """See once, before anything is changed, whether this host was in use before. With the turn."""
        if self._is_new:
            self._met(plan.in_use(listed, self._gpus.open()))

    def meet_vms(self) -> None:
        """The same, of who holds GPUs alone, before the Service VM is touched; nothing is decided where nobody does."""
        with self._turn.within(TURN_TIMEOUT):
            held = self._gpus.open()
            if held and self._is_new:
                self._met(plan.in_use(PartitionList(()), held))

    @property
    def _is_new(self) -> bool:
        return self._rules.mode is Mode.AUTO and (Kind.HOST, "", MarkKind.MET) not in self._store.book.marks

    def _met(self, found: str) -> None:
        """Note that the host was looked at, and what shows that it was in use."""
        now = self._now()
        entries = [of_mark(Kind.HOST, "", Mark(MarkKind.MET, found or "it was not in use before", now), actor=ACTOR)]
        if found:
            entries.append(of_mark(Kind.HOST, "", Mark(MarkKind.OBSERVED, found, now), actor=ACTOR))
        self._commit(*entries)

    def preview(self, *, timeout: float) -> Plan:
        """What would be done now, with why a step that failed waits; raises what a list does."""
        vms = self._gpus.vms()
        found = self._plan(self._observed(self._fabric.peek(timeout), vms))
        return replace(found, drift=(*found.drift, *self._waiting(found), *self.delayed()))

    def reconcile(self) -> None:
        """Take steps until none is left that can be taken now; a failed step waits.

        The turn is taken for a step alone: what was seen without it counts only if nothing was changed meanwhile.
        Raises what a list does, once that is done for which Fabric Manager need not answer.
        """
        failure: FmctlError | None = None
        for _ in range(MAX_STEPS):
            before, listed = self._state, None
            try:
                listed = None if failure else self._fabric.peek(LIST_TIMEOUT)
            except FmctlError as error:
                failure = error
            seen = self._observed(listed, self._gpus.vms()) if self._has_work(listed) else self._unobserved(listed)
            with self._turn.within(TURN_TIMEOUT) as budget:
                if before != self._state:
                    continue
                if listed is not None:
                    self.meet(self._fabric.note(listed))
                found = self._plan(seen)
                self._drift = (*found.drift, *self._waiting(found))
                step = None if self.is_observing else next(self._due(found), None)
                if step is None:
                    break
                self._try(step, budget)
        if failure is not None:
            raise failure

    def adopt(self, named: Mapping[str, str], *, dry_run: bool, timeout: float) -> Adoption:
        """Make leases of active partitions that no lease holds, by the VMs that have their GPUs; also while observed.

        Raises FabricNotReady where libvirt does not answer, MapUnverified, and what a list does.
        """
        with contextlib.suppress(NoBoard):
            self._gpus.addresses()
        vms = self._gpus.vms()
        if vms is None:
            raise FabricNotReady("nothing is adopted", why="libvirt does not tell which VM has which GPU")
        with self._turn.within(timeout) as budget:
            found = adopt.adopt(
                self._store.book,
                self._fabric.look(budget.look()),
                vms,
                named,
                now=self._now(),
                generation=self._generation(),
                new_id=lambda: str(uuid.uuid4()),
                unsettled=self._fabric.unsettled,
            )
            if found.entries and not dry_run:
                self._commit(*found.entries)
            return found

    @property
    def _state(self) -> tuple[int, int]:
        """Differs after every change of a lease or a partition."""
        return self._fabric.changes, self._store.book.revision

    def advance(self, lease_id: str, budget: Budget) -> Lease | None:
        """Take the steps of one lease until none is left; the lease as it is then, None where it left no trace.

        With the turn. Nothing is written of the lease by what was seen earlier: before that Fabric Manager lists, or
        changes, something anew. Raises the error of a step that failed.
        """
        fresh = False
        for _ in range(MAX_STEPS):
            lease = self._store.book.leases.get(lease_id)
            if lease is None:
                break
            seen = self._observed(self._fabric.known(budget.look()), None)
            step = next(iter(plan.plan_for(self._store.book, lease, seen, self._rules).steps), None)
            if step is None:
                return lease
            if fresh or not isinstance(step, Write):
                self._take(step, budget)
            else:
                self._fabric.look(budget.look())
            fresh = True
        with contextlib.suppress(FmctlError):
            return self._store.lease(lease_id)
        return None

    def _plan(self, seen: Observed) -> Plan:
        first, found = self._beside(seen), plan.plan(self._store.book, seen, self._rules)
        return Plan((*first.steps, *found.steps), (*found.drift, *first.drift))

    def _has_work(self, listed: PartitionList | None) -> bool:
        """Whether there is a lease, a layout, or an active partition, about which something could be decided."""
        book = self._store.book
        active = listed is not None and any(p.active for p in listed.partitions)
        return bool(book.leases) or active or bool(book.marked(Kind.HOST, MarkKind.LAYOUT))

    def _unobserved(self, listed: PartitionList | None) -> Observed:
        """What is enough where there is nothing to decide: who holds GPUs, and which VMs run, take long to tell."""
        return Observed(self._now(), listed, None, None, self._generation(), self._fabric.unsettled)

    def _observed(self, listed: PartitionList | None, vms: tuple[Vm, ...] | None) -> Observed:
        held = self._gpus.open()
        users = None if held is None else frozenset(held)
        return Observed(self._now(), listed, vms, users, self._generation(), self._fabric.unsettled)

    def _waiting(self, found: Plan) -> list[str]:
        failures = tuple(self._failures.items())
        return [failure.text for step, failure in failures if step in found.steps]

    def _due(self, found: Plan) -> Iterator[Step]:
        """The steps that did not fail too lately."""
        self._failures = {step: failure for step, failure in self._failures.items() if step in found.steps}
        for step in found.steps:
            if isinstance(step, Write) or step not in self._failures or self._now() >= self._failures[step].again:
                yield step

    def _try(self, step: Step, budget: Budget) -> None:
        """Take a step; one that Fabric Manager does not take now is tried again later."""
        if isinstance(step, Write):
            self._take(step, budget)
            return
        try:
            self._take(step, budget)
            self._failures.pop(step, None)
        except FmctlError as error:
            before = self._failures.get(step)
            count, since = (before.count + 1, before.since) if before else (1, self._now())
            pause = min(MAX_BACK_OFF, BACK_OFF * 2 ** (count - 1))
            self._failures[step] = _Failure(str(error), count, self._now() + pause, since)
            log.error("%s; tried again in %g s", error, pause)
            if isinstance(step, Deactivate) and (error.fm_code is not None or isinstance(error, OutcomeUnknown)):
                self._give_up(step, str(error), self._now() - since)

    def _give_up(self, step: Deactivate, why: str, refused_for: float) -> None:
        """Quarantine the GPUs of a partition that Fabric Manager lists, and has not deactivated for too long.

        Its lease goes on ending, since the partition is active still; once it is over the GPUs stay quarantined.
        """
        seen = self._fabric.seen
        if self._rules.clean and refused_for >= self._rules.refused_for and seen is not None:
            gpus = seen.get(step.partition_id).gpu_ids
            if stuck := clean.stuck(self._store.book, gpus, why, self._now()):
                self._commit(*stuck)

    def _take(self, step: Step, budget: Budget) -> None:
        if isinstance(step, Write):
            self._commit(*step.entries)
        elif isinstance(step, Deactivate):
            self._deactivate(step, budget)
        else:
            self._activate(step, budget)

    def put(self, lease: Lease, what: str, actor: str, *before: Entry) -> Lease:
        """Commit the lease as it is from now on, together with the entries that go `before`."""
        self._commit(*before, of_lease(lease, what, actor=actor))
        return self._store.book.leases.get(lease.id) or self._store.lease(lease.id)

    def forget(self, lease: Lease, what: str, actor: str) -> None:
        """Let nothing be left of the lease but the entry that says so."""
        self._commit(of_lease(lease, what, actor=actor, forget=True))

    def _commit(self, *entries: Entry) -> None:
        for entry in self._store.commit(entries, at=self._now()):
            about = f"{entry.kind.value} {entry.subject}".strip()
            log.info("%s: %s%s", about, entry.what, f" ({entry.detail})" if entry.detail else "")

    def _deactivate(self, step: Deactivate, budget: Budget) -> None:
        """Deactivate, after another look at who has the GPUs."""
        listed = self._fabric.known(budget.look())
        self.refuse_open(listed.get(step.partition_id).gpu_ids)
        if step.lease_id:
            self._fabric.deactivate(step.partition_id, budget)
        else:
            self.deactivate_stray(step.partition_id, budget, actor=ACTOR)

    def deactivate_stray(self, partition_id: int, budget: Budget, *, actor: str) -> bool:
        """Deactivate what no lease holds, and record it; whether it was inactive before. With the turn.

        Somebody may have used its GPUs, so they are to be cleaned, and marked so before anything is asked for.
        """
        dirty = self._fabric.known(budget.look()).get(partition_id).gpu_ids if self._rules.clean else ()

        def record(what: str, *marks: Entry) -> None:
            self._commit(Entry(Kind.PARTITION, str(partition_id), what, actor, "no lease holds it"), *marks)

        why = f"partition {partition_id} was active, and no lease held it"
        record(STRAY_ENDS, *clean.marked(dirty, why, self._now()))
        already = self._fabric.deactivate(partition_id, budget)
        record("deactivated")
        return already

    def refuse_open(self, gpus: tuple[int, ...]) -> None:
        """Raise VmRunning where somebody has one of these GPUs open, or where nobody can tell."""
        held = self._gpus.open()
        users = {holder for gpu, holder in (held or {}).items() if gpu in gpus}
        if held is None or users:
            raise VmRunning(
                f"the GPUs {','.join(map(str, gpus))} are in use",
                why=f"{', '.join(sorted(users))} has them open" if users else "who has GPUs open cannot be told",
                fix="stop that VM first" if users else "see the daemon's log",
            )

    def _activate(self, step: Activate, budget: Budget) -> None:
        lease = self._store.book.leases[step.lease_id]
        try:
            self._fabric.activate(step.partition_id, budget, self._chooser.owners(), ours=True)
        except ActivationFailed as error:
            if lease.state is LeaseState.ACTIVE or owners.is_system(lease.owner):
                self._commit(*self.cordoned(error))
                raise
            try:
                self.move(lease, error, budget)
            except FmctlError:
                ends = replace(lease, state=LeaseState.RELEASING, ending=Ending.FAILED, reason=str(error))
                self._commit(*self.cordoned(error), of_lease(ends, "given up", actor=ACTOR, detail=str(error)))

    def move(self, lease: Lease, error: ActivationFailed, budget: Budget) -> Lease:
        """Cordon the partition of an NVLink error, and let the lease have other GPUs.

        Raises `error` where it is another one, or where an earlier call may activate that partition yet, and NoCapacity
        where there are no other GPUs. With the turn.
        """
        cordon = self.cordoned(error)
        if not cordon or error.partition_id is None or error.partition_id in self._fabric.unsettled:
            raise error
        self._commit(*cordon)
        moved = self._chooser.instead(lease, error.partition_id, budget)
        self._commit(of_lease(moved, "moved", actor=ACTOR, detail=str(error)))
        return self._store.book.leases[lease.id]

    def cordoned(self, error: FmctlError) -> tuple[Entry, ...]:
        """The entry by which the partition of an NVLink error is handed out no more; none for other errors."""
        if error.fm_code != FmCode.NVLINK_ERROR or error.partition_id is None:
            return ()
        mark = Mark(MarkKind.CORDONED, str(error), self._now())
        return (of_mark(Kind.PARTITION, str(error.partition_id), mark, actor=ACTOR),)
