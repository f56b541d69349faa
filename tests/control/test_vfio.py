# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fmctl import platforms
from fmctl.control.discovery import discover
from fmctl.control.vfio import Vfio
from fmctl.core.errors import BadRequest, FmctlError, HostCordoned, VmRunning
from fmctl.core.inventory import Role
from fmctl.core.pci import Bdf, PciFunction
from fmctl.core.vfio import PARKED, VFIO_PCI, Binding, Exposure, Holder, HostBusy, Step, WriteFailed, WriteOverdue
from fmctl.sim.sysfs import SimulatedBus
from fmctl.sim.vfiodev import SimulatedVfio

VM = Holder(4242, "qemu-system-x86")
FOR_SERVICE_VM = [Role.NVSWITCH, Role.MEMORY_CONTROLLER]

BOARDS = pytest.mark.parametrize("board", platforms.names())
LAYOUTS = pytest.mark.parametrize("shared_group", [False, True], ids=["own groups", "shared group"])


class Host:
    """A pretended host with its board, and the steps that were told of."""

    def __init__(
        self,
        board: str = "hgx-b200-8",
        *,
        shared_group: bool = False,
        devices: type[SimulatedVfio] = SimulatedVfio,
        dry_run: bool = False,
    ) -> None:
        platform = platforms.load(board)
        self.bus = SimulatedBus(platform, shared_group=shared_group)
        self.devices = devices(self.bus)
        self.board = discover(self.bus, [platform])
        self.told: list[Step] = []
        self.locked = 0
        self.busy = False
        self.vfio = Vfio(self.bus, self.devices, lock=self.lock, tell=self.told.append, dry_run=dry_run)

    @contextmanager
    def lock(self) -> Iterator[None]:
        if self.busy:
            raise HostBusy("another one is at it")
        self.locked += 1
        yield
        self.locked -= 1

    def of(self, *roles: Role) -> list[Bdf]:
        return [device.function.bdf for device in self.board.devices if device.role in roles]

    def function(self, bdf: Bdf) -> PciFunction:
        (found,) = (function for function in self.bus.functions() if function.bdf == bdf)
        return found

    def drivers(self, bdfs: list[Bdf]) -> set[str]:
        return {self.function(bdf).driver for bdf in bdfs}

    def exposure(self, bdf: Bdf) -> Exposure | None:
        return self.devices.exposure(bdf, timeout=1)

    def group(self, bdf: Bdf) -> int:
        group = self.function(bdf).iommu_group
        assert group is not None
        return group

    def everything(self) -> list[tuple[PciFunction, Exposure | None]]:
        return [(function, self.exposure(function.bdf)) for function in self.bus.functions()]

    def bind_for_service_vm(self) -> None:
        self.vfio.bind(self.board, self.of(*FOR_SERVICE_VM))

    def told_lines(self) -> list[str]:
        return [str(step) for step in self.told]


@BOARDS
@LAYOUTS
def test_what_the_service_vm_gets_is_bound_and_nothing_else_changes(board: str, *, shared_group: bool) -> None:
    host = Host(board, shared_group=shared_group)
    wanted = host.of(*FOR_SERVICE_VM)
    others = [entry for entry in host.everything() if entry[0].bdf not in wanted]
    host.bind_for_service_vm()
    assert host.drivers(wanted) == {VFIO_PCI}
    assert [entry for entry in host.everything() if entry[0].bdf not in wanted] == others
    host.devices.hold(host.group(wanted[0]), VM)


@BOARDS
@LAYOUTS
def test_a_second_bind_does_nothing_and_minds_no_holder(board: str, *, shared_group: bool) -> None:
    host = Host(board, shared_group=shared_group)
    host.bind_for_service_vm()
    for group in {host.group(bdf) for bdf in host.of(*FOR_SERVICE_VM)}:
        host.devices.hold(group, VM)
    host.told.clear()
    host.bind_for_service_vm()
    assert (host.told, host.devices.ejected) == ([], [])


@BOARDS
def test_a_parked_function_has_no_driver_and_cannot_use_the_bus(board: str) -> None:
    host = Host(board)
    everything = host.of(*Role)
    host.bind_for_service_vm()
    host.vfio.park(host.board, everything)
    assert host.drivers(everything) == {""}
    assert {host.exposure(bdf) for bdf in everything} == {Exposure(PARKED)}
    host.told.clear()
    host.vfio.park(host.board, everything)
    assert host.told == []
    host.devices.probe(everything[0], timeout=1)
    assert host.drivers(everything) == {""}


def test_a_host_driver_that_leaves_bus_mastering_on_does_not_keep_it() -> None:
    host = Host()
    switch = host.of(Role.NVSWITCH)[0]
    assert host.function(switch).driver == "mlx5_core"
    host.vfio.park(host.board, [switch])
    assert host.told_lines() == [
        f"{switch}: set driver_override to fmctl-parked",
        f"{switch}: unbind from mlx5_core",
        f"{switch}: stop bus mastering",
    ]
    assert host.exposure(switch) == Exposure(PARKED)


def test_a_parked_gpu_can_be_bound_and_parked_again() -> None:
    host = Host()
    gpu = host.of(Role.GPU)[0]
    for _ in range(2):
        host.vfio.park(host.board, [gpu])
        host.vfio.bind(host.board, [gpu])
        host.devices.hold(host.group(gpu), VM)
        host.devices.let_go(host.group(gpu))
    assert host.function(gpu).driver == VFIO_PCI


def test_a_refused_group_changes_nothing() -> None:
    host = Host(shared_group=True)
    switch = host.of(Role.NVSWITCH)[0]
    host.bus.intrude(host.group(switch))
    before = host.everything()
    with pytest.raises(HostCordoned, match="not the board's"):
        host.bind_for_service_vm()
    with pytest.raises(BadRequest):
        host.vfio.park(host.board, [switch, Bdf.parse("0000:01:00.0")])
    assert (host.everything(), host.told) == (before, [])


def test_a_held_group_is_refused_before_the_first_write() -> None:
    host = Host()
    first, *_, last = host.of(Role.GPU)
    host.vfio.bind(host.board, [last])
    host.devices.hold(host.group(last), VM)
    before = host.everything()
    host.told.clear()
    with pytest.raises(VmRunning) as refusal:
        host.vfio.park(host.board, [first, last])
    assert refusal.value.why == f"gpu {last} is held by qemu-system-x86 (process 4242)"
    assert (host.everything(), host.told, host.devices.ejected) == (before, [], [])


def test_a_held_group_that_lacks_a_member_is_refused() -> None:
    host = Host(shared_group=True)
    first, *_, last = host.of(Role.NVSWITCH)
    host.bind_for_service_vm()
    host.vfio.park(host.board, [last])
    host.devices.hold(host.group(first), VM)
    with pytest.raises(VmRunning, match="nvswitch"):
        host.bind_for_service_vm()
    assert host.function(last).driver == ""


class VmStartsMeanwhile(SimulatedVfio):
    """A VM that starts when the first override is written."""

    def override(self, bdf: Bdf, driver: str, *, timeout: float) -> None:
        super().override(bdf, driver, timeout=timeout)
        (group,) = (f.iommu_group for f in self._bus.functions() if f.bdf == bdf)
        if driver == PARKED and group is not None and self.holders(group) is None:
            self.hold(group, VM)


def test_a_vm_that_starts_meanwhile_keeps_its_devices() -> None:
    host = Host(devices=VmStartsMeanwhile)
    gpu = host.of(Role.GPU)[0]
    host.vfio.bind(host.board, [gpu])
    with pytest.raises(VmRunning, match=r"qemu-system-x86 \(process 4242\)"):
        host.vfio.park(host.board, [gpu])
    assert host.devices.ejected == []
    assert host.function(gpu).driver == VFIO_PCI


def test_those_that_nobody_holds_are_parked_and_the_others_returned() -> None:
    host = Host()
    first, second, *_ = gpus = host.of(Role.GPU)
    host.vfio.bind(host.board, [first, second])
    host.devices.hold(host.group(first), VM)
    (held,) = host.vfio.park_unheld(host.board, gpus)
    assert (held.role, held.function, held.holders) == (Role.GPU, host.function(first), (VM,))
    assert host.drivers([first]) == {VFIO_PCI}
    assert {host.exposure(bdf) for bdf in gpus[1:]} == {Exposure(PARKED)}
    host.devices.let_go(host.group(first))
    assert host.vfio.park_unheld(host.board, gpus) == ()
    assert host.drivers(gpus) == {""}


class Interrupted(SimulatedVfio):
    """A kernel that refuses the write after so many."""

    left = 0

    def _enter(self, bdf: Bdf, attribute: str, *, gone: int = errno.ENOENT) -> PciFunction:
        self.left -= 1
        if not self.left:
            raise WriteFailed(f"the kernel refused {attribute} of {bdf}", why="No space left on device")
        return super()._enter(bdf, attribute, gone=gone)


@LAYOUTS
@pytest.mark.parametrize("interrupted", range(1, 40))
def test_the_same_call_goes_on_from_where_a_failure_left_it(interrupted: int, *, shared_group: bool) -> None:
    whole = Host(shared_group=shared_group)
    host = Host(shared_group=shared_group, devices=Interrupted)
    for each in (whole, host):
        each.devices.override(each.of(Role.GPU)[0], "nouveau", timeout=1)
        each.devices.probe(each.of(Role.GPU)[0], timeout=1)
    whole.bind_for_service_vm()
    whole.vfio.park(whole.board, whole.of(Role.GPU))
    assert isinstance(host.devices, Interrupted)
    host.devices.left = interrupted
    for _ in range(2):
        try:
            host.bind_for_service_vm()
            host.vfio.park(host.board, host.of(Role.GPU))
        except WriteFailed as error:
            assert str(error).endswith("No space left on device")
    assert host.everything() == whole.everything()
    assert [line for line in whole.told_lines() if line not in host.told_lines()] == []


def test_a_failed_write_stops_at_once_and_says_where_why_and_what_to_do() -> None:
    host = Host()
    first, second, third, *_ = host.of(Role.NVSWITCH)
    host.devices.fail(second, errno.EBUSY)
    with pytest.raises(WriteFailed) as failure:
        host.bind_for_service_vm()
    assert failure.value.what == f"{second}: set driver_override to vfio-pci failed"
    assert failure.value.why == f"the kernel refused driver_override of {second}: Device or resource busy"
    assert "run the same again" in failure.value.fix
    assert host.exposure(first) == Exposure(VFIO_PCI, masters_bus=True)
    assert host.drivers([third]) == {"mlx5_core"}
    assert host.told_lines()[-1] == f"{first}: unbind from mlx5_core"


def test_a_write_that_does_not_end_is_told_as_such() -> None:
    host = Host()
    gpu = host.of(Role.GPU)[2]
    host.devices.block(gpu)
    with pytest.raises(WriteOverdue) as failure:
        host.vfio.park(host.board, host.of(Role.GPU))
    assert failure.value.what == f"{gpu}: set driver_override to fmctl-parked did not end in 60 s"
    assert "dmesg" in failure.value.fix
    host.devices.heal(gpu)
    host.vfio.park(host.board, host.of(Role.GPU))
    assert {host.exposure(bdf) for bdf in host.of(Role.GPU)} == {Exposure(PARKED)}


def test_a_driver_that_is_not_there_leaves_a_bind_without_effect() -> None:
    host = Host()
    switch = host.of(Role.NVSWITCH)[0]
    host.devices.drivers.discard(VFIO_PCI)
    with pytest.raises(WriteFailed) as failure:
        host.vfio.bind(host.board, [switch])
    assert failure.value.what == f"{switch}: bind to vfio-pci had no effect"
    assert failure.value.why == "it has driver none and driver_override vfio-pci"


class Deaf(SimulatedVfio):
    """A kernel that takes a write to driver_override and forgets it."""

    def override(self, bdf: Bdf, driver: str, *, timeout: float) -> None:
        pass


def test_every_write_is_verified_before_the_next() -> None:
    host = Host(devices=Deaf)
    switch = host.of(Role.NVSWITCH)[0]
    with pytest.raises(WriteFailed, match="set driver_override to vfio-pci had no effect: it has driver mlx5_core"):
        host.vfio.bind(host.board, [switch])
    assert host.function(switch).driver == "mlx5_core"
    assert host.told == []


class Vanishing(SimulatedVfio):
    """A function that is gone once it is unbound, or before."""

    before = False

    def unbind(self, bdf: Bdf, *, timeout: float) -> None:
        if not self.before:
            super().unbind(bdf, timeout=timeout)
        self._bus.remove(bdf)
        if self.before:
            super().unbind(bdf, timeout=timeout)


@pytest.mark.parametrize("before", [False, True])
def test_a_function_that_vanishes_meanwhile_is_told(*, before: bool) -> None:
    host = Host(devices=Vanishing)
    assert isinstance(host.devices, Vanishing)
    host.devices.before = before
    switch = host.of(Role.NVSWITCH)[0]
    with pytest.raises(FmctlError, match=f"{switch} is gone: the kernel no longer lists it"):
        host.bind_for_service_vm()


def test_a_dry_run_tells_the_steps_and_writes_nothing() -> None:
    host, real = Host(dry_run=True), Host()
    host.busy = True
    before = host.everything()
    for each in (host, real):
        each.bind_for_service_vm()
        each.vfio.park_unheld(each.board, each.of(Role.GPU))
    assert host.everything() == before
    assert host.told == real.told != []


def test_a_dry_run_refuses_what_is_held() -> None:
    host = Host(dry_run=True)
    gpu = host.of(Role.GPU)[0]
    host.bus.change(gpu, driver=VFIO_PCI)
    host.devices.hold(host.group(gpu), VM)
    with pytest.raises(VmRunning):
        host.vfio.park(host.board, [gpu])
    assert host.told == []


class NeedsLock(SimulatedVfio):
    """A kernel that is written to only while the lock is held."""

    host: Host

    def _enter(self, bdf: Bdf, attribute: str, *, gone: int = errno.ENOENT) -> PciFunction:
        assert self.host.locked == 1
        return super()._enter(bdf, attribute, gone=gone)


def test_one_process_at_a_time_changes_drivers() -> None:
    host = Host(devices=NeedsLock)
    assert isinstance(host.devices, NeedsLock)
    host.devices.host = host
    first, second, *_ = host.of(Role.NVSWITCH)
    for change in (host.vfio.bind, host.vfio.park, host.vfio.park_unheld):
        before = host.everything()
        host.busy = True
        with pytest.raises(HostBusy):
            change(host.board, [first])
        assert host.everything() == before
        host.busy = False
        change(host.board, [first] if change == host.vfio.bind else [first, second])
        assert host.locked == 0
    host.busy = True
    assert host.vfio.status(host.board)


def test_status_shows_who_may_use_and_who_holds_each_function() -> None:
    host = Host("hgx-h100-8")
    parked, bound, stuck, lost, *_ = host.of(Role.GPU)
    host.vfio.park(host.board, [parked])
    host.vfio.bind(host.board, [bound])
    host.devices.hold(host.group(bound), VM)
    host.devices.block(stuck)
    host.bus.remove(lost)
    by_address = {usage.function.bdf: usage for usage in host.vfio.status(host.board)}
    assert list(by_address) == [bdf for bdf in host.of(*Role) if bdf != lost]
    assert (by_address[parked].binding, by_address[parked].holders) == (Binding.PARKED, None)
    assert (by_address[bound].binding, by_address[bound].holders) == (Binding.BOUND, (VM,))
    assert by_address[stuck].binding is Binding.UNKNOWN
    assert by_address[host.of(Role.MEMORY_CONTROLLER)[0]].binding is Binding.FREE
    assert [usage.is_held for usage in host.vfio.usages(host.board, by_address)] == [
        usage.is_held for usage in by_address.values()
    ]
    assert [(u.function.bdf, u.is_held) for u in host.vfio.usages(host.board, [lost, bound])] == [(bound, True)]


def test_a_function_in_no_group_is_held_by_nobody() -> None:
    host = Host()
    gpu = host.of(Role.GPU)[0]
    host.bus.change(gpu, iommu_group=None)
    host.vfio.park(host.board, [gpu])
    (usage,) = (usage for usage in host.vfio.status(host.board) if usage.function.bdf == gpu)
    assert (usage.binding, usage.is_held) == (Binding.PARKED, False)
