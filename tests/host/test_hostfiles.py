# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import stat
from pathlib import Path

import pytest

from fmctl.core.errors import FmctlError
from fmctl.core.hostprep import FileState, plan
from fmctl.host.hostfiles import HostFiles
from fmctl.sim.kernel import SimulatedKernel

FILES = plan(SimulatedKernel().facts()).files
LOAD, PROBE = FILES


def texts(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


WHOLE = {file.path: file.text for file in FILES}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with the folders that distributions have."""
    for file in FILES:
        (tmp_path / file.path).parent.mkdir(parents=True)
    return tmp_path


def test_files_are_written_whole_and_for_all_to_read(root: Path) -> None:
    assert HostFiles(root).write(FILES) == (FileState.MISSING, FileState.MISSING)
    assert texts(root) == WHOLE
    assert {stat.S_IMODE((root / file.path).stat().st_mode) for file in FILES} == {0o644}


def test_folders_that_are_missing_are_made(tmp_path: Path) -> None:
    HostFiles(tmp_path).write(FILES)
    assert texts(tmp_path) == WHOLE


def test_looking_writes_nothing(root: Path) -> None:
    assert HostFiles(root).states(FILES) == (FileState.MISSING, FileState.MISSING)
    assert texts(root) == {}


def test_a_second_time_nothing_is_touched(root: Path) -> None:
    HostFiles(root).write(FILES)
    before = [(root / file.path).stat() for file in FILES]
    assert HostFiles(root).write(FILES) == (FileState.SAME, FileState.SAME)
    assert [(root / file.path).stat().st_ino for file in FILES] == [found.st_ino for found in before]


def test_what_fmctl_wrote_itself_is_replaced(root: Path) -> None:
    (root / LOAD.path).write_text(PROBE.text)
    assert HostFiles(root).write(FILES) == (FileState.OUTDATED, FileState.MISSING)
    assert texts(root) == WHOLE


@pytest.mark.parametrize("content", [b"nvidia\n", b"", b"\xff\xfe"], ids=["other", "empty", "garbage"])
def test_what_somebody_else_wrote_stays_and_nothing_is_written(root: Path, content: bytes) -> None:
    (root / PROBE.path).write_bytes(content)
    with pytest.raises(FmctlError, match="nothing was written") as refusal:
        HostFiles(root).write(FILES)
    assert f"/{PROBE.path}" in refusal.value.what
    assert LOAD.path not in refusal.value.what
    assert "--force" in refusal.value.fix and "--dry-run" in refusal.value.fix
    assert not (root / LOAD.path).exists()
    assert (root / PROBE.path).read_bytes() == content
    assert HostFiles(root).write(FILES, force=True) == (FileState.MISSING, FileState.FOREIGN)
    assert texts(root) == WHOLE


def test_a_link_is_somebody_else_s_and_is_replaced_not_followed(root: Path) -> None:
    target = root / "target"
    target.write_text(LOAD.text)
    (root / LOAD.path).symlink_to(target)
    assert HostFiles(root).states(FILES) == (FileState.FOREIGN, FileState.MISSING)
    HostFiles(root).write(FILES, force=True)
    assert not (root / LOAD.path).is_symlink()
    assert texts(root) == {**WHOLE, "target": LOAD.text}


def test_what_an_interrupted_writer_left_is_no_hindrance(root: Path) -> None:
    path = root / LOAD.path
    (path.parent / f".{path.name}.new").write_text("half a li")
    HostFiles(root).write(FILES)
    assert texts(root) == WHOLE


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("")
    with pytest.raises(FmctlError, match="cannot be read: Not a directory"):
        HostFiles(tmp_path).states(FILES)


def test_a_file_that_cannot_be_written_is_told_with_what_to_do(root: Path) -> None:
    path = root / LOAD.path
    (path.parent / f".{path.name}.new").mkdir()
    with pytest.raises(FmctlError, match=r"fmctl\.conf cannot be written: Is a directory") as refusal:
        HostFiles(root).write(FILES)
    assert "root" in refusal.value.fix
