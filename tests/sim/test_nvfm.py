# SPDX-License-Identifier: Apache-2.0
"""The port `FabricManager` in memory: what it raises, and what then is so."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from fmctl import platforms
from fmctl.core.errors import BadRequest, FabricNotReady, OutcomeUnknown
from fmctl.core.fmcode import FmCode
from fmctl.core.ports import FabricManager
from fmctl.sim.fabric import Fabric
from fmctl.sim.faults import Faults
from fmctl.sim.nvfm import MemoryNvfm
from fmctl.sim.saved import SavedState

H100 = platforms.load("hgx-h100-8")


def make(*faults: str, clock: Callable[[], float] = lambda: 0.0) -> MemoryNvfm:
    return MemoryNvfm(Fabric.started(H100, now=0), Faults.parse(faults), clock)


def active(fm: FabricManager) -> list[int]:
    return [partition.id for partition in fm.list_partitions(timeout=1).partitions if partition.active]


def test_it_activates_and_deactivates() -> None:
    fm = make()
    fm.activate(1, timeout=1)
    fm.activate(2, timeout=1)
    fm.deactivate(1, timeout=1)
    assert active(fm) == [2]
    assert fm.list_partitions(timeout=1).simulated


def test_a_refused_change_is_an_unknown_outcome_with_the_code() -> None:
    fm = make()
    with pytest.raises(OutcomeUnknown) as refused:
        fm.deactivate(1, timeout=1)
    assert (refused.value.fm_code, refused.value.partition_id) == (FmCode.UNINITIALIZED, 1)


def test_a_restart_is_not_ready_until_it_is_told() -> None:
    fm = MemoryNvfm(Fabric.restarted(H100, SavedState.of(H100), "file", now=0), clock=lambda: 1.0)
    with pytest.raises(FabricNotReady) as refused:
        fm.list_partitions(timeout=1)
    assert refused.value.fm_code == FmCode.NOT_CONFIGURED
    fm.set_activated([1, 2], timeout=1)
    assert active(fm) == [1, 2]


@pytest.mark.parametrize(
    ("fault", "code", "done"),
    [
        ("hang@activate:1", None, []),
        ("close@activate:1", FmCode.CONNECTION_NOT_VALID, []),
        ("code=-10@activate:1", FmCode.NVLINK_ERROR, []),
    ],
)
def test_a_fault_keeps_the_change_from_happening(fault: str, code: int | None, done: list[int]) -> None:
    fm = make(fault)
    with pytest.raises(OutcomeUnknown) as failed:
        fm.activate(1, timeout=1)
    assert failed.value.fm_code == code
    assert active(fm) == done


@pytest.mark.parametrize(("fault", "done"), [("die-before@activate:1", []), ("die-after@activate:1", [1])])
def test_death_leaves_nobody_to_answer(fault: str, done: list[int]) -> None:
    fabric = Fabric.started(H100, now=0)
    fm = MemoryNvfm(fabric, Faults.parse([fault]), lambda: 0.0)
    with pytest.raises(OutcomeUnknown):
        fm.activate(1, timeout=1)
    with pytest.raises(FabricNotReady, match="does not answer"):
        fm.list_partitions(timeout=1)
    fm.replace(fabric)
    assert active(fm) == done


def test_death_after_a_refused_change_tells_no_code_of_it() -> None:
    fm = make("die-after@activate:1")
    with pytest.raises(OutcomeUnknown) as failed:
        fm.activate(99, timeout=1)
    assert failed.value.fm_code == FmCode.CONNECTION_NOT_VALID


def test_a_hanging_list_tells_how_long_it_would_have_taken() -> None:
    with pytest.raises(FabricNotReady, match=r"within 7\.0 s"):
        make("hang@list:1").list_partitions(timeout=7)


def test_a_lie_needs_bytes_to_be_told_in() -> None:
    with pytest.raises(BadRequest, match="a lie is refused"):
        make("lie=gpus:99@1")


def test_of_many_that_activate_at_once_one_wins() -> None:
    fm = make()

    def attempt(_: int) -> bool:
        try:
            fm.activate(1, timeout=1)
        except OutcomeUnknown:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(attempt, range(64))) == 1
