# SPDX-License-Identifier: Apache-2.0
"""What a restart finds, and when it refuses it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from fmctl import platforms
from fmctl.core.platform import Platform
from fmctl.sim.saved import SavedState, StateUnusable

H100 = platforms.load("hgx-h100-8")


@pytest.mark.parametrize("board", platforms.every(), ids=lambda board: board.name)
def test_it_reads_back_what_it_wrote(board: Platform) -> None:
    saved = SavedState.of(board, [board.physical_ids[-1]])
    assert SavedState.from_json(saved.to_json(), "file") == saved


def test_which_partitions_were_active_is_not_in_it() -> None:
    assert "active" not in SavedState.of(H100).to_json()


GOOD = SavedState.of(H100).to_json()


@pytest.mark.parametrize(
    "text",
    [
        "",
        GOOD[:-20],
        "[]",
        "{}",
        "null",
        "[" * 100_000,
        GOOD.replace('"format": 1', '"format": 2'),
        GOOD.replace('"platform": "hgx-h100-8"', '"platform": 3'),
        json.dumps({**json.loads(GOOD), "gpus": [[1]]}),
        json.dumps({**json.loads(GOOD), "partitions": [{"id": 1, "gpu_ids": [], "nvlinks_per_gpu": 0}]}),
    ],
)
def test_damage_is_told_with_the_file_s_name(text: str) -> None:
    with pytest.raises(StateUnusable, match=r"the state in /x\.state cannot be used for a restart: it is damaged"):
        SavedState.from_json(text, "/x.state")


def test_another_board_is_told_by_name() -> None:
    other = SavedState.of(platforms.load("hgx-b200-8"))
    with pytest.raises(StateUnusable, match="it is of hgx-b200-8, and this board is hgx-h100-8"):
        other.require_same(SavedState.of(H100), "file")


def test_another_table_under_the_same_name_is_refused() -> None:
    shorter = dataclasses.replace(SavedState.of(H100), partitions=SavedState.of(H100).partitions[1:])
    with pytest.raises(StateUnusable, match="partitions are not the ones"):
        shorter.require_same(SavedState.of(H100), "file")
