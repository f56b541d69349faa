# SPDX-License-Identifier: Apache-2.0
"""GPUs between two tenants: cleaned before they are free, or quarantined until a person says otherwise."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fmctl.control.clean import PAUSE, Cleaning
from fmctl.core import clean
from fmctl.core.book import Kind, Mark, MarkKind, of_mark
from fmctl.core.clean import FirmwareList, Rules
from fmctl.core.errors import (
    AgentUnreachable,
    BadRequest,
    FabricNotReady,
    FmctlError,
    InvalidDocument,
    NoCapacity,
    OutcomeUnknown,
    PartitionHeld,
    VmRunning,
)
from fmctl.core.lease import Lease, LeaseState
from fmctl.core.pci import PciId
from fmctl.core.plan import LATE
from fmctl.core.rules import Firmware, Memory, Mode
from fmctl.core.rules import Rules as LeaseRules
from fmctl.core.vfio import Holder
from fmctl.sim.faults import NO_FAULTS
from fmctl.sim.vfiodev import Effect
from tests.control.leasing import BOARDS, World, uuid_of

ROM = b"\x55\xaa firmware"
H100 = PciId(0x10DE, 0x2330)
CHECKED = Rules(memory=Memory.COMMAND, memory_command=("check",), memory_timeout=7.0)
LISTED = FirmwareList({H100: frozenset({hashlib.sha256(ROM).hexdigest()})})
ENFORCED = Rules(firmware=Firmware.ENFORCE, firmware_list=LISTED)
BY_COMMAND = Rules(firmware=Firmware.ENFORCE, firmware_list=LISTED, firmware_command=("ask",))


def ended(rules: Rules | None = None, board: str = "hgx-h100-8") -> tuple[World, Lease]:
    """A host on which a lease of two GPUs, whose VM is gone, has just ended."""
    world = World(board, cleans=rules or Rules())
    world.clean()
    world.host.devices.reset_by.clear()
    lease = world.allocate("a", "r", count=2)
    world.start_vm("vm", lease.gpus)
    world.reconcile()
    world.stop_vm("vm")
    world.release(lease.id)
    world.reconcile()
    assert world.lease(lease.id).state is LeaseState.RELEASED
    return world, lease


def marks(world: World, kind: MarkKind) -> dict[int, str]:
    return {int(gpu): mark.reason for gpu, mark in world.store.book.marked(Kind.GPU, kind).items()}


def cleaning(world: World) -> set[int]:
    return set(marks(world, MarkKind.CLEANING))


def quarantined(world: World) -> dict[int, str]:
    return marks(world, MarkKind.QUARANTINED)


def resets(world: World, lease: Lease) -> list[str]:
    """By which methods the lease's GPUs were reset since it ended."""
    gpus = {world.address[gpu] for gpu in lease.held}
    return [method for bdf, method in world.host.devices.reset_by if bdf in gpus]


def told(world: World, gpu: int) -> list[str]:
    return [e.detail for e in world.store.entries(0, limit=1000) if (e.kind, e.subject) == (Kind.GPU, str(gpu))]


@pytest.mark.parametrize("board", BOARDS)
def test_the_gpus_of_a_lease_that_ended_are_not_free_before_they_are_clean(board: str) -> None:
    world, lease = ended(board=board)
    assert cleaning(world) == set(lease.gpus)
    with pytest.raises(NoCapacity):
        world.allocate("b", "r", count=8)
    with pytest.raises(PartitionHeld, match="being cleaned"):
        world.allocate("b", "s", gpu_ids=lease.gpus)
    assert world.clean() == lease.gpus
    assert resets(world, lease) == ["bus", "bus"]
    assert (cleaning(world), quarantined(world)) == (set(), {})
    assert world.allocate("b", "t", gpu_ids=lease.gpus).state is LeaseState.ACTIVE


def test_what_was_done_and_found_is_in_the_journal() -> None:
    world, lease = ended()
    world.clean()
    assert told(world, lease.gpus[0]) == [
        f"lease {lease.id} of a ended",
        "reset by bus; that nothing is left in its memory is not proven: it was only reset; there is no evidence of its"
        " firmware: it has no ROM that can be read",
    ]


def test_the_spare_gpus_of_a_lease_are_cleaned_with_it() -> None:
    world = World(cleans=Rules())
    lease = world.activate("a", 1)
    world.release(lease.id)
    world.settle()
    assert sorted(resets(world, lease)) == ["bus"] * 4


def test_a_request_that_never_became_a_lease_leaves_nothing_to_clean() -> None:
    world = World(cleans=Rules())
    with pytest.raises(FabricNotReady):
        world.allocate("a", "r", count=2, alive=lambda: False)
    assert cleaning(world) == set()
    assert world.allocate("b", "r", count=8).state is LeaseState.ACTIVE


def test_an_expired_lease_is_cleaned_too() -> None:
    world = World(cleans=Rules())
    lease = world.allocate("a", "r", count=2, lifetime=60.0)
    world.wait(61)
    world.reconcile()
    assert cleaning(world) == set(lease.gpus)


def test_what_was_active_for_nobody_known_is_cleaned_too() -> None:
    world = World(cleans=Rules())
    world.nvfm.activate(3, timeout=1)
    assert world.deactivate("a", 3) is False
    assert cleaning(world) == {1, 3}
    world.clean()
    assert world.allocate("b", "r", count=8).state is LeaseState.ACTIVE


def test_a_host_whose_gpus_are_elsewhere_cleans_none() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    assert world.release(lease.id, wait=True).state is LeaseState.RELEASED
    assert cleaning(world) == set()


def test_free_gpus_are_cleaned_after_each_fresh_start_of_fabric_manager_on_nvlink_5_alone() -> None:
    world = World("hgx-b200-8", cleans=Rules())
    lease = world.allocate("a", "r", count=4)
    free = {gpu for gpu in world.address if gpu not in lease.gpus}
    world.store.commit(clean.stuck(world.store.book, (8,), "it smokes", 1.0), at=1.0)
    free -= {8}
    for starts in (1, 2):
        assert set(world.clean()) == free
        for _ in range(2):
            assert world.clean() == ()
            world.restart_daemon()
            world.reconcile()
        assert {resets_of(world, gpu) for gpu in free} == {starts}
        assert {resets_of(world, gpu) for gpu in world.address if gpu not in free} == {0}
        world.start_fresh()
        world.reconcile()
    other = World("hgx-h100-8", cleans=Rules())
    assert other.clean() == ()


def test_a_fresh_start_is_met_only_once_fabric_manager_lists() -> None:
    world = World("hgx-b200-8", cleans=Rules())
    world.line.cut = 1
    with pytest.raises(AgentUnreachable):
        world.cleaner.due()
    assert cleaning(world) == set()
    assert len(world.cleaner.due()) == 8


# Waiting for it.


def test_a_release_that_waits_is_answered_once_the_gpus_are_free() -> None:
    world = World(cleans=Rules())
    lease = world.allocate("a", "r", count=2)
    with pytest.raises(FabricNotReady, match="being cleaned"):
        world.release(lease.id, wait=True)
    assert world.release(lease.id).state is LeaseState.RELEASED
    with pytest.raises(FabricNotReady, match="GPU 1,3 of lease"):
        world.release(lease.id, wait=True)
    world.clean()
    assert world.release(lease.id, wait=True).state is LeaseState.RELEASED


def test_a_release_that_waits_is_answered_once_the_gpus_are_quarantined() -> None:
    world, lease = ended()
    for gpu in lease.gpus:
        world.host.bus.kill(world.address[gpu])
    world.clean()
    assert world.release(lease.id, wait=True).state is LeaseState.RELEASED
    assert set(quarantined(world)) == set(lease.gpus)


def test_a_release_does_not_wait_for_what_a_later_lease_left() -> None:
    world, lease = ended()
    world.clean()
    world.wait(1)
    later = world.allocate("b", "r", gpu_ids=lease.gpus)
    world.release(later.id)
    world.reconcile()
    assert cleaning(world) == set(lease.gpus)
    assert world.release(lease.id, wait=True).state is LeaseState.RELEASED


def test_a_deactivation_does_not_fail_because_its_gpus_are_not_clean_yet() -> None:
    world = World(cleans=Rules())
    world.activate("a", 3)
    assert world.deactivate("a", 3) is False
    assert cleaning(world) == {1, 3}


# What must not be done, or not yet.


def test_a_running_vm_keeps_its_lease_and_its_gpus_as_they_are() -> None:
    world = World(cleans=Rules())
    lease = world.allocate("a", "r", count=2)
    world.start_vm("vm", lease.gpus)
    with pytest.raises(VmRunning):
        world.release(lease.id)
    world.settle()
    assert (world.lease(lease.id).state, resets(world, lease)) == (LeaseState.ACTIVE, [])


def test_a_gpu_that_somebody_opened_since_is_not_reset() -> None:
    world, lease = ended()
    group = next(f.iommu_group for f in world.host.bus.functions() if f.bdf == world.address[lease.gpus[0]])
    assert group is not None
    world.host.devices.hold(group, Holder(7, "by-hand"))
    world.clean()
    assert (cleaning(world), quarantined(world)) == ({lease.gpus[0]}, {})
    drift = world.controller.reconciler.preview(timeout=1.0).drift
    assert drift == (f"GPU {lease.gpus[0]} is not cleaned: by-hand (process 7) has it open",)
    world.host.devices.let_go(group)
    assert world.clean() == ()
    world.wait(PAUSE)
    assert world.clean() == (lease.gpus[0],)
    assert (cleaning(world), world.cleaner.delayed()) == (set(), ())


def test_nothing_is_reset_while_who_holds_gpus_cannot_be_told() -> None:
    world, lease = ended()
    world.blind()
    world.clean()
    assert (cleaning(world), resets(world, lease)) == (set(lease.gpus), [])


def test_nothing_is_reset_while_fabric_manager_was_not_seen() -> None:
    world, _ = ended()
    world.stop_fabric_manager()
    world.restart_daemon()
    assert world.clean() == ()
    world.start_fresh()
    world.reconcile()
    assert world.clean() != ()


def test_nothing_is_reset_whose_partition_is_active_or_may_become_so() -> None:
    world, lease = ended()
    world.nvfm.activate(lease.partitions[0], timeout=1)
    world.reconcile()
    assert world.clean() == ()
    world.nvfm.deactivate(lease.partitions[0], timeout=1)
    world.reconcile()
    world.controller.fabric.unsettle(lease.partitions)
    assert world.clean() == ()
    world.wait(LATE + 1)
    world.controller.fabric.look(1.0)
    assert world.clean() == lease.gpus


def test_a_partition_that_became_active_during_a_cleaning_keeps_its_gpus_from_being_free() -> None:
    world, lease = ended(CHECKED)

    def activate(argv: object, timeout: float) -> tuple[int, bytes]:
        world.nvfm.activate(lease.partitions[0], timeout=1)
        world.reconcile()
        return 0, b""

    world.command = activate
    world.clean()
    assert (cleaning(world), quarantined(world)) == (set(lease.gpus), {})


def test_a_gpu_that_somebody_opened_during_a_cleaning_is_not_free() -> None:
    world, lease = ended(CHECKED)
    opened = lease.gpus[:1]

    def start(argv: Sequence[str], timeout: float) -> tuple[int, bytes]:
        if argv[1] == str(world.address[opened[0]]):
            world.start_vm("by-hand", opened)
        return 0, b""

    world.command = start
    world.clean()
    assert (cleaning(world), quarantined(world)) == ({*opened}, {})
    world.stop_vm("by-hand")
    world.command = lambda argv, timeout: (0, b"")
    world.settle()
    assert (cleaning(world), resets_of(world, opened[0])) == (set(), 2)


def test_an_observed_host_is_left_alone() -> None:
    world, lease = ended()
    world.rules = LeaseRules(Mode.OBSERVE, clean=True)
    world.restart_daemon()
    world.reconcile()
    assert world.clean() == ()
    assert (cleaning(world), resets(world, lease)) == (set(lease.gpus), [])


def test_gpus_that_no_verified_map_names_are_neither_cleaned_nor_free() -> None:
    world, lease = ended()
    world.map_is_verified = False
    world.clean()
    assert (cleaning(world), resets(world, lease)) == (set(lease.gpus), [])
    assert ["no verified GPU map tells" in why for why in world.cleaner.delayed()] == [True, True]
    world.map_is_verified = True
    world.settle()
    assert (cleaning(world), resets(world, lease)) == (set(), ["bus", "bus"])


def test_a_gpu_that_the_verified_map_lacks_is_gone() -> None:
    world, lease = ended()
    lost = lease.gpus[0]
    del world.address[lost]
    world.clean()
    assert (cleaning(world), [*quarantined(world)]) == (set(), [lost])


def test_a_gpu_that_the_map_moves_during_a_cleaning_is_not_clean() -> None:
    world, lease = ended(CHECKED)

    def move(argv: Sequence[str], timeout: float) -> tuple[int, bytes]:
        one, other = lease.gpus
        world.address[one], world.address[other] = world.address[other], world.address[one]
        world.command = lambda argv, timeout: (0, b"")
        return 0, b""

    world.command = move
    world.cleaner.clean(lease.gpus[0])
    assert cleaning(world) == set(lease.gpus)


# Every way to fail.


def killed(world: World, gpu: int) -> None:
    world.host.devices.on_reset(world.address[gpu], Effect.KILLS)


def stuck(world: World, gpu: int) -> None:
    world.host.devices.on_reset(world.address[gpu], Effect.BLOCKS)


def refused(world: World, gpu: int) -> None:
    world.host.devices.on_reset(world.address[gpu], Effect.FAILS)


def without_method(world: World, gpu: int) -> None:
    _with_state(world, gpu, reset_methods=("pm",))


def only_flr(world: World, gpu: int) -> None:
    _with_state(world, gpu, reset_methods=("flr",))


def dead(world: World, gpu: int) -> None:
    world.host.bus.kill(world.address[gpu])


def gone(world: World, gpu: int) -> None:
    world.host.bus.remove(world.address[gpu])


def other_firmware(world: World, gpu: int) -> None:
    world.host.bus.behave(world.address[gpu], rom=ROM + b" of another kind")


def no_rom(world: World, gpu: int) -> None:
    world.host.bus.behave(world.address[gpu], rom=b"")


def stuck_rom(world: World, gpu: int) -> None:
    world.host.firmware.stuck.add(world.address[gpu])


def _with_state(world: World, gpu: int, **changes: Any) -> None:
    state = world.host.bus.state(world.address[gpu])
    assert state is not None
    world.host.bus.behave(world.address[gpu], state=dataclasses.replace(state, **changes))


def says(answer: tuple[int, bytes] | None) -> Callable[[World, int], None]:
    """Let the operator's command answer so for that GPU, and well for the others."""

    def hurt(world: World, gpu: int) -> None:
        good = (0, f"{hashlib.sha256(ROM).hexdigest()}  firmware".encode())
        world.command = lambda argv, timeout: answer if argv[1] == str(world.address[gpu]) else good

    return hurt


FAILURES: dict[str, tuple[Rules, Callable[[World, int], None], str]] = {
    "no reset method": (Rules(), without_method, "no reset method that helps is there; the kernel offers pm"),
    "only a method that does not clear a killed VM": (Rules(), only_flr, "the kernel offers flr"),
    "the reset is refused": (Rules(), refused, "its reset by bus failed"),
    "the reset past its deadline": (Rules(), stuck, "did not end within 90 s"),
    "the reset past a setting's deadline": (Rules(reset_timeout=4.0), stuck, "did not end within 4 s"),
    "all ones after the reset": (Rules(), killed, "its registers read as all ones"),
    "all ones before it": (Rules(), dead, "the kernel offers none"),
    "gone": (Rules(), gone, "its PCI function is gone"),
    "firmware without evidence": (ENFORCED, no_rom, "there is no evidence of its firmware"),
    "firmware not on the list": (ENFORCED, other_firmware, "not on the list for 10de:2330"),
    "a ROM that cannot be read in time": (ENFORCED, stuck_rom, "its ROM could not be read in time"),
    "the memory check says no": (CHECKED, says((3, b"page 7 is not zero\nx")), "status 3, and said: page 7 is"),
    "the memory check is too slow": (CHECKED, says(None), "check did not end within 7 s"),
    "the firmware command says no": (BY_COMMAND, says((1, b"")), "ask ended with status 1"),
    "the firmware command is too slow": (BY_COMMAND, says(None), "ask did not end within 60 s"),
    "the firmware command prints none": (BY_COMMAND, says((0, b"oops")), "ask printed no SHA-256"),
    "the firmware command prints another": (BY_COMMAND, says((0, b"0" * 64)), "not on the list"),
}


@pytest.mark.parametrize(("rules", "hurt", "reason"), FAILURES.values(), ids=FAILURES)
def test_each_failure_quarantines_that_gpu_until_a_person_says_otherwise(
    rules: Rules, hurt: Callable[[World, int], None], reason: str
) -> None:
    world, lease = ended(rules)
    for bdf in world.address.values():
        world.host.bus.behave(bdf, rom=ROM)
    bad, good = lease.gpus
    hurt(world, bad)
    world.clean()
    assert set(quarantined(world)) == {bad}
    assert reason in quarantined(world)[bad]
    assert cleaning(world) == set()
    world.restart_daemon()
    world.settle()
    assert (set(quarantined(world)), cleaning(world)) == ({bad}, set())
    free = {p.id for p in world.controller.chooser.available(world.controller.fabric.peek(1.0)).free}
    assert free == {row.id for row in world.platform.partitions if bad not in row.gpu_ids}
    assert world.allocate("b", "r", gpu_ids=(good,)).state is LeaseState.ACTIVE
    with pytest.raises(PartitionHeld, match="quarantined"):
        world.allocate("b", "s", gpu_ids=(bad,))


@pytest.mark.parametrize("then", ["it is clean", "it is not"])
def test_a_person_s_release_leads_to_another_cleaning_and_frees_nothing_by_itself(then: str) -> None:
    world, lease = ended()
    gpu = lease.gpus[0]
    stuck(world, gpu)
    world.clean()
    with pytest.raises(BadRequest, match="no reason is given"):
        world.controller.marks.unquarantine(gpu, "", actor="ann", timeout=1.0)
    if then == "it is clean":
        world.host.devices.on_reset(world.address[gpu], Effect.WORKS)
    world.controller.marks.unquarantine(gpu, "power-cycled", actor="ann", timeout=1.0)
    assert (quarantined(world), cleaning(world)) == ({}, {gpu})
    with pytest.raises(PartitionHeld, match="being cleaned"):
        world.allocate("b", "r", gpu_ids=(gpu,))
    assert world.clean() == (gpu,)
    assert set(quarantined(world)) == (set() if then == "it is clean" else {gpu})
    before = world.store.book.revision
    world.controller.marks.unquarantine(lease.gpus[1], "it never was", actor="ann", timeout=1.0)
    assert world.store.book.revision == before


def test_a_partition_that_does_not_deactivate_quarantines_its_gpus_and_keeps_its_lease() -> None:
    world = World("hgx-h100-8", LeaseRules(Mode.MANAGE, refused_for=120.0), "code=-2@deactivate:1+", cleans=Rules())
    lease = world.allocate("a", "r", count=2)
    world.release(lease.id)
    for _ in range(110):
        world.reconcile()
        world.wait(1)
    assert quarantined(world) == {}
    for _ in range(100):
        world.reconcile()
        world.wait(1)
    assert set(quarantined(world)) == set(lease.gpus)
    assert "could not be deactivated" in quarantined(world)[lease.gpus[0]]
    assert (world.lease(lease.id).state, world.clean()) == (LeaseState.RELEASING, ())
    world.nvfm.fail(NO_FAULTS)
    world.settle()
    assert (world.lease(lease.id).state, world.active) == (LeaseState.RELEASED, set())
    assert (set(quarantined(world)), resets(world, lease)) == (set(lease.gpus), [])
    for gpu in lease.gpus:
        world.controller.marks.unquarantine(gpu, "looked at", actor="ann", timeout=1.0)
    world.settle()
    assert (quarantined(world), cleaning(world), resets(world, lease)) == ({}, set(), ["bus", "bus"])


@pytest.mark.parametrize(
    ("failure", "in_quarantine"),
    [(OutcomeUnknown("it hangs"), True), (AgentUnreachable("the agent is away"), False), (VmRunning("in use"), False)],
    ids=lambda value: type(value).__name__,
)
def test_only_a_fabric_manager_that_was_asked_has_not_deactivated(failure: FmctlError, *, in_quarantine: bool) -> None:
    world = World("hgx-h100-8", LeaseRules(Mode.MANAGE, refused_for=120.0), cleans=Rules())
    lease = world.allocate("a", "r", count=2)
    world.release(lease.id)

    def deactivate(partition_id: int, *, timeout: float) -> None:
        raise failure

    world.line.deactivate = deactivate  # type: ignore[method-assign]
    for _ in range(30):
        world.reconcile()
        world.wait(20)
    assert set(quarantined(world)) == (set(lease.gpus) if in_quarantine else set())
    assert world.lease(lease.id).state is LeaseState.RELEASING


def test_a_gpu_that_a_person_quarantined_while_it_was_cleaned_is_not_free() -> None:
    world, lease = ended(CHECKED)
    mark = Mark(MarkKind.QUARANTINED, "I heard it", world.now)

    def check(argv: Sequence[str], timeout: float) -> tuple[int, bytes]:
        world.store.commit([of_mark(Kind.GPU, str(lease.gpus[0]), mark, actor="ann")], at=world.now)
        return 0, b""

    world.command = check
    world.clean()
    assert set(quarantined(world)) == {lease.gpus[0]}
    world.controller.marks.unquarantine(lease.gpus[0], "it was the fan", actor="ann", timeout=1.0)
    assert cleaning(world) >= {lease.gpus[0]}


def test_a_gpu_that_was_marked_anew_while_it_was_cleaned_is_cleaned_anew() -> None:
    world, lease = ended(CHECKED)

    def check(argv: Sequence[str], timeout: float) -> tuple[int, bytes]:
        world.wait(1)
        world.store.commit(clean.marked(lease.gpus, "again", world.now), at=world.now)
        return 0, b""

    world.command = check
    world.clean()
    assert cleaning(world) == set(lease.gpus)
    world.command = lambda argv, timeout: (0, b"")
    world.settle()
    assert cleaning(world) == set()


def test_a_fabric_manager_that_is_away_quarantines_nothing() -> None:
    world = World("hgx-h100-8", LeaseRules(Mode.MANAGE, refused_for=120.0), cleans=Rules())
    lease = world.allocate("a", "r", count=2)
    world.release(lease.id)
    world.line.cut = float("inf")
    for _ in range(30):
        with pytest.raises(Exception, match="agent"):
            world.reconcile()
        world.wait(20)
    assert (quarantined(world), world.lease(lease.id).state) == ({}, LeaseState.RELEASING)


# Firmware that is enforced from the start.


def test_enforce_starts_only_where_a_source_works() -> None:
    world = World(cleans=ENFORCED)
    with pytest.raises(InvalidDocument, match="no ROM that can be read"):
        world.cleaner.check_sources()
    world.host.bus.behave(world.address[1], rom=ROM)
    world.cleaner.check_sources()
    World(cleans=BY_COMMAND).cleaner.check_sources()
    World(cleans=Rules()).cleaner.check_sources()


def test_enforce_asks_nothing_of_gpus_while_a_vm_has_one() -> None:
    world = World(cleans=ENFORCED)
    world.start_vm("vm", (1,))
    world.host.firmware.stuck.update(world.address.values())
    world.cleaner.check_sources()


# In threads of their own.


def test_a_cleaning_that_hangs_holds_up_neither_another_nor_an_allocation() -> None:
    world, lease = ended(CHECKED)
    slow, quick = lease.gpus
    may_end, begun, woken = threading.Event(), threading.Semaphore(0), threading.Semaphore(0)

    def check(argv: Sequence[str], timeout: float) -> tuple[int, bytes]:
        begun.release()
        if argv[1] == str(world.address[slow]):
            assert may_end.wait(30)
        return 0, b""

    world.command = check
    with Cleaning(world.cleaner, woken.release) as cleaning_:
        cleaning_.look()
        assert begun.acquire(timeout=30) and begun.acquire(timeout=30) and woken.acquire(timeout=30)
        cleaning_.look()
        assert cleaning(world) == {slow}
        assert world.allocate("b", "r", gpu_ids=(quick,)).state is LeaseState.ACTIVE
        assert world.allocate("b", "s", count=4).state is LeaseState.ACTIVE
        may_end.set()
        assert woken.acquire(timeout=30)
    assert (cleaning(world), begun.acquire(blocking=False)) == (set(), False)


def test_no_cleaning_is_begun_once_the_daemon_stops() -> None:
    world, lease = ended()
    with Cleaning(world.cleaner) as cleaning_:
        pass
    cleaning_.look()
    assert cleaning(world) == set(lease.gpus)


# The death of the daemon.


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["commit", "reset", "command"])
def test_a_daemon_that_dies_at_any_step_frees_no_gpu_that_is_not_clean(what: str, when: str) -> None:
    for nth in range(1, 10):
        world, lease = ended(CHECKED)
        reset = world.host.devices.reset

        def mortal(*arguments: Any, world: World = world, reset: Any = reset, **named: Any) -> None:
            with world.fate.at("reset"):
                reset(*arguments, **named)

        world.host.devices.reset = mortal  # type: ignore[method-assign]
        world.fate.decide(what, nth, after=when == "after")
        daemon = world.controller
        world.mortal(world.clean)
        died = world.controller is not daemon
        done = {gpu: resets_of(world, gpu) for gpu in lease.gpus}
        for gpu in lease.gpus:
            assert (gpu in cleaning(world)) or done[gpu] >= 1
        world.settle()
        assert (cleaning(world), quarantined(world)) == (set(), {})
        assert world.allocate("b", "r", gpu_ids=lease.gpus).state is LeaseState.ACTIVE
        if not died:
            assert nth > 1
            return
    raise AssertionError("it never ended")


def resets_of(world: World, gpu: int) -> int:
    return sum(bdf == world.address[gpu] for bdf, _ in world.host.devices.reset_by)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["commit", "call"])
def test_a_daemon_that_dies_in_a_release_frees_no_gpu_that_is_not_clean(what: str, when: str) -> None:
    for nth in range(1, 20):
        world = World(cleans=Rules())
        lease = world.allocate("a", "r", count=2, vm_uuid=uuid_of("vm"))
        world.fate.decide(what, nth, after=when == "after")
        daemon = world.controller
        world.mortal(lambda world=world, lease=lease: world.release(lease.id))  # type: ignore[misc]
        world.mortal(world.reconcile)
        died = world.controller is not daemon
        if world.lease(lease.id).state is LeaseState.RELEASED:
            assert cleaning(world) == set(lease.gpus)
        world.settle()
        if world.lease(lease.id).state is LeaseState.RELEASED:
            assert resets(world, lease) == ["bus", "bus"]
        assert cleaning(world) == set()
        if not died:
            assert nth > 1
            return
    raise AssertionError("it never ended")


def test_a_full_disk_leaves_the_mark_and_it_begins_anew() -> None:
    world, lease = ended()
    world.store.full_commits = 2
    world.clean()
    assert cleaning(world) == set(lease.gpus)
    world.settle()
    assert cleaning(world) == set()
