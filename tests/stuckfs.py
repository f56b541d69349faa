# SPDX-License-Identifier: Apache-2.0
"""A file that nobody comes back from: whoever opens it hangs in the kernel, and not even SIGKILL ends that.

It is a FUSE file system (linux/fuse.h, protocol 7.31) of one file, which never answers the request to open it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

_LOOKUP, _GETATTR, _OPEN, _INIT = 1, 3, 14, 26
_FORGET = (2, 42)
_ROOT, _FILE = 1, 2
_MODES = {_ROOT: 0o40755, _FILE: 0o100644}
_VALID_S = 60
_DETACH = 2
_ENOSYS = -38


def is_possible() -> bool:
    """Whether this process may mount one."""
    return os.geteuid() == 0 and Path("/dev/fuse").exists()


@contextlib.contextmanager
def stuck_file(folder: Path) -> Iterator[Path]:
    """A file in `folder`, as long as the block runs; then who hangs there is let go."""
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    stop, stopped = os.pipe()
    options = f"fd={device},rootmode={_MODES[_ROOT]:o},user_id=0,group_id=0".encode()
    if libc.mount(b"stuck", bytes(folder), b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    thread = threading.Thread(target=_serve, args=(device, stop))
    thread.start()
    try:
        yield folder / "file"
    finally:
        libc.umount2(bytes(folder), _DETACH)
        os.close(stopped)
        thread.join()
        os.close(stop)
        os.close(device)


def _serve(device: int, stop: int) -> None:
    while stop not in select.select([device, stop], [], [])[0]:
        request = os.read(device, 1 << 17)
        _, operation, unique, node = struct.unpack_from("<IIQQ", request)
        answer = _answer(operation, node)
        if answer is not None:
            error = 0 if answer else _ENOSYS
            os.write(device, struct.pack("<IiQ", 16 + len(answer), error, unique) + answer)


def _answer(operation: int, node: int) -> bytes | None:
    """What to reply; nothing where the operation is not known, and None where no reply is wanted or given."""
    if operation == _OPEN or operation in _FORGET:
        return None
    if operation == _INIT:
        return struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 16, 0, 16, 8, 4096, 1, 1, 0, 0)
    if operation == _GETATTR:
        return struct.pack("<QII", _VALID_S, 0, 0) + _attributes(node)
    if operation == _LOOKUP:
        return struct.pack("<QQQQII", _FILE, 0, _VALID_S, _VALID_S, 0, 0) + _attributes(_FILE)
    return b""


def _attributes(node: int) -> bytes:
    return struct.pack("<6Q10I", node, 0, 0, 0, 0, 0, 0, 0, 0, _MODES[node], 1, 0, 0, 0, 4096, 0)
