# SPDX-License-Identifier: Apache-2.0
"""What is set aside is granted to nobody, counted apart, and given back by a person alone."""

from __future__ import annotations

import pytest

from fmctl.core.allocate import Shape
from fmctl.core.book import Kind, Mark, MarkKind, of_mark
from fmctl.core.errors import FmctlError, Fragmented, NoCapacity, NoSuchGpu, NoSuchPartition, PartitionHeld, VmRunning
from fmctl.core.fmcode import FmCode
from fmctl.core.lease import LeaseState
from fmctl.core.marked import MarkedGpu
from tests.control.leasing import BOARDS, World

T = 5.0


@pytest.fixture(params=BOARDS)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def mark(world: World, kind: MarkKind, gpu: int) -> None:
    """Set a GPU aside, as the cleaning between tenants does."""
    entry = of_mark(Kind.GPU, str(gpu), Mark(kind, f"it is {kind.value}", world.now))
    world.controller.store.commit((entry,), at=world.now)


def gpu(world: World, physical_id: int) -> MarkedGpu:
    return world.controller.marks.gpu(physical_id, timeout=T)


@pytest.mark.parametrize("kind", [MarkKind.CORDONED, MarkKind.QUARANTINED, MarkKind.CLEANING])
def test_each_mark_keeps_a_gpu_and_every_partition_with_it_and_is_counted_apart(world: World, kind: MarkKind) -> None:
    mark(world, kind, 3)
    with_it = {p.id for p in world.platform.partitions if 3 in p.gpu_ids}
    for partition in world.platform.partitions:
        if partition.id in with_it:
            with pytest.raises(PartitionHeld):
                world.allocate("a", f"named-{partition.id}", partition_id=partition.id)
    counts = world.controller.queries.capacity(timeout=T)
    named = {
        MarkKind.CORDONED: counts.gpus.cordoned,
        MarkKind.QUARANTINED: counts.gpus.quarantined,
        MarkKind.CLEANING: counts.gpus.cleaning,
    }
    assert named == {each: int(each is kind) for each in named}
    assert (counts.gpus.free, counts.gpus.busy, counts.partitions[8]) == (7, 0, 0)
    granted = [world.allocate("a", f"single-{number}", count=1).gpus for number in range(7)]
    assert sorted(granted) == [(number,) for number in (1, 2, 4, 5, 6, 7, 8)]
    with pytest.raises(NoCapacity):
        world.allocate("a", "one-more", count=1)


def test_a_request_of_single_gpus_avoids_what_is_marked(world: World) -> None:
    mark(world, MarkKind.CORDONED, 1)
    mark(world, MarkKind.QUARANTINED, 2)
    lease = world.allocate("a", "r", count=6, shape=Shape.UNLINKED)
    assert lease.gpus == (3, 4, 5, 6, 7, 8)
    with pytest.raises((Fragmented, NoCapacity)):
        world.allocate("a", "s", count=1)


def test_a_cordoned_gpu_is_granted_again_once_a_person_says_so(world: World) -> None:
    marks = world.controller.marks
    cordoned = marks.cordon_gpu(3, "its fan is loud", actor="alice", timeout=T)
    assert [(m.kind, m.reason, m.since) for m in cordoned.marks] == [(MarkKind.CORDONED, "its fan is loud", world.now)]
    with pytest.raises(PartitionHeld, match="GPU 3: its fan is loud"):
        world.allocate("a", "r", gpu_ids=(3,))
    before = world.store.book.revision
    marks.cordon_gpu(3, "its fan is loud", actor="alice", timeout=T)
    assert world.store.book.revision == before
    world.wait(10)
    changed = marks.cordon_gpu(3, "its fan is silent", actor="bob", timeout=T)
    assert [(m.reason, m.since) for m in changed.marks] == [("its fan is silent", world.now - 10)]
    assert marks.uncordon_gpu(3, "a new fan", actor="bob", timeout=T).marks == ()
    assert marks.uncordon_gpu(3, "", actor="bob", timeout=T).marks == ()
    assert world.allocate("a", "r", gpu_ids=(3,)).gpus == (3,)
    told = [(e.subject, e.what, e.actor, e.detail) for e in world.store.entries(0, limit=99) if e.kind is Kind.GPU]
    assert told == [
        ("3", "cordoned", "alice", "its fan is loud"),
        ("3", "cordoned", "bob", "its fan is silent"),
        ("3", "no longer cordoned", "bob", "a new fan"),
    ]


def test_a_lease_goes_on_while_what_it_has_is_cordoned(world: World) -> None:
    lease = world.allocate("a", "r", count=2)
    world.controller.marks.cordon_gpu(lease.gpus[0], "x", actor="alice", timeout=T)
    world.controller.marks.cordon_partition(lease.partitions[0], "x", actor="alice", timeout=T)
    world.reconcile()
    assert world.active == set(lease.partitions)
    shown = gpu(world, lease.gpus[0])
    assert (shown.lease_id, shown.owner, shown.spare) == (lease.id, "a", False)
    world.release(lease.id, wait=True)
    assert refused(world, lease.partitions[0])


def refused(world: World, partition: int) -> bool:
    try:
        world.allocate("b", f"try-{world.store.book.revision}", partition_id=partition)
    except FmctlError:
        return True
    return False


def test_a_partition_that_fmctl_cordoned_is_given_back_by_a_person(world: World) -> None:
    from fmctl.sim.faults import NO_FAULTS, Faults

    world.nvfm.fail(Faults.parse([f"code={FmCode.NVLINK_ERROR.value}@activate:1"]))
    lease = world.allocate("a", "r", count=2)
    world.nvfm.fail(NO_FAULTS)
    assert lease.state is LeaseState.ACTIVE
    (cordoned,) = [p for p in world.controller.marks.partitions(timeout=T) if p.marks]
    assert "NVLINK_ERROR" in cordoned.marks[0].reason
    assert any("cordoned" in block for block in cordoned.blocks)
    assert refused(world, cordoned.partition.id)
    marks = world.controller.marks
    given = marks.uncordon_partition(cordoned.partition.id, "reseated", actor="alice", timeout=T)
    assert (given.marks, given.blocks) == ((), ())
    assert not refused(world, cordoned.partition.id)


def test_a_quarantined_gpu_stays_so_while_somebody_has_it_open(world: World) -> None:
    mark(world, MarkKind.QUARANTINED, 3)
    world.start_vm("tenant", (3,))
    marks = world.controller.marks
    with pytest.raises(VmRunning, match="has it open"):
        marks.unquarantine(3, "it was tested", actor="alice", timeout=T)
    assert gpu(world, 3).gpu.held_by
    world.stop_vm("tenant")
    world.blind()
    with pytest.raises(VmRunning, match="cannot be told"):
        marks.unquarantine(3, "it was tested", actor="alice", timeout=T)
    assert gpu(world, 3).gpu.held_by is None
    world.see()
    assert gpu(world, 3).gpu.held_by == ""
    marks.uncordon_gpu(3, "", actor="alice", timeout=T)
    assert len(gpu(world, 3).marks) == 1
    assert marks.unquarantine(3, "it was tested", actor="alice", timeout=T).marks == ()
    entry = world.store.entries(0, limit=99)[-1]
    assert (entry.what, entry.actor, entry.detail) == ("no longer quarantined", "alice", "it was tested")


def test_what_is_not_there_is_not_marked(world: World) -> None:
    marks = world.controller.marks
    for call in (marks.cordon_gpu, marks.uncordon_gpu, marks.unquarantine):
        with pytest.raises(NoSuchGpu):
            call(99, "x", actor="alice", timeout=T)
    for change in (marks.cordon_partition, marks.uncordon_partition):
        with pytest.raises(NoSuchPartition):
            change(99, "x", actor="alice", timeout=T)
    assert world.told("gpu") == world.told("partition") == []


def test_gpus_are_shown_while_fabric_manager_is_away() -> None:
    world = World("hgx-h100-8", started=False)
    shown = world.controller.marks.gpus(timeout=T)
    assert [each.gpu.physical_id for each in shown] == list(range(1, 9))
    assert {each.gpu.driver for each in shown} == {"vfio-pci"}
    assert all(each.gpu.address and each.gpu.iommu_group is not None for each in shown)
    world.controller.marks.cordon_gpu(8, "x", actor="alice", timeout=T)
    assert gpu(world, 8).marks
