# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from fmctl import platforms
from fmctl.control.agent import LocalAgent
from fmctl.control.controller import FabricController
from fmctl.control.logbuffer import LogBuffer
from fmctl.core.answers import FabricFacts, FabricState, StartMode
from fmctl.core.errors import BadRequest, FabricBusy, FmctlError
from fmctl.core.loglines import LogPosition, LogSource
from fmctl.core.partition import PartitionList
from fmctl.sim.fabric import Fabric
from fmctl.sim.fmservice import MemoryProcess, Unmanaged
from fmctl.sim.gate import MemoryGate
from fmctl.sim.nvfm import MemoryNvfm
from fmctl.sim.package import MemoryPackage
from fmctl.sim.store import MemoryStore
from tests.control.gpus import NO_GPUS


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_recent_status_is_as_old_as_was_asked_for_and_no_older() -> None:
    clock = Clock()
    nvfm = MemoryNvfm(Fabric.started(platforms.load("hgx-h100-8"), now=0), clock=clock)
    agent = LocalAgent(nvfm, Unmanaged(), lambda: None, library="memory", call_timeout=30, clock=clock)
    assert agent.recent_status(5, timeout=1).state is FabricState.READY
    nvfm.replace(None)
    clock.now = 4.9
    assert agent.recent_status(5, timeout=1).state is FabricState.READY
    assert agent.status(timeout=1).state is FabricState.UNREACHABLE
    nvfm.replace(Fabric.started(platforms.load("hgx-h100-8"), now=0))
    clock.now = 9.8
    assert agent.recent_status(5, timeout=1).state is FabricState.UNREACHABLE
    clock.now = 9.9
    assert agent.recent_status(5, timeout=1).state is FabricState.READY


class Busy(MemoryNvfm):
    """A Fabric Manager that can be held by another call."""

    busy = False

    def list_partitions(self, *, timeout: float) -> PartitionList:
        if self.busy:
            raise FabricBusy("Fabric Manager is busy")
        return super().list_partitions(timeout=timeout)


def test_a_call_under_way_tells_nothing_of_the_state() -> None:
    nvfm = Busy(Fabric.started(platforms.load("hgx-h100-8"), now=0))
    agent = LocalAgent(nvfm, Unmanaged(), lambda: None, library="memory", call_timeout=30)
    controller = FabricController(agent, MemoryStore(), MemoryGate(), NO_GPUS)
    assert controller.refresh() == (FabricState.READY, "")
    nvfm.busy = True
    assert agent.status(timeout=1).state is FabricState.READY
    assert controller.refresh() == (FabricState.READY, "")
    nvfm.busy = False
    nvfm.replace(None)
    assert controller.refresh()[0] is FabricState.UNREACHABLE


def test_a_status_keeps_saying_that_the_library_is_the_simulator_s() -> None:
    nvfm = MemoryNvfm(Fabric.started(platforms.load("hgx-h100-8"), now=0))
    agent = LocalAgent(nvfm, Unmanaged(), lambda: None, library="memory", call_timeout=30)
    assert agent.status(timeout=1).simulated
    nvfm.replace(None)
    status = agent.status(timeout=1)
    assert (status.simulated, status.library) == (True, "memory")
    assert "does not answer" in status.message


class Slow(MemoryProcess):
    """A process that serves nobody until it `wakes`."""

    def start(self, *, restart: bool) -> None:
        super().start(restart=False)
        if restart:
            self._nvfm.replace(None)

    def wake(self) -> None:
        super().start(restart=True)


class Host:
    """An agent that starts Fabric Manager itself, under a clock of its own; `paused` is called while it waits."""

    def __init__(self, process: type[MemoryProcess] = MemoryProcess) -> None:
        self.clock = Clock()
        self.nvfm = MemoryNvfm(None, clock=self.clock)
        self.process = process(self.nvfm, platforms.load("hgx-h100-8"), self.clock)
        self.pauses: list[float] = []
        self.paused: Callable[[], None] = lambda: None
        self.ends = 0
        self.package = MemoryPackage("0" * 64, trial=True)
        self.logs = LogBuffer()
        self.agent = LocalAgent(
            self.nvfm,
            self.process,
            self._end,
            library="memory",
            call_timeout=30,
            package=self.package,
            logs=self.logs,
            clock=self.clock,
            pause=self._pause,
        )

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.clock.now += seconds
        self.paused()

    def _end(self) -> None:
        self.ends += 1

    def state(self) -> FabricState:
        return self.agent.status(timeout=1).state

    def active(self) -> list[int]:
        return [p.id for p in self.agent.list_partitions(timeout=1).partitions if p.active]


def test_fabric_manager_starts_on_the_daemon_s_word() -> None:
    host = Host()
    assert host.state() is FabricState.NOT_STARTED
    host.agent.start_fabric_manager(StartMode.FRESH, (), timeout=10)
    assert host.state() is FabricState.READY
    host.agent.activate(3, timeout=1)
    host.process.die()
    assert host.state() is FabricState.ENDED
    host.agent.start_fabric_manager(StartMode.FRESH, (), timeout=10)
    assert (host.state(), host.active()) == (FabricState.READY, [])


def test_a_restart_is_told_its_active_partitions_before_anyone_else_is_served() -> None:
    host = Host()
    host.agent.start_fabric_manager(StartMode.FRESH, (), timeout=10)
    host.process.die()
    host.agent.start_fabric_manager(StartMode.RESTART, (3, 4), timeout=10)
    assert (host.state(), host.active()) == (FabricState.READY, [3, 4])
    host.process.die()
    host.agent.start_fabric_manager(StartMode.RESTART, (), timeout=10)
    assert (host.state(), host.active()) == (FabricState.READY, [])


def test_the_list_is_set_as_soon_as_fabric_manager_takes_calls() -> None:
    host = Host(Slow)
    states: list[FabricState] = []

    def wake_at_the_fifth() -> None:
        states.append(host.state())
        if len(states) == 5 and isinstance(host.process, Slow):
            host.process.wake()

    host.paused = wake_at_the_fifth
    host.agent.start_fabric_manager(StartMode.RESTART, (3,), timeout=10)
    assert states == [FabricState.AWAITING_ACTIVE_LIST] * 5
    assert host.active() == [3]
    assert sum(host.pauses) <= 1


def test_one_that_waits_for_no_list_needs_none() -> None:
    host = Host(Slow)
    host.paused = lambda: MemoryProcess.start(host.process, restart=False)
    host.agent.start_fabric_manager(StartMode.RESTART, (3,), timeout=10)
    assert len(host.pauses) == 1
    assert host.state() is FabricState.READY


def test_a_restart_that_does_not_get_there_in_time_fails_and_is_awaited_no_more() -> None:
    host = Host(Slow)
    with pytest.raises(FmctlError):
        host.agent.start_fabric_manager(StartMode.RESTART, (3,), timeout=10)
    assert 9.5 <= sum(host.pauses) <= 10.5
    assert host.state() is FabricState.UNREACHABLE


def test_a_restart_without_a_usable_state_ends_and_says_so() -> None:
    host = Host()
    with pytest.raises(FmctlError, match="ended before it took the active partitions"):
        host.agent.start_fabric_manager(StartMode.RESTART, (3,), timeout=10)
    assert host.state() is FabricState.ENDED


def test_a_contradictory_list_is_refused_within_the_time() -> None:
    host = Host()
    host.agent.start_fabric_manager(StartMode.FRESH, (), timeout=10)
    with pytest.raises(FmctlError):
        host.agent.start_fabric_manager(StartMode.RESTART, (1, 3), timeout=5)


def test_one_start_at_a_time() -> None:
    host = Host(Slow)
    refusals: list[FabricBusy] = []

    def again() -> None:
        with pytest.raises(FabricBusy) as busy:
            host.agent.start_fabric_manager(StartMode.FRESH, (), timeout=1)
        refusals.append(busy.value)
        if isinstance(host.process, Slow):
            host.process.wake()

    host.paused = again
    host.agent.start_fabric_manager(StartMode.RESTART, (), timeout=10)
    assert len(refusals) == 1


def test_a_restart_of_the_agent_is_its_end() -> None:
    host = Host()
    host.agent.restart(timeout=1)
    assert host.ends == 1


def test_a_status_tells_all_that_is_known() -> None:
    host = Host()
    for number in range(30):
        host.logs.add(LogSource.FABRIC_MANAGER, 1.0, f"line {number}")
    facts = FabricFacts("580.95.05", "570.86.15", {"FABRIC_MODE": "1"}, "running")
    host.process.facts = lambda: facts  # type: ignore[method-assign]
    status = host.agent.status(timeout=1)
    assert (status.digest, status.fm_version, status.driver_version) == ("0" * 64, "580.95.05", "570.86.15")
    assert status.versions_differ == "Fabric Manager is 580.95.05, and the driver 570.86.15"
    assert status.fm_log == tuple(f"line {number}" for number in range(10, 30))
    assert (status.fm_config, status.nvlsm) == ({"FABRIC_MODE": "1"}, "running")


def test_only_the_daemon_s_question_ends_a_trial() -> None:
    host = Host()
    host.agent.recent_status(5, timeout=1)
    assert host.package.trial
    host.agent.status(timeout=1)
    assert not host.package.trial


def test_a_replacement_ends_the_agent_and_a_wrong_one_does_not() -> None:
    host = Host()
    with pytest.raises(BadRequest):
        host.agent.replace(b"archive", "0" * 64, timeout=1)
    assert host.ends == 0
    host.agent.replace(b"archive", hashlib.sha256(b"archive").hexdigest(), timeout=1)
    assert (host.ends, host.package.put_digest) == (1, hashlib.sha256(b"archive").hexdigest())


def test_one_that_keeps_no_archives_cannot_be_replaced() -> None:
    agent = LocalAgent(MemoryNvfm(None), Unmanaged(), lambda: None, library="memory", call_timeout=30)
    with pytest.raises(BadRequest, match="it keeps no archives"):
        agent.replace(b"", "", timeout=1)
    assert agent.status(timeout=1).digest == ""


def test_its_logs_are_told() -> None:
    host = Host()
    host.logs.add(LogSource.KERNEL, 2.0, "x")
    assert next(host.agent.logs(LogPosition())).text == "x"
