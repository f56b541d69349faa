# SPDX-License-Identifier: Apache-2.0
"""A function's `rom` as the kernel serves it: it reads as an error until a 1 is written, and again after a 0.

It is a FUSE file system (linux/fuse.h, protocol 7.31) of that one file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_LOOKUP, _GETATTR, _OPEN, _READ, _WRITE, _INIT = 1, 3, 14, 15, 16, 26
_FORGET = (2, 42)
_ROOT, _FILE = 1, 2
_MODES = {_ROOT: 0o40755, _FILE: 0o100600}
_VALID_S = 60
_DIRECT = 1
_DETACH = 2
_HEADER = 40


@dataclass
class Rom:
    """What the file shows, and what was written to it."""

    content: bytes
    written: list[bytes] = field(default_factory=list)

    def answer(self, operation: int, node: int, body: bytes) -> bytes | int | None:
        """What to reply: bytes, or an error number, or None where no reply is wanted."""
        if operation in _FORGET:
            return None
        if operation == _INIT:
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 16, 0, 16, 8, 4096, 1, 1, 0, 0)
        if operation == _GETATTR:
            return struct.pack("<QII", _VALID_S, 0, 0) + _attributes(node, len(self.content))
        if operation == _LOOKUP and body == b"rom\0":
            return struct.pack("<QQQQII", _FILE, 0, _VALID_S, _VALID_S, 0, 0) + _attributes(_FILE, len(self.content))
        if operation == _LOOKUP:
            return errno.ENOENT
        if operation == _OPEN:
            return struct.pack("<QII", 0, _DIRECT, 0)
        if operation == _READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return self._read(offset, size)
        if operation == _WRITE:
            self.written.append(body[_HEADER:])
            return struct.pack("<II", len(body) - _HEADER, 0)
        return errno.ENOSYS

    def _read(self, offset: int, size: int) -> bytes | int:
        """A device without a ROM that can be mapped is an error (Linux, pci_read_rom)."""
        if self.written[-1:] != [b"1\n"]:
            return errno.EINVAL
        return self.content[offset : offset + size] if self.content else errno.EIO


def is_possible() -> bool:
    """Whether this process may mount one."""
    return os.geteuid() == 0 and Path("/dev/fuse").exists()


@contextlib.contextmanager
def mounted(folder: Path, content: bytes) -> Iterator[Rom]:
    """Let there be a file `rom` in `folder`, as long as the block runs."""
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    stop, stopped = os.pipe()
    options = f"fd={device},rootmode={_MODES[_ROOT]:o},user_id=0,group_id=0".encode()
    if libc.mount(b"rom", bytes(folder), b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    rom = Rom(content)
    thread = threading.Thread(target=_serve, args=(rom, device, stop))
    thread.start()
    try:
        yield rom
    finally:
        os.close(stopped)
        thread.join()
        libc.umount2(bytes(folder), _DETACH)
        os.close(stop)
        os.close(device)


def _serve(rom: Rom, device: int, stop: int) -> None:
    while stop not in select.select([device, stop], [], [])[0]:
        request = os.read(device, 1 << 17)
        _, operation, unique, node = struct.unpack_from("<IIQQ", request)
        answer = rom.answer(operation, node, request[_HEADER:])
        if isinstance(answer, int):
            os.write(device, struct.pack("<IiQ", 16, -answer, unique))
        elif answer is not None:
            os.write(device, struct.pack("<IiQ", 16 + len(answer), 0, unique) + answer)


def _attributes(node: int, size: int) -> bytes:
    return struct.pack("<6Q10I", node, size, 0, 0, 0, 0, 0, 0, 0, _MODES[node], 1, 0, 0, 0, 4096, 0)
