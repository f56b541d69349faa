# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from fmctl.core import vfio
from fmctl.core.errors import VmRunning
from fmctl.core.inventory import Role
from fmctl.core.pci import Bdf, PciClass, PciFunction, PciId
from fmctl.core.vfio import PARKED, VFIO_PCI, Action, Binding, Exposure, Holder, Step, Usage

FIRST = Bdf.parse("0000:05:00.0")
SECOND = Bdf.parse("0000:06:00.0")


def function(bdf: Bdf = FIRST, driver: str = "") -> PciFunction:
    return PciFunction(bdf, PciId.parse("10de:22a3"), PciClass.parse("0680"), driver=driver, iommu_group=12)


def lines(steps: tuple[Step, ...]) -> list[str]:
    return [str(step).removeprefix("0000:") for step in steps]


def test_a_group_is_released_before_it_is_bound() -> None:
    members = [function(FIRST, "mlx5_core"), function(SECOND)]
    assert lines(vfio.bind(members, {SECOND: Exposure()})) == [
        "05:00.0: set driver_override to vfio-pci",
        "05:00.0: unbind from mlx5_core",
        "06:00.0: set driver_override to vfio-pci",
        "05:00.0: bind to vfio-pci",
        "06:00.0: bind to vfio-pci",
    ]


def test_what_is_bound_needs_no_step() -> None:
    members = [function(FIRST, VFIO_PCI), function(SECOND, VFIO_PCI)]
    assert vfio.bind(members, {}) == ()


def test_an_override_that_is_right_is_not_written_again() -> None:
    assert lines(vfio.bind([function()], {FIRST: Exposure(VFIO_PCI)})) == ["05:00.0: bind to vfio-pci"]


@pytest.mark.parametrize("driver", [VFIO_PCI, "nouveau"])
def test_parking_forbids_every_driver_before_it_takes_the_one_there_is(driver: str) -> None:
    assert lines(vfio.park([function(driver=driver)], {FIRST: Exposure(PARKED)})) == [
        "05:00.0: set driver_override to fmctl-parked",
        f"05:00.0: unbind from {driver}",
        "05:00.0: stop bus mastering",
    ]


@pytest.mark.parametrize(
    ("exposure", "expected"),
    [
        (Exposure(PARKED), []),
        (Exposure(PARKED, masters_bus=True), [Action.STOP_BUS_MASTER]),
        (Exposure(VFIO_PCI), [Action.OVERRIDE]),
        (Exposure(), [Action.OVERRIDE]),
        (Exposure(masters_bus=True), [Action.OVERRIDE, Action.STOP_BUS_MASTER]),
        (None, [Action.OVERRIDE, Action.STOP_BUS_MASTER]),
    ],
    ids=["parked", "interrupted", "unbound", "free", "left mastering", "not told"],
)
def test_a_function_without_a_driver_is_parked_by_what_it_lacks(
    exposure: Exposure | None, expected: list[Action]
) -> None:
    exposures = {FIRST: exposure} if exposure else {}
    assert [step.action for step in vfio.park([function()], exposures)] == expected


@pytest.mark.parametrize(
    ("driver", "exposure", "binding"),
    [
        (VFIO_PCI, None, Binding.BOUND),
        (VFIO_PCI, Exposure(PARKED), Binding.BOUND),
        ("nouveau", None, Binding.HOST),
        ("", None, Binding.UNKNOWN),
        ("", Exposure(PARKED), Binding.PARKED),
        ("", Exposure(PARKED, masters_bus=True), Binding.FREE),
        ("", Exposure(), Binding.FREE),
        ("", Exposure(VFIO_PCI), Binding.FREE),
    ],
)
def test_who_may_use_a_function(driver: str, exposure: Exposure | None, binding: Binding) -> None:
    assert Usage(Role.GPU, function(driver=driver), exposure=exposure).binding is binding


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        (Step(FIRST, Action.OVERRIDE, PARKED), ("", Exposure(VFIO_PCI)), ("", Exposure(PARKED))),
        (Step(FIRST, Action.OVERRIDE, PARKED), ("", None), (VFIO_PCI, Exposure(PARKED))),
        (Step(FIRST, Action.UNBIND, VFIO_PCI), (VFIO_PCI, None), ("", None)),
        (Step(FIRST, Action.PROBE, VFIO_PCI), ("nouveau", None), (VFIO_PCI, None)),
        (Step(FIRST, Action.STOP_BUS_MASTER), ("", Exposure(masters_bus=True)), ("", Exposure())),
        (Step(FIRST, Action.STOP_BUS_MASTER), ("", None), ("", Exposure())),
    ],
)
def test_a_step_has_worked_when_the_kernel_shows_it(
    step: Step, before: tuple[str, Exposure | None], after: tuple[str, Exposure | None]
) -> None:
    assert not step.has_worked(function(driver=before[0]), before[1])
    assert step.has_worked(function(driver=after[0]), after[1])


@pytest.mark.parametrize(
    ("config", "masters"),
    [
        (bytes.fromhex("de10a3224605") + bytes(58), True),
        (bytes.fromhex("de10a3224201") + bytes(58), False),
        (bytes.fromhex("de10a3220004") + bytes(58), False),
        (b"\xff" * 64, False),
        (bytes.fromhex("de10a322"), False),
        (b"", False),
    ],
    ids=["on", "off", "the other byte", "dead", "short", "gone"],
)
def test_bus_mastering_is_read_from_the_command_register(config: bytes, *, masters: bool) -> None:
    assert vfio.masters_bus(config) is masters


def test_holders_are_named() -> None:
    free = Usage(Role.GPU, function())
    unseen = Usage(Role.GPU, function(), ())
    seen = Usage(Role.NVSWITCH, function(SECOND), (Holder(4242, "qemu-system-x86"), Holder(7, "cat")))
    vfio.refuse_held([free])
    with pytest.raises(VmRunning) as refusal:
        vfio.refuse_held([free, unseen, seen])
    assert refusal.value.why == (
        "gpu 0000:05:00.0 is held by a process that cannot be seen;"
        " nvswitch 0000:06:00.0 is held by qemu-system-x86 (process 4242) and cat (process 7)"
    )
    assert refusal.value.fix == "stop that VM, and run the same again"
    assert (free.held_by, str(free)) == ("", "gpu 0000:05:00.0 is held by nobody")
