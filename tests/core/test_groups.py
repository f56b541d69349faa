# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest

from fmctl import platforms
from fmctl.control.discovery import discover
from fmctl.core import groups
from fmctl.core.errors import BadRequest, FmctlError, HostCordoned
from fmctl.core.inventory import Inventory, Role
from fmctl.core.pci import Bdf, PciClass, PciFunction
from fmctl.sim.sysfs import SimulatedBus


def host(board: str = "hgx-h100-8", *, shared_group: bool = False) -> tuple[SimulatedBus, Inventory]:
    bus = SimulatedBus(platforms.load(board), shared_group=shared_group)
    return bus, discover(bus, [platforms.load(board)])


def of(inventory: Inventory, *roles: Role) -> list[Bdf]:
    return [device.function.bdf for device in inventory.devices if device.role in roles]


def group_of(bus: SimulatedBus, bdf: Bdf) -> int:
    (group,) = (function.iommu_group for function in bus.functions() if function.bdf == bdf)
    assert group is not None
    return group


def members(bus: SimulatedBus, inventory: Inventory, *wanted: Bdf) -> list[Bdf]:
    return [member.bdf for member in groups.members(bus.functions(), inventory, wanted)]


def neighbour(bus: SimulatedBus, group: int, pci_class: str, driver: str) -> PciFunction:
    """A function put into a group, beside what is there."""
    (entry, *_) = bus.everything()
    function = replace(
        entry.function,
        bdf=Bdf.parse("0000:00:1f.0"),
        pci_class=PciClass.parse(pci_class),
        driver=driver,
        iommu_group=group,
    )
    bus.add(replace(entry, function=function))
    return function


@pytest.mark.parametrize("board", platforms.names())
def test_with_a_group_for_each_function_there_is_no_more_than_was_wanted(board: str) -> None:
    bus, inventory = host(board)
    first, second, *_ = of(inventory, Role.NVSWITCH, Role.MEMORY_CONTROLLER)
    assert members(bus, inventory, second, first, second) == [second, first]
    assert members(bus, inventory) == []


@pytest.mark.parametrize("board", platforms.names())
def test_a_shared_group_goes_as_a_whole_but_for_its_ports(board: str) -> None:
    bus, inventory = host(board, shared_group=True)
    wanted = of(inventory, Role.NVSWITCH, Role.MEMORY_CONTROLLER)
    assert sorted(members(bus, inventory, wanted[0])) == sorted(wanted)
    assert sorted(members(bus, inventory, *wanted)) == sorted(wanted)


def test_a_foreign_endpoint_is_refused_by_name() -> None:
    bus, inventory = host(shared_group=True)
    switch = of(inventory, Role.NVSWITCH)[0]
    foreign = bus.intrude(group_of(bus, switch))
    with pytest.raises(HostCordoned) as refusal:
        members(bus, inventory, switch)
    assert refusal.value.what == f"IOMMU group {group_of(bus, switch)} has a device that is not the board's"
    assert refusal.value.why == f"{foreign} (144d:a824), driver nvme"
    assert "change the slots" in refusal.value.fix
    assert "never pcie_acs_override" in refusal.value.fix
    bus.change(foreign, driver="")
    with pytest.raises(HostCordoned, match="driver none"):
        members(bus, inventory, switch)


def test_a_foreign_endpoint_of_another_group_does_not_matter() -> None:
    bus, inventory = host()
    first, second, *_ = of(inventory, Role.NVSWITCH)
    bus.intrude(group_of(bus, second))
    assert members(bus, inventory, first) == [first]


@pytest.mark.parametrize(
    ("pci_class", "driver", "is_bridge"),
    [
        ("0604", "pcieport", True),
        ("0604", "", True),
        ("0600", "", True),
        ("0601", "", True),
        ("0600", "skx_edac", False),
        ("0601", "lpc_ich", False),
        ("0680", "", False),
        ("0580", "", False),
    ],
)
def test_only_what_the_kernel_lets_a_group_be_used_beside_is_skipped(
    pci_class: str, driver: str, *, is_bridge: bool
) -> None:
    bus, inventory = host()
    gpu = of(inventory, Role.GPU)[0]
    function = neighbour(bus, group_of(bus, gpu), pci_class, driver)
    if is_bridge:
        assert members(bus, inventory, gpu) == [gpu]
    else:
        with pytest.raises(HostCordoned, match=f"{function.bdf} .*, driver {driver or 'none'}"):
            members(bus, inventory, gpu)


@pytest.mark.parametrize("other", list(Role))
def test_a_gpu_that_shares_its_group_is_refused_by_name(other: Role) -> None:
    bus, inventory = host()
    gpu, neighbour = of(inventory, Role.GPU)[0], of(inventory, other)[-1]
    bus.join(neighbour, group_of(bus, gpu))
    for wanted in (gpu, neighbour):
        with pytest.raises(HostCordoned) as refusal:
            members(bus, inventory, wanted)
        assert f"a GPU shares IOMMU group {group_of(bus, gpu)}" in refusal.value.what
        assert f"gpu {gpu}" in refusal.value.why and f"{other.value} {neighbour}" in refusal.value.why


def test_a_function_in_no_group_tells_that_the_iommu_is_off() -> None:
    bus, inventory = host()
    switch = of(inventory, Role.NVSWITCH)[0]
    bus.change(switch, iommu_group=None)
    with pytest.raises(HostCordoned, match="in no IOMMU group: the IOMMU is off") as refusal:
        members(bus, inventory, switch)
    assert "fmctl host check" in refusal.value.fix


def test_a_function_that_is_named_twice_counts_once() -> None:
    bus, inventory = host()
    first, second, *_ = of(inventory, Role.GPU)
    assert [f.bdf for f in groups.ours(bus.functions(), inventory, [second, first, second])] == [second, first]


def test_what_is_not_the_board_s_is_a_bad_request() -> None:
    bus, inventory = host()
    drive = bus.intrude(99)
    with pytest.raises(BadRequest, match=f"{drive} is not a function of the board"):
        groups.ours(bus.functions(), inventory, [drive])


def test_a_function_that_vanished_is_told() -> None:
    bus, inventory = host()
    gpu = of(inventory, Role.GPU)[0]
    bus.remove(gpu)
    with pytest.raises(FmctlError, match=f"{gpu} is gone") as failure:
        groups.ours(bus.functions(), inventory, [gpu])
    assert "fmctl inventory" in failure.value.fix


def test_roles_are_by_address() -> None:
    _, inventory = host()
    roles = groups.roles(inventory)
    assert [bdf for bdf, role in roles.items() if role is Role.GPU] == of(inventory, Role.GPU)
    assert len(roles) == len(inventory.devices)
