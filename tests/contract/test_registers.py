# SPDX-License-Identifier: Apache-2.0
"""What both sides of the port `Registers` read: pretended in memory, and from files of a GPU without a driver."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from fmctl import platforms
from fmctl.core import straps
from fmctl.core.errors import VmRunning
from fmctl.core.pci import Bdf, PciFunction
from fmctl.core.platform import StrapRules
from fmctl.core.ports import Registers
from fmctl.core.straps import Unreadable
from fmctl.core.vfio import VFIO_PCI, Holder
from fmctl.host.registers import HostRegisters
from fmctl.sim.registers import SimulatedRegisters
from fmctl.sim.sysfs import SimulatedBus
from fmctl.sim.vfiodev import SimulatedVfio

H100 = platforms.load("hgx-h100-8")
RULES = cast(StrapRules, H100.module_ids.straps)
PROBE = straps.probe(RULES)
SIZE = 1 << 20
SOON = 10.0


class Side:
    """A host's GPUs, and what may happen to their registers."""

    def __init__(self, kind: str, root: Path) -> None:
        self.bus = SimulatedBus(H100)
        self.memory = SimulatedRegisters(H100, self.bus, SimulatedVfio(self.bus))
        self._root = root
        self._kind = kind

    @property
    def registers(self) -> Registers:
        if self._kind == "memory":
            return self.memory
        for gpu in self.gpus:
            self._lay_out(gpu.bdf)
        return HostRegisters(self._root)

    @property
    def gpus(self) -> list[PciFunction]:
        return [f for f in self.bus.functions() if f.pci_class == H100.gpus.pci_class]

    def _lay_out(self, bdf: Bdf) -> None:
        folder = self._root / "sys/bus/pci/devices" / str(bdf)
        (folder / "power").mkdir(parents=True, exist_ok=True)
        (folder / "power" / "control").write_text("auto\n")
        (folder / "enable").write_text("0\n")
        state = self.bus.state(bdf)
        region = bytearray(b"\0" * SIZE if state and state.answers else b"\xff" * SIZE)
        for offset, value in self.memory.values[bdf].items() if state and state.answers else ():
            region[offset : offset + 4] = value.to_bytes(4, "little")
        (folder / "resource0").write_bytes(region)

    def attributes(self, bdf: Bdf) -> list[str]:
        folder = self._root / "sys/bus/pci/devices" / str(bdf)
        return [(folder / name).read_text().strip()[:4] for name in ("power/control", "enable")]


@pytest.fixture(params=["memory", "files"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Side:
    return Side(request.param, tmp_path)


def test_every_gpu_of_the_board_says_which_module_it_is(side: Side) -> None:
    registers = side.registers
    said = [straps.module_id(RULES, gpu, registers.read(gpu, PROBE, timeout=SOON)) for gpu in side.gpus]
    assert said == list(H100.physical_ids)


def test_a_dead_gpu_does_not_settle(side: Side) -> None:
    gpu = side.gpus[0]
    side.bus.kill(gpu.bdf)
    with pytest.raises(Unreadable, match=r"did not become ready in 0\.3 s: .* reads as 0xffffffff"):
        side.registers.read(gpu, PROBE, timeout=0.3)


@pytest.mark.parametrize(
    ("offset", "value", "shown"),
    [(0x0, 0x170000A1, "0x170000a1"), (0x200BC, 0x0, "0x00000000"), (0x200BC, 0xBADF1100, "0xbadf1100")],
)
def test_a_gpu_that_does_not_start_does_not_settle(side: Side, offset: int, value: int, shown: str) -> None:
    gpu = side.gpus[0]
    side.memory.values[gpu.bdf][offset] = value
    with pytest.raises(Unreadable, match=f"reads as {shown}"):
        side.registers.read(gpu, PROBE, timeout=0.3)


def test_what_a_host_driver_has_is_not_read(side: Side) -> None:
    with pytest.raises(Unreadable, match="its driver is nouveau"):
        side.registers.read(replace(side.gpus[0], driver="nouveau"), PROBE, timeout=SOON)


def test_a_gpu_that_is_gone_is_unreadable(side: Side) -> None:
    gone = replace(side.gpus[0], bdf=Bdf(0xFFFF, 0, 0, 0))
    with pytest.raises(Unreadable, match="No such file or directory"):
        side.registers.read(gone, PROBE, timeout=SOON)


def test_a_gpu_is_awake_and_enabled_only_while_it_is_read(tmp_path: Path) -> None:
    side = Side("files", tmp_path)
    side.registers.read(side.gpus[0], PROBE, timeout=SOON)
    assert side.attributes(side.gpus[0].bdf) == ["auto", "0"]
    assert isinstance(side.registers, HostRegisters)


def bound() -> tuple[Side, PciFunction, SimulatedVfio]:
    """A pretended host whose first GPU vfio-pci has."""
    side = Side("memory", Path())
    side.bus.change(side.gpus[0].bdf, driver=VFIO_PCI)
    return side, side.gpus[0], side.memory.devices


def test_a_bound_gpu_is_reset_when_it_is_opened_and_closed() -> None:
    side, gpu, devices = bound()
    side.registers.read(gpu, PROBE, timeout=SOON)
    assert devices.resets[gpu.bdf] == 2 and devices.holders(gpu.iommu_group or 0) is None


def test_a_gpu_that_a_vm_has_is_left_alone() -> None:
    side, gpu, devices = bound()
    devices.hold(gpu.iommu_group or 0, Holder(1, "qemu"))
    with pytest.raises(VmRunning, match="a process has its group open"):
        side.registers.read(gpu, PROBE, timeout=SOON)
    assert devices.resets[gpu.bdf] == 1 and not devices.ejected
