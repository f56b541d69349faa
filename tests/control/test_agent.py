# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from fmctl import platforms
from fmctl.control.agent import LocalAgent
from fmctl.control.fabric import FabricController
from fmctl.core.answers import FabricState
from fmctl.core.errors import FabricBusy
from fmctl.core.partition import PartitionList
from fmctl.sim.claims import MemoryClaims
from fmctl.sim.fabric import Fabric
from fmctl.sim.nvfm import MemoryNvfm


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_recent_status_is_as_old_as_was_asked_for_and_no_older() -> None:
    clock = Clock()
    nvfm = MemoryNvfm(Fabric.started(platforms.load("hgx-h100-8"), now=0), clock=clock)
    agent = LocalAgent(nvfm, library="memory", call_timeout=30, clock=clock)
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
    agent = LocalAgent(nvfm, library="memory", call_timeout=30)
    controller = FabricController(agent, MemoryClaims())
    assert controller.refresh() == (FabricState.READY, "")
    nvfm.busy = True
    assert agent.status(timeout=1).state is FabricState.READY
    assert controller.refresh() == (FabricState.READY, "")
    nvfm.busy = False
    nvfm.replace(None)
    assert controller.refresh()[0] is FabricState.UNREACHABLE


def test_a_status_keeps_saying_that_the_library_is_the_simulator_s() -> None:
    nvfm = MemoryNvfm(Fabric.started(platforms.load("hgx-h100-8"), now=0))
    agent = LocalAgent(nvfm, library="memory", call_timeout=30)
    assert agent.status(timeout=1).simulated
    nvfm.replace(None)
    status = agent.status(timeout=1)
    assert (status.simulated, status.library) == (True, "memory")
    assert "does not answer" in status.message
