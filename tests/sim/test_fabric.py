# SPDX-License-Identifier: Apache-2.0
"""Fabric Manager's rules, on every board."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fmctl import platforms
from fmctl.core.errors import BadRequest
from fmctl.core.fmcode import FmCode
from fmctl.core.platform import Platform
from fmctl.sim.fabric import Fabric, Phase, Rejected
from fmctl.sim.saved import SavedState, StateUnusable

NOW = 1000.0
STATIC = [board for board in platforms.every() if not board.drops_failed_gpus]
SHRINKING = [board for board in platforms.every() if board.drops_failed_gpus]


@pytest.fixture(params=platforms.every(), ids=lambda board: board.name)
def board(request: pytest.FixtureRequest) -> Platform:
    found: Platform = request.param
    return found


def ready(board: Platform, *missing: int) -> Fabric:
    return Fabric.started(board, now=NOW, missing_gpus=missing)


def restarted(board: Platform, start_seconds: float = 0.0, awaiting_code: FmCode = FmCode.NOT_CONFIGURED) -> Fabric:
    saved = SavedState.of(board)
    return Fabric.restarted(board, saved, "file", now=NOW, start_seconds=start_seconds, awaiting_code=awaiting_code)


def code(call: Callable[..., object], *arguments: object) -> int:
    try:
        call(*arguments)
    except Rejected as rejected:
        return rejected.code
    return FmCode.SUCCESS


def active(fabric: Fabric, now: float = NOW) -> list[int]:
    return [partition.id for partition in fabric.partitions(now).partitions if partition.active]


def overlapping(board: Platform) -> tuple[int, int]:
    """Two partitions that share a GPU."""
    whole, other = board.partitions[0], board.partitions[1]
    assert set(whole.gpu_ids) & set(other.gpu_ids)
    return whole.id, other.id


def unknown_id(board: Platform) -> int:
    return max(row.id for row in board.partitions) + 1


def test_the_list_is_the_board_s_table(board: Platform) -> None:
    listed = ready(board).partitions(NOW)
    assert board.describes(listed)
    assert listed.max_partitions == len(board.partitions)
    assert listed.simulated
    for row, partition in zip(board.partitions, listed.partitions, strict=True):
        assert (partition.id, partition.gpu_ids, partition.active) == (row.id, row.gpu_ids, False)
        rate = board.line_rate_mbps.value if board.line_rate_mbps else 0
        for gpu in partition.gpus:
            assert (gpu.nvlinks, gpu.nvlinks_max, gpu.line_rate_mbps) == (row.nvlinks_per_gpu,) * 2 + (rate,)


def test_gpus_are_named_up_to_nvlink_3_alone(board: Platform) -> None:
    gpus = {gpu.physical_id: gpu for p in ready(board).partitions(NOW).partitions for gpu in p.gpus}
    names = {(gpu.uuid, gpu.pci_bus_id) for gpu in gpus.values()}
    if board.nvlink_generation >= 4:
        assert names == {("", "00000000:00:00.0")}
    else:
        assert len({gpu.uuid for gpu in gpus.values()}) == len({gpu.pci_bus_id for gpu in gpus.values()}) == len(gpus)
        assert all(gpu.uuid.startswith("GPU-") and len(gpu.uuid) == 40 for gpu in gpus.values())


def test_each_partition_can_be_activated_and_deactivated(board: Platform) -> None:
    fabric = ready(board)
    for row in board.partitions:
        fabric.activate(row.id, NOW)
        assert active(fabric) == [row.id]
        fabric.deactivate(row.id, NOW)
        assert active(fabric) == []


def test_an_unknown_id_is_a_bad_parameter(board: Platform) -> None:
    fabric = ready(board)
    assert code(fabric.activate, unknown_id(board), NOW) == FmCode.BADPARAM
    assert code(fabric.deactivate, unknown_id(board), NOW) == FmCode.BADPARAM


def test_what_is_so_already_is_told_by_the_board_s_family(board: Platform) -> None:
    fabric, row = ready(board), board.partitions[-1]
    already, not_active = {"nvl4": (-7, -4), "nvl5": (-17, -18)}[board.error_family.value]
    assert code(fabric.deactivate, row.id, NOW) == not_active
    fabric.activate(row.id, NOW)
    assert code(fabric.activate, row.id, NOW) == already
    assert active(fabric) == [row.id]


def test_a_gpu_of_another_active_partition_is_in_use_on_every_board(board: Platform) -> None:
    fabric, (first, second) = ready(board), overlapping(board)
    fabric.activate(first, NOW)
    assert code(fabric.activate, second, NOW) == FmCode.IN_USE
    assert active(fabric) == [first]


def test_the_list_stays_the_same_object_until_something_changes(board: Platform) -> None:
    fabric = ready(board)
    before = fabric.partitions(NOW)
    assert fabric.partitions(NOW) is before
    fabric.activate(board.partitions[0].id, NOW)
    assert fabric.partitions(NOW) is not before


def test_virtual_functions_and_a_list_nobody_waits_for_are_not_supported(board: Platform) -> None:
    fabric = ready(board)
    assert code(fabric.activate_with_vfs, NOW) == FmCode.NOT_SUPPORTED
    assert code(fabric.set_activated, [], NOW) == FmCode.NOT_SUPPORTED


def test_nothing_is_served_before_it_is_ready(board: Platform) -> None:
    fabric = Fabric.started(board, now=NOW, start_seconds=5)
    assert fabric.phase(NOW + 4.9) is Phase.INITIALISING
    calls: list[Callable[[], object]] = [
        lambda: fabric.partitions(NOW),
        lambda: fabric.activate(board.partitions[0].id, NOW),
        lambda: fabric.deactivate(board.partitions[0].id, NOW),
        lambda: fabric.set_activated([], NOW),
        lambda: fabric.activate_with_vfs(NOW),
        lambda: fabric.failed_devices(NOW),
        lambda: fabric.unsupported(NOW),
    ]
    assert [code(call) for call in calls] == [FmCode.NOT_CONFIGURED] * len(calls)
    assert fabric.phase(NOW + 5) is Phase.READY
    assert active(fabric, NOW + 5) == []


def test_a_restart_waits_for_the_active_partitions(board: Platform) -> None:
    fabric, row = restarted(board), board.partitions[-1]
    assert fabric.phase(NOW) is Phase.AWAITING_ACTIVE_LIST
    assert code(fabric.partitions, NOW) == FmCode.NOT_CONFIGURED
    assert code(fabric.activate, row.id, NOW) == FmCode.NOT_CONFIGURED
    assert code(fabric.deactivate, row.id, NOW) == FmCode.NOT_CONFIGURED
    fabric.set_activated([row.id], NOW + 59.9)
    assert fabric.phase(NOW + 1e6) is Phase.READY
    assert active(fabric) == [row.id]
    assert code(fabric.set_activated, [], NOW) == FmCode.NOT_SUPPORTED


def test_no_partition_at_all_may_be_active_after_a_restart(board: Platform) -> None:
    fabric = restarted(board)
    fabric.set_activated([], NOW)
    assert active(fabric) == []


def test_the_code_of_a_waiting_restart_can_be_chosen(board: Platform) -> None:
    fabric = restarted(board, awaiting_code=FmCode.NOT_READY)
    assert code(fabric.partitions, NOW) == FmCode.NOT_READY


def test_a_list_that_contradicts_itself_is_refused_and_the_wait_goes_on(board: Platform) -> None:
    fabric, (first, second) = restarted(board), overlapping(board)
    for ids in ([unknown_id(board)], [first, first], [first, second]):
        assert code(fabric.set_activated, ids, NOW) == FmCode.BADPARAM
    assert fabric.phase(NOW) is Phase.AWAITING_ACTIVE_LIST
    fabric.set_activated([first], NOW)
    assert active(fabric) == [first]


def test_a_restart_that_is_told_nothing_fails_a_minute_after_its_start(board: Platform) -> None:
    fabric = restarted(board, start_seconds=5)
    assert fabric.phase(NOW) is Phase.INITIALISING
    assert fabric.fails_at == NOW + 65
    assert fabric.phase(NOW + 64.9) is Phase.AWAITING_ACTIVE_LIST
    assert fabric.phase(NOW + 65) is Phase.FAILED
    assert code(fabric.set_activated, [], NOW + 65) == FmCode.CONNECTION_NOT_VALID


@pytest.mark.parametrize("board", STATIC, ids=lambda board: board.name)
def test_from_nvlink_4_on_a_missing_gpu_changes_nothing(board: Platform) -> None:
    fabric = ready(board, board.physical_ids[0])
    assert len(fabric.partitions(NOW).partitions) == len(board.partitions)
    assert fabric.unsupported(NOW) == ()
    assert fabric.failed_devices(NOW) == restarted(board).failed_devices(NOW) == ()


@pytest.mark.parametrize("board", SHRINKING, ids=lambda board: board.name)
def test_up_to_nvlink_3_a_missing_gpu_takes_its_partitions_with_it(board: Platform) -> None:
    gone = board.physical_ids[0]
    fabric = ready(board, gone)
    kept = {partition.id: partition.gpu_ids for partition in fabric.partitions(NOW).partitions}
    lost = {row.id: row.gpu_ids for row in fabric.unsupported(NOW)}
    assert kept == {row.id: row.gpu_ids for row in board.partitions if gone not in row.gpu_ids}
    assert lost == {row.id: row.gpu_ids for row in board.partitions if gone in row.gpu_ids}
    assert code(fabric.activate, next(iter(lost)), NOW) == FmCode.BADPARAM


@pytest.mark.parametrize("board", SHRINKING, ids=lambda board: board.name)
def test_up_to_nvlink_3_failed_devices_are_not_told_after_a_restart(board: Platform) -> None:
    fabric = restarted(board)
    assert code(fabric.failed_devices, NOW) == FmCode.NOT_SUPPORTED
    fabric.set_activated([], NOW)
    assert code(fabric.failed_devices, NOW) == FmCode.NOT_SUPPORTED


@pytest.mark.parametrize("board", SHRINKING, ids=lambda board: board.name)
def test_up_to_nvlink_3_a_missing_gpu_is_a_failed_device_with_all_its_ports(board: Platform) -> None:
    gpus = {gpu.physical_id: gpu for p in ready(board).partitions(NOW).partitions for gpu in p.gpus}
    assert ready(board).failed_devices(NOW) == ()
    first, last = board.physical_ids[0], board.physical_ids[-1]
    failed = [(gpu.uuid, gpu.pci_bus_id, gpu.ports) for gpu in ready(board, last, first).failed_devices(NOW)]
    assert failed == [(gpus[gpu].uuid, gpus[gpu].pci_bus_id, 12) for gpu in (first, last)]


def test_a_gpu_that_the_board_has_not_cannot_be_missing(board: Platform) -> None:
    with pytest.raises(BadRequest, match="GPU 99 cannot be missing"):
        ready(board, 99)


@pytest.mark.parametrize("board", SHRINKING, ids=lambda board: board.name)
def test_a_restart_with_other_gpus_is_refused(board: Platform) -> None:
    saved = SavedState.of(board)
    with pytest.raises(StateUnusable, match="GPUs are not the ones"):
        Fabric.restarted(board, saved, "file", now=NOW, missing_gpus=[board.physical_ids[0]])
