# SPDX-License-Identifier: Apache-2.0
"""Text tables, byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmctl.cli.table import table

HEADERS = ("PARTITION ID", "STATUS", "GPUs", "NVLINKS", "GPU PHYSICAL IDs")
ROWS = [("0", "Inactive", "8", "144", "1,2,3,4,5,6,7,8"), ("7", "Active", "1", "0", "1")]

cells = st.text(st.characters(codec="ascii", exclude_categories=["C", "Z"]), max_size=12)
grids = st.integers(1, 5).flatmap(
    lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=6)
)


def test_columns_are_as_wide_as_their_widest_cell_and_dashes_as_their_header() -> None:
    assert table(HEADERS, ROWS) == (
        "PARTITION ID  STATUS    GPUs  NVLINKS  GPU PHYSICAL IDs\n"
        "------------  ------    ----  -------  ----------------\n"
        "0             Inactive  8     144      1,2,3,4,5,6,7,8\n"
        "7             Active    1     0        1\n"
    )


def test_without_headers_the_rows_alone_make_the_columns() -> None:
    assert table(HEADERS, ROWS, show_headers=False) == (
        "0  Inactive  8  144  1,2,3,4,5,6,7,8\n7  Active    1  0    1\n"
    )


def test_without_rows_the_headers_remain() -> None:
    assert table(("A", "LONG"), []) == "A  LONG\n-  ----\n"


def test_without_rows_and_headers_nothing_remains() -> None:
    assert table(("A", "LONG"), [], show_headers=False) == ""


def test_an_empty_last_cell_leaves_no_blanks() -> None:
    assert table(("A", "B"), [("1", "")]) == "A  B\n-  -\n1\n"


@pytest.mark.parametrize("row", [("1",), ("1", "2", "3")], ids=["short", "long"])
def test_a_row_of_another_length_is_a_mistake(row: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="zip"):
        table(("A", "B"), [row])


@given(grid=grids, show_headers=st.booleans())
def test_every_cell_starts_where_its_column_does(*, grid: list[list[str]], show_headers: bool) -> None:
    headers, *rows = grid
    lines = table(headers, rows, show_headers=show_headers).splitlines()
    shown = [headers, ["-" * len(header) for header in headers], *rows] if show_headers else rows
    assert len(lines) == len(shown)
    for line, row in zip(lines, shown, strict=True):
        assert not line.endswith(" ")
        start = 0
        for index, cell in enumerate(row):
            assert line.ljust(start)[start : start + len(cell)] == cell
            start += max(len(other[index]) for other in shown) + 2
