# SPDX-License-Identifier: Apache-2.0
"""Reads registers of one PCI function's BAR0, as a script that runs in a process of its own.

Opening a device by VFIO resets it, which the kernel may not return from. So `host.registers` starts this, and abandons
it past a deadline. It runs with neither the environment nor the installed packages (-I -S), so it imports nothing of
ours. Each register is read by one aligned access of four bytes; numbers are those of linux/vfio.h.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

ERRNO_BASE = 100
"""Apart from the statuses with which an interpreter ends; the largest error number of Linux is 133.

Above it a status is the kernel's error number."""
UNSETTLED = 2
"""The exit status where the registers to wait for did not settle; what they read as is written out."""

VFIO_SET_IOMMU = 0x3B66
VFIO_GROUP_SET_CONTAINER = 0x3B68
VFIO_GROUP_GET_DEVICE_FD = 0x3B6A
VFIO_DEVICE_GET_REGION_INFO = 0x3B6C
VFIO_TYPE1V2_IOMMU = 3
BAR0, CONFIG = 0, 7
"""Indexes of regions."""
_REGION = "=IIIIQQ"
_COMMAND, _MEMORY = 4, 0x2
"""The command register of the configuration space, and the bit that lets the function answer at its BARs."""
_PAUSE = 0.02

Read = Callable[[int], int]


@contextmanager
def by_vfio(root: str, bdf: str, group: str) -> Iterator[Read]:
    """Through the function's VFIO group, which nobody else can open meanwhile; the kernel resets and wakes it."""
    container = os.open(f"{root}/dev/vfio/vfio", os.O_RDWR)
    node = os.open(f"{root}/dev/vfio/{group}", os.O_RDWR)
    fcntl.ioctl(node, VFIO_GROUP_SET_CONTAINER, struct.pack("=i", container))
    fcntl.ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1V2_IOMMU)
    device = fcntl.ioctl(node, VFIO_GROUP_GET_DEVICE_FD, bytearray(bdf.encode() + b"\0"))  # for bytes it returns those
    try:
        config, bar0 = _region(device, CONFIG)[0], _region(device, BAR0)
        (command,) = struct.unpack("<H", os.pread(device, 2, config + _COMMAND))
        os.pwrite(device, struct.pack("<H", command | _MEMORY), config + _COMMAND)

        def read(offset: int) -> int:
            if offset + 4 > bar0[1]:
                raise OSError(errno.EINVAL, "behind the region's end")
            word = os.pread(device, 4, bar0[0] + offset)
            if len(word) != 4:
                raise OSError(errno.EIO, "no register there")
            return int.from_bytes(word, "little")

        yield read
    finally:
        for descriptor in (device, node, container):
            os.close(descriptor)


@contextmanager
def by_sysfs(root: str, bdf: str, _group: str) -> Iterator[Read]:
    """Through the function's own files, woken and enabled meanwhile; nothing keeps others out or resets it."""
    folder = f"{root}/sys/bus/pci/devices/{bdf}"
    with _set(f"{folder}/power/control", "on"), _set(f"{folder}/enable", "1"):
        descriptor = os.open(f"{folder}/resource0", os.O_RDONLY | os.O_SYNC)
        try:
            size = os.fstat(descriptor).st_size
            with mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ) as region, memoryview(region) as view:
                words = view.cast("I")
                try:
                    yield lambda offset: words[offset // 4]
                finally:
                    words.release()
        finally:
            os.close(descriptor)


@contextmanager
def _set(path: str, value: str) -> Iterator[None]:
    """Let an attribute be so, and as it was before afterwards; one that is not there is left out."""
    before = None
    with suppress(FileNotFoundError):
        before = _read(path)
        if before != value:
            _write(path, value)
    try:
        yield
    finally:
        if before not in (None, value):
            with suppress(OSError):
                _write(path, str(before))


def _read(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 64).decode("ascii", "replace").strip()
    finally:
        os.close(descriptor)


def _write(path: str, value: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def _region(device: int, index: int) -> tuple[int, int]:
    """Where a region begins in the device's file, and its size."""
    info = bytearray(struct.pack(_REGION, struct.calcsize(_REGION), 0, index, 0, 0, 0))
    fcntl.ioctl(device, VFIO_DEVICE_GET_REGION_INFO, info)
    *_, size, offset = struct.unpack(_REGION, info)
    return offset, size


def settled(read: Read, waits: list[list[int]], deadline: float) -> int | None:
    """None once each register holds its value in the bits of its mask, in their order; what one read as otherwise."""
    for offset, value, mask in waits:
        while (found := read(offset)) & mask != value or found == 0xFFFFFFFF:
            if time.monotonic() >= deadline:
                return found
            time.sleep(_PAUSE)
    return None


def main(text: str) -> int:
    """Do what the argument says, a JSON object; the exit status."""
    asked: dict[str, Any] = json.loads(text)
    way = by_vfio if asked["way"] == "vfio" else by_sysfs
    try:
        with way(asked["root"], asked["bdf"], asked["group"]) as read:
            found = settled(read, asked["settle"], time.monotonic() + asked["patience"])
            if found is not None:
                os.write(1, f"{found:#x}\n".encode())
                return UNSETTLED
            for offset in asked["offsets"]:
                os.write(1, f"{read(offset):#x}\n".encode())
    except OSError as error:
        return ERRNO_BASE + (error.errno or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
