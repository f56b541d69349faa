# SPDX-License-Identifier: Apache-2.0
"""The daemon's procedures over a Fabric Manager in memory that can fail in any way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from fmctl import platforms
from fmctl.control.agent import LocalAgent
from fmctl.control.controller import FabricController
from fmctl.core.answers import AgentStatus, FabricState
from fmctl.core.errors import (
    ActivationFailed,
    AgentUnreachable,
    BadRequest,
    FabricNotReady,
    FmctlError,
    HostCordoned,
    NoSuchPartition,
    OutcomeUnknown,
    PartitionHeld,
    PolicyDenied,
)
from fmctl.core.fmcode import FmCode, Operation
from fmctl.core.partition import PartitionList
from fmctl.core.plan import LATE
from fmctl.core.rules import Mode, Rules
from fmctl.sim.fabric import Fabric
from fmctl.sim.faults import Faults
from fmctl.sim.fmservice import Unmanaged
from fmctl.sim.gate import MemoryGate
from fmctl.sim.nvfm import MemoryNvfm
from fmctl.sim.store import MemoryStore
from tests.control.gpus import NO_GPUS

PAIR, OTHER_PAIR, QUAD = 3, 4, 1
TIMEOUT = 10.0


@dataclass
class Line:
    """The connection to the agent, which can be cut, or lose the answer of a call after it was served."""

    agent: LocalAgent
    cut: bool = False
    lose_answers: bool = False
    after: list[Callable[[], object]] = field(default_factory=list)

    def _serve(self, call: Callable[[], object]) -> None:
        if self.cut:
            raise AgentUnreachable("the agent does not answer")
        call()
        for action in self.after:
            action()
        if self.lose_answers:
            raise OutcomeUnknown("the agent did not answer, and the outcome is unknown")

    def list_partitions(self, *, timeout: float) -> PartitionList:
        if self.cut:
            raise AgentUnreachable("the agent does not answer")
        return self.agent.list_partitions(timeout=timeout)

    def activate(self, partition_id: int, *, timeout: float) -> None:
        self._serve(lambda: self.agent.activate(partition_id, timeout=timeout))

    def deactivate(self, partition_id: int, *, timeout: float) -> None:
        self._serve(lambda: self.agent.deactivate(partition_id, timeout=timeout))

    def set_activated(self, partition_ids: Sequence[int], *, timeout: float) -> None:
        self._serve(lambda: self.agent.set_activated(partition_ids, timeout=timeout))

    def status(self, *, timeout: float) -> AgentStatus:
        if self.cut:
            raise AgentUnreachable("the agent does not answer")
        return self.agent.status(timeout=timeout)


@dataclass
class Host:
    """A daemon's controller with everything behind it in memory."""

    platform: str
    faults: tuple[str, ...] = ()
    nvfm: MemoryNvfm = field(init=False)
    line: Line = field(init=False)
    store: MemoryStore = field(default_factory=MemoryStore)
    gate: MemoryGate = field(default_factory=MemoryGate)
    controller: FabricController = field(init=False)
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.nvfm = MemoryNvfm(self.fresh_fabric(), Faults.parse(self.faults))
        self.line = Line(LocalAgent(self.nvfm, Unmanaged(), lambda: None, library="memory", call_timeout=30))
        self.restart_daemon()

    def fresh_fabric(self) -> Fabric:
        return Fabric.started(platforms.load(self.platform), now=0)

    def restart_daemon(self) -> None:
        self.store = self.store.reopened()
        self.controller = FabricController(
            self.line,
            self.store,
            self.gate,
            NO_GPUS,
            rules=Rules(Mode.MANAGE),
            known_platforms=platforms.every(),
            now=lambda: self.now,
        )

    def activate(self, partition_id: int, owner: str = "a") -> bool:
        """Whether it was active already."""
        changed = self.controller.activate(owner, partition_id=partition_id, timeout=TIMEOUT)
        assert changed.partition.active
        return changed.already

    def deactivate(self, partition_id: int, owner: str = "a") -> bool:
        """Whether it was inactive already."""
        changed = self.controller.deactivate(owner, partition_id, timeout=TIMEOUT)
        assert not changed.partition.active
        return changed.already

    @property
    def owners(self) -> dict[int, str]:
        """The owner of each partition that a lease holds."""
        return {p: lease.owner for lease in self.store.book.leases.values() for p in lease.partitions}

    @property
    def active(self) -> set[int]:
        """What Fabric Manager itself has active."""
        return {p.id for p in self.nvfm.list_partitions(timeout=TIMEOUT).partitions if p.active}


def host(*faults: str, board: str = "hgx-h100-8") -> Host:
    return Host(board, faults)


@pytest.mark.parametrize("board", platforms.names())
def test_every_partition_of_every_board_comes_and_goes(board: str) -> None:
    there = host(board=board)
    for row in platforms.load(board).partitions:
        assert not there.activate(row.id)
        assert there.active == {row.id}
        assert there.controller.list_partitions(timeout=TIMEOUT).owners == {row.id: "a"}
        assert not there.deactivate(row.id)
        assert (there.active, there.owners) == (set(), {})


@pytest.mark.parametrize("board", ["hgx-h100-8", "hgx-b200-8"])
def test_the_same_again_is_done_already_in_both_error_families(board: str) -> None:
    there = host(board=board)
    assert not there.activate(PAIR)
    assert there.activate(PAIR)
    assert not there.deactivate(PAIR)
    assert there.deactivate(PAIR)
    assert there.active == set()


def test_a_partition_is_found_by_its_gpus_in_any_order() -> None:
    there = host()
    assert there.controller.activate("a", gpu_ids=(3, 1), timeout=TIMEOUT).partition.id == PAIR
    with pytest.raises(NoSuchPartition, match="exactly the GPUs 1,2"):
        there.controller.activate("a", gpu_ids=(1, 2), timeout=TIMEOUT)


def test_an_unknown_partition_touches_nothing() -> None:
    there = host()
    for action in (there.activate, there.deactivate):
        with pytest.raises(NoSuchPartition):
            action(99)
    assert (there.active, there.owners) == (set(), {})


def test_a_call_that_names_nothing_or_too_much_is_refused() -> None:
    there = host()
    for arguments in ({}, {"partition_id": PAIR, "gpu_ids": (1, 3)}):
        with pytest.raises(BadRequest):
            there.controller.activate("a", timeout=TIMEOUT, **arguments)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="empty"):
        there.activate(PAIR, owner="")


@pytest.mark.parametrize("board", ["hgx-h100-8", "hgx-b200-8"])
def test_an_overlap_is_refused_and_names_what_blocks(board: str) -> None:
    there = host(board=board)
    pairs = {"hgx-h100-8": (3, 4), "hgx-b200-8": (4, 5)}[board]
    quad = {"hgx-h100-8": 1, "hgx-b200-8": 2}[board]
    there.activate(pairs[0], "a")
    there.activate(pairs[1], "b")
    with pytest.raises(PartitionHeld) as refusal:
        there.activate(quad, "c")
    assert f"partition {pairs[0]} is active for owner 'a'" in refusal.value.why
    assert f"partition {pairs[1]} is active for owner 'b'" in refusal.value.why
    assert there.active == set(pairs)
    assert there.owners == {pairs[0]: "a", pairs[1]: "b"}


def test_another_owner_gets_neither_in_nor_out() -> None:
    there = host()
    there.activate(PAIR, "a")
    for action in (there.activate, there.deactivate):
        with pytest.raises(PartitionHeld, match="active for owner 'a'"):
            action(PAIR, "b")
    assert (there.active, there.owners) == ({PAIR}, {PAIR: "a"})


def test_an_owner_is_known_after_the_daemon_died() -> None:
    there = host()
    there.activate(PAIR, "a")
    there.restart_daemon()
    assert there.activate(PAIR, "a")
    with pytest.raises(PartitionHeld):
        there.activate(PAIR, "b")
    there.deactivate(PAIR, "a")
    assert there.active == set()


def test_what_another_tool_activated_is_nobody_s_to_take_but_anybody_s_to_end() -> None:
    there = host()
    there.nvfm.activate(PAIR, timeout=TIMEOUT)
    with pytest.raises(PartitionHeld, match="owner is unknown"):
        there.activate(PAIR)
    assert there.owners == {}
    there.deactivate(PAIR)
    assert there.active == set()


def test_what_another_tool_activates_later_is_seen_too() -> None:
    there = host()
    there.controller.list_partitions(timeout=TIMEOUT)
    there.nvfm.activate(PAIR, timeout=TIMEOUT)
    with pytest.raises(PartitionHeld, match="owner is unknown"):
        there.activate(PAIR)
    assert there.owners == {}


def test_a_lease_outlives_what_another_tool_or_a_fresh_fabric_manager_does_to_its_partition() -> None:
    there = host()
    there.activate(PAIR, "a")
    harms: list[Callable[[], object]] = [
        lambda: there.nvfm.deactivate(PAIR, timeout=TIMEOUT),
        lambda: there.nvfm.replace(there.fresh_fabric()),
    ]
    for harm in harms:
        harm()
        with pytest.raises(PartitionHeld):
            there.activate(PAIR, "b")
        assert there.controller.refresh() == (FabricState.READY, "")
        assert (there.active, there.owners) == ({PAIR}, {PAIR: "a"})


@pytest.mark.parametrize("board", ["hgx-h100-8", "hgx-b200-8"])
@pytest.mark.parametrize("code", [c for c in FmCode if c is not FmCode.SUCCESS], ids=lambda c: str(c.name))
def test_no_code_of_an_activation_is_taken_for_the_outcome(board: str, code: FmCode) -> None:
    there = host(f"code={int(code)}@activate:1", board=board)
    with pytest.raises(FmctlError) as refusal:
        there.activate(PAIR)
    if code in (FmCode.NOT_CONFIGURED, FmCode.NOT_READY):
        assert type(refusal.value) is FabricNotReady
    elif code in (FmCode.TIMEOUT, FmCode.CONNECTION_NOT_VALID):
        assert type(refusal.value) is OutcomeUnknown
    else:
        assert type(refusal.value) is ActivationFailed
        assert there.owners == {}
    assert refusal.value.fm_code == code
    assert there.active == set()
    if code is FmCode.NVLINK_ERROR:
        with pytest.raises(PartitionHeld, match="cordoned"):
            there.activate(PAIR)
        return
    assert not there.activate(PAIR)
    assert there.active == {PAIR}


@pytest.mark.parametrize("board", ["hgx-h100-8", "hgx-b200-8"])
@pytest.mark.parametrize("code", [c for c in FmCode if c is not FmCode.SUCCESS], ids=lambda c: str(c.name))
def test_no_code_of_a_deactivation_is_taken_for_the_outcome(board: str, code: FmCode) -> None:
    there = host(f"code={int(code)}@deactivate:1", board=board)
    there.activate(PAIR)
    with pytest.raises((FabricNotReady, OutcomeUnknown)) as refusal:
        there.deactivate(PAIR)
    assert refusal.value.fm_code == code
    assert (there.active, there.owners) == ({PAIR}, {PAIR: "a"})
    there.now += LATE
    assert not there.deactivate(PAIR)


@pytest.mark.parametrize("fault", ["hang@activate:1", "close@activate:1"])
def test_an_activation_that_nobody_answered_is_unknown_until_the_same_call_settles_it(fault: str) -> None:
    there = host(fault)
    with pytest.raises(OutcomeUnknown):
        there.activate(PAIR)
    assert there.owners == {PAIR: "a"}
    assert not there.activate(PAIR)
    assert there.active == {PAIR}


def test_an_activation_whose_answer_got_lost_is_found_in_the_list() -> None:
    there = host()
    there.line.lose_answers = True
    assert not there.activate(PAIR)
    assert there.owners == {PAIR: "a"}


def test_a_deactivation_whose_answer_got_lost_is_over_once_it_cannot_happen_any_more() -> None:
    there = host()
    there.activate(PAIR)
    there.line.lose_answers = True
    with pytest.raises(FabricNotReady, match="goes on by itself"):
        there.deactivate(PAIR)
    assert (there.active, there.controller.chooser.owners()) == (set(), {PAIR: "a"})
    there.now += LATE
    there.controller.reconciler.reconcile()
    assert there.controller.chooser.owners() == {}


def test_an_outcome_that_cannot_be_looked_at_is_unknown_until_the_same_call_settles_it() -> None:
    there = host()
    there.controller.list_partitions(timeout=TIMEOUT)
    there.line.lose_answers = True
    there.line.after = [lambda: setattr(there.line, "cut", True)]
    with pytest.raises(OutcomeUnknown, match="cannot be listed"):
        there.activate(PAIR)
    there.line.cut, there.line.lose_answers, there.line.after = False, False, []
    there.restart_daemon()
    with pytest.raises(PartitionHeld):
        there.activate(PAIR, "b")
    there.activate(PAIR, "a")
    assert (there.active, there.owners) == ({PAIR}, {PAIR: "a"})


@pytest.mark.parametrize("fault", ["die-before@activate:1", "die-after@activate:1"])
def test_a_fabric_manager_that_dies_leaves_the_outcome_unknown(fault: str) -> None:
    there = host(fault)
    with pytest.raises(OutcomeUnknown, match="cannot be listed"):
        there.activate(PAIR)
    there.nvfm.replace(there.fresh_fabric())
    assert not there.activate(PAIR)
    assert there.active == {PAIR}


def test_a_partition_that_came_back_with_its_gpu_is_found() -> None:
    there = host(board="hgx-a100-8")
    platform = platforms.load(there.platform)
    there.nvfm.replace(Fabric.started(platform, now=0, missing_gpus=[1]))
    there.controller.refresh()
    with pytest.raises(NoSuchPartition):
        there.activate(11)
    there.nvfm.replace(there.fresh_fabric())
    there.activate(11)
    assert there.active == {11}


def test_an_agent_that_was_never_reached_changes_nothing() -> None:
    there = host()
    there.controller.list_partitions(timeout=TIMEOUT)
    there.line.cut = True
    with pytest.raises(AgentUnreachable):
        there.activate(PAIR)
    assert there.owners == {}


def test_a_fabric_manager_that_is_not_there_changes_nothing() -> None:
    there = host()
    there.activate(PAIR)
    there.nvfm.replace(None)
    with pytest.raises(FabricNotReady):
        there.activate(OTHER_PAIR)
    with pytest.raises(FabricNotReady):
        there.deactivate(PAIR)
    assert there.owners == {PAIR: "a"}


def test_a_real_a100_is_refused_with_the_reason_and_a_simulated_one_is_not() -> None:
    there = host(board="hgx-a100-8")
    real = Unmarked(there.line)
    controller = FabricController(real, there.store, there.gate, NO_GPUS, known_platforms=platforms.every())
    with pytest.raises(PolicyDenied, match="real hgx-a100-8") as refusal:
        controller.activate("a", partition_id=11, timeout=TIMEOUT)
    assert refusal.value.why == platforms.load("hgx-a100-8").hardware_reason
    assert (there.active, there.owners) == (set(), {})
    assert controller.list_partitions(timeout=TIMEOUT).list.partitions
    there.activate(11)


class Unmarked(Line):
    """A line to an agent whose library does not say that it is simulated."""

    def __init__(self, line: Line) -> None:
        super().__init__(line.agent)

    def list_partitions(self, *, timeout: float) -> PartitionList:
        listed = super().list_partitions(timeout=timeout)
        return PartitionList(listed.partitions, listed.max_partitions, simulated=False)


@pytest.mark.parametrize("board", platforms.names())
def test_the_board_is_known_by_its_table(board: str) -> None:
    there = host(board=board)
    assert there.controller.refresh() == (FabricState.READY, "")
    assert there.controller.status(timeout=TIMEOUT).platform == board


def test_status_answers_whatever_is_wrong() -> None:
    there = host("code=-8@list:1", "code=-3@list:2")
    states = [there.controller.status(timeout=TIMEOUT).fabric_state for _ in range(3)]
    assert states == [FabricState.INITIALISING, FabricState.FAILED, FabricState.READY]
    there.nvfm.replace(None)
    assert there.controller.status(timeout=TIMEOUT).fabric_state is FabricState.UNREACHABLE
    there.line.cut = True
    status = there.controller.status(timeout=TIMEOUT)
    assert (status.agent.reachable, status.fabric_message) == (False, "the agent does not answer")


def test_a_change_waits_for_the_one_under_way_and_not_for_ever() -> None:
    there = host()
    there.controller.list_partitions(timeout=TIMEOUT)
    entered, leave = threading.Event(), threading.Event()
    there.line.after = [entered.set, lambda: leave.wait(TIMEOUT)]
    slow = threading.Thread(target=there.activate, args=(PAIR,))
    slow.start()
    assert entered.wait(TIMEOUT)
    with pytest.raises(FabricNotReady, match=r"under way: it did not end within 0\.1 s"):
        there.controller.activate("b", partition_id=OTHER_PAIR, timeout=0.2)
    assert {p.id for p in there.controller.list_partitions(timeout=TIMEOUT).list.partitions if p.active} == {PAIR}
    leave.set()
    slow.join(TIMEOUT)
    there.line.after = []
    assert not there.activate(OTHER_PAIR, "b")


def test_many_owners_at_once_never_share_a_gpu() -> None:
    there = host()
    table = platforms.load("hgx-h100-8").partitions
    failures: list[BaseException] = []

    def tenant(name: str) -> None:
        for row in (*table, *reversed(table)):
            try:
                there.activate(row.id, name)
                there.deactivate(row.id, name)
            except PartitionHeld:
                continue
            except BaseException as error:
                failures.append(error)
                return

    tenants = [threading.Thread(target=tenant, args=(f"t{n}",)) for n in range(6)]
    for thread in tenants:
        thread.start()
    for thread in tenants:
        thread.join(60)
    assert failures == []
    assert (there.active, there.owners) == (set(), {})


@pytest.mark.parametrize("operation", [Operation.ACTIVATE, Operation.DEACTIVATE])
def test_a_caller_s_time_is_shared_between_the_change_and_the_look(operation: Operation) -> None:
    there = host()
    there.activate(PAIR)
    budgets: list[float] = []
    agent = Timed(there.line, budgets)
    controller = FabricController(
        agent, there.store, there.gate, NO_GPUS, rules=Rules(Mode.MANAGE), call_timeout=30, clock=lambda: 0.0
    )
    controller.list_partitions(timeout=TIMEOUT)
    budgets.clear()
    if operation is Operation.ACTIVATE:
        there.nvfm.activate(OTHER_PAIR, timeout=TIMEOUT)
        with pytest.raises(PartitionHeld):
            controller.activate("a", partition_id=OTHER_PAIR, timeout=8)
    else:
        there.nvfm.deactivate(PAIR, timeout=TIMEOUT)
        controller.deactivate("a", PAIR, timeout=8)
    assert budgets == [6.0, 8.0]


class Timed(Line):
    """A line that notes the timeout of each call."""

    def __init__(self, line: Line, budgets: list[float]) -> None:
        super().__init__(line.agent)
        self.budgets = budgets

    def list_partitions(self, *, timeout: float) -> PartitionList:
        self.budgets.append(timeout)
        return super().list_partitions(timeout=timeout)

    def activate(self, partition_id: int, *, timeout: float) -> None:
        self.budgets.append(timeout)
        super().activate(partition_id, timeout=timeout)

    def deactivate(self, partition_id: int, *, timeout: float) -> None:
        self.budgets.append(timeout)
        super().deactivate(partition_id, timeout=timeout)


def test_a_host_that_takes_no_new_work_says_why_and_still_gives_back() -> None:
    there = Host("hgx-h100-8")
    there.activate(3)
    there.gate.reason = "an NVSwitch is gone"
    with pytest.raises(HostCordoned) as refusal:
        there.activate(4)
    assert "an NVSwitch is gone" in str(refusal.value)
    assert there.owners == {3: "a"}
    assert there.controller.status(timeout=1).service_vm.degraded == "an NVSwitch is gone"
    there.deactivate(3)
    assert there.owners == {}
    there.gate.reason = ""
    assert not there.activate(4)


def test_what_a_restarted_fabric_manager_is_told_is_what_leases_hold() -> None:
    there = Host("hgx-h100-8")
    there.activate(3)
    there.activate(4)
    assert there.controller.active() == (3, 4)
    there.deactivate(3)
    assert there.controller.active() == (4,)
    there.restart_daemon()
    assert there.controller.active() == (4,)
    there.controller.refresh()
    assert there.controller.active() == (4,)
