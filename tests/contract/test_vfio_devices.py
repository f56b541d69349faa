# SPDX-License-Identifier: Apache-2.0
"""What both sides of the port `VfioDevices` do: pretended in memory, and over files that a small kernel reacts to.

Files do not react, so `Files` does what the kernel does, between one call and the next. That it does so while a write
is under way, and all that hangs on that, is for the emulated host.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from fmctl import platforms
from fmctl.core.errors import FmctlError, VmRunning
from fmctl.core.pci import Bdf
from fmctl.core.ports import PciBus, VfioDevices
from fmctl.core.vfio import PARKED, VFIO_PCI, Exposure, Holder, WriteFailed, WriteOverdue
from fmctl.host.sysfs import Sysfs
from fmctl.host.vfiodev import VfioFiles
from fmctl.sim.sysfs import SimulatedBus
from fmctl.sim.vfiodev import SimulatedVfio
from tests import sysfs_tree

SWITCH = Bdf.parse("0000:04:00.0")
GPU = Bdf.parse("0000:17:00.0")
NOWHERE = Bdf.parse("ffff:00:00.0")
GROUP = 11
OTHER_GROUP = 13
VM = Holder(4242, "qemu-system-x86")
SOON = 10.0


class Host(Protocol):
    """A host with a board, and what may happen to it."""

    @property
    def bus(self) -> PciBus: ...
    @property
    def devices(self) -> VfioDevices: ...
    def settle(self) -> None:
        """Let the kernel act on what was written."""

    def hold(self, group: int) -> None: ...
    def block(self, bdf: Bdf) -> None: ...
    def remove(self, bdf: Bdf) -> None: ...


class Memory:
    """The pretended side."""

    def __init__(self, simulated: SimulatedBus) -> None:
        self.bus = simulated
        self.devices = SimulatedVfio(simulated)

    def settle(self) -> None:
        pass

    def hold(self, group: int) -> None:
        self.devices.hold(group, VM)

    def block(self, bdf: Bdf) -> None:
        self.devices.block(bdf)

    def remove(self, bdf: Bdf) -> None:
        self.bus.remove(bdf)


class Files:
    """Files below a folder, and a kernel that reacts to what was written to them."""

    def __init__(self, simulated: SimulatedBus, root: Path) -> None:
        self._root = root
        self._pci = root / "sys" / "bus" / "pci"
        self._held: set[Path] = set()
        sysfs_tree.write(simulated, root / "sys")
        (root / "dev" / "vfio").mkdir(parents=True)
        (self._pci / "drivers_probe").touch()
        for driver in (VFIO_PCI, "mlx5_core", "nouveau"):
            (self._pci / "drivers" / driver).mkdir(parents=True)
            (self._pci / "drivers" / driver / "unbind").touch()
        for function in simulated.functions():
            self._set_command(function.bdf, 0x46 if function.driver else 0x42)
            self._give(function.bdf, function.driver or PARKED)
        self.bus = Sysfs(root / "sys")
        self.devices = VfioFiles(root, open_node=self._open)

    def settle(self) -> None:
        for function in self.bus.functions():
            self._settle(function.bdf)
        for file in (self._pci / "drivers_probe", *self._pci.glob("drivers/*/unbind")):
            file.write_text("")

    def hold(self, group: int) -> None:
        node = self._root / "dev" / "vfio" / str(group)
        self._held.add(node)
        files = self._root / "proc" / str(VM.pid) / "fd"
        files.mkdir(parents=True)
        (files / "31").symlink_to(node)
        (files.parent / "comm").write_text(f"{VM.command}\n")

    def block(self, bdf: Bdf) -> None:
        override = self._device(bdf) / "driver_override"
        override.unlink()
        os.mkfifo(override)

    def remove(self, bdf: Bdf) -> None:
        shutil.rmtree(self._device(bdf).resolve())
        self._device(bdf).unlink()

    def _device(self, bdf: Bdf) -> Path:
        return sysfs_tree.folder(self._root / "sys", bdf)

    def _settle(self, bdf: Bdf) -> None:
        override, driver = self._device(bdf) / "driver_override", self._device(bdf) / "driver"
        name = override.read_text().split("\n")[0]
        override.write_text(f"{name or '(null)'}\n")
        if driver.is_symlink() and f"{bdf}\n" in self._written(driver / "unbind"):
            driver.unlink()
        elif not driver.is_symlink() and f"{bdf}\n" in self._written(self._pci / "drivers_probe"):
            self._give(bdf, "nouveau" if name in ("", "(null)") else name)

    def _written(self, file: Path) -> str:
        return file.read_text() if file.exists() else ""

    def _give(self, bdf: Bdf, driver: str) -> None:
        if (self._pci / "drivers" / driver).exists():
            (self._device(bdf) / "driver").unlink(missing_ok=True)
            (self._device(bdf) / "driver").symlink_to(self._pci / "drivers" / driver)
            group = (self._device(bdf) / "iommu_group").readlink().name
            (self._root / "dev" / "vfio" / group).touch()

    def _set_command(self, bdf: Bdf, command: int) -> None:
        config = bytearray((self._device(bdf) / "config").read_bytes())
        config[4] = command
        (self._device(bdf) / "config").write_bytes(config)

    def _open(self, path: Path, flags: int) -> int:
        """One process at a time can open a group."""
        ours = {link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
        if path in self._held or path in ours:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return os.open(path, flags)


@pytest.fixture(params=["memory", "files"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    simulated = SimulatedBus(platforms.load("hgx-b200-8"))
    return Memory(simulated) if request.param == "memory" else Files(simulated, tmp_path)


def driver_of(host: Host, bdf: Bdf) -> str:
    (driver,) = (function.driver for function in host.bus.functions() if function.bdf == bdf)
    return driver


def override(host: Host, bdf: Bdf, driver: str) -> None:
    host.devices.override(bdf, driver, timeout=SOON)
    host.settle()


def unbind(host: Host, bdf: Bdf) -> None:
    host.devices.unbind(bdf, timeout=SOON)
    host.settle()


def probe(host: Host, bdf: Bdf) -> None:
    host.devices.probe(bdf, timeout=SOON)
    host.settle()


def exposure(host: Host, bdf: Bdf) -> Exposure | None:
    return host.devices.exposure(bdf, timeout=SOON)


def test_an_override_stands_until_another_takes_its_place(host: Host) -> None:
    assert exposure(host, GPU) == Exposure()
    for driver in (PARKED, VFIO_PCI, ""):
        override(host, GPU, driver)
        assert exposure(host, GPU) == Exposure(driver)
    assert driver_of(host, GPU) == ""


def test_a_function_goes_from_a_host_driver_to_vfio_pci(host: Host) -> None:
    assert driver_of(host, SWITCH) == "mlx5_core"
    override(host, SWITCH, VFIO_PCI)
    assert driver_of(host, SWITCH) == "mlx5_core"
    unbind(host, SWITCH)
    assert driver_of(host, SWITCH) == ""
    probe(host, SWITCH)
    assert driver_of(host, SWITCH) == VFIO_PCI


def test_an_override_that_names_no_driver_keeps_every_driver_away(host: Host) -> None:
    override(host, GPU, PARKED)
    probe(host, GPU)
    assert driver_of(host, GPU) == ""


def test_without_an_override_the_host_takes_a_function(host: Host) -> None:
    probe(host, GPU)
    assert driver_of(host, GPU) == "nouveau"


def test_a_function_that_has_a_driver_keeps_it(host: Host) -> None:
    override(host, SWITCH, VFIO_PCI)
    probe(host, SWITCH)
    assert driver_of(host, SWITCH) == "mlx5_core"


def test_bus_mastering_is_stopped(host: Host) -> None:
    assert exposure(host, SWITCH) == Exposure(masters_bus=True)
    host.devices.stop_bus_master(SWITCH, timeout=SOON)
    assert exposure(host, SWITCH) == Exposure()
    host.devices.stop_bus_master(SWITCH, timeout=SOON)


def test_a_function_without_a_driver_cannot_be_unbound(host: Host) -> None:
    with pytest.raises(WriteFailed, match="No such file or directory"):
        unbind(host, GPU)


WRITES: dict[str, Callable[[VfioDevices, Bdf, float], None]] = {
    "override": lambda devices, bdf, timeout: devices.override(bdf, PARKED, timeout=timeout),
    "unbind": lambda devices, bdf, timeout: devices.unbind(bdf, timeout=timeout),
    "stop bus master": lambda devices, bdf, timeout: devices.stop_bus_master(bdf, timeout=timeout),
    "reset": lambda devices, bdf, timeout: devices.reset(bdf, timeout=timeout),
    "reset by a method": lambda devices, bdf, timeout: devices.reset(bdf, method="bus", timeout=timeout),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("bdf", [SWITCH, NOWHERE])
def test_a_function_that_is_gone_takes_no_write(
    host: Host, bdf: Bdf, write: Callable[[VfioDevices, Bdf, float], None]
) -> None:
    if bdf != NOWHERE:
        host.remove(bdf)
    with pytest.raises(WriteFailed, match="No such file or directory"):
        write(host.devices, bdf, SOON)
    assert exposure(host, bdf) is None


def test_a_write_that_does_not_end_is_given_up(host: Host) -> None:
    host.block(GPU)
    with pytest.raises(WriteOverdue, match=f"the kernel does not return from .*{GPU}"):
        host.devices.override(GPU, PARKED, timeout=0.3)
    assert host.devices.exposure(GPU, timeout=0.3) is None
    assert exposure(host, SWITCH) is not None


def test_a_group_that_a_vm_has_open_is_held_by_it_alone(host: Host) -> None:
    assert host.devices.holders(GROUP) is None
    for bdf in (GPU, SWITCH):
        override(host, bdf, VFIO_PCI)
    probe(host, GPU)
    assert host.devices.holders(GROUP) is None
    host.hold(GROUP)
    assert host.devices.holders(GROUP) == (VM,)
    assert host.devices.holders(OTHER_GROUP) is None


def bound(host: Host) -> None:
    """Let a group of vfio-pci's be there to open."""
    for bdf in (SWITCH, GPU):
        override(host, bdf, VFIO_PCI)
        if driver_of(host, bdf):
            unbind(host, bdf)
        probe(host, bdf)


def test_a_kept_group_is_nobody_s_and_nobody_else_can_have_it(host: Host) -> None:
    assert host.devices.kept == frozenset()
    host.devices.give_up([GROUP])
    bound(host)
    host.devices.keep(GROUP)
    host.devices.keep(GROUP)
    assert host.devices.kept == {GROUP}
    assert host.devices.holders(GROUP) is None
    host.devices.give_up([GROUP, OTHER_GROUP])
    assert host.devices.kept == frozenset()
    host.hold(GROUP)
    assert host.devices.holders(GROUP) == (VM,)


def test_a_group_that_somebody_has_is_not_kept(host: Host) -> None:
    bound(host)
    host.hold(GROUP)
    with pytest.raises(VmRunning):
        host.devices.keep(GROUP)
    assert host.devices.kept == frozenset()


def test_there_is_nothing_to_keep_of_a_parked_function(host: Host) -> None:
    with pytest.raises(FmctlError, match="cannot be held"):
        host.devices.keep(999)
    assert host.devices.kept == frozenset()
