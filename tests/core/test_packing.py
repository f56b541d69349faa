# SPDX-License-Identifier: Apache-2.0
"""How much fits, against every way to place partitions side by side."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from fmctl.core.availability import Availability
from fmctl.core.errors import BadRequest
from fmctl.core.packing import GpuCounts, can_allocate, capacity
from tests.tables import A100_16, H100, SMALL, TWINS, Table, busy_sets, disjoint, free_of, gpus_of, row


def lists_of(sizes: Sequence[int], total: int) -> Iterator[tuple[int, ...]]:
    """Every list of these sizes in their order, with at most that sum."""
    yield ()
    for place, size in enumerate(sizes):
        if size <= total:
            for rest in lists_of(sizes[place:], total - size):
                yield (size, *rest)


def check_against_everything(partitions: Table, busy: frozenset[int]) -> None:
    possible = {tuple(sorted(len(p.gpus) for p in together)) for together in disjoint(free_of(partitions, busy))}
    available = Availability(partitions, busy)
    sizes = sorted({len(p.gpus) for p in partitions})
    for wanted in lists_of(sizes, len(gpus_of(partitions)) + 1):
        found = can_allocate(available, wanted)
        assert (found is not None) == (wanted in possible), (busy, wanted)
        if found is not None:
            used = [gpu for p in found for gpu in p.gpu_ids]
            assert [len(p.gpus) for p in found] == list(wanted)
            assert set(found) <= set(partitions)
            assert len(used) == len(set(used)) and not busy & set(used)
    most = {size: max(Counter(together)[size] for together in possible) for size in sizes}
    assert capacity(available).partitions == most, busy


@pytest.mark.parametrize("name", SMALL)
def test_what_fits_is_what_trying_everything_finds(name: str) -> None:
    for busy in busy_sets(SMALL[name]):
        check_against_everything(SMALL[name], busy)


def test_what_fits_on_16_gpus_is_what_trying_everything_finds() -> None:
    tried = [busy for busy in busy_sets(A100_16) if len(busy) >= 9]
    assert len(tried) > 50
    for busy in tried:
        check_against_everything(A100_16, busy)


def test_a_list_of_sizes_is_served_in_its_order() -> None:
    found = can_allocate(Availability(H100), [2, 4, 1, 1])
    assert found is not None
    assert [len(p.gpus) for p in found] == [2, 4, 1, 1]
    assert can_allocate(Availability(H100), []) == ()
    assert can_allocate(Availability(()), [1]) is None


def test_sizes_fit_one_by_one_and_yet_not_together() -> None:
    available = Availability(H100, busy={2})
    assert all(can_allocate(available, [size]) for size in (1, 2, 4))
    assert can_allocate(available, [2, 4])
    assert can_allocate(available, [1, 2, 4])
    assert can_allocate(available, [4, 4]) is None
    assert can_allocate(available, [2, 2, 4]) is None


@pytest.mark.parametrize("size", [-1, 0, 17])
def test_a_size_that_no_board_has_is_refused(size: int) -> None:
    with pytest.raises(BadRequest, match="cannot be asked for"):
        can_allocate(Availability(H100), [1, size])


def test_a_size_that_this_board_lacks_does_not_fit() -> None:
    assert can_allocate(Availability(H100), [3]) is None
    assert can_allocate(Availability(H100), [16]) is None


def test_what_is_cordoned_cleaned_or_quarantined_does_not_fit() -> None:
    available = Availability(H100, cordoned={5: "x"}, cleaning={1: "x"}, quarantined={6: "x"})
    assert capacity(available).partitions == {1: 6, 2: 1, 4: 0, 8: 0}
    found = can_allocate(available, [2])
    assert found is not None
    assert [p.id for p in found] == [4]


def test_partitions_with_the_same_gpus_fit_once() -> None:
    assert capacity(Availability(TWINS)).partitions == {1: 2, 2: 2, 3: 1}
    assert capacity(Availability(TWINS, cordoned={7: "x"})).partitions == {1: 2, 2: 2, 3: 1}
    assert capacity(Availability(TWINS, cordoned={7: "x", 5: "x"})).partitions == {1: 2, 2: 1, 3: 1}


def test_a_row_without_gpus_is_no_capacity() -> None:
    assert capacity(Availability((row(1), row(2, 5)))).partitions == {1: 1}


def test_each_gpu_counts_once() -> None:
    nothing = capacity(Availability(()))
    assert (nothing.partitions, nothing.gpus) == ({}, GpuCounts(0, 0, 0, 0, 0, 0))
    available = Availability(
        H100,
        busy={1, 2, 3, 4, 5, 99},
        cordoned={14: "x", 6: "x", 2: "x", 0: "x"},
        quarantined={4: "x", 50: "x"},
        cleaning={3: "x", 4: "x", 7: "x"},
    )
    assert capacity(available).gpus == GpuCounts(total=8, free=1, busy=3, cleaning=2, quarantined=1, cordoned=1)


def test_more_busy_gpus_never_leave_more_capacity() -> None:
    left = {busy: capacity(Availability(H100, busy)).partitions for busy in busy_sets(H100)}
    for busy, most in left.items():
        for gpu in gpus_of(H100):
            assert all(left[busy | {gpu}][size] <= most[size] for size in most)


ACROSS = tuple(row(10 * low + high, low, high) for low in range(1, 8) for high in range(8, 17))
"""Pairs of one of GPUs 1 to 7 with one of the nine others: 63 rows, of which seven fit in a great many ways."""


@pytest.mark.parametrize(
    ("partitions", "busy", "wanted"),
    [
        pytest.param(A100_16, (1, 6, 11, 16), [4, 2, 2, 2, 2], id="a GPU of every four is busy"),
        pytest.param(A100_16, (1,), [4, 4, 4, 2, 1], id="one GPU is busy"),
        pytest.param(A100_16, (1, 9), [8, 4, 2], id="both boards are broken"),
        pytest.param(ACROSS, (), [2] * 8, id="one pair too many"),
    ],
)
def test_the_search_is_quick(partitions: Table, busy: Sequence[int], wanted: list[int]) -> None:
    """At most 50 ms of a processor, in the best of three runs."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        can_allocate(Availability(partitions, frozenset(busy)), wanted)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05
