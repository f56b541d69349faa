# SPDX-License-Identifier: Apache-2.0
"""A host whose Service VM is someone else's: fresh starts of Fabric Manager raise the fabric generation there, too."""

from __future__ import annotations

import pytest

from fmctl.control.fabricstarts import FabricStarts
from fmctl.control.gate import HostGate
from fmctl.core.answers import ServiceVmStatus
from fmctl.core.errors import FmctlError
from fmctl.core.inventory import Inventory
from fmctl.sim.generation import MemoryGeneration
from tests.control.leasing import World


class Unmanaged(World):
    """A host on which the daemon hears of fresh starts from the agent alone."""

    def __init__(self) -> None:
        self.generation = MemoryGeneration()
        super().__init__(started=False)
        self.recorded: list[str] = []
        self.follow()
        self.process.start(restart=False)
        self.look()

    def follow(self) -> None:
        """Let a daemon follow, which knows what is kept."""
        self.starts = FabricStarts(self.line, self.generation, lambda detail: self.recorded.append(detail))
        gate = HostGate(self._inventory, lambda inventory: None, generation=lambda: self.starts.current)
        self.gate.status = gate.status  # type: ignore[method-assign]

    def look(self) -> None:
        """One turn of the monitor."""
        self.starts.look()
        self.controller.refresh()

    def _inventory(self) -> Inventory:
        return self.inventory


def test_a_vm_from_before_a_fresh_start_is_interrupted_until_it_starts_again() -> None:
    world = Unmanaged()
    lease = world.allocate("a", "r", count=2)
    world.start_vm("vm", lease.gpus)
    world.look()
    queries = world.controller.queries
    assert not queries.is_interrupted(world.lease(lease.id))
    world.process.start(restart=False)
    world.look()
    world.settle()
    assert world.active == set(lease.partitions)
    assert queries.is_interrupted(world.lease(lease.id))
    assert world.recorded == ["fabric generation 1", "fabric generation 2"]
    world.stop_vm("vm")
    world.start_vm("vm", lease.gpus)
    world.settle()
    assert not queries.is_interrupted(world.lease(lease.id))


def test_a_fresh_start_that_shows_only_after_the_partitions_are_active_again_counts_as_well() -> None:
    world = Unmanaged()
    lease = world.allocate("a", "r", count=2)
    world.start_vm("vm", lease.gpus)
    world.look()
    world.process.start(restart=False)
    world.settle()
    assert not world.controller.queries.is_interrupted(world.lease(lease.id))
    world.look()
    assert world.controller.queries.is_interrupted(world.lease(lease.id))


def test_a_fresh_start_while_the_daemon_was_away_counts() -> None:
    world = Unmanaged()
    lease = world.allocate("a", "r", count=2)
    world.start_vm("vm", lease.gpus)
    world.look()
    world.process.reboot()
    world.process.start(restart=False)
    world.restart_daemon()
    world.follow()
    assert world.starts.current == 1
    world.look()
    assert world.controller.queries.is_interrupted(world.lease(lease.id))


def test_a_restart_that_takes_up_its_state_and_a_daemon_that_comes_back_count_nothing() -> None:
    world = Unmanaged()
    world.process.die()
    world.look()
    world.process.start(restart=True)
    world.look()
    world.restart_daemon()
    world.follow()
    world.look()
    assert world.starts.current == 1
    assert world.gate.status() == ServiceVmStatus(fabric_generation=1)


def test_what_is_not_known_counts_nothing() -> None:
    world = Unmanaged()
    world.line.cut = 1
    world.starts.look()
    world.process.reboot()
    world.starts.look()
    assert world.starts.current == 1


def test_a_number_that_cannot_be_written_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    class Full(MemoryGeneration):
        full = True

        def follow(self, start: str) -> int:
            if self.full:
                raise FmctlError("the disk is full")
            return super().follow(start)

    world = Unmanaged()
    generation = Full()
    starts = FabricStarts(world.line, generation)
    starts.look()
    assert (starts.current, "the disk is full" in caplog.text) == (0, True)
    generation.full = False
    starts.look()
    assert starts.current == 1
