# SPDX-License-Identifier: Apache-2.0
"""What both sides of the port `PciBus` show of the same host: pretended in memory, and read from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmctl import platforms
from fmctl.core.pci import Bdf
from fmctl.core.ports import PciBus
from fmctl.host.sysfs import Sysfs
from fmctl.sim.sysfs import SimulatedBus
from tests import sysfs_tree

NOWHERE = Bdf.parse("ffff:00:00.0")


@pytest.fixture(params=[(name, shared) for name in platforms.names() for shared in (False, True)], ids=str)
def simulated(request: pytest.FixtureRequest) -> SimulatedBus:
    name, shared_group = request.param
    return SimulatedBus(platforms.load(name), shared_group=shared_group)


@pytest.fixture(params=["memory", "files"])
def bus(request: pytest.FixtureRequest, simulated: SimulatedBus, tmp_path: Path) -> PciBus:
    if request.param == "memory":
        return simulated
    sysfs_tree.write(simulated, tmp_path)
    return Sysfs(tmp_path)


def test_every_function_is_shown_as_it_is_by_address(bus: PciBus, simulated: SimulatedBus) -> None:
    shown = bus.functions()
    assert shown == tuple(entry.function for entry in simulated.everything())
    assert list(shown) == sorted(shown, key=lambda function: function.bdf)
    assert len(shown) > 20


def test_every_function_answers_as_it_would(bus: PciBus, simulated: SimulatedBus) -> None:
    for entry in simulated.everything():
        assert bus.state(entry.function.bdf) == entry.state
        assert bus.vpd(entry.function.bdf) == entry.vpd
        assert bus.config(entry.function.bdf) == entry.config


def test_a_part_of_the_configuration_space_is_that_part(bus: PciBus, simulated: SimulatedBus) -> None:
    bdf = next(entry.function.bdf for entry in simulated.everything() if entry.function.ports)
    whole = bus.config(bdf)
    assert len(whole) == 4096
    assert bus.config(bdf, 0x34, 1) == whole[0x34:0x35]
    assert bus.config(bdf, 0x100, 8) == whole[0x100:0x108]
    assert bus.config(bdf, 4094, 4) == whole[4094:]
    assert bus.config(bdf, 4096, 4) == b""


def test_a_function_that_is_not_there_is_no_error(bus: PciBus) -> None:
    assert bus.state(NOWHERE) is None
    assert bus.vpd(NOWHERE) == b""
    assert bus.config(NOWHERE) == b""
    assert bus.config(NOWHERE, 0x100, 4) == b""


@pytest.mark.parametrize("side", ["memory", "files"])
def test_faults_show_on_both_sides(side: str, tmp_path: Path) -> None:
    simulated = SimulatedBus(platforms.load("hgx-h100-8"))
    gpus = [f for f in simulated.functions() if f.pci_class == platforms.load("hgx-h100-8").gpus.pci_class]
    first, second, third, fourth, *_ = (gpu.bdf for gpu in gpus)
    group = gpus[2].iommu_group
    assert group is not None
    ports = simulated.put_behind_switch(first, second)
    simulated.join(fourth, group)
    drive = simulated.intrude(group)
    simulated.behave(ports[0], access=None)
    simulated.behave(third, shown=64)
    bus: PciBus = simulated
    if side == "files":
        sysfs_tree.write(simulated, tmp_path)
        bus = Sysfs(tmp_path)
    shown = {function.bdf: function for function in bus.functions()}
    assert shown[first].ports[:2] == shown[second].ports[:2] and len(shown[first].ports) == 3
    assert (shown[first].ports[2], shown[second].ports[2]) == ports
    assert shown[ports[1]].ports == shown[second].ports[:2]
    members = [bdf for bdf, function in shown.items() if function.iommu_group == group]
    assert members == sorted([third, fourth, drive, *shown[fourth].ports, *shown[drive].ports])
    assert shown[drive].driver == "nvme"
    assert b"\x0d\0\x01" not in bus.config(ports[0]) and b"\x0d\0\x01" in bus.config(ports[1])
    assert len(bus.config(third)) == 64 and bus.config(third, 64, 4) == b""


def test_network_functions_have_their_driver_at_boot_and_the_others_none() -> None:
    drivers = {
        board: {(str(f.id), f.driver) for f in SimulatedBus(platforms.load(board)).functions() if f.ports}
        for board in ("hgx-h100-8", "hgx-b200-8")
    }
    assert drivers["hgx-h100-8"] == {("10de:2330", ""), ("10de:22a3", ""), ("11f8:4128", "")}
    assert ("15b3:1021", "mlx5_core") in drivers["hgx-b200-8"] and ("15b3:1021", "") not in drivers["hgx-b200-8"]
