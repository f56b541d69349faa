# SPDX-License-Identifier: Apache-2.0
"""The wire between `nvfm_shim.c`, which is the other end of it, and `sim.fmserver`.

It is ours: Fabric Manager's own is undocumented and not imitated. All numbers are 32 bits, little-endian.

    request    length, operation, argument, payload        length counts what follows it
    reply      length, code, payload

The server sends one empty reply as soon as it takes a connection, so that a client can tell a server that closes at
once. Payloads hold the SDK's own structures, without what is unused: a list of a few partitions takes a few kilobytes
instead of 129. For that, each count is there twice: the one the structure is to show, which may be a lie, and the
number of rows that follow.

    list            shown count, most partitions, rows; each: id, active, shown count, GPUs; each the SDK's 128 bytes
    unsupported     shown count, rows; each the SDK's 72 bytes
    failed devices  shown count of GPUs, shown count of switches, GPUs; each the SDK's 372 bytes
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from fmctl.core.fmcode import Operation
from fmctl.core.partition import MAX_GPUS, MAX_NVLINKS, MAX_PARTITIONS, Gpu, Partition, PartitionList
from fmctl.core.platform import PartitionRow
from fmctl.sim.fabric import FailedDevice
from fmctl.sim.faults import Counted, Lie

OPERATIONS = {
    1: Operation.LIST,
    2: Operation.ACTIVATE,
    3: Operation.DEACTIVATE,
    4: Operation.SET_ACTIVATED,
    5: Operation.FAILED_DEVICES,
    6: Operation.UNSUPPORTED,
    7: Operation.ACTIVATE_WITH_VFS,
}

_LENGTH = struct.Struct("<I")
_REQUEST = struct.Struct("<II")
_CODE = struct.Struct("<Ii")
_PCI_DEVICE = struct.Struct("<IIII")
_GPU = struct.Struct("<I80s32sIII")
_ROW = struct.Struct("<IIII")
_LIST = struct.Struct("<III")
_UNSUPPORTED = struct.Struct("<II")
_UNSUPPORTED_ROW = struct.Struct(f"<II{MAX_GPUS}I")
_FAILED_DEVICES = struct.Struct("<III")
_FAILED_DEVICE = struct.Struct(f"<80s32sI{MAX_NVLINKS}I")

MAX_REQUEST = _REQUEST.size + max(4 * MAX_PARTITIONS, _PCI_DEVICE.size * MAX_GPUS)
"""Bytes of the longest request, without its length."""


class BadFrame(Exception):
    """What came is no request; nothing that follows it can be read either."""


@dataclass(frozen=True)
class Request:
    """A call. `argument` is a partition id, or a count; `partition_ids` are those of `set_activated`."""

    operation: Operation
    argument: int = 0
    partition_ids: tuple[int, ...] = ()


def take_request(received: bytearray) -> Request | None:
    """Cut the first request off what was received; None while it is incomplete. Raises BadFrame."""
    if len(received) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(received)
    if not _REQUEST.size <= length <= MAX_REQUEST:
        raise BadFrame(f"a request of {length} bytes")
    end = _LENGTH.size + length
    if len(received) < end:
        return None
    frame = bytes(received[_LENGTH.size : end])
    del received[:end]
    number, argument = _REQUEST.unpack_from(frame)
    return _request(number, argument, frame[_REQUEST.size :])


def _request(number: int, argument: int, payload: bytes) -> Request:
    operation = OPERATIONS.get(number)
    if operation is None:
        raise BadFrame(f"operation {number}")
    if operation is Operation.SET_ACTIVATED:
        if len(payload) != 4 * argument:
            raise BadFrame(f"{argument} ids in {len(payload)} bytes")
        return Request(operation, argument, struct.unpack(f"<{argument}I", payload))
    if payload and (operation is not Operation.ACTIVATE_WITH_VFS or len(payload) % _PCI_DEVICE.size):
        raise BadFrame(f"{len(payload)} bytes with {operation.value}")
    return Request(operation, argument)


def reply(code: int, payload: bytes = b"") -> bytes:
    """An answer, ready to be sent."""
    return _CODE.pack(4 + len(payload), code) + payload


GREETING = reply(0)
"""What the server sends first on each connection."""


def partition_list(listed: PartitionList, lie: Lie | None = None) -> bytes:
    """The payload that answers `list`."""
    rows = listed.partitions
    shown = _shown(lie, Counted.PARTITIONS, len(rows))
    return _LIST.pack(shown, listed.max_partitions, len(rows)) + b"".join(_row(row, lie) for row in rows)


def unsupported(rows: Sequence[PartitionRow], lie: Lie | None = None) -> bytes:
    """The payload that answers `unsupported`."""
    shown = _shown(lie, Counted.PARTITIONS, len(rows))
    return _UNSUPPORTED.pack(shown, len(rows)) + b"".join(_unsupported_row(row, lie) for row in rows)


def failed_devices(gpus: Sequence[FailedDevice], lie: Lie | None = None) -> bytes:
    """The payload that answers `failed-devices`; there never are switches among them."""
    shown = _shown(lie, Counted.GPUS, len(gpus)), _shown(lie, Counted.SWITCHES, 0)
    return _FAILED_DEVICES.pack(*shown, len(gpus)) + b"".join(_failed_device(gpu, lie) for gpu in gpus)


def _shown(lie: Lie | None, what: Counted, true_count: int) -> int:
    return lie.count if lie is not None and lie.what is what else true_count


def _row(row: Partition, lie: Lie | None) -> bytes:
    shown = _shown(lie, Counted.GPUS, len(row.gpus))
    return _ROW.pack(row.id, row.active, shown, len(row.gpus)) + b"".join(map(_gpu, row.gpus))


def _gpu(gpu: Gpu) -> bytes:
    return _GPU.pack(
        gpu.physical_id,
        gpu.uuid.encode(),
        gpu.pci_bus_id.encode(),
        gpu.nvlinks,
        gpu.nvlinks_max,
        gpu.line_rate_mbps,
    )


def _unsupported_row(row: PartitionRow, lie: Lie | None) -> bytes:
    padding = (0,) * (MAX_GPUS - len(row.gpu_ids))
    return _UNSUPPORTED_ROW.pack(row.id, _shown(lie, Counted.GPUS, len(row.gpu_ids)), *row.gpu_ids, *padding)


def _failed_device(device: FailedDevice, lie: Lie | None) -> bytes:
    shown = _shown(lie, Counted.PORTS, device.ports)
    ports = *range(device.ports), *(0,) * (MAX_NVLINKS - device.ports)
    return _FAILED_DEVICE.pack(device.uuid.encode(), device.pci_bus_id.encode(), shown, *ports)
