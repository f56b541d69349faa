# SPDX-License-Identifier: Apache-2.0
"""Changes past the daemon: who may make them, what is recorded, and what a daemon that comes makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from fmctl import platforms
from fmctl.control.agent import LocalAgent
from fmctl.control.breakglass import BreakGlass, Records
from fmctl.control.controller import FabricController
from fmctl.control.logbuffer import FIRST_READER, NEXT_READER, LogBuffer
from fmctl.core import breakglass
from fmctl.core.book import Entry
from fmctl.core.errors import BadRequest, FmctlError, NoSuchPartition, OutcomeUnknown, PartitionHeld, StoreUnusable
from fmctl.core.fmcode import Operation
from fmctl.core.loglines import LogPosition, LogSource
from fmctl.core.rules import Mode, Rules
from fmctl.sim.fabric import Fabric
from fmctl.sim.faults import Faults
from fmctl.sim.fmservice import Unmanaged
from fmctl.sim.gate import MemoryGate
from fmctl.sim.nvfm import MemoryNvfm
from fmctl.sim.store import MemoryStore
from tests.control.gpus import NO_GPUS

ACTIVATE, DEACTIVATE = Operation.ACTIVATE, Operation.DEACTIVATE


class Trail:
    """A trail in memory, whose next lines may find no room."""

    def __init__(self) -> None:
        self.kept: list[str] = []
        self.full = False

    def lines(self) -> tuple[str, ...]:
        return tuple(self.kept)

    def append(self, line: str) -> None:
        if self.full:
            raise FmctlError("no room")
        self.kept.append(line)

    def said(self) -> list[tuple[str, int, str, int | None]]:
        records = [record for line in self.kept if (record := breakglass.parse(line))]
        return [(r.operation.value, r.partition_id, r.outcome, r.code) for r in records]


class Guest:
    """The Service VM of a host whose daemon is gone."""

    def __init__(self, board: str = "hgx-h100-8") -> None:
        self.time = 1000.0
        self.nvfm = MemoryNvfm(Fabric.started(platforms.load(board), now=0), clock=lambda: self.time)
        self.trail = Trail()
        self.start_agent()
        self.time += FIRST_READER

    def start_agent(self) -> None:
        self.logs = LogBuffer(clock=lambda: self.time)
        self.agent = LocalAgent(self.nvfm, Unmanaged(), lambda: None, library="memory", call_timeout=5, logs=self.logs)
        clock: Callable[[], float] = lambda: self.time  # noqa: E731
        self.glass = BreakGlass(self.agent, self.trail, self.logs, call_timeout=5, now=clock, clock=clock)

    def change(self, operation: Operation, partition: int, *, user: str = "alice", reason: str = "no daemon") -> bool:
        return self.glass.change(operation, partition, user=user, reason=reason, timeout=5).already

    @property
    def active(self) -> list[int]:
        return [p.id for p in self.agent.list_partitions(timeout=5).partitions if p.active]

    def told(self) -> list[str]:
        """What a daemon that comes now is told of changes past it."""
        stream = self.logs.read(LogPosition())
        count = len([line for line in self.logs._lines if line.source is LogSource.BREAK_GLASS])
        lines: list[str] = []
        while len(lines) < count:
            line = next(stream)
            if line.source is LogSource.BREAK_GLASS:
                lines.append(line.text)
        stream.close()
        self.time += NEXT_READER
        return lines


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_a_change_is_made_and_recorded_before_and_after(guest: Guest) -> None:
    assert guest.change(ACTIVATE, 3) is False
    assert guest.active == [3]
    assert guest.change(DEACTIVATE, 3) is False
    assert guest.active == []
    assert guest.trail.said() == [
        ("activate", 3, "asked for", None),
        ("activate", 3, "done", 0),
        ("deactivate", 3, "asked for", None),
        ("deactivate", 3, "done", 0),
    ]
    assert guest.told() == guest.trail.kept
    first = breakglass.parse(guest.trail.kept[0])
    assert first and (first.user, first.reason) == ("alice", "no daemon")


@pytest.mark.parametrize(("user", "reason"), [("alice", ""), ("", "why"), ("alice", "a\tb")])
def test_a_change_by_nobody_or_without_a_reason_is_refused(guest: Guest, user: str, reason: str) -> None:
    with pytest.raises(BadRequest):
        guest.change(ACTIVATE, 3, user=user, reason=reason)
    assert (guest.active, guest.trail.kept) == ([], [])


def test_no_change_is_made_while_a_daemon_lives_or_may(guest: Guest) -> None:
    stream = guest.logs.read(LogPosition())
    assert guest.agent.status(timeout=5).has_daemon
    with pytest.raises(PartitionHeld, match="connected to this agent"):
        guest.change(ACTIVATE, 3)
    stream.close()
    assert not guest.agent.status(timeout=5).has_daemon
    guest.time += NEXT_READER - 1
    with pytest.raises(PartitionHeld, match="not certain yet") as refusal:
        guest.change(ACTIVATE, 3)
    assert refusal.value.fix == "try again in 1 s"
    assert (guest.active, guest.trail.kept) == ([], [])
    guest.time += 1
    guest.change(ACTIVATE, 3)
    guest.start_agent()
    guest.time += FIRST_READER - 1
    with pytest.raises(PartitionHeld, match="not certain yet"):
        guest.change(DEACTIVATE, 3)
    guest.time += 1
    guest.change(DEACTIVATE, 3)


def test_an_active_partition_is_not_activated_again_nor_one_beside_it(guest: Guest) -> None:
    guest.change(ACTIVATE, 3)
    with pytest.raises(PartitionHeld, match="already active"):
        guest.change(ACTIVATE, 3)
    with pytest.raises(PartitionHeld, match="partition 3 is active"):
        guest.change(ACTIVATE, 1)
    with pytest.raises(NoSuchPartition):
        guest.change(ACTIVATE, 99)
    assert len(guest.trail.kept) == 2


@pytest.mark.parametrize("board", ["hgx-h100-8", "hgx-b200-8"])
def test_an_inactive_partition_is_so_already(board: str) -> None:
    guest = Guest(board)
    assert guest.change(DEACTIVATE, 3) is True
    assert guest.trail.said()[-1] == ("deactivate", 3, "it was so before", None)


def test_what_fabric_manager_refuses_is_recorded_with_its_code(guest: Guest) -> None:
    guest.nvfm.fail(Faults.parse(["code=-10@activate:1"]))
    with pytest.raises(FmctlError) as refusal:
        guest.change(ACTIVATE, 3)
    assert refusal.value.fm_code == -10
    assert [(entry[0], entry[3]) for entry in guest.trail.said()] == [("activate", None), ("activate", -10)]


def test_the_list_decides_what_came_of_a_call_that_was_given_up(guest: Guest) -> None:
    guest.nvfm.fail(Faults.parse(["hang@activate:1"]))
    with pytest.raises(OutcomeUnknown):
        guest.change(ACTIVATE, 3)
    assert guest.active == []
    assert "unknown" in guest.trail.said()[-1][2]


def test_nothing_is_changed_unrecorded(guest: Guest) -> None:
    guest.trail.full = True
    with pytest.raises(FmctlError, match="no room"):
        guest.change(ACTIVATE, 3)
    assert guest.active == []


def test_an_agent_that_is_started_again_tells_what_it_recorded_and_counts_on(guest: Guest) -> None:
    guest.change(ACTIVATE, 3)
    guest.trail.kept.append("{a line that was cut off")
    guest.start_agent()
    guest.time += FIRST_READER
    assert guest.told() == guest.trail.kept[:2]
    guest.change(DEACTIVATE, 3)
    records = [record for line in guest.trail.kept if (record := breakglass.parse(line))]
    assert [record.number for record in records] == [1, 2, 3, 4]
    assert len({record.boot for record in records}) == 1


def test_records_stay_for_the_daemon_however_much_is_logged(guest: Guest) -> None:
    guest.change(ACTIVATE, 3)
    for number in range(3000):
        guest.logs.add(LogSource.FABRIC_MANAGER, 1.0, str(number))
    assert guest.told() == guest.trail.kept


class FullStore(MemoryStore):
    """A store that cannot be written while it is full."""

    full = False

    def commit(self, entries: Sequence[Entry], *, at: float) -> tuple[Entry, ...]:
        if self.full:
            raise StoreUnusable("the disk is full")
        return super().commit(entries, at=at)


def journal(store: MemoryStore) -> list[str]:
    return [entry.what for entry in store.entries(0, limit=100) if "past fmctld" in entry.what]


def test_the_daemon_s_journal_gets_each_record_once(guest: Guest) -> None:
    store = FullStore()
    records = Records(store)
    guest.change(ACTIVATE, 3)
    lines = guest.told()
    store.full = True
    for line in lines:
        records.take(line)
    records.take("no record")
    assert journal(store) == []
    store.full = False
    records.flush()
    expected = ["activate, past fmctld: asked for", "activate, past fmctld: done, code 0"]
    assert journal(store) == expected
    for line in lines:
        Records(store).take(line)  # as the next daemon does
    assert journal(store) == expected


def test_a_partition_that_was_activated_past_the_daemon_is_reported_and_handed_to_nobody(guest: Guest) -> None:
    guest.change(ACTIVATE, 3)
    controller = FabricController(
        guest.agent, MemoryStore(), MemoryGate(), NO_GPUS, rules=Rules(Mode.MANAGE), call_timeout=5
    )
    for line in guest.told():
        Records(controller.store).take(line)
    controller.refresh()
    assert guest.active == [3]
    assert controller.reconciler.drift == ("partition 3 is active, and no lease holds it",)
    with pytest.raises(PartitionHeld):
        controller.activate("tenant", partition_id=3, timeout=5)
    assert controller.queries.capacity(timeout=5).partitions[8] == 0
