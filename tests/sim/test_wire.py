# SPDX-License-Identifier: Apache-2.0
"""Frames: what is cut off, what is refused, and how little a list takes."""

from __future__ import annotations

import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmctl import platforms
from fmctl.core.fmcode import Operation
from fmctl.core.platform import Fact, Mark, PartitionRow, Platform
from fmctl.sim import wire
from fmctl.sim.fabric import Fabric, FailedDevice
from fmctl.sim.faults import Counted, Lie
from fmctl.sim.wire import BadFrame, Request


def frame(number: int, argument: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack("<III", 8 + len(payload), number, argument) + payload


def test_a_request_is_cut_off_once_it_is_whole() -> None:
    whole = frame(2, 7) + frame(4, 2, struct.pack("<II", 3, 4)) + frame(1)[:-1]
    received = bytearray()
    found = []
    for byte in whole:
        received.append(byte)
        found.append(wire.take_request(received))
    assert [request for request in found if request] == [
        Request(Operation.ACTIVATE, 7),
        Request(Operation.SET_ACTIVATED, 2, (3, 4)),
    ]
    assert received == frame(1)[:-1]


@pytest.mark.parametrize(
    "rubbish",
    [
        frame(0),
        frame(8),
        frame(1, 0, b"1234"),
        frame(4, 2, b"1234"),
        frame(4, 2**32 - 1, b""),
        frame(7, 1, b"12345"),
        struct.pack("<I", 7) + b"1234567",
        struct.pack("<I", wire.MAX_REQUEST + 1),
        b"\xff" * 4,
        b"GET / HTTP/1.1\r\n",
    ],
)
def test_rubbish_is_refused(rubbish: bytes) -> None:
    with pytest.raises(BadFrame):
        wire.take_request(bytearray(rubbish))


@given(st.binary(max_size=600))
def test_any_bytes_are_a_request_or_rubbish_or_not_enough(data: bytes) -> None:
    try:
        wire.take_request(bytearray(data))
    except BadFrame:
        return


def test_the_longest_requests_fit() -> None:
    assert wire.take_request(bytearray(frame(4, 64, b"\0" * 256))) is not None
    assert wire.take_request(bytearray(frame(7, 1, b"\0" * 256))) is not None


@pytest.mark.parametrize("board", platforms.every(), ids=lambda board: board.name)
def test_a_list_takes_what_its_gpus_take(board: Platform) -> None:
    listed = Fabric.started(board, now=0).partitions(0)
    gpus = sum(len(row.gpu_ids) for row in board.partitions)
    assert len(wire.partition_list(listed)) == 12 + 16 * len(board.partitions) + 128 * gpus


def test_a_lie_changes_the_shown_count_alone() -> None:
    listed = Fabric.started(platforms.load("hgx-h100-8"), now=0).partitions(0)
    honest = wire.partition_list(listed)
    assert wire.partition_list(listed, Lie(Counted.PARTITIONS, 200)) == struct.pack("<I", 200) + honest[4:]
    lying = wire.partition_list(listed, Lie(Counted.GPUS, 99))
    assert len(lying) == len(honest)
    assert struct.unpack_from("<IIII", lying, 12) == (0, 0, 99, 8)


@pytest.mark.parametrize(("ports", "numbers"), [(0, (0,) * 64), (3, (0, 1, 2, *(0,) * 61)), (64, tuple(range(64)))])
def test_a_failed_device_shows_its_ports(ports: int, numbers: tuple[int, ...]) -> None:
    payload = wire.failed_devices([FailedDevice("GPU-1", "00000000:07:00.0", ports)])
    assert len(payload) == 12 + 372
    assert struct.unpack("<III80s32sI64I", payload) == (
        *(1, 0, 1),
        *(b"GPU-1".ljust(80, b"\0"), b"00000000:07:00.0".ljust(32, b"\0"), ports),
        *numbers,
    )


@pytest.mark.parametrize(
    ("what", "shown"),
    [
        (Counted.PARTITIONS, (1, 0, 1, 3)),
        (Counted.GPUS, (99, 0, 1, 3)),
        (Counted.SWITCHES, (1, 99, 1, 3)),
        (Counted.PORTS, (1, 0, 1, 99)),
    ],
)
def test_a_lie_on_failed_devices_changes_its_shown_count_alone(what: Counted, shown: tuple[int, ...]) -> None:
    device = FailedDevice("GPU-1", "00000000:07:00.0", 3)
    honest, lying = wire.failed_devices([device]), wire.failed_devices([device], Lie(what, 99))
    assert struct.unpack("<III112xI256x", lying) == shown
    assert (lying[12:124], lying[128:]) == (honest[12:124], honest[128:])


@given(
    st.lists(st.integers(1, 2**32 - 1), min_size=1, max_size=16, unique=True),
    st.integers(0, 2**32 - 1),
    st.integers(0, 64),
    st.integers(1, 2**32 - 1),
    st.sampled_from([2, 3, 4, 5]),
)
def test_whatever_board_a_file_describes_can_be_told(
    gpus: list[int], row: int, nvlinks: int, rate: int, generation: int
) -> None:
    model = platforms.load("hgx-a100-8")
    board = dataclasses.replace(
        model,
        nvlink_generation=generation,
        line_rate_mbps=Fact(rate, Mark.UNCONFIRMED, "nobody"),
        gpus=dataclasses.replace(model.gpus, count=len(gpus)),
        partitions=(PartitionRow(row, tuple(gpus), nvlinks),),
    )
    whole, broken = (Fabric.started(board, now=0, missing_gpus=missing) for missing in ((), gpus))
    told = [wire.partition_list(fabric.partitions(0)) for fabric in (whole, broken)]
    told += [wire.unsupported(broken.unsupported(0)), wire.failed_devices(broken.failed_devices(0))]
    full = [12 + 16 + 128 * len(gpus), 12, 8 + 72, 12 + 372 * len(gpus)]
    static = [full[0], full[0], 8, 12]
    assert list(map(len, told)) == (full if board.drops_failed_gpus else static)
