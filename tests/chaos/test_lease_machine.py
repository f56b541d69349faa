# SPDX-License-Identifier: Apache-2.0
"""Leases under anything that can happen, in any order, against the simulated Fabric Manager through the daemon's code.

`judge` says after every step what must hold. `FMCTL_SEQUENCES` is how many sequences are run, and `FMCTL_SEED` lets a
run be repeated.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fmctl.core.allocate import Shape
from fmctl.core.answers import ProcessState
from fmctl.core.book import Kind, MarkKind
from fmctl.core.errors import FabricNotReady, FmctlError, RequestIdReused
from fmctl.core.fmcode import Operation
from fmctl.core.lease import Lease, LeaseState
from fmctl.core.plan import LATE
from fmctl.core.request import Request
from fmctl.core.rules import Mode, Rules, Unowned
from fmctl.sim.faults import Faults
from tests.chaos.judge import Judge, Key
from tests.control.leasing import BOARDS, World, uuid_of

SEQUENCES = int(os.environ.get("FMCTL_SEQUENCES", "2000"))
SEED = int(os.environ.get("FMCTL_SEED", time.time_ns()))
STEPS = 50
"""The most steps of a sequence."""
MEAN_STEPS = 30
EACH_RULE = 500
"""How often each rule is fired at least in 2000 sequences."""
AT_ONCE = 0.0
"""Seconds that a call may really wait."""
PARTITIONS = {"hgx-h100-8": range(15), "hgx-b200-8": range(1, 16)}

OFTEN = st.sampled_from((True, True, True, False))
CHANGES = (Operation.ACTIVATE, Operation.DEACTIVATE)
NUMBER = st.integers(0, 7)
"""Which one of what there is, counted round."""
OWNER = st.sampled_from(("a", "b"))
ASKED: tuple[dict[str, Any], ...] = (
    {"count": 2},
    {"count": 1},
    {"count": 4},
    {"count": 8},
    {"count": 3, "shape": Shape.ROUND_UP},
    {"count": 2, "shape": Shape.UNLINKED},
    {"count": 3, "shape": Shape.UNLINKED},
    {"partition_id": 3},
    {"partition_id": 7},
    {"gpu_ids": (1,)},
    {"count": 2, "lifetime": 20.0},
    {"count": 1, "lifetime": 20.0},
)
RULES = (
    *[Rules(Mode.MANAGE)] * 3,
    *[Rules(Mode.MANAGE, Unowned.DEACTIVATE, release_gone_after=20.0)] * 2,
    Rules(Mode.AUTO),
    Rules(Mode.AUTO, Unowned.DEACTIVATE),
    Rules(Mode.OBSERVE, Unowned.DEACTIVATE),
)
FAULTS = (
    *(
        f"{fault}@{operation}:{nth}"
        for fault in ("hang", "close", "die-before", "die-after", *(f"code={code}" for code in (-1, -2, -5, -7, -10)))
        for operation in ("activate", "deactivate")
        for nth in ("1", "2", "1+")
    ),
    "hang@list:1",
    "hang@list:2",
    "code=-8@list:1",
    "die-before@list:2",
)


class Seen:
    """What was fired over all sequences, and what came of it."""

    sequences = 0
    steps = 0
    fired: ClassVar[Counter[str]] = Counter()
    came: ClassVar[Counter[str]] = Counter()


class LeaseMachine(RuleBasedStateMachine):
    """One world, a judge, and all that can happen to leases."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.judge = Judge(self.world)
        self.requests: list[tuple[Key, dict[str, Any]]] = []
        self.names = 0
        self.away = False
        self.blind = False

    @initialize(board=st.sampled_from(BOARDS), rules=st.sampled_from(RULES), in_use=st.booleans())
    def begin(self, board: str, rules: Rules, in_use: bool) -> None:
        Seen.sequences += 1
        self.world = World(board, rules)
        self.judge = Judge(self.world)
        if in_use and rules.mode is Mode.AUTO:
            self._activate_elsewhere(3)

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

    def _allocate(self, what: str, key: Key, asked: dict[str, Any], *, wait: bool, lives: bool) -> None:
        def ask() -> None:
            lease = self._call(key, asked, wait=wait, lives=lives)
            self.judge.answered(key, lease)
            Seen.came[f"answered {lease.state.value}"] += 1

        self._do(what, ask)

    def _call(self, key: Key, asked: dict[str, Any], *, wait: bool, lives: bool) -> Lease:
        request = Request(*key, **asked)
        return self.world.controller.leases.allocate(request, timeout=AT_ONCE, wait=wait, alive=lambda: lives)

    @precondition(lambda self: self.world.leases)
    @rule(which=NUMBER, wait=st.booleans(), mended=OFTEN)
    def release(self, which: int, wait: bool, mended: bool) -> None:
        self._mend(mended)
        lease = self._lease(which)
        leases = self.world.controller.leases
        with self._ending(lease.id):
            self._do("release", lambda: leases.release(lease.id, actor="p", timeout=AT_ONCE, wait=wait))

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

    @rule()
    def reconcile(self) -> None:
        self._do("reconcile", self.world.reconcile)

    @rule()
    def take_a_turn(self) -> None:
        """Let time pass, and do what the monitor does: keep Fabric Manager and reconcile."""
        self._mend(True)
        self.world.wait(5)
        self._do("take_a_turn", self.world.reconcile)

    def _mend(self, mended: bool) -> None:
        """Let the host serve calls, whatever may happen in them."""
        if not mended:
            return
        self._see(sees=True)
        self.world.line.cut, self.world.gate.reason = 0, ""
        if self.world.process.state() is ProcessState.NOT_STARTED:
            self.world.start_fresh()
        elif self.world.active is None:
            self._restart()
        if (Kind.HOST, "", MarkKind.CORDONED) in self.world.store.book.marks:
            self._do("uncordon", lambda: self.world.controller.uncordon(actor="p"))

    @rule(seconds=st.sampled_from((1.0, 5.0, 20.0, 50.0, LATE)))
    def wait(self, seconds: float) -> None:
        self._fired("wait")
        self.world.wait(seconds)

    @rule()
    def settle(self) -> None:
        self._fired("settle")
        self._settle()

    def _settle(self) -> None:
        self._see(sees=True)
        self._reach_libvirt(away=False)
        try:
            self.world.settle()
        except FabricNotReady:
            assert self.world.controller.reconciler.is_observing
            return
        self.judge.settled()
        for lease in self.world.leases:
            Seen.came[f"settled {lease.state.value}"] += 1

    # What dies, and comes back.

    @rule()
    def restart_the_daemon(self) -> None:
        self._fired("restart_the_daemon")
        self.world.restart_daemon()

    @rule(what=st.sampled_from(("commit", "call")), nth=st.integers(1, 3), after=st.booleans())
    def let_the_daemon_die(self, what: str, nth: int, after: bool) -> None:
        self._fired("let_the_daemon_die")
        self.world.fate.decide(what, nth, after=after)

    @rule(what=st.sampled_from(("stop FM", "restart FM", "start FM fresh", "lose the Service VM")))
    def end_or_start_fabric_manager(self, what: str) -> None:
        if what in ("stop FM", "restart FM") and self.world.process.state() is ProcessState.NOT_STARTED:
            what = "start FM fresh"
        self._fired(what)
        {
            "stop FM": self.world.stop_fabric_manager,
            "restart FM": self._restart,
            "start FM fresh": self.world.start_fresh,
            "lose the Service VM": self.world.lose_service_vm,
        }[what]()

    def _restart(self) -> None:
        with contextlib.suppress(FabricNotReady):
            self.judge.restarted(self.world.restart_fabric_manager())

    # What fails.

    @rule(fault=st.sampled_from(FAULTS))
    def let_fabric_manager_fail(self, fault: str) -> None:
        self._fired("let_fabric_manager_fail")
        self.world.nvfm.fail(Faults.parse([fault]))

    @rule(what=st.sampled_from(("calls", "answers", "commits")), times=st.integers(1, 3))
    def lose(self, what: str, times: int) -> None:
        self._fired(f"lose {what}")
        if what == "calls":
            self.world.line.cut = times
        elif what == "answers":
            self.world.line.lost = times
        else:
            self.world.store.full_commits = times

    @rule(seconds=st.sampled_from((3.0, 30.0, LATE - 1)), slow=st.sampled_from((None, *CHANGES)))
    def delay_a_change(self, seconds: float, slow: Operation | None) -> None:
        self._fired("delay_a_change")
        self.world.line.late, self.world.line.slow = seconds, slow

    @rule(what=st.sampled_from(("libvirt", "sight", "the host")))
    def lose_or_find(self, what: str) -> None:
        self._fired(f"lose or find {what}")
        if what == "libvirt":
            self._reach_libvirt(away=not self.away)
        elif what == "sight":
            self._see(sees=self.blind)
        else:
            self.world.gate.reason = "" if self.world.gate.reason else "an NVSwitch is gone"

    def _reach_libvirt(self, *, away: bool) -> None:
        hypervisor = self.world.host.hypervisor
        self.away, self.judge.hears_libvirt = away, not away
        hypervisor.disconnect() if away else hypervisor.reconnect()

    def _see(self, *, sees: bool) -> None:
        if sees == self.blind:
            self.world.see() if sees else self.world.blind()
        self.blind, self.judge.sees = not sees, sees

    # What tenants and others do.

    @precondition(lambda self: any(lease.state is LeaseState.ACTIVE for lease in self.world.leases))
    @rule(which=NUMBER)
    def start_a_vm(self, which: int) -> None:
        """Start the VM of a lease."""
        good = [lease for lease in self.world.leases if lease.state is LeaseState.ACTIVE]
        self._start_vm("start_a_vm", good[which % len(good)].gpus)

    @rule(gpus=st.sampled_from(((1,), (1, 3), (2, 4), (5, 6, 7), (8,))))
    def start_any_vm(self, gpus: tuple[int, ...]) -> None:
        """Start a VM by hand, whoever holds these GPUs."""
        self._start_vm("start_any_vm", gpus)

    def _start_vm(self, what: str, gpus: tuple[int, ...]) -> None:
        name = f"vm{self.names % 4}"
        self._fired(what)
        with contextlib.suppress(FmctlError):
            self.world.start_vm(name, gpus)
            self.names += 1
            self.judge.vm_started(name)

    @precondition(lambda self: self.world.vms)
    @rule(which=NUMBER)
    def stop_a_vm(self, which: int) -> None:
        self._fired("stop_a_vm")
        name = sorted(self.world.vms)[which % len(self.world.vms)]
        self.world.stop_vm(name)
        self.judge.vm_stopped(name)

    @rule(partition=st.integers(0, 14))
    def activate_elsewhere(self, partition: int) -> None:
        """Let another tool activate a partition."""
        self._fired("activate_elsewhere")
        self._activate_elsewhere(self._partition(partition))

    def _activate_elsewhere(self, partition_id: int) -> None:
        fabric = self.world.nvfm.fabric
        with contextlib.suppress(Exception):
            if fabric is not None:
                fabric.activate(partition_id, self.world.now)
                self.judge.foreign_activated(partition_id)

    @precondition(lambda self: self.world.active)
    @rule(which=NUMBER)
    def deactivate_elsewhere(self, which: int) -> None:
        """Let another tool deactivate a partition."""
        self._fired("deactivate_elsewhere")
        active = sorted(self.world.active or ())
        if self.world.nvfm.fabric is not None:
            self.world.nvfm.fabric.deactivate(active[which % len(active)], self.world.now)

    # How it is run.

    @invariant()
    def judged(self) -> None:
        self.judge.check()

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:
            self._settle()

    @staticmethod
    def _fired(what: str) -> None:
        Seen.fired[what] += 1
        Seen.steps += 1

    def _do(self, what: str, call: Callable[[], object]) -> FmctlError | None:
        """Call the daemon, which may refuse, fail, or die of it."""
        self._fired(what)
        try:
            self.world.mortal(call)
        except FmctlError as error:
            Seen.came[type(error).__name__] += 1
            return error
        return None

    @contextlib.contextmanager
    def _ending(self, lease_id: str) -> Any:
        self.judge.to_end = {lease_id}
        yield
        self.judge.to_end = set()

    def _lease(self, which: int) -> Lease:
        return self.world.leases[which % len(self.world.leases)]

    def _partition(self, index: int) -> int:
        return PARTITIONS[self.world.platform.name][index]


def test_leases_hold_whatever_happens(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.process_time()
    how = settings(
        max_examples=SEQUENCES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    logging.disable(logging.CRITICAL)
    try:
        run_state_machine_as_test(seed(SEED)(LeaseMachine), settings=how)
    finally:
        logging.disable(logging.NOTSET)
    mean = Seen.steps / Seen.sequences
    with capsys.disabled():
        print(f"\n{Seen.sequences} sequences of {mean:.1f} steps in {time.process_time() - began:.0f} s, seed {SEED}")
        for name, count in (*Seen.fired.most_common(), *Seen.came.most_common()):
            print(f"{count:8} {name}")
    if SEQUENCES >= 2000:
        assert mean >= MEAN_STEPS
        assert [name for name, count in Seen.fired.items() if count < EACH_RULE] == []
