# SPDX-License-Identifier: Apache-2.0
"""What the daemon answers libvirt's hook, while leases and VMs come and go."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fmctl.control.hook import START_TIMEOUT, Hook, ServiceVmStart
from fmctl.core import gpumap
from fmctl.core.answers import HookLoad
from fmctl.core.asking import Verdict
from fmctl.core.errors import BadRequest, FabricNotReady, FmctlError
from fmctl.core.hook import Rules
from fmctl.core.lease import LeaseState
from fmctl.core.rules import Mode
from fmctl.core.rules import Rules as LeaseRules
from fmctl.sim.hookfiles import MemoryHookFiles
from tests.control.hooking import Readiness
from tests.control.leasing import World, uuid_of
from tests.core.test_hook import document, hostdev

LIBVIRTD = 321
VM = uuid_of("tenant")


class Gated(World):
    """A host whose libvirt calls the hook."""

    def __init__(self, rules: Rules | None = None, *, mode: Mode = Mode.MANAGE) -> None:
        super().__init__("hgx-h100-8", LeaseRules(mode))
        self.readiness = Readiness()
        self.files = MemoryHookFiles(LIBVIRTD)
        self.hook = Hook(
            self.controller.store,
            self.controller.fabric,
            self.controller.leases,
            self.readiness,
            self.files,
            inventory=self._inventory,
            gpu_map=gpumap.in_order,
            generation=lambda: self.gate.generation,
            observed=lambda: self.controller.reconciler.observed,
            service_vm=ServiceVmStart("6f0f3b54-8d0c-4d9e-9c1b-0f6d63746c01", lambda: ""),
            rules=rules or Rules(),
            clock=self.clock,
        )
        self.hook.look()

    def xml(self, *gpus: int, uuid: str = VM) -> str:
        return document(*(hostdev(self.address[gpu]) for gpu in gpus), uuid=uuid)

    def starts(self, *gpus: int, uuid: str = VM) -> bool:
        """Whether libvirt's hook lets that VM start, as `fmctl hook` would."""
        xml = self.xml(*gpus, uuid=uuid)
        decision = self.hook.check("prepare", xml, LIBVIRTD)
        if decision.verdict is Verdict.PREPARE:
            decision = self.hook.ready(xml, timeout=1.0)
        return decision.verdict is Verdict.START

    def tells(self, operation: str, *gpus: int, uuid: str = VM) -> None:
        assert self.hook.check(operation, self.xml(*gpus, uuid=uuid), LIBVIRTD).verdict is Verdict.START


def test_a_vm_starts_with_its_lease_s_gpus_alone_and_they_are_handed_over() -> None:
    world = Gated()
    lease = world.allocate("a", "r", gpu_ids=(1, 3), vm_uuid=VM)
    assert world.starts(1, 3)
    assert world.readiness.handed_over == [lease.id]
    for gpus in ((1,), (1, 2, 3), (5, 7), (1, 2, 3, 4, 5, 6, 7, 8)):
        assert not world.starts(*gpus), gpus
    assert not world.starts(1, 3, uuid=uuid_of("another"))
    assert world.readiness.handed_over == [lease.id]


def test_a_vm_without_gpus_starts() -> None:
    world = Gated()
    assert world.starts()


def test_before_the_board_was_seen_nothing_is_decided() -> None:
    world = Gated()
    world.hook._board = None
    with pytest.raises(FabricNotReady):
        world.starts()


def test_a_release_and_a_lost_partition_keep_it_from_starting() -> None:
    world = Gated()
    lease = world.allocate("a", "r", gpu_ids=(1, 3), vm_uuid=VM)
    world.gate.generation += 1
    assert not world.starts(1, 3), "Fabric Manager was started fresh"
    world.gate.generation -= 1
    assert world.starts(1, 3)
    world.release(lease.id)
    assert not world.starts(1, 3)


def test_its_lease_stays_whatever_ends_the_vm() -> None:
    world = Gated()
    lease = world.allocate("a", "r", gpu_ids=(1, 3), vm_uuid=VM)
    for _ in range(3):
        assert world.starts(1, 3)
        world.start_vm("tenant", (1, 3))
        world.reconcile()
        world.stop_vm("tenant")
        world.tells("stopped", 1, 3)
        world.tells("release", 1, 3)
        world.reconcile()
        world.hook.look()
        assert world.lease(lease.id).state is LeaseState.ACTIVE


def test_the_end_of_its_vm_is_the_end_of_a_hand_over_and_that_of_another_is_not() -> None:
    world = Gated()
    lease = world.allocate("a", "r", gpu_ids=(1, 3), vm_uuid=VM)
    world.allocate("b", "r", gpu_ids=(2, 4), vm_uuid=uuid_of("another"))
    assert world.starts(1, 3)
    world.tells("stopped", 1, 3)
    assert world.readiness.taken_back == []
    world.tells("release", 1, 3)
    assert world.readiness.taken_back == [lease.id]


def test_preparing_may_fail_and_then_it_does_not_start() -> None:
    world = Gated()
    world.allocate("a", "r", gpu_ids=(1, 3), vm_uuid=VM)
    world.readiness.failure = FmctlError("the kernel refused it")
    with pytest.raises(FmctlError, match="the kernel refused it"):
        world.starts(1, 3)
    assert world.readiness.handed_over == []


@pytest.mark.parametrize("operation", ["started", "stopped", "release", "reconnect", "attach", "unheard-of"])
def test_what_only_tells_is_never_refused(operation: str) -> None:
    world = Gated()
    assert world.hook.check(operation, world.xml(1), LIBVIRTD).verdict is Verdict.START


@pytest.mark.parametrize("operation", ["prepare", "start", "migrate", "restore"])
def test_every_way_to_start_is_decided(operation: str) -> None:
    world = Gated()
    assert world.hook.check(operation, world.xml(1), LIBVIRTD).verdict is Verdict.REFUSE


def test_a_migration_and_a_restore_are_prepared_by_the_start_that_follows() -> None:
    world = Gated()
    world.allocate("a", "r", gpu_ids=(1, 3), vm_uuid=VM)
    for operation in ("migrate", "restore"):
        assert world.hook.check(operation, world.xml(1, 3), LIBVIRTD).verdict is Verdict.START
    assert world.readiness.prepared == set()


@pytest.mark.parametrize("xml", ["", "<domain/>", "<!DOCTYPE a>" + document(), "<a>" * 100_000, "x" * (1 << 20 | 1)])
def test_what_is_no_document_is_refused(xml: str) -> None:
    with pytest.raises(BadRequest):
        Gated().hook.check("prepare", xml, LIBVIRTD)


def test_a_host_that_is_only_observed_refuses_nothing() -> None:
    world = Gated(mode=Mode.OBSERVE)
    decision = world.hook.check("prepare", world.xml(1), LIBVIRTD)
    assert (decision.verdict, "would refuse it" in decision.warning) == (Verdict.START, True)


def test_the_hook_is_loaded_once_the_libvirt_that_runs_has_called_it() -> None:
    world = Gated()
    seen = [world.hook.load]
    for caller in (1, LIBVIRTD):
        world.hook.check("reconnect", world.xml(), caller)
        seen.append(world.hook.load)
    world.files.daemons = {LIBVIRTD + 1}
    assert [*seen, world.hook.load] == [
        HookLoad.NOT_LOADED,
        HookLoad.NOT_LOADED,
        HookLoad.LOADED,
        HookLoad.NOT_LOADED,
    ]


def test_the_hook_is_told_the_board_s_functions_for_when_no_daemon_runs() -> None:
    world = Gated()
    assert set(world.address.values()) < world.files.managed
    assert len(world.files.managed) == len(world.inventory.devices)


# A lease that is made as its VM starts.

MADE = Rules(lease_on_start=True)


def made() -> tuple[Gated, str]:
    world = Gated(MADE)
    assert world.starts(1, 3)
    (lease,) = world.leases
    assert (lease.state, lease.vm_uuid, set(lease.gpus)) == (LeaseState.ACTIVE, VM, {1, 3})
    assert world.readiness.handed_over == [lease.id]
    return world, lease.id


def _stopped(world: Gated) -> None:
    world.stop_vm("tenant")
    world.tells("release", 1, 3)


def _gone_unheard(world: Gated) -> None:
    world.stop_vm("tenant")
    world.wait(START_TIMEOUT)
    world.reconcile()


@pytest.mark.parametrize("end", [_stopped, _gone_unheard])
def test_a_lease_that_was_made_for_a_start_ends_with_its_vm(end: Callable[[Gated], None]) -> None:
    world, lease_id = made()
    world.start_vm("tenant", (1, 3))
    world.tells("started", 1, 3)
    world.reconcile()
    world.hook.look()
    assert world.lease(lease_id).state is LeaseState.ACTIVE
    end(world)
    world.hook.look()
    world.reconcile()
    assert world.lease(lease_id).state is LeaseState.RELEASED
    assert world.active == set()


def test_it_ends_where_the_vm_did_not_start_after_all() -> None:
    world, lease_id = made()
    world.tells("release", 1, 3)
    world.hook.look()
    world.reconcile()
    assert world.lease(lease_id).state is LeaseState.RELEASED


def test_it_is_not_ended_while_its_vm_starts_once_more() -> None:
    world, lease_id = made()
    world.start_vm("tenant", (1, 3))
    world.reconcile()
    world.stop_vm("tenant")
    world.reconcile()
    assert world.lease(lease_id).vm_gone is not None
    assert world.starts(1, 3)
    world.hook.look()
    assert world.lease(lease_id).state is LeaseState.ACTIVE


def test_it_is_not_ended_where_its_vm_starts_again_before_anybody_looks() -> None:
    world, lease_id = made()
    world.tells("release", 1, 3)
    assert world.starts(1, 3)
    world.hook.look()
    assert world.lease(lease_id).state is LeaseState.ACTIVE


def test_it_is_not_ended_under_a_vm_that_holds_its_gpus() -> None:
    world, lease_id = made()
    world.start_vm("tenant", (1, 3))
    world.tells("release", 1, 3)
    world.hook.look()
    assert world.lease(lease_id).state is LeaseState.ACTIVE


def test_another_s_gpus_are_not_leased_at_a_start() -> None:
    world = Gated(MADE)
    world.allocate("a", "r", gpu_ids=(1, 3))
    assert not world.starts(1, 3)
    assert not world.starts(1)
    assert world.starts(5, 7)
