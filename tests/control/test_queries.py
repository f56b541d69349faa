# SPDX-License-Identifier: Apache-2.0
"""What can be asked without changing anything, and that the answer is what an allocation then meets."""

from __future__ import annotations

import pytest

from fmctl import __version__
from fmctl.core.allocate import Shape
from fmctl.core.errors import AgentUnreachable, BadRequest, NoSuchLease
from fmctl.core.explain import Outcome
from fmctl.core.lease import GpuDevice, LeaseState
from fmctl.core.rules import Mode, Rules
from tests.control.gpus import NO_GPUS
from tests.control.leasing import BOARDS, World


def test_a_lease_is_found_also_when_it_is_over() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    queries = world.controller.queries
    assert queries.lease(lease.id) == lease
    world.release(lease.id, wait=True)
    assert queries.lease(lease.id).state is LeaseState.RELEASED
    with pytest.raises(NoSuchLease):
        queries.lease("nothing")


def test_leases_are_listed_oldest_first_by_owner_and_in_pages() -> None:
    world = World()
    leases = [world.allocate(owner, f"{n}", count=1) for n, owner in enumerate("abaab")]
    world.release(leases[0].id, wait=True)
    queries = world.controller.queries
    assert [lease.id for lease in queries.leases().leases] == [lease.id for lease in leases[1:]]
    assert [lease.id for lease in queries.leases(over=True).leases] == [lease.id for lease in leases]
    assert [lease.id for lease in queries.leases(owner="b").leases] == [leases[1].id, leases[4].id]
    first = queries.leases(over=True, limit=2)
    second = queries.leases(over=True, limit=2, after=first.leases[-1].id)
    last = queries.leases(over=True, limit=2, after=second.leases[-1].id)
    assert [page.more for page in (first, second, last)] == [True, True, False]
    assert [x.id for page in (first, second, last) for x in page.leases] == [lease.id for lease in leases]
    assert (first.revision, first.store_id) == (world.store.book.revision, "store")
    assert not queries.leases(over=True, limit=5).more


def test_a_lease_names_what_a_vm_manager_needs_of_its_gpus() -> None:
    world = World()
    lease = world.allocate("a", "r", count=3, shape=Shape.ROUND_UP)
    functions = {function.bdf: function for function in world.host.bus.functions()}
    for device in world.gpus.devices(lease.gpus):
        function = functions[world.address[device.physical_id]]
        assert device == GpuDevice(device.physical_id, function.bdf, function.iommu_group, function.numa_node)
        assert device.vfio_path == f"/dev/vfio/{function.iommu_group}"
    assert NO_GPUS.devices((1,)) == (GpuDevice(1),)
    assert GpuDevice(1).vfio_path == ""


@pytest.mark.parametrize("board", BOARDS)
def test_what_fits_is_what_can_be_allocated(board: str) -> None:
    world = World(board)
    queries = world.controller.queries
    assert queries.capacity(timeout=1).partitions == {1: 8, 2: 4, 4: 2, 8: 1}
    world.allocate("a", "0", count=1)
    found = queries.capacity(timeout=1)
    assert (found.partitions, found.gpus.free, found.gpus.busy) == ({1: 7, 2: 3, 4: 1, 8: 0}, 7, 1)
    fitting = queries.can_allocate((4, 2, 1), timeout=1)
    assert fitting
    assert queries.can_allocate((4, 2, 2), timeout=1) is None
    for number, partition in enumerate(fitting, 1):
        assert world.allocate("a", f"{number}", partition_id=partition.id)
    with pytest.raises(BadRequest):
        queries.can_allocate((0,), timeout=1)


def test_a_choice_is_explained_by_what_is_then_chosen() -> None:
    world = World()
    world.allocate("a", "r", count=1)
    verdicts = world.controller.queries.explain(2, Shape.EXACT, timeout=1)
    (taken,) = [verdict.partition.id for verdict in verdicts if verdict.outcome is Outcome.TAKEN]
    assert Outcome.BLOCKED in [verdict.outcome for verdict in verdicts]
    assert world.allocate("a", "s", count=2).partitions == (taken,)


def test_a_host_that_takes_no_new_work_has_room_for_none() -> None:
    def closed(world: World) -> bool:
        queries = world.controller.queries
        found = queries.capacity(timeout=1)
        return not any(found.partitions.values()) and queries.can_allocate((1,), timeout=1) is None

    world = World()
    assert not closed(world)
    world.controller.cordon("why", actor="a person")
    assert closed(world)
    assert world.controller.queries.closed == "it is cordoned: why"
    world.controller.uncordon(actor="a person")
    assert not closed(world)
    world.gate.reason = "the Service VM is beyond repair"
    assert closed(world)
    assert closed(World("hgx-h100-8", Rules(Mode.OBSERVE)))
    observed = World("hgx-h100-8", Rules(Mode.AUTO))
    observed.nvfm.activate(3, timeout=1)
    observed.reconcile()
    assert closed(observed)


def test_the_answers_need_no_fabric_manager_once_it_was_seen() -> None:
    world = World()
    world.line.cut = 1
    with pytest.raises(AgentUnreachable):
        world.controller.queries.capacity(timeout=1)
    world.reconcile()
    world.stop_fabric_manager()
    assert world.controller.queries.capacity(timeout=1).gpus.free == 8


def test_a_host_is_told_by_its_ids_its_board_and_its_versions() -> None:
    world = World()
    world.controller.status(timeout=1)
    before = world.controller.queries.host_info()
    assert (before.board, before.platform, before.version) == ("", "hgx-h100-8", __version__)
    assert (before.store_id, before.fabric_generation) == ("store", 1)
    world.reconcile()
    board = world.controller.queries.host_info().board
    assert board
    other = World("hgx-b200-8")
    other.reconcile()
    assert other.controller.queries.host_info().board not in ("", board)
    world.allocate("a", "r", count=2)
    assert world.controller.queries.host_info().board == board


def test_what_would_be_done_is_told_and_not_done() -> None:
    world = World()
    lease = world.allocate("a", "r", count=2)
    world.release(lease.id)
    preview = world.controller.reconciler.preview(timeout=1)
    assert [type(step).__name__ for step in preview.steps] == ["Deactivate"]
    assert world.active == {3}
    assert world.controller.reconciler.preview(timeout=1) == preview
