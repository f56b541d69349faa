# SPDX-License-Identifier: Apache-2.0
"""The kernel's log, played by a named pipe, which tells each record when it comes, and by a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmctl.guest.kernellog import KernelLog
from tests.support import eventually

SXID = "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Non-fatal, Link 46"
BOOTED = 1_700_000_000.0


class Kernel:
    """The writing end, and what was read."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._descriptor = os.open(path, os.O_RDWR)
        self.read: list[tuple[float, str]] = []

    def says(self, text: str, sequence: int, microseconds: int = 5_000_000, properties: str = "") -> None:
        os.write(self._descriptor, f"4,{sequence},{microseconds},-;{text}\n{properties}".encode())

    def add(self, time: float, text: str) -> None:
        self.read.append((time, text))

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.read]

    def close(self) -> None:
        os.close(self._descriptor)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    kernel = Kernel(tmp_path / "kmsg")
    with KernelLog(tmp_path / "kmsg", kernel.add, wall=lambda: BOOTED):
        yield kernel
    kernel.close()


def test_sxids_are_taken_with_the_kernel_s_time_and_nothing_else_is(kernel: Kernel) -> None:
    kernel.says("usb 1-1: new device", 10)
    kernel.says(SXID, 11, 12_345_678, " SUBSYSTEM=pci\n DEVICE=+pci:0000:c1:00.0\n")
    kernel.says("NVRM: Xid (PCI:0000:c1:00): 74", 12)
    kernel.says(SXID.replace("28006", "12020"), 13, 13_000_000)
    eventually(lambda: len(kernel.read) == 2)
    assert kernel.read[0] == (BOOTED + 12.345678, f"[   12.345678] {SXID}")
    assert "12020" in kernel.texts[1]


def test_records_that_were_overwritten_are_told(kernel: Kernel) -> None:
    kernel.says("first", 10)
    kernel.says("much later", 110)
    eventually(lambda: kernel.read)
    assert kernel.texts == ["[    5.000000] 99 kernel messages were overwritten before they were read"]


def test_rubbish_is_passed_over(kernel: Kernel) -> None:
    kernel.says(SXID, 1)
    os.write(kernel._descriptor, b"\xff\xfe rubbish\n;\n4,x,y,-;z\n")
    kernel.says(SXID, 2)
    eventually(lambda: len(kernel.read) == 2)


def test_a_plain_file_is_followed_too(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_text(f"4,1,1000000,-;{SXID}\n")
    read: list[str] = []
    with KernelLog(path, lambda time, text: read.append(text), wall=lambda: BOOTED):
        eventually(lambda: len(read) == 1)
        with path.open("a") as stream:
            stream.write(f"4,2,2000000,-;{SXID[:20]}")
            stream.flush()
            stream.write(f"{SXID[20:]}\n")
        eventually(lambda: len(read) == 2)
    assert read[1] == f"[    2.000000] {SXID}"


def test_one_that_cannot_be_read_is_told_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with KernelLog(tmp_path / "nowhere", lambda time, text: None):
        eventually(lambda: "the kernel's log is not followed" in caplog.text)
