# SPDX-License-Identifier: Apache-2.0
"""When a host takes no new work, and what it says then."""

from __future__ import annotations

import dataclasses

import pytest

from fmctl import platforms
from fmctl.control import discovery, isolation
from fmctl.control.discovery import NoBoard
from fmctl.control.gate import HostGate
from fmctl.core.answers import ServiceVmState
from fmctl.core.errors import HostCordoned
from fmctl.core.inventory import Inventory
from fmctl.sim.host import SimulatedHost
from tests.control.keeping import Host

BOARD = platforms.load("hgx-h100-8")


class Devices:
    """A pretended host's devices and what may be wrong with them."""

    def __init__(self) -> None:
        self.host = SimulatedHost(BOARD)

    def inventory(self) -> Inventory:
        return discovery.discover(self.host.bus, platforms.every())

    def check(self, inventory: Inventory) -> None:
        isolation.refuse(isolation.check(self.host.bus, self.host.kernel, inventory))


def test_a_sound_host_takes_new_work_and_its_service_vm_is_someone_else_s() -> None:
    devices = Devices()
    gate = HostGate(devices.inventory, devices.check)
    gate.refuse_new_work()
    assert gate.status().state is ServiceVmState.UNMANAGED


def test_a_host_that_became_unsafe_takes_none() -> None:
    devices = Devices()
    gate = HostGate(devices.inventory, devices.check)
    devices.host.kernel.boot_with("pci=noacs")
    with pytest.raises(HostCordoned, match="noacs"):
        gate.refuse_new_work()


def test_without_a_board_only_a_service_vm_of_ours_is_missed() -> None:
    def nothing() -> Inventory:
        raise NoBoard("there is no HGX board here", fix="look for it")

    devices = Devices()
    HostGate(nothing, devices.check).refuse_new_work()
    keeper = Host().keeper
    with pytest.raises(HostCordoned, match="there is no HGX board here"):
        HostGate(nothing, devices.check, keeper).refuse_new_work()


def test_a_board_that_is_only_named_and_not_there_is_not_judged() -> None:
    devices = Devices()
    empty = dataclasses.replace(devices.inventory(), devices=())
    devices.host.kernel.boot_with("pci=noacs")
    HostGate(lambda: empty, devices.check).refuse_new_work()


def test_a_degraded_service_vm_keeps_new_work_out() -> None:
    host = Host().ready()
    gate = HostGate(host.inventory, lambda _: None, host.keeper)
    gate.refuse_new_work()
    host.tenant()
    host.guest.heals = host.guest.answers = False
    for _ in range(10):
        host.step(10)
    with pytest.raises(HostCordoned, match="would interrupt tenant with 2 GPUs"):
        gate.refuse_new_work()
    assert gate.status() == host.keeper.status()
    host.hypervisor.power_off()
