# SPDX-License-Identifier: Apache-2.0
"""What both sides of the port `Generation` do, and what becomes of a file that is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmctl.core.errors import FmctlError
from fmctl.core.ports import Generation
from fmctl.host.generation import FileGeneration
from fmctl.sim.generation import MemoryGeneration


@pytest.fixture(params=["file", "memory"])
def generation(request: pytest.FixtureRequest, tmp_path: Path) -> Generation:
    return FileGeneration(tmp_path / "state" / "fabric-generation") if request.param == "file" else MemoryGeneration()


def test_it_counts_from_nothing(generation: Generation) -> None:
    assert generation.current() == 0
    assert [generation.advance(), generation.advance()] == [1, 2]
    assert generation.current() == 2


def test_a_start_counts_once_whoever_asks_again(generation: Generation) -> None:
    assert [generation.follow(start) for start in ("a", "a", "b", "b", "a")] == [1, 1, 2, 2, 3]
    assert generation.current() == 3


def test_a_start_that_is_followed_after_starts_that_were_not_is_a_new_one(generation: Generation) -> None:
    assert [generation.follow("a"), generation.advance(), generation.follow("a")] == [1, 2, 3]


def test_what_was_followed_survives_the_process(tmp_path: Path) -> None:
    assert FileGeneration(tmp_path / "n").follow("a") == 1
    again = FileGeneration(tmp_path / "n")
    assert (again.current(), again.follow("a"), again.follow("b")) == (1, 1, 2)


def test_a_file_survives_its_process_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    FileGeneration(tmp_path / "n").advance()
    again = FileGeneration(tmp_path / "n")
    assert (again.current(), again.advance()) == (1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["n"]


@pytest.mark.parametrize("text", ["", "x\n", "-1\n", "1.5\n", "\xff"])
def test_a_damaged_file_is_told_and_left_as_it_is(tmp_path: Path, text: str) -> None:
    file = tmp_path / "n"
    file.write_text(text, "latin-1")
    for call in (FileGeneration(file).current, FileGeneration(file).advance):
        with pytest.raises(FmctlError) as trouble:
            call()
        assert str(file) in trouble.value.why
        assert "too high does no harm" in trouble.value.fix
    assert file.read_text("latin-1") == text


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(FmctlError) as trouble:
        FileGeneration(tmp_path / "state" / "n").advance()
    assert "state/n" in trouble.value.why
