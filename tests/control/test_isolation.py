# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from fmctl import platforms
from fmctl.control import discovery, isolation
from fmctl.core.errors import HostCordoned
from fmctl.core.finding import Finding
from fmctl.core.pci import CONFIG_SIZE, Bdf, PciFunction
from fmctl.sim.kernel import SimulatedKernel
from fmctl.sim.sysfs import SimulatedBus

BOARDS = pytest.mark.parametrize("board", platforms.names())
FINDING = Finding("pci-noacs", "access control is off: pci=noacs", "it is unsafe", "take it off")


@BOARDS
@pytest.mark.parametrize("shared_group", [False, True], ids=["group-each", "shared-group"])
def test_nothing_is_found_on_a_host_that_is_set_up_well(board: str, shared_group: bool) -> None:  # noqa: FBT001
    platform = platforms.load(board)
    bus = SimulatedBus(platform, shared_group=shared_group)
    assert isolation.check(bus, SimulatedKernel(), discovery.discover(bus, [platform])) == ()


def test_what_the_kernel_says_and_what_the_ports_say_are_found_at_once() -> None:
    platform, kernel = platforms.load("hgx-h100-8"), SimulatedKernel()
    bus = SimulatedBus(platform)
    inventory = discovery.discover(bus, [platform])
    kernel.boot_with("pci=noacs")
    bus.behave(inventory.devices[0].function.ports[0], access=None)
    bus.join(inventory.devices[1].function.bdf, inventory.devices[0].function.iommu_group or 0)
    kernel.load("nouveau")
    names = [finding.name for finding in isolation.check(bus, kernel, inventory)]
    assert names == ["pci-noacs", "gpu-driver-loaded"]
    found = isolation.check(bus, kernel, discovery.discover(bus, [platform]))
    assert [finding.name for finding in found] == ["pci-noacs", "gpu-driver-loaded", "gpu-shares-group"]


class Watched(SimulatedBus):
    """A host that counts what is asked of it."""

    def __init__(self, board: str) -> None:
        super().__init__(platforms.load(board))
        self.read: dict[Bdf, int] = {}
        self.listed = 0

    def config(self, bdf: Bdf, offset: int = 0, size: int = CONFIG_SIZE) -> bytes:
        self.read[bdf] = self.read.get(bdf, 0) + size
        return super().config(bdf, offset, size)

    def functions(self) -> tuple[PciFunction, ...]:
        self.listed += 1
        return super().functions()


def test_little_is_asked_and_of_the_board_and_its_ports_alone() -> None:
    bus = Watched("hgx-h100-8")
    inventory = discovery.discover(bus, [platforms.load("hgx-h100-8")])
    bus.read.clear()
    bus.listed = 0
    isolation.check(bus, SimulatedKernel(), inventory)
    functions = [device.function for device in inventory.devices]
    assert set(bus.read) == {bdf for function in functions for bdf in (*function.ports, function.bdf)}
    assert max(bus.read.values()) < 128
    assert bus.listed == 0


def test_nothing_found_is_nothing_refused() -> None:
    isolation.refuse(())


def test_a_finding_cordons_the_host_with_what_to_do() -> None:
    with pytest.raises(HostCordoned) as refusal:
        isolation.refuse([FINDING])
    assert refusal.value.what == "passthrough is not safe on this host: pci-noacs"
    assert (refusal.value.why, refusal.value.fix) == (FINDING.what, FINDING.fix)


def test_several_findings_are_all_named() -> None:
    with pytest.raises(HostCordoned) as refusal:
        isolation.refuse([FINDING, Finding("iommu-off", "the IOMMU is off", "unsafe", "switch it on")])
    assert refusal.value.what.endswith(": pci-noacs, iommu-off")
    assert refusal.value.why == "access control is off: pci=noacs; the IOMMU is off"
    assert "fmctl host check" in refusal.value.fix
