# SPDX-License-Identifier: Apache-2.0
"""Reading registers through a VFIO group, by a kernel whose answers are those of linux/vfio.h over plain files."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from fmctl.host import registersjob as job

BDF = "0000:1b:00.0"
CONFIG_AT, BAR0_AT, SIZE = 0x0, 0x1000, 0x100


class Kernel:
    """Answers ioctls as fcntl.ioctl does, which for bytes returns bytes.

    The device's file has its configuration space, and then BAR0.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "dev/vfio").mkdir(parents=True)
        for name in ("vfio", "7", "device"):
            (root / "dev/vfio" / name).touch()
        self.device = root / "dev/vfio/device"
        self.device.write_bytes(bytes(BAR0_AT) + bytes(SIZE))
        self.asked: list[int] = []
        self.refused: dict[int, int] = {}

    def put(self, offset: int, value: int) -> None:
        content = bytearray(self.device.read_bytes())
        content[BAR0_AT + offset : BAR0_AT + offset + 4] = value.to_bytes(4, "little")
        self.device.write_bytes(content)

    def ioctl(self, descriptor: int, number: int, argument: Any = 0) -> int:
        self.asked.append(number)
        if number in self.refused:
            raise OSError(self.refused[number], "refused")
        if number == job.VFIO_GROUP_GET_DEVICE_FD:
            assert bytes(argument) == BDF.encode() + b"\0"
            descriptor = os.open(self.device, os.O_RDWR)
            return descriptor if isinstance(argument, bytearray) else argument
        if number == job.VFIO_DEVICE_GET_REGION_INFO:
            size, _, index, *_ = struct.unpack("=IIIIQQ", argument)
            assert size == 32
            where = {job.CONFIG: (BAR0_AT, CONFIG_AT), job.BAR0: (SIZE, BAR0_AT)}[index]
            argument[:] = struct.pack("=IIIIQQ", 32, 3, index, 0, *where)
        return argument if isinstance(argument, bytes) else 0  # type: ignore[return-value]


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    found = Kernel(tmp_path)
    monkeypatch.setattr(fcntl, "ioctl", found.ioctl)
    return found


def run(kernel: Kernel, capfd: pytest.CaptureFixture[str], **changes: Any) -> tuple[int, list[str]]:
    asked: dict[str, Any] = {
        "way": "vfio",
        "root": str(kernel.root),
        "bdf": BDF,
        "group": "7",
        "settle": [[0, 0x180, 0xFFF]],
        "offsets": [0, 8],
        "patience": 0.1,
    }
    status = job.main(json.dumps({**asked, **changes}))
    return status, capfd.readouterr().out.split()


def test_registers_are_read_through_the_group_with_memory_enabled(
    kernel: Kernel, capfd: pytest.CaptureFixture[str]
) -> None:
    kernel.put(0, 0x12345180)
    kernel.put(8, 0xDEADBEEF)
    assert run(kernel, capfd) == (0, ["0x12345180", "0xdeadbeef"])
    assert kernel.device.read_bytes()[4:6] == b"\x02\x00"
    assert kernel.asked[:3] == [job.VFIO_GROUP_SET_CONTAINER, job.VFIO_SET_IOMMU, job.VFIO_GROUP_GET_DEVICE_FD]


@pytest.mark.parametrize("value", [0xFFFFFFFF, 0x0, 0xBADF0200])
def test_what_does_not_settle_is_told(kernel: Kernel, capfd: pytest.CaptureFixture[str], value: int) -> None:
    kernel.put(0, value)
    assert run(kernel, capfd) == (job.UNSETTLED, [f"{value:#x}"])


def test_all_ones_settle_nothing_whatever_the_rules(kernel: Kernel, capfd: pytest.CaptureFixture[str]) -> None:
    kernel.put(0, 0xFFFFFFFF)
    status, _ = run(kernel, capfd, settle=[[0, 0xFFF, 0xFFF]])
    assert status == job.UNSETTLED


@pytest.mark.parametrize(
    ("number", "error"),
    [(job.VFIO_GROUP_SET_CONTAINER, errno.EBUSY), (job.VFIO_GROUP_GET_DEVICE_FD, errno.EINVAL)],
)
def test_the_kernel_s_refusal_is_the_status(
    kernel: Kernel, capfd: pytest.CaptureFixture[str], number: int, error: int
) -> None:
    kernel.refused[number] = error
    assert run(kernel, capfd) == (job.ERRNO_BASE + error, [])


def test_a_group_that_is_not_there_is_told(kernel: Kernel, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(kernel, capfd, group="8") == (job.ERRNO_BASE + errno.ENOENT, [])


def test_nothing_behind_the_region_is_read(kernel: Kernel, capfd: pytest.CaptureFixture[str]) -> None:
    kernel.put(0, 0x180)
    status, values = run(kernel, capfd, offsets=[SIZE])
    assert (status, values) == (job.ERRNO_BASE + errno.EINVAL, [])
