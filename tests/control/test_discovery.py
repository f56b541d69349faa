# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest

from fmctl import platforms
from fmctl.control.discovery import NoBoard, discover
from fmctl.core.inventory import Fault, Inventory, Role
from fmctl.core.pci import Bdf, FunctionState, PciClass
from fmctl.core.ports import PciBus
from fmctl.sim.sysfs import SimulatedBus

BOARDS = pytest.mark.parametrize("board", platforms.names())


def bus(board: str) -> SimulatedBus:
    return SimulatedBus(platforms.load(board))


def look(host: PciBus) -> Inventory:
    return discover(host, platforms.every())


def of(found: Inventory, role: Role) -> list[Bdf]:
    return [device.function.bdf for device in found.devices if device.role is role]


@BOARDS
def test_a_whole_board_is_known_and_nothing_is_wrong_with_it(board: str) -> None:
    found = look(bus(board))
    platform = platforms.load(board)
    assert (found.platform.name, found.problems) == (board, ())
    assert len(of(found, Role.GPU)) == platform.gpus.count
    assert len(of(found, Role.NVSWITCH)) == platform.nvswitches.count
    assert bool(of(found, Role.MEMORY_CONTROLLER)) == (platform.memory_controller is not None)


@BOARDS
@pytest.mark.parametrize("role", [Role.GPU, Role.NVSWITCH])
def test_a_missing_function_is_counted(board: str, role: Role) -> None:
    host = bus(board)
    whole = of(look(host), role)
    host.remove(whole[0])
    found = discover(host, [platforms.load(board)])
    (problem,) = found.problems
    assert (problem.fault, problem.text) == (
        Fault.MISSING,
        f"{len(whole) - 1} of {len(whole)} {role.value} functions are there",
    )


@BOARDS
def test_a_board_that_lost_a_gpu_is_still_known(board: str) -> None:
    host = bus(board)
    host.remove(of(look(host), Role.GPU)[-1])
    assert look(host).platform.name == board


def test_a_network_card_of_the_same_id_is_not_the_board_s() -> None:
    host = bus("hgx-b200-8")
    cards = [f.bdf for f in host.functions() if str(f.id) == "15b3:1021"]
    assert len(cards) == 5
    assert len(of(look(host), Role.NVSWITCH)) == 4


def test_a_function_of_all_ones_is_dead_and_one_with_fewer_lanes_degraded() -> None:
    host = bus("hgx-h100-8")
    first, second, *_ = of(look(host), Role.GPU)
    host.kill(first)
    host.narrow(second, 8)
    assert [(problem.fault, problem.text) for problem in look(host).problems] == [
        (Fault.DEAD, f"gpu {first} does not answer: its registers read as all ones"),
        (Fault.DEGRADED, f"gpu {second} has 8 of 16 PCI Express lanes"),
    ]


def test_a_function_too_many_is_told() -> None:
    host = bus("hgx-h100-8")
    gpu = next(
        entry for entry in host.everything() if entry.function.pci_class == platforms.load("hgx-h100-8").gpus.pci_class
    )
    host.add(replace(gpu, function=replace(gpu.function, bdf=Bdf.parse("0000:f7:00.0"))))
    (problem,) = look(host).problems
    assert (problem.fault, problem.text) == (Fault.EXTRA, "9 of 8 gpu functions are there")


def test_a_function_of_another_class_is_not_the_board_s_whatever_its_id() -> None:
    host = bus("hgx-h100-8")
    gpu = next(entry for entry in host.everything() if str(entry.function.id) == "10de:2330")
    display = replace(gpu.function, bdf=Bdf.parse("0000:f7:00.0"), pci_class=PciClass.parse("0300"))
    host.add(replace(gpu, function=display))
    assert look(host).problems == ()


class Vanishing(SimulatedBus):
    """A host whose functions are gone when they are asked."""

    def state(self, bdf: Bdf) -> FunctionState | None:
        return None


def test_functions_that_vanish_while_they_are_looked_at_are_told() -> None:
    found = look(Vanishing(platforms.load("hgx-h100-8")))
    assert {problem.fault for problem in found.problems} == {Fault.MISSING}
    assert all("vanished" in problem.text for problem in found.problems)


class Watched(SimulatedBus):
    """A host that notes which functions are asked."""

    def __init__(self, board: str) -> None:
        super().__init__(platforms.load(board))
        self.asked: set[Bdf] = set()

    def state(self, bdf: Bdf) -> FunctionState | None:
        self.asked.add(bdf)
        return super().state(bdf)

    def vpd(self, bdf: Bdf) -> bytes:
        self.asked.add(bdf)
        return super().vpd(bdf)


def test_functions_that_are_not_the_board_s_are_not_asked() -> None:
    host = Watched("hgx-h100-8")
    found = look(host)
    assert host.asked == {device.function.bdf for device in found.devices}


class Empty(SimulatedBus):
    """A host with no board."""

    def __init__(self) -> None:
        super().__init__(platforms.load("hgx-h100-8"))
        for function in self.functions():
            self.remove(function.bdf)


def test_a_host_without_a_board_says_what_to_do() -> None:
    with pytest.raises(NoBoard, match="no HGX board") as refusal:
        look(Empty())
    assert "lspci" in refusal.value.fix


def test_the_operator_s_word_is_taken() -> None:
    found = discover(Empty(), [platforms.load("hgx-h100-8")])
    assert [problem.text for problem in found.problems] == [
        "0 of 8 gpu functions are there",
        "0 of 4 nvswitch functions are there",
    ]


def test_a_board_that_fits_two_platforms_equally_is_not_guessed() -> None:
    host = bus("hgx-a100-16")
    for bdf in of(look(host), Role.GPU)[:4] + of(look(host), Role.NVSWITCH)[:3]:
        host.remove(bdf)
    with pytest.raises(NoBoard, match="not known for certain") as refusal:
        look(host)
    assert "hgx-a100-16 and hgx-a100-8" in refusal.value.why
