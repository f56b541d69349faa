# SPDX-License-Identifier: Apache-2.0
"""What every rule of the state machine stands on: one host, its judges, and how the daemon is called."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant

from fmctl.core import clean
from fmctl.core.allocate import Shape
from fmctl.core.answers import ProcessState
from fmctl.core.book import Kind, MarkKind
from fmctl.core.errors import FabricNotReady, FmctlError
from fmctl.core.lease import Lease
from fmctl.core.request import Request
from fmctl.core.rules import Mode, Rules, Unowned
from fmctl.sim.vfiodev import Effect
from tests.chaos.gpujudge import GpuJudge
from tests.chaos.judge import Judge, Key
from tests.chaos.world import AT_ONCE, OTHER_ROM, Host, enforced
from tests.control.leasing import BOARDS

PARTITIONS = {"hgx-h100-8": range(15), "hgx-b200-8": range(1, 16)}
ENFORCED = {board: enforced(board) for board in BOARDS}

OFTEN = st.sampled_from((True, True, True, False))
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
SPOILT = (Effect.FAILS, Effect.BLOCKS, Effect.KILLS, OTHER_ROM, b"")
"""What the resets of a GPU do from then on, or what its firmware is."""
RULES = (
    *[Rules(Mode.MANAGE)] * 3,
    *[Rules(Mode.MANAGE, Unowned.DEACTIVATE, release_gone_after=20.0, refused_for=10.0)] * 2,
    Rules(Mode.AUTO),
    Rules(Mode.AUTO, Unowned.DEACTIVATE),
    Rules(Mode.OBSERVE, Unowned.DEACTIVATE),
)


class Seen:
    """What was fired over all sequences, and what came of it."""

    sequences = 0
    steps = 0
    fired: ClassVar[Counter[str]] = Counter()
    came: ClassVar[Counter[str]] = Counter()


class Machine(RuleBasedStateMachine):
    """One host and its judges."""

    world: Host
    judge: Judge
    gpus: GpuJudge

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[tuple[Key, dict[str, Any]]] = []
        self.names = 0
        self.away = False
        self.blind = False

    @initialize(
        board=st.sampled_from(BOARDS),
        rules=st.sampled_from(RULES),
        cleans=st.sampled_from(("enforced", "reset", "none")),
        gated=st.booleans(),
        in_use=st.booleans(),
    )
    def begin(self, board: str, rules: Rules, cleans: str, gated: bool, in_use: bool) -> None:
        Seen.sequences += 1
        by = {"none": None, "reset": clean.Rules(), "enforced": ENFORCED[board]}[cleans]
        self.world = Host(board, rules, by, gated=gated)
        self.judge = Judge(self.world)
        self.gpus = GpuJudge(self.world)
        if in_use and rules.mode is Mode.AUTO:
            self._activate_elsewhere(3)
        self.world.mend_map()
        self.world.guard()

    @invariant()
    def judged(self) -> None:
        self.judge.check()
        self.gpus.check()

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:
            self._settle()

    # How the daemon is called.

    @staticmethod
    def _fired(what: str) -> None:
        Seen.fired[what] += 1
        Seen.steps += 1

    def _do(self, what: str, call: Callable[[], object]) -> FmctlError | None:
        """Call the daemon, which may refuse, fail, or die of it."""
        self._fired(what)
        return self._try(call)

    def _try(self, call: Callable[[], object]) -> FmctlError | None:
        try:
            self.world.mortal(call)
        except FmctlError as error:
            Seen.came[type(error).__name__] += 1
            return error
        return None

    def _allocate(self, what: str, key: Key, asked: dict[str, Any], *, wait: bool, lives: bool) -> None:
        def ask() -> None:
            lease = self._call(key, asked, wait=wait, lives=lives)
            self.judge.answered(key, lease)
            Seen.came[f"answered {lease.state.value}"] += 1

        self._do(what, ask)

    def _call(self, key: Key, asked: dict[str, Any], *, wait: bool, lives: bool) -> Lease:
        request = Request(*key, **asked)
        return self.world.controller.leases.allocate(request, timeout=AT_ONCE, wait=wait, alive=lambda: lives)

    # What lets things go well.

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
        marks, controller = self.world.store.book.marks, self.world.controller
        if (Kind.HOST, "", MarkKind.CORDONED) in marks:
            self._try(lambda: controller.uncordon(actor="p"))
        if (Kind.HOST, "", MarkKind.OBSERVED) in marks:
            self._try(lambda: controller.accept(actor="p"))
        if not self.world.map_counts:
            self._try(self.world.mend_map)
        self._try(self.world.take_turn)
        if len(there := sorted(self.world.marked(MarkKind.QUARANTINED))) > 1:
            self._release_a_gpu(there[0], "it was replaced", repaired=True)

    def _release_a_gpu(self, gpu: int, reason: str, *, repaired: bool) -> None:
        """Release a GPU from quarantine as a person does, with a reason or without one, repaired or not."""
        if repaired:
            self.world.repair(gpu)
        marks = self.world.controller.marks
        self.gpus.to_unquarantine = gpu
        error = self._do("unquarantine", lambda: marks.unquarantine(gpu, reason, actor="p", timeout=AT_ONCE))
        self.gpus.to_unquarantine = None
        if not reason.strip():
            assert gpu in self.world.marked(MarkKind.QUARANTINED), "no reason, no release"
            Seen.came[f"a release without a reason: {type(error).__name__}"] += 1

    def _settle(self) -> None:
        self._see(sees=True)
        self._reach_libvirt(away=False)
        try:
            self.world.heal()
            self.world.mend_map()
            self.world.settle()
        except FabricNotReady:
            assert self.world.controller.reconciler.is_observing
            return
        Seen.came[f"settled {'with' if self.world.map_counts else 'without'} a map"] += 1
        self.judge.settled(activates=self.world.map_counts)
        self.gpus.settled()
        for lease in self.world.leases:
            Seen.came[f"settled {lease.state.value}"] += 1

    def _restart(self) -> None:
        with contextlib.suppress(FabricNotReady):
            self.judge.restarted(self.world.restart_fabric_manager())

    def _reach_libvirt(self, *, away: bool) -> None:
        hypervisor = self.world.host.hypervisor
        self.away, self.judge.hears_libvirt = away, not away
        hypervisor.disconnect() if away else hypervisor.reconnect()

    def _see(self, *, sees: bool) -> None:
        if sees == self.blind:
            self.world.see() if sees else self.world.blind()
        self.blind, self.judge.sees = not sees, sees

    # What others do.

    def _activate_elsewhere(self, partition_id: int) -> None:
        fabric = self.world.nvfm.fabric
        with contextlib.suppress(Exception):
            if fabric is not None:
                fabric.activate(partition_id, self.world.now)
                self.judge.foreign_activated(partition_id)

    # What is there.

    @contextlib.contextmanager
    def _ending(self, lease_id: str) -> Iterator[None]:
        self.judge.to_end = {lease_id}
        yield
        self.judge.to_end = set()

    def _lease(self, which: int) -> Lease:
        return self.world.leases[which % len(self.world.leases)]

    def _partition(self, index: int) -> int:
        return PARTITIONS[self.world.platform.name][index]
