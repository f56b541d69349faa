# SPDX-License-Identifier: Apache-2.0
"""What is asked of leases, and what goes on with them by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from fmctl.core.allocate import Shape
from fmctl.core.errors import RequestIdReused, VmRunning
from fmctl.core.lease import LeaseState
from fmctl.core.plan import LATE
from fmctl.core.request import Request
from tests.chaos.machine import ASKED, NUMBER, OFTEN, OWNER, Machine, Seen
from tests.chaos.world import AT_ONCE
from tests.control.leasing import uuid_of


class LeaseRules(Machine):
    """A scheduler, persons, and time."""

    # What is asked for.

    @rule(owner=OWNER, asked=st.sampled_from(ASKED), wait=st.booleans(), lives=OFTEN, mended=OFTEN)
    def allocate(self, owner: str, asked: dict[str, Any], wait: bool, lives: bool, mended: bool) -> None:
        self._mend(mended)
        key = (owner, f"r{len(self.requests)}")
        self.requests.append((key, asked))
        self._allocate("allocate", key, asked, wait=wait, lives=lives)

    @precondition(lambda self: self.requests)
    @rule(which=NUMBER, wait=st.booleans(), lives=OFTEN, mended=OFTEN)
    def ask_again(self, which: int, wait: bool, lives: bool, mended: bool) -> None:
        self._mend(mended)
        key, asked = self.requests[-1 - which % len(self.requests)]
        self._allocate("ask_again", key, asked, wait=wait, lives=lives)

    @precondition(lambda self: self.requests)
    @rule(which=NUMBER)
    def reuse_a_request_id(self, which: int) -> None:
        key, _ = self.requests[-1 - which % len(self.requests)]
        before, revision = self.world.store.by_request(*key), self.world.store.book.revision
        other: dict[str, Any] = {"count": 5, "shape": Shape.UNLINKED}
        error = self._do("reuse_a_request_id", lambda: self._call(key, other, wait=True, lives=True))
        if before is not None and before.request != Request(*key, **other).canonical():
            assert isinstance(error, RequestIdReused)
            assert self.world.store.book.revision == revision

    @precondition(lambda self: self.world.leases)
    @rule(which=NUMBER, wait=st.booleans(), mended=OFTEN)
    def release(self, which: int, wait: bool, mended: bool) -> None:
        lease = self._lease(which)
        self._mend(mended)
        leases = self.world.controller.leases
        with self._ending(lease.id):
            error = self._do("release", lambda: leases.release(lease.id, actor="p", timeout=AT_ONCE, wait=wait))
        if lease.state is LeaseState.ACTIVE and self.world.held.intersection(lease.held):
            Seen.came[f"a release under a VM: {type(error).__name__}"] += 1
            assert self.world.lease(lease.id).state is LeaseState.ACTIVE, "what a VM has is not released"
            assert isinstance(error, VmRunning) or self.world.controller.reconciler.is_observing

    @precondition(lambda self: self.world.leases)
    @rule(which=NUMBER, lifetime=st.sampled_from((None, 0.0, 30.0)), name=st.sampled_from((None, "", "vm0", "vm1")))
    def update(self, which: int, lifetime: float | None, name: str | None) -> None:
        lease = self._lease(which)
        uuid = uuid_of(name) if name else name
        if uuid is not None and uuid != lease.vm_uuid:
            self.judge.vm_changed(lease.id)
        leases = self.world.controller.leases
        self._do(
            "update",
            lambda: leases.update(lease.id, "", actor="p", timeout=AT_ONCE, vm_uuid=uuid, lifetime=lifetime),
        )

    @rule(owner=OWNER, partition=st.integers(0, 14), mended=OFTEN)
    def activate_by_hand(self, owner: str, partition: int, mended: bool) -> None:
        self._mend(mended)
        leases, partition_id = self.world.controller.leases, self._partition(partition)
        self._do("activate_by_hand", lambda: leases.activate(owner, partition_id=partition_id, timeout=AT_ONCE))

    @precondition(lambda self: self.world.active)
    @rule(owner=OWNER, which=NUMBER, force=st.booleans())
    def deactivate_by_hand(self, owner: str, which: int, force: bool) -> None:
        active = sorted(self.world.active or ())
        partition_id = active[which % len(active)]
        lease = self.world.store.book.holder(partition_id)
        leases = self.world.controller.leases
        self.judge.to_deactivate = set() if lease else {partition_id}
        with self._ending(lease.id if lease and (force or lease.owner == owner) else ""):
            self._do("deactivate_by_hand", lambda: leases.deactivate(owner, partition_id, timeout=AT_ONCE, force=force))
        self.judge.to_deactivate = set()

    @rule(what=st.sampled_from(("adopt", "accept", "cordon", "uncordon")))
    def administrate(self, what: str) -> None:
        controller = self.world.controller
        named = {f"vm{n}": "a" for n in range(4)}
        calls: dict[str, Callable[[], object]] = {
            "adopt": lambda: controller.reconciler.adopt(named, dry_run=False, timeout=AT_ONCE),
            "accept": lambda: controller.accept(actor="p"),
            "cordon": lambda: controller.cordon("broken", actor="p"),
            "uncordon": lambda: controller.uncordon(actor="p"),
        }
        self._do(what, calls[what])

    # What goes on by itself.

    @rule(what=st.sampled_from(("reconcile", "guard")))
    def look(self, what: str) -> None:
        """Let the reconciler, or the gate, take its turn alone."""
        self._do(what, self.world.reconcile if what == "reconcile" else self.world.guard)

    @rule()
    def take_a_turn(self) -> None:
        """Let time pass, and do what the monitor does: keep Fabric Manager and reconcile."""
        self._mend(True)
        self.world.wait(5)
        self._do("take_a_turn", self.world.reconcile)

    @rule(seconds=st.sampled_from((1.0, 5.0, 20.0, 50.0, LATE, None, None, None)))
    def wait(self, seconds: float | None) -> None:
        """Let so many seconds pass, or as many as it takes until nothing is left to do."""
        self._fired("settle" if seconds is None else "wait")
        if seconds is None:
            self._settle()
        else:
            self.world.wait(seconds)
