# SPDX-License-Identifier: Apache-2.0
"""The window for memory regions; tests/libvirt/test_window.py has real firmware use it."""

from __future__ import annotations

import pytest

from fmctl.core import mmio
from fmctl.core.mmio import GIB

MIB = 1 << 20
H100 = (16 * MIB, 128 * GIB, 32 * MIB)
B200 = (64 * MIB, 256 * GIB, 32 * MIB)


@pytest.mark.parametrize(
    ("bridges", "gib"),
    [
        ([], 32),
        ([[(16 << 10,)]], 32),
        ([[(30 * GIB,)]], 32),
        ([[(31 * GIB,)]], 32),
        ([[(32 * GIB,)]], 64),
        ([[H100]], 256),
        ([[H100] * 2], 512),
        ([[H100] * 4], 1024),
        ([[H100] * 8], 2048),
        ([[B200] * 8], 4096),
        ([[H100], [H100]], 1024),
        ([[H100] * 4] * 2, 4096),
        ([[B200] * 4] * 2, 8192),
        ([[(16 << 10,)], [(16 << 10,)]], 32),
    ],
)
def test_the_window_is_the_power_of_two_that_holds_all(bridges: list[list[tuple[int, ...]]], gib: int) -> None:
    assert mmio.window(bridges) == gib * GIB


def test_functions_without_regions_need_no_room() -> None:
    assert mmio.window([[()], [(0, 0)]]) == mmio.LEAST
    assert mmio.window([[(), H100], [()]]) == mmio.window([[H100]])


@pytest.mark.parametrize(
    ("window", "memory", "end"), [(32, 1, 64), (32, 28, 64), (32, 29, 96), (2048, 1024, 4096), (256, 1000, 1280)]
)
def test_the_window_ends_above_the_memory_at_a_multiple_of_its_size(window: int, memory: int, end: int) -> None:
    assert mmio.end(window * GIB, memory * GIB) == end * GIB
