# SPDX-License-Identifier: Apache-2.0
"""How much address space above 4 GiB a VM's firmware needs for the memory regions of its PCI functions.

A root port's window begins at a multiple of its largest region, and the whole window at a multiple of its own size,
which is a power of two: so OVMF places them (seen with OVMF 2022.11, whose window of exactly this size held eight ports
with regions of 8 GiB, 32 MiB and 16 MiB each, and failed at half of it with two expanders). Sizes are in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

GIB = 1 << 30
LEAST = 32 * GIB
"""What QEMU's q35 and OVMF have without being told."""
_OTHERS = GIB
"""Room for the regions of all other devices, which have a few MiB each."""

Regions = Sequence[int]
"""The sizes of one function's regions."""


def window(bridges: Sequence[Sequence[Regions]]) -> int:
    """The size for functions that are each behind a root port, by the host bridge or expander that their port is on."""
    bridges = [functions for functions in bridges if any(map(any, functions))]
    if len(bridges) < 2:
        needed = sum(_length(functions) for functions in bridges) + _OTHERS
    else:
        largest = max(_largest(functions) for functions in bridges)
        needed = sum(_aligned(_length(functions), _largest(functions)) for functions in bridges) + max(largest, _OTHERS)
    return max(LEAST, 1 << (needed - 1).bit_length())


def end(window: int, memory: int) -> int:
    """The address after a window of that size, in a VM with so much memory, part of which is above 4 GiB."""
    return _aligned(4 * GIB + memory, window) + window


def _length(functions: Sequence[Regions]) -> int:
    length = 0
    for regions in functions:
        length = _aligned(length, max(regions, default=0)) + sum(regions)
    return length


def _largest(functions: Sequence[Regions]) -> int:
    return max(max(regions, default=0) for regions in functions)


def _aligned(length: int, alignment: int) -> int:
    return -(-length // alignment) * alignment if alignment else length
