# SPDX-License-Identifier: Apache-2.0
"""A GPU is reset by how the VMs ended that had it, as far as that was heard of without a gap."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fmctl.core.clean import Rules
from fmctl.core.lease import Lease
from fmctl.core.vfio import Holder
from fmctl.sim.hypervisor import SimulatedHypervisor
from tests.control.leasing import TIMEOUT, World, uuid_of

VM = uuid_of("vm")
FUNCTION, BUS = ["flr", "flr"], ["bus", "bus"]


def cleaned_once() -> World:
    """A host with libvirt's ear, each of whose GPUs this daemon has cleaned."""
    world = World(cleans=Rules())
    world.host.hypervisor.watch(lambda: None, lambda end: world.exits.heard(end))
    lease = world.allocate("a", "first", count=8)
    released(world, lease)
    return world


def running(world: World) -> Lease:
    """A lease of two GPUs, whose VM runs and was seen."""
    lease = world.allocate("a", "r", count=2)
    world.start_vm("vm", lease.gpus)
    world.exits.look()
    return lease


def released(world: World, lease: Lease) -> list[str]:
    """End a lease whose VM is gone; by which methods its GPUs were reset."""
    world.exits.look()
    world.release(lease.id)
    world.reconcile()
    world.host.devices.reset_by.clear()
    assert set(world.clean()) == set(lease.gpus)
    return [method for _, method in world.host.devices.reset_by]


def shut_down(hypervisor: SimulatedHypervisor) -> None:
    hypervisor.shutdown(VM, timeout=TIMEOUT)


def destroy(hypervisor: SimulatedHypervisor) -> None:
    hypervisor.destroy(VM, timeout=TIMEOUT)


def kill(hypervisor: SimulatedHypervisor) -> None:
    hypervisor.kill(VM)


@pytest.mark.parametrize(("end", "methods"), [(shut_down, FUNCTION), (destroy, BUS), (kill, BUS)])
def test_the_reset_is_by_how_the_vm_ended(end: Callable[[SimulatedHypervisor], None], methods: list[str]) -> None:
    world = cleaned_once()
    lease = running(world)
    end(world.host.hypervisor)
    assert released(world, lease) == methods


def test_the_end_of_another_vm_does_not_matter() -> None:
    world = cleaned_once()
    lease = running(world)
    other = world.allocate("b", "r", count=2)
    world.start_vm("other", other.gpus)
    world.exits.look()
    world.stop_vm("other")
    shut_down(world.host.hypervisor)
    assert released(world, lease) == FUNCTION
    assert released(world, other) == BUS


def test_a_vm_that_was_killed_is_not_forgotten_over_a_later_one_that_shut_down() -> None:
    world = cleaned_once()
    lease = running(world)
    world.stop_vm("vm")
    world.start_vm("vm", lease.gpus)
    world.exits.look()
    shut_down(world.host.hypervisor)
    assert released(world, lease) == BUS


def test_a_lease_without_any_vm_leaves_its_gpus_as_they_were_cleaned() -> None:
    world = cleaned_once()
    assert released(world, world.allocate("a", "r", count=2)) == FUNCTION


def test_a_gpu_that_another_manager_s_vm_had_open_is_unclean() -> None:
    world = cleaned_once()
    lease = world.allocate("a", "r", count=2)
    groups = [f.iommu_group for f in world.host.bus.functions() if f.bdf == world.address[lease.gpus[0]]]
    assert groups[0] is not None
    world.host.devices.hold(groups[0], Holder(7, "by-hand"))
    world.exits.look()
    world.host.devices.let_go(groups[0])
    assert sorted(released(world, lease)) == ["bus", "flr"]


def test_a_new_daemon_knows_nothing() -> None:
    world = cleaned_once()
    lease = running(world)
    world.restart_daemon()
    world.exits.look()
    shut_down(world.host.hypervisor)
    assert released(world, lease) == BUS


@pytest.mark.parametrize("lose", [SimulatedHypervisor.disconnect, SimulatedHypervisor.hang])
def test_what_happened_while_libvirt_was_away_is_not_known(lose: Callable[[SimulatedHypervisor], None]) -> None:
    world = cleaned_once()
    lease = running(world)
    lose(world.host.hypervisor)
    world.host.hypervisor.reconnect()
    world.exits.look()
    shut_down(world.host.hypervisor)
    assert released(world, lease) == BUS


def test_nothing_is_known_where_nobody_listens() -> None:
    world = World(cleans=Rules())
    released(world, world.allocate("a", "first", count=8))
    assert released(world, world.allocate("a", "r", count=2)) == BUS
