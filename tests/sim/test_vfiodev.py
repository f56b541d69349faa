# SPDX-License-Identifier: Apache-2.0
"""The pretended kernel does what hurts, so that a test can tell that fmctl never asks for it."""

from __future__ import annotations

import errno
import os

import pytest

from fmctl import platforms
from fmctl.core.pci import Bdf
from fmctl.core.vfio import PARKED, VFIO_PCI, Exposure, Holder, WriteFailed, WriteOverdue
from fmctl.sim.sysfs import SimulatedBus
from fmctl.sim.vfiodev import Effect, SimulatedVfio

FIRST = Bdf.parse("0000:04:00.0")
SECOND = Bdf.parse("0000:05:00.0")
GPU = Bdf.parse("0000:17:00.0")
GPU_GROUP = 11
VM = Holder(4242, "qemu-system-x86")


class Host:
    def __init__(self, board: str = "hgx-b200-8", *, shared_group: bool = False) -> None:
        self.bus = SimulatedBus(platforms.load(board), shared_group=shared_group)
        self.devices = SimulatedVfio(self.bus)

    def driver(self, bdf: Bdf) -> str:
        (driver,) = (function.driver for function in self.bus.functions() if function.bdf == bdf)
        return driver

    def group(self, bdf: Bdf) -> int:
        (group,) = (function.iommu_group for function in self.bus.functions() if function.bdf == bdf)
        assert group is not None
        return group

    def bind(self, *bdfs: Bdf) -> None:
        for bdf in bdfs:
            self.devices.override(bdf, VFIO_PCI, timeout=1)
            if self.driver(bdf):
                self.devices.unbind(bdf, timeout=1)
            self.devices.probe(bdf, timeout=1)
            assert self.driver(bdf) == VFIO_PCI


def test_opening_and_closing_a_group_resets_its_devices() -> None:
    host = Host()
    host.bind(GPU)
    host.devices.hold(GPU_GROUP, VM)
    assert (host.devices.resets[GPU], host.devices.holders(GPU_GROUP)) == (1, (VM,))
    assert host.devices.exposure(GPU, timeout=1) == Exposure(VFIO_PCI, masters_bus=True)
    host.devices.let_go(GPU_GROUP)
    assert (host.devices.resets[GPU], host.devices.holders(GPU_GROUP)) == (2, None)
    assert host.devices.exposure(GPU, timeout=1) == Exposure(VFIO_PCI)


def test_a_group_opens_once() -> None:
    host = Host()
    host.bind(GPU)
    host.devices.hold(GPU_GROUP, VM)
    with pytest.raises(OSError, match="open") as refusal:
        host.devices.hold(GPU_GROUP, VM)
    assert (refusal.value.errno, host.devices.resets[GPU]) == (errno.EBUSY, 1)


def test_a_group_none_of_whose_functions_is_bound_cannot_be_opened() -> None:
    host = Host()
    with pytest.raises(OSError, match="no node") as refusal:
        host.devices.hold(GPU_GROUP, VM)
    assert refusal.value.errno == errno.ENOENT


def test_a_group_with_a_host_driver_in_it_is_not_viable() -> None:
    host = Host(shared_group=True)
    switches = [Bdf.parse(f"0000:0{number}:00.0") for number in (4, 5, 6, 7)]
    host.bind(*switches[:-1])
    with pytest.raises(OSError, match="not viable") as refusal:
        host.devices.hold(host.group(FIRST), VM)
    assert refusal.value.errno == errno.EINVAL
    assert host.devices.holders(host.group(FIRST)) is None
    host.devices.override(switches[-1], PARKED, timeout=1)
    host.devices.unbind(switches[-1], timeout=1)
    host.devices.hold(host.group(FIRST), VM)
    assert host.devices.resets == dict.fromkeys(switches[:-1], 1)


def test_unbinding_a_device_ejects_it_from_its_vm() -> None:
    host = Host()
    host.bind(GPU, FIRST)
    host.devices.hold(GPU_GROUP, VM)
    for bdf in (GPU, FIRST):
        host.devices.unbind(bdf, timeout=1)
    assert host.devices.ejected == [GPU]
    assert host.devices.resets == {GPU: 2}
    assert host.devices.exposure(GPU, timeout=1) == Exposure(VFIO_PCI)


def test_a_device_in_use_is_reset_all_the_same() -> None:
    host = Host()
    host.bind(GPU)
    host.devices.hold(GPU_GROUP, VM)
    host.devices.reset(GPU, timeout=1)
    assert host.devices.resets[GPU] == 2
    assert host.devices.ejected == []


def test_a_reset_works_fails_hangs_or_kills_as_it_is_told() -> None:
    host = Host()
    host.devices.reset(GPU, method="flr", timeout=1)
    with pytest.raises(WriteFailed, match="Invalid argument"):
        host.devices.reset(GPU, method="pm", timeout=1)
    host.devices.on_reset(GPU, Effect.FAILS, "flr")
    with pytest.raises(WriteFailed, match="refused reset"):
        host.devices.reset(GPU, method="flr", timeout=1)
    host.devices.reset(GPU, method="bus", timeout=1)
    assert host.devices.reset_by == [(GPU, "flr"), (GPU, "bus")]
    host.devices.on_reset(GPU, Effect.BLOCKS)
    with pytest.raises(WriteOverdue):
        host.devices.reset(GPU, method="bus", timeout=1)
    host.devices.on_reset(GPU, Effect.KILLS)
    host.devices.reset(GPU, method="bus", timeout=1)
    assert host.bus.config(GPU, 0, 4) == b"\xff" * 4


@pytest.mark.parametrize(("bdf", "driver"), [(GPU, "nouveau"), (FIRST, "mlx5_core"), (Bdf(0, 1, 0, 0), "nvme")])
def test_without_an_override_a_function_gets_its_host_driver_if_it_is_loaded(bdf: Bdf, driver: str) -> None:
    host = Host()
    host.bus.change(bdf, driver="")
    host.devices.drivers.discard(driver)
    host.devices.probe(bdf, timeout=1)
    assert host.driver(bdf) == ""
    host.devices.drivers.add(driver)
    host.devices.probe(bdf, timeout=1)
    assert host.driver(bdf) == driver
    assert host.devices.exposure(bdf, timeout=1) == Exposure(masters_bus=True)


def test_a_host_driver_may_leave_bus_mastering_on() -> None:
    host = Host()
    host.devices.unbind(FIRST, timeout=1)
    assert host.devices.exposure(FIRST, timeout=1) == Exposure(masters_bus=True)
    host.bus.kill(FIRST)
    assert host.devices.exposure(FIRST, timeout=1) == Exposure()


def test_faults_last_until_they_are_healed() -> None:
    host = Host()
    host.devices.fail(FIRST, errno.EBUSY)
    host.devices.block(SECOND)
    with pytest.raises(WriteFailed, match=os.strerror(errno.EBUSY)):
        host.devices.reset(FIRST, timeout=1)
    with pytest.raises(WriteOverdue, match=f"reset of {SECOND}"):
        host.devices.reset(SECOND, timeout=1)
    assert host.devices.exposure(SECOND, timeout=1) is None
    for bdf in (FIRST, SECOND):
        host.devices.heal(bdf)
        host.devices.reset(bdf, timeout=1)
    assert host.devices.resets == {FIRST: 1, SECOND: 1}


def test_the_bus_does_not_find_a_function_that_is_gone() -> None:
    host = Host()
    host.bus.remove(GPU)
    with pytest.raises(WriteFailed, match=os.strerror(errno.ENODEV)):
        host.devices.probe(GPU, timeout=1)
