# SPDX-License-Identifier: Apache-2.0
"""The expansion ROM of a function through sysfs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fmctl.core.pci import Bdf
from fmctl.core.vfio import WriteOverdue
from fmctl.host.firmware import RomFiles
from tests import romfs

GPU = Bdf.parse("0000:17:00.0")
NEEDS_FUSE = pytest.mark.skipif(not romfs.is_possible(), reason="needs root and /dev/fuse")


def device(root: Path) -> Path:
    folder = root / "sys" / "bus" / "pci" / "devices" / str(GPU)
    folder.mkdir(parents=True)
    return folder


@NEEDS_FUSE
@pytest.mark.parametrize("rom", [b"\xff" * 64, b"\0" * 64, b"x"], ids=["ones", "zeros", "short"])
def test_what_is_no_rom_is_no_evidence(tmp_path: Path, rom: bytes) -> None:
    (tmp_path / "mount").mkdir()
    with romfs.mounted(tmp_path / "mount", rom):
        (device(tmp_path) / "rom").symlink_to(tmp_path / "mount" / "rom")
        assert RomFiles(tmp_path).rom(GPU, timeout=10.0) == b""


@NEEDS_FUSE
def test_a_function_is_enabled_for_as_long_as_its_rom_is_read(tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    folder = device(tmp_path)
    (folder / "enable").touch()
    with romfs.mounted(tmp_path / "mount", b"\x55\xaa rom"):
        (folder / "rom").symlink_to(tmp_path / "mount" / "rom")
        assert RomFiles(tmp_path).rom(GPU, timeout=10.0) == b"\x55\xaa rom"
    assert (folder / "enable").read_text() == "0\n"


def test_a_rom_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    os.mkfifo(device(tmp_path) / "rom")
    with pytest.raises(WriteOverdue, match=f"the kernel does not return from .*{GPU}/rom"):
        RomFiles(tmp_path).rom(GPU, timeout=0.3)
