# SPDX-License-Identifier: Apache-2.0
"""Both locks of the gate together: libvirt's hook before a VM starts, and the kernel as it opens its GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from fmctl.control.hook import Hook, ServiceVmStart
from fmctl.core import gpumap
from fmctl.core.asking import Verdict
from fmctl.core.domain import DomainRefused
from fmctl.core.hook import Rules
from fmctl.core.lease import LeaseState
from fmctl.core.vfio import VFIO_PCI
from fmctl.sim.hookfiles import MemoryHookFiles
from tests.control.leasing import uuid_of
from tests.control.test_parking import SERVICE_VM, VM, Gated, T
from tests.core.test_hook import document, hostdev

LIBVIRTD = 321
ALL = range(1, 9)


class Locked(Gated):
    """A host with libvirt, on which the gate has settled."""

    def __init__(self) -> None:
        super().__init__()
        self.hook = self._hook()
        self.turn()

    def _hook(self) -> Hook:
        return Hook(
            self.controller.store,
            self.controller.fabric,
            self.controller.leases,
            self.parking,
            MemoryHookFiles(LIBVIRTD),
            inventory=self._inventory,
            gpu_map=gpumap.in_order,
            generation=lambda: self.gate.generation,
            observed=lambda: self.controller.reconciler.observed,
            service_vm=ServiceVmStart(SERVICE_VM, lambda: ""),
            rules=Rules(),
            clock=self.clock,
        )

    def restart_daemon(self) -> None:
        super().restart_daemon()
        self.hook = self._hook()
        self.reconcile()
        self.turn()

    def turn(self) -> None:
        """What the daemon does over and over."""
        self.reconcile()
        self.hook.look()
        self.parking.step()

    def virsh_start(self, *gpus: int, name: str = "tenant") -> bool:
        """Start a domain as libvirt does; whether it runs."""
        xml = document(*(hostdev(self.address[gpu]) for gpu in gpus), uuid=uuid_of(name))
        decision = self.hook.check("prepare", xml, LIBVIRTD)
        if decision.verdict is Verdict.PREPARE:
            decision = self.hook.ready(xml, timeout=T)
        if decision.verdict is Verdict.START and self.hook.check("start", xml, LIBVIRTD).verdict is Verdict.START:
            self.start_vm(name, gpus)
            self.turn()
            return True
        self.hook.check("release", xml, LIBVIRTD)
        return False

    def virsh_destroy(self, name: str = "tenant") -> None:
        gpus = self.vms[name]
        self.stop_vm(name)
        xml = document(*(hostdev(self.address[gpu]) for gpu in gpus), uuid=uuid_of(name))
        for operation in ("stopped", "release"):
            self.hook.check(operation, xml, LIBVIRTD)
        self.turn()

    def can_be_attached(self, gpu: int) -> bool:
        """Whether `virsh attach-device` with managed='no', which no hook sees, or a QEMU by hand, gets the GPU."""
        try:
            self.start_vm("by-hand", (gpu,))
        except DomainRefused:
            return False
        self.stop_vm("by-hand")
        return True


@pytest.fixture
def world() -> Locked:
    return Locked()


@pytest.mark.parametrize("gpus", [(1,), (3,), (1, 2, 3), (5, 7), tuple(ALL), ()])
def test_a_vm_starts_with_its_lease_s_gpus_or_without_any(world: Locked, gpus: Sequence[int]) -> None:
    assert world.virsh_start(*gpus) is (gpus == ())
    world.leased(1, 3)
    if gpus:
        assert not world.virsh_start(*gpus)
        assert world.virsh_start(3, 1)
    assert world.parking.alarms == ()


def test_another_s_lease_is_of_no_use(world: Locked) -> None:
    world.leased(1, 3, vm=uuid_of("another"))
    assert not world.virsh_start(1, 3)
    assert world.parked == set(ALL)


def _stop(world: Locked) -> None:
    world.virsh_destroy()


def _crash(world: Locked) -> None:
    world.stop_vm("tenant")
    world.turn()


@pytest.mark.parametrize("end", [_stop, _crash])
def test_a_lease_stays_until_it_is_released(world: Locked, end: Callable[[Locked], None]) -> None:
    lease = world.leased(1, 3)
    for _ in range(3):
        assert world.virsh_start(1, 3)
        assert world.parked == {2, 4, 5, 6, 7, 8}
        end(world)
        assert world.lease(lease.id).state is LeaseState.ACTIVE
        assert world.parked == set(ALL)
        assert not any(world.can_be_attached(gpu) for gpu in ALL)
    world.release(lease.id)
    world.settle()
    assert world.lease(lease.id).state is LeaseState.RELEASED
    assert not world.virsh_start(1, 3)


def test_a_lease_survives_the_host_s_boot(world: Locked) -> None:
    lease = world.leased(1, 3)
    assert world.virsh_start(1, 3)
    world.stop_vm("tenant")
    world.lose_service_vm()
    world.store = world.store.survived()
    world.controller = world._daemon()
    world.parking = world.gate_of()
    world.hook = world._hook()
    world.hook.look()
    world.parking.step()
    assert world.parked == set(ALL), "before Fabric Manager is up"
    assert not world.virsh_start(1, 3), "its partition is not active yet"
    world.start_fresh()
    world.settle()
    world.turn()
    assert world.lease(lease.id).state is LeaseState.ACTIVE
    assert world.virsh_start(1, 3)


def test_neither_lock_hangs_on_the_daemon(world: Locked) -> None:
    world.leased(1, 3)
    assert world.virsh_start(1, 3)
    assert not any(world.can_be_attached(gpu) for gpu in (2, 4, 5, 6, 7, 8))
    world.restart_daemon()
    assert (world.parking.alarms, world.devices.ejected) == ((), [])


def test_what_libvirt_takes_by_itself_is_seen(world: Locked) -> None:
    """As after `virsh attach-device` with managed='yes'."""
    lease = world.leased(1, 3)
    assert world.virsh_start(1, 3)
    world.devices.override(world.address[5], VFIO_PCI, timeout=T)
    world.devices.probe(world.address[5], timeout=T)
    world.start_vm("attached", (5,))
    world.turn()
    (alarm,) = world.parking.alarms
    assert str(world.address[5]) in alarm
    assert "no lease holds it" in alarm
    assert world.lease(lease.id).vm_uuid == VM
