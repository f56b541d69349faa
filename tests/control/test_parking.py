# SPDX-License-Identifier: Apache-2.0
"""Which GPUs can be opened, by whom, and when: over a pretended kernel that refuses what a real one does."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from fmctl.control.parking import TAKE_WITHIN, Parking
from fmctl.control.vfio import Vfio
from fmctl.core.book import Entry, Kind, Mark, MarkKind, of_mark
from fmctl.core.errors import FabricNotReady, HostCordoned, MapUnverified, NoSuchLease, PartitionHeld, VmRunning
from fmctl.core.inventory import Role
from fmctl.core.lease import Lease, LeaseState
from fmctl.core.rules import Mode
from fmctl.core.rules import Rules as LeaseRules
from fmctl.core.vfio import PARKED, VFIO_PCI, Exposure, Holder, WriteFailed
from tests.control.leasing import World, uuid_of

SERVICE_VM = uuid_of("service-vm")
VM = uuid_of("tenant")
BARE = Holder(7, "qemu-system-x86")
T = 1.0


class Gated(World):
    """A host whose GPUs are parked."""

    def __init__(self, mode: Mode = Mode.MANAGE) -> None:
        super().__init__("hgx-h100-8", LeaseRules(mode))
        self.devices = self.host.devices
        self.parking = self.gate_of()

    def gate_of(self, *, takes_from_host: bool = True) -> Parking:
        return Parking(
            self.controller.store,
            Vfio(self.host.bus, self.host.devices),
            self.host.devices,
            inventory=self._inventory,
            gpu_map=self._verified_map,
            observed=lambda: self.controller.reconciler.observed,
            service_vm=SERVICE_VM,
            takes_from_host=takes_from_host,
            clock=self.clock,
            now=self.clock,
        )

    def restart_daemon(self) -> None:
        super().restart_daemon()
        self.parking = self.gate_of()

    def leased(self, *gpus: int, owner: str = "a", request_id: str = "r", vm: str = VM) -> Lease:
        return self.allocate(owner, request_id, gpu_ids=gpus, vm_uuid=vm)

    def driver(self, gpu: int) -> str:
        return next(f.driver for f in self.host.bus.functions() if f.bdf == self.address[gpu])

    @property
    def parked(self) -> set[int]:
        """The GPUs that nobody can open, and no driver can get."""
        return {
            gpu
            for gpu, bdf in self.address.items()
            if not self.driver(gpu) and self.devices.exposure(bdf, timeout=T) == Exposure(PARKED)
        }

    def group(self, gpu: int) -> int:
        found = next(f.iommu_group for f in self.host.bus.functions() if f.bdf == self.address[gpu])
        assert found is not None
        return found

    def can_be_opened(self, *gpus: int) -> bool:
        """Whether a QEMU that somebody starts by hand gets all of these GPUs."""
        opened = []
        try:
            for gpu in gpus:
                self.devices.hold(self.group(gpu), BARE)
                opened.append(gpu)
        except OSError as error:
            assert error.errno in (errno.ENOENT, errno.EBUSY)
        for gpu in opened:
            self.devices.let_go(self.group(gpu))
        return len(opened) == len(gpus)

    def what(self) -> list[str]:
        return [e.what for e in self.entries() if e.kind.value == "gpu"]

    def entries(self) -> tuple[Entry, ...]:
        return self.store.entries(0, limit=10_000)


@pytest.fixture
def world() -> Gated:
    return Gated()


def test_a_gpu_that_nobody_holds_is_parked(world: Gated) -> None:
    assert world.can_be_opened(1)
    world.parking.step()
    assert world.parked == set(range(1, 9))
    assert not any(world.can_be_opened(gpu) for gpu in range(1, 9))
    assert world.what() == ["parked"] * 8


def test_a_parked_gpu_is_not_touched_again(world: Gated) -> None:
    world.parking.step()
    for bdf in world.address.values():
        world.devices.block(bdf)
    world.parking.step()
    assert world.what() == ["parked"] * 8


def test_what_somebody_binds_is_parked_again(world: Gated) -> None:
    world.parking.step()
    world.devices.override(world.address[3], VFIO_PCI, timeout=T)
    world.devices.probe(world.address[3], timeout=T)
    assert world.can_be_opened(3)
    world.parking.step()
    assert world.parked == set(range(1, 9))


def test_a_driver_of_the_host_keeps_a_gpu_where_fmctl_keeps_no_service_vm(world: Gated) -> None:
    world.parking = world.gate_of(takes_from_host=False)
    world.host.bus.change(world.address[2], driver="nvidia")
    world.parking.step()
    assert (world.driver(2), world.parked) == ("nvidia", {1, 3, 4, 5, 6, 7, 8})
    world.parking = world.gate_of()
    world.parking.step()
    assert world.parked == set(range(1, 9))


def test_a_lease_alone_binds_nothing(world: Gated) -> None:
    world.leased(1, 3)
    world.parking.step()
    assert world.parked == set(range(1, 9))
    assert world.parking.ready == frozenset()


def test_prepared_gpus_are_bound_and_still_nobody_s(world: Gated) -> None:
    lease = world.leased(1, 3)
    world.parking.step()
    assert world.parking.prepare(lease.id, timeout=T) == lease
    world.parking.step()
    assert world.parked == {2, 4, 5, 6, 7, 8}
    assert world.driver(1) == VFIO_PCI
    assert not world.can_be_opened(1)
    assert not world.can_be_opened(3)
    assert world.parking.ready == {lease.id}
    assert world.what()[-4:] == ["to be bound"] * 2 + ["bound"] * 2


def test_to_prepare_again_changes_nothing(world: Gated) -> None:
    lease = world.leased(1, 3)
    world.parking.prepare(lease.id, timeout=T)
    before = world.store.book.revision
    world.parking.prepare(lease.id, timeout=T)
    assert (world.store.book.revision, world.devices.resets.total()) == (before, 0)


def test_once_handed_over_the_vm_takes_them_and_they_are_parked_after_it(world: Gated) -> None:
    lease = world.leased(1, 3)
    for _ in range(2):
        world.parking.prepare(lease.id, timeout=T)
        world.parking.hand_over(lease.id)
        world.parking.step()
        assert world.parking.ready == {lease.id}
        world.start_vm("tenant", (1, 3))
        world.parking.step()
        assert world.what()[-2:] == ["taken"] * 2
        assert world.parking.alarms == ()
        world.parking.step()
        world.stop_vm("tenant")
        world.parking.step()
        assert world.parked == set(range(1, 9))
        assert world.lease(lease.id).state is LeaseState.ACTIVE
    assert world.devices.ejected == []


def test_a_hand_over_without_preparing_is_refused(world: Gated) -> None:
    lease = world.leased(1, 3)
    world.parking.step()
    with pytest.raises(FabricNotReady, match="not ready"):
        world.parking.hand_over(lease.id)


def test_what_no_vm_takes_is_parked_again(world: Gated) -> None:
    lease = world.leased(1, 3)
    world.parking.prepare(lease.id, timeout=T)
    world.parking.hand_over(lease.id)
    world.wait(TAKE_WITHIN - 1)
    world.parking.step()
    assert world.driver(1) == VFIO_PCI
    world.wait(1)
    world.parking.step()
    assert world.parked == set(range(1, 9))
    assert world.parking.ready == frozenset()
    assert "not taken" in world.what()


def test_what_is_taken_back_is_parked_at_once(world: Gated) -> None:
    lease = world.leased(1, 3)
    world.parking.prepare(lease.id, timeout=T)
    world.parking.hand_over(lease.id)
    world.parking.step()
    assert world.can_be_opened(1, 3)
    world.parking.take_back(lease.id)
    world.parking.take_back(lease.id)
    world.parking.step()
    assert world.parked == set(range(1, 9))
    assert world.parking.ready == frozenset()


def test_what_is_prepared_again_after_a_hand_over_is_kept_again(world: Gated) -> None:
    lease = world.leased(1, 3)
    world.parking.prepare(lease.id, timeout=T)
    world.parking.hand_over(lease.id)
    world.parking.prepare(lease.id, timeout=T)
    assert not world.can_be_opened(1)
    world.wait(TAKE_WITHIN)
    world.parking.step()
    assert world.parking.ready == {lease.id}
    assert "not taken" not in world.what()


def test_they_are_kept_while_the_daemon_is_started_again(world: Gated) -> None:
    lease = world.leased(1, 3)
    world.parking.prepare(lease.id, timeout=T)
    world.restart_daemon()
    assert not world.can_be_opened(1), "the manager holds the descriptors meanwhile"
    world.parking.step()
    assert world.parking.ready == {lease.id}
    assert not world.can_be_opened(1)
    world.parking.hand_over(lease.id)
    assert world.can_be_opened(1, 3)


def test_a_daemon_that_died_after_a_hand_over_parks_what_nobody_took(world: Gated) -> None:
    lease = world.leased(1, 3)
    world.parking.prepare(lease.id, timeout=T)
    world.parking.hand_over(lease.id)
    world.restart_daemon()
    world.parking.step()
    assert world.parked == set(range(1, 9))


def test_a_daemon_that_starts_leaves_what_a_vm_has(world: Gated) -> None:
    lease = world.leased(1, 3)
    world.start_vm("tenant", (1, 3))
    world.restart_daemon()
    world.parking.step()
    assert world.parked == {2, 4, 5, 6, 7, 8}
    assert (world.parking.alarms, world.devices.ejected) == ((), [])
    with pytest.raises(VmRunning):
        world.parking.prepare(lease.id, timeout=T)
    assert (world.driver(1), world.devices.ejected) == (VFIO_PCI, [])


def test_what_is_kept_is_not_open_to_the_rest_of_fmctl(world: Gated) -> None:
    lease = world.leased(1, 3)
    world.parking.prepare(lease.id, timeout=T)
    assert world.gpus.open() == {}
    world.release(lease.id)
    world.parking.step()
    world.settle()
    assert world.lease(lease.id).state is LeaseState.RELEASED
    assert world.parked == set(range(1, 9))


def test_a_release_after_the_hand_over_parks_them(world: Gated) -> None:
    lease = world.leased(1, 3)
    world.parking.prepare(lease.id, timeout=T)
    world.parking.hand_over(lease.id)
    world.release(lease.id)
    world.parking.step()
    assert world.parked == set(range(1, 9))
    with pytest.raises(NoSuchLease):
        world.parking.hand_over(lease.id)


def test_only_its_owner_prepares_a_lease_and_only_an_active_one(world: Gated) -> None:
    lease = world.leased(1, 3)
    with pytest.raises(PartitionHeld):
        world.parking.prepare(lease.id, timeout=T, owner="b")
    with pytest.raises(NoSuchLease):
        world.parking.prepare("nobody's", timeout=T)
    world.release(lease.id)
    with pytest.raises(NoSuchLease):
        world.parking.prepare(lease.id, timeout=T)


@pytest.mark.parametrize("kind", [MarkKind.CLEANING, MarkKind.QUARANTINED])
def test_a_gpu_that_is_set_aside_under_its_lease_is_not_prepared(world: Gated, kind: MarkKind) -> None:
    lease = world.leased(1, 3)
    world.store.commit((of_mark(Kind.GPU, "3", Mark(kind, "a stranger had it", world.now)),), at=world.now)
    with pytest.raises(NoSuchLease) as refusal:
        world.parking.prepare(lease.id, timeout=T)
    assert refusal.value.why == "GPU 3 is set aside"
    assert world.devices.kept == set()


def test_nothing_is_prepared_by_a_map_that_is_not_verified(world: Gated) -> None:
    lease = world.leased(1, 3)
    world.map_is_verified = False
    with pytest.raises(MapUnverified):
        world.parking.prepare(lease.id, timeout=T)
    world.map_is_verified = True
    world.parking.prepare(lease.id, timeout=T)
    world.map_is_verified = False
    world.restart_daemon()
    with pytest.raises(FabricNotReady):
        world.parking.hand_over(lease.id)
    assert not world.can_be_opened(1, 3)


def test_what_the_kernel_refuses_is_raised_and_parked(world: Gated) -> None:
    lease = world.leased(1, 3)
    world.parking.step()
    world.devices.fail(world.address[3], errno.EIO)
    with pytest.raises(WriteFailed):
        world.parking.prepare(lease.id, timeout=T)
    world.devices.heal(world.address[3])
    assert world.parking.ready == frozenset()
    world.parking.step()
    assert world.parked == set(range(1, 9))


def test_nothing_is_kept_of_a_group_that_another_was_quicker_to_open(world: Gated) -> None:
    lease = world.leased(1, 3)
    world.devices.hold(world.group(3), BARE)
    with pytest.raises(VmRunning):
        world.parking.prepare(lease.id, timeout=T)
    assert world.devices.kept == frozenset()


def test_a_host_that_is_only_observed_is_left_as_it_is() -> None:
    world = Gated(Mode.OBSERVE)
    world.parking.step()
    assert world.driver(1) == VFIO_PCI
    world.devices.hold(world.group(1), BARE)
    world.parking.step()
    assert world.parking.alarms == ()
    with pytest.raises(HostCordoned):
        world.parking.prepare("any", timeout=T)


def test_a_start_of_the_service_vm_parks_no_gpu_that_waits_for_its_vm(world: Gated) -> None:
    kept, handed = world.leased(1, 3), world.leased(5, 7, request_id="s", vm=uuid_of("another"))
    for lease in (kept, handed):
        world.parking.prepare(lease.id, timeout=T)
    world.parking.hand_over(handed.id)
    world.parking.park(world.inventory)
    assert world.parked == {2, 4, 6, 8}
    assert world.can_be_opened(5, 7)


# What is open without right.


def _nobody_s(world: Gated) -> None:
    world.start_vm("tenant", (5,))


def _another_s(world: Gated) -> None:
    world.leased(5, request_id="s", vm=uuid_of("another"))
    world.start_vm("tenant", (5,))


def _by_hand(world: Gated) -> None:
    world.devices.hold(world.group(5), BARE)


@pytest.mark.parametrize(
    ("take", "why"),
    [(_nobody_s, "no lease holds it"), (_another_s, uuid_of("another")), (_by_hand, "no lease holds it")],
)
def test_a_vm_with_a_gpu_that_is_not_its_own_raises_an_alarm_once(
    world: Gated, take: Callable[[Gated], None], why: str
) -> None:
    take(world)
    for _ in range(3):
        world.parking.step()
    (alarm,) = world.parking.alarms
    assert alarm.startswith(f"gpu {world.address[5]} is held by qemu-system-x86")
    assert why in alarm
    (entry,) = [entry for entry in world.entries() if entry.what == "alarm"]
    assert (entry.subject, entry.detail) == ("5", alarm)
    assert world.driver(5) == VFIO_PCI, "what a VM has is left to it"


@pytest.mark.parametrize(("take", "marked"), [(_nobody_s, True), (_another_s, False), (_by_hand, True)])
def test_a_gpu_that_somebody_had_without_a_lease_is_cleaned_before_anybody_gets_it(
    world: Gated, take: Callable[[Gated], None], marked: object
) -> None:
    take(world)
    for _ in range(2):
        world.parking.step()
    assert ((Kind.GPU, "5", MarkKind.CLEANING) in world.store.book.marks) == marked


def test_without_a_verified_map_only_a_host_without_leases_tells_what_is_open_without_right(world: Gated) -> None:
    world.start_vm("tenant", (5,))
    world.map_is_verified = False
    world.parking.step()
    (alarm,) = world.parking.alarms
    assert (str(world.address[5]) in alarm, "no lease holds it" in alarm) == (True, True)
    world.map_is_verified = True
    world.leased(1, 3)
    world.map_is_verified = False
    world.parking.step()
    assert world.parking.alarms == ()
    assert world.parked == {1, 2, 3, 4, 6, 7, 8}


def test_an_alarm_ends_with_its_cause(world: Gated) -> None:
    world.start_vm("tenant", (5,))
    world.parking.step()
    world.stop_vm("tenant")
    world.parking.step()
    assert world.parking.alarms == ()


def test_the_service_vm_alone_has_the_switches(world: Gated) -> None:
    switch = next(d.function for d in world.inventory.devices if d.role is Role.NVSWITCH)
    world.host.bus.change(switch.bdf, driver=VFIO_PCI)
    assert switch.iommu_group is not None
    world.devices.hold(switch.iommu_group, Holder(8, "qemu-system-x86", SERVICE_VM))
    world.parking.step()
    assert world.parking.alarms == ()
    world.devices.let_go(switch.iommu_group)
    world.devices.hold(switch.iommu_group, BARE)
    world.parking.step()
    assert "only the Service VM" in "; ".join(world.parking.alarms)


def test_who_cannot_be_seen_is_no_reason_to_park(world: Gated) -> None:
    world.blind()
    world.parking.step()
    assert world.driver(1) == VFIO_PCI


def test_a_kernel_that_hangs_holds_up_one_gpu_alone(world: Gated) -> None:
    world.devices.block(world.address[1])
    world.parking.step()
    assert world.parked == {2, 3, 4, 5, 6, 7, 8}
