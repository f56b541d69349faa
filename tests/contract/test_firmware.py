# SPDX-License-Identifier: Apache-2.0
"""What both sides of the port `FirmwareReader` do: in memory, and over a file that behaves as the kernel's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fmctl import platforms
from fmctl.core.pci import Bdf
from fmctl.core.ports import FirmwareReader
from fmctl.host.firmware import RomFiles
from fmctl.sim.firmware import SimulatedFirmware
from fmctl.sim.sysfs import SimulatedBus
from tests import romfs, sysfs_tree

GPU = Bdf.parse("0000:17:00.0")
NOWHERE = Bdf.parse("ffff:00:00.0")
ROM = b"\x55\xaa" + bytes(range(256)) * 1024
"""Longer than what is read at once."""
SOON = 10.0

Host = Callable[[bytes], contextlib.AbstractContextManager[FirmwareReader]]


@contextlib.contextmanager
def _memory(rom: bytes) -> Iterator[FirmwareReader]:
    bus = SimulatedBus(platforms.load("hgx-h100-8"))
    bus.behave(GPU, rom=rom)
    yield SimulatedFirmware(bus)


@pytest.fixture(params=["memory", "files"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    if request.param == "memory":
        return _memory
    if not romfs.is_possible():
        pytest.skip("needs root and /dev/fuse")

    @contextlib.contextmanager
    def files(rom: bytes) -> Iterator[FirmwareReader]:
        sysfs_tree.write(SimulatedBus(platforms.load("hgx-h100-8")), tmp_path / "sys")
        folder = sysfs_tree.folder(tmp_path / "sys", GPU)
        (tmp_path / "mount").mkdir()
        with romfs.mounted(tmp_path / "mount", rom) as served:
            (folder / "rom").symlink_to(tmp_path / "mount" / "rom")
            yield RomFiles(tmp_path)
            assert served.written in ([], [b"1\n", b"0\n"])

    return files


def test_a_rom_is_read_whole(host: Host) -> None:
    with host(ROM) as firmware:
        assert firmware.rom(GPU, timeout=SOON) == ROM


def test_a_device_whose_rom_cannot_be_read_has_none(host: Host) -> None:
    with host(b"") as firmware:
        assert firmware.rom(GPU, timeout=SOON) == b""


def test_a_device_without_a_rom_and_one_that_is_gone_have_none(host: Host) -> None:
    with host(ROM) as firmware:
        assert firmware.rom(Bdf.parse("0000:04:00.0"), timeout=SOON) == b""
        assert firmware.rom(NOWHERE, timeout=SOON) == b""
