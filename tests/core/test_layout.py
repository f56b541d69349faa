# SPDX-License-Identifier: Apache-2.0
"""Layouts: how they are written, and which partitions of a table they take."""

from __future__ import annotations

import pytest

from fmctl.core import layouts, schema
from fmctl.core.allocate import by_gpus, by_partition, grant, need
from fmctl.core.availability import Availability, Cause
from fmctl.core.book import Book, Kind, Mark, MarkKind
from fmctl.core.errors import InvalidDocument, NoSuchPartition, PolicyDenied
from fmctl.core.explain import Outcome, explain
from fmctl.core.layout import Applied, Layout
from fmctl.core.layouts import place
from fmctl.core.packing import capacity
from fmctl.core.partition import PartitionList
from fmctl.core.settings import DaemonSettings
from tests.tables import H100

TABLE = PartitionList(tuple(H100))
FREE = Availability(tuple(H100))


def book(applied: str) -> Book:
    return Book(marks={(Kind.HOST, "", MarkKind.LAYOUT): Mark(MarkKind.LAYOUT, applied, 1.0)})


@pytest.mark.parametrize(
    ("text", "sizes", "written"),
    [
        ("4x2", (2, 2, 2, 2), "4x2"),
        ("8x1", (1,) * 8, "8x1"),
        ("1x8", (8,), "1x8"),
        ("8", (8,), "1x8"),
        (8, (8,), "1x8"),
        ("1+4+1+2", (4, 2, 1, 1), "4+2+1+1"),
        ("2x2+1x4", (4, 2, 2), "4+2+2"),
        ("16x1", (1,) * 16, "16x1"),
    ],
)
def test_a_layout_is_read_and_written(text: object, sizes: tuple[int, ...], written: str) -> None:
    found = Layout.parse(text)
    assert (found.sizes, str(found), Layout.parse(written)) == (sizes, written, found)


@pytest.mark.parametrize(
    "text", ["", "x", "4x", "x2", "0x2", "4x0", "4+", "+4", "4 x 2", "9x2", "99x99", True, None, -8]
)
def test_what_is_no_layout_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="layout"):
        Layout.parse(text)
    with pytest.raises(InvalidDocument, match=r"policy\.layout"):
        schema.load(DaemonSettings, f"policy: {{layout: '{text}'}}", "fmctld.yaml")


@pytest.mark.parametrize("applied", [Applied(Layout((2, 2)), (3, 12)), Applied(Layout((4, 2, 1)), (1, 5, 9), True)])
def test_an_applied_layout_stands_in_the_book(applied: Applied) -> None:
    assert layouts.applied(book(str(applied))) == applied
    assert layouts.applied(Book()) is None


@pytest.mark.parametrize(
    ("text", "ids"),
    [("8x1", range(7, 15)), ("4x2", (3, 4, 5, 6)), ("2x4", (1, 2)), ("1x8", (0,)), ("4+2+1+1", (1, 5, 12, 14))],
)
def test_the_table_gives_a_layout_its_partitions(text: str, ids: tuple[int, ...]) -> None:
    found = place(Layout.parse(text), FREE)
    assert tuple(p.id for p in found) == tuple(ids)
    gpus = [gpu for p in found for gpu in p.gpu_ids]
    assert len(gpus) == len(set(gpus))


def test_what_somebody_has_is_kept_as_far_as_it_goes_and_what_is_busy_is_left() -> None:
    quad = TABLE.get(2)
    assert place(Layout.parse("4+2+1+1"), FREE, [quad])[0] == quad
    pairs = [TABLE.get(3), TABLE.get(5)]
    assert {3, 5} <= {p.id for p in place(Layout.parse("4x2"), FREE, pairs)}
    assert [p.id for p in place(Layout.parse("4"), FREE, [TABLE.get(3)])] == [1]
    busy = Availability(tuple(H100), busy={1, 3})
    assert [p.id for p in place(Layout.parse("4"), busy)] == [2]
    assert [p.id for p in place(Layout.parse("4+2"), busy, [TABLE.get(3)])] == [2, 3]
    assert [p.id for p in place(Layout.parse("1x8"), busy)] == [0]
    assert 1 not in {p.id for p in place(Layout.parse("4"), Availability(tuple(H100), cordoned={1: "why"}))}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2x3", "the board has no partition of 3 GPUs"),
        ("5x2", "it has 10 GPUs, and the board 8; of its partitions of 2 GPUs, 4 go together and 5 are wanted"),
        ("8+1", "it has 9 GPUs, and the board 8"),
    ],
)
def test_a_layout_that_the_table_cannot_give_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(NoSuchPartition) as refusal:
        place(Layout.parse(text), FREE)
    assert (refusal.value.what, refusal.value.why) == (f"this board cannot be laid out as {Layout.parse(text)}", why)
    assert refusal.value.fix == "choose from 8x1, 4x2, 2x4, 1x8, or a list of these sizes"


def test_a_table_without_rows_gives_no_layout() -> None:
    with pytest.raises(NoSuchPartition):
        place(Layout.parse("8x1"), Availability(()))


def test_a_table_that_changed_is_told() -> None:
    assert Applied(Layout((2, 2)), (3, 4)).problem(TABLE) == ""
    assert "3,99 of these sizes" in Applied(Layout((2, 2)), (3, 99)).problem(TABLE)
    assert Applied(Layout((2, 2)), (3, 1)).problem(TABLE)


def laid_out(text: str, **more: object) -> Availability:
    ids = tuple(p.id for p in place(Layout.parse(text), FREE))
    free = Availability(tuple(H100), **more)  # type: ignore[arg-type]
    return layouts.restricted(free, book(str(Applied(Layout.parse(text), ids))))


def test_only_the_layout_s_partitions_are_offered() -> None:
    free = laid_out("4x2")
    assert (free.sizes, [p.id for p in free.free]) == ((2,), [3, 4, 5, 6])
    assert capacity(free).partitions == {2: 4}
    assert grant(free, 2).partitions[0].id == 3
    with pytest.raises(NoSuchPartition, match="the layout 4x2 of this host has no partition of 1 GPU"):
        need(free, 1)
    with pytest.raises(PolicyDenied, match="it is not in its layout 4x2"):
        by_partition(free, 7)
    with pytest.raises(PolicyDenied, match="it is not in its layout 4x2"):
        by_gpus(free, (1, 2, 3, 4))
    assert by_partition(free, 4).gpus == (2, 4)
    assert layouts.restricted(FREE, Book()) == FREE


def test_gpus_that_no_partition_of_the_layout_has_are_counted_so() -> None:
    free = laid_out("4+2", busy={1})
    counts = capacity(free).gpus
    assert (counts.total, counts.free, counts.busy, counts.outside) == (8, 5, 1, 2)
    assert free.causes()[8] is Cause.OUTSIDE or free.causes()[7] is Cause.OUTSIDE


def test_a_partition_outside_is_explained_by_the_layout() -> None:
    verdicts = {v.partition.id: v for v in explain(laid_out("4+2+1+1"), 4)}
    assert verdicts[1].outcome is Outcome.TAKEN
    assert (verdicts[2].outcome, verdicts[2].text) == (
        Outcome.BLOCKED,
        "the partition is not in the layout 4+2+1+1",
    )


def test_a_layout_of_which_the_table_has_nothing_offers_nothing() -> None:
    free = layouts.restricted(FREE, book("2x2 on 98,99"))
    with pytest.raises(NoSuchPartition, match="the table has none of its partitions"):
        need(free, 2)
