# SPDX-License-Identifier: Apache-2.0
"""libnvfm's ABI, declared a second time and apart from the package, so that tests see what a foreign client sees."""

from __future__ import annotations

import ctypes
import os
import time
from ctypes import byref, c_char, c_uint32, c_void_p
from pathlib import Path

V1, V2 = 0x0100010C, 0x02000110
LIST, ACTIVATED, FAILED, UNSUPPORTED = 0x0102030C, 0x01000108, 0x010028BC, 0x01001208
INET, UNIX, VSOCK = 1, 2, 3


class Params(ctypes.Structure):
    _fields_ = (
        ("version", c_uint32),
        ("address", c_char * 256),
        ("timeout_ms", c_uint32),
        ("is_unix", c_uint32),
        ("type", c_uint32),
    )


class Gpu(ctypes.Structure):
    _fields_ = (
        ("physical_id", c_uint32),
        ("uuid", c_char * 80),
        ("pci_bus_id", c_char * 32),
        ("links", c_uint32),
        ("max_links", c_uint32),
        ("line_rate", c_uint32),
    )


class Row(ctypes.Structure):
    _fields_ = (("id", c_uint32), ("active", c_uint32), ("count", c_uint32), ("gpus", Gpu * 16))


class List(ctypes.Structure):
    _fields_ = (("version", c_uint32), ("count", c_uint32), ("most", c_uint32), ("rows", Row * 64))


class Activated(ctypes.Structure):
    _fields_ = (("version", c_uint32), ("count", c_uint32), ("ids", c_uint32 * 64))


class Device(ctypes.Structure):
    _fields_ = (("uuid", c_char * 80), ("pci_bus_id", c_char * 32), ("count", c_uint32), ("ports", c_uint32 * 64))


class FailedDevices(ctypes.Structure):
    _fields_ = (
        ("version", c_uint32),
        ("gpu_count", c_uint32),
        ("switch_count", c_uint32),
        ("gpus", Device * 16),
        ("switches", Device * 12),
    )


class UnsupportedRow(ctypes.Structure):
    _fields_ = (("id", c_uint32), ("count", c_uint32), ("gpus", c_uint32 * 16))


class UnsupportedList(ctypes.Structure):
    _fields_ = (("version", c_uint32), ("count", c_uint32), ("rows", UnsupportedRow * 64))


SIZES = {Gpu: 128, Row: 2060, List: 131852, Activated: 264, Device: 372, FailedDevices: 10428, UnsupportedList: 4616}
assert all(ctypes.sizeof(struct) == size for struct, size in SIZES.items())


class Library:
    """The library, initialised for as long as the block. Every method returns its return code."""

    def __init__(self, path: Path) -> None:
        self.lib = ctypes.CDLL(os.fspath(path))

    def __enter__(self) -> Library:
        assert self.lib.fmLibInit() == 0
        return self

    def __exit__(self, *error: object) -> None:
        self.lib.fmLibShutdown()

    def connect(self, address: str, timeout_ms: int = 2000, kind: int | None = None) -> tuple[int, int]:
        """`fmConnect` with the parameters' version 1, or 2 where a type is given: the code and the handle."""
        params = Params(version=V1 if kind is None else V2, timeout_ms=timeout_ms)
        params.address = address.removeprefix("unix:").encode()
        params.is_unix = kind is None and address.startswith("unix:")
        params.type = kind or 0
        handle = c_void_p()
        code: int = self.lib.fmConnect(byref(params), byref(handle))
        return code, handle.value or 0

    def opened(self, address: str) -> int:
        """A handle of a connection that must come about."""
        code, handle = self.connect(address)
        assert code == 0
        return handle

    def disconnect(self, handle: int) -> int:
        code: int = self.lib.fmDisconnect(c_void_p(handle))
        return code

    def list(self, handle: int, listed: List | None = None) -> int:
        listed = List(version=LIST) if listed is None else listed
        code: int = self.lib.fmGetSupportedFabricPartitions(c_void_p(handle), byref(listed))
        return code

    def activate(self, handle: int, partition_id: int) -> int:
        code: int = self.lib.fmActivateFabricPartition(c_void_p(handle), partition_id)
        return code

    def deactivate(self, handle: int, partition_id: int) -> int:
        code: int = self.lib.fmDeactivateFabricPartition(c_void_p(handle), partition_id)
        return code

    def set_activated(self, handle: int, *ids: int, count: int | None = None) -> int:
        activated = Activated(version=ACTIVATED, count=len(ids) if count is None else count)
        activated.ids[: len(ids)] = ids
        code: int = self.lib.fmSetActivatedFabricPartitions(c_void_p(handle), byref(activated))
        return code

    def failed_devices(self, handle: int, failed: FailedDevices | None = None) -> int:
        failed = FailedDevices(version=FAILED) if failed is None else failed
        code: int = self.lib.fmGetNvlinkFailedDevices(c_void_p(handle), byref(failed))
        return code

    def unsupported(self, handle: int, listed: UnsupportedList | None = None) -> int:
        listed = UnsupportedList(version=UNSUPPORTED) if listed is None else listed
        code: int = self.lib.fmGetUnsupportedFabricPartitions(c_void_p(handle), byref(listed))
        return code

    def activate_with_vfs(self, handle: int, partition_id: int, count: int) -> int:
        functions = (c_uint32 * (4 * max(1, count)))()
        code: int = self.lib.fmActivateFabricPartitionWithVFs(c_void_p(handle), partition_id, functions, count)
        return code

    def every_call(self, handle: int) -> dict[str, int]:
        """The code of each call that takes a handle, but for `fmDisconnect`."""
        return {
            "list": self.list(handle),
            "activate": self.activate(handle, 1),
            "deactivate": self.deactivate(handle, 1),
            "set-activated": self.set_activated(handle),
            "failed-devices": self.failed_devices(handle),
            "unsupported": self.unsupported(handle),
            "activate-with-vfs": self.activate_with_vfs(handle, 1, 1),
        }


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start
