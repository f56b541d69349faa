# SPDX-License-Identifier: Apache-2.0
"""What a pretended host has for the memory of VMs: two NUMA nodes, as `sim.sysfs` has its GPUs on two."""

from __future__ import annotations

from fmctl.core.capacity import Capacity, Node

_GIB_PAGES = {1024 * 1024: 960}
CAPACITY = Capacity(
    nodes={0: Node(0, "0-55,112-167", _GIB_PAGES), 1: Node(1, "56-111,168-223", _GIB_PAGES)},
    free_pages={1024 * 1024: 1920},
    address_bits=52,
)
QEMU = (10, 1)
"""The version of its QEMU."""
