# SPDX-License-Identifier: Apache-2.0
"""A host's NUMA nodes and huge pages, as sysfs and /proc/cpuinfo show them.

Attributes are those of the kernel's Documentation/ABI (sysfs-devices-node, sysfs-kernel-mm-hugepages).
"""

from __future__ import annotations

import re
from pathlib import Path

from fmctl.core.capacity import Capacity, Node
from fmctl.host.attributes import names, text

_CPUINFO_LIMIT = 4096
"""Enough for the first processor; the whole file takes the kernel long on a host with many."""


def read(root: Path = Path("/")) -> Capacity:
    """What the host below `root` has now."""
    system = root / "sys" / "devices" / "system" / "node"
    numbers = [int(name[4:]) for name in names(system) if re.fullmatch("node[0-9]{1,4}", name)]
    bits = re.search("([0-9]{1,3}) bits physical", text(root / "proc" / "cpuinfo", _CPUINFO_LIMIT))
    return Capacity(
        {number: _node(number, system / f"node{number}") for number in sorted(numbers)},
        _free_pages(root / "sys" / "kernel" / "mm" / "hugepages"),
        int(bits[1]) if bits else None,
    )


def _node(number: int, folder: Path) -> Node:
    return Node(number, text(folder / "cpulist"), _free_pages(folder / "hugepages"))


def _free_pages(folder: Path) -> dict[int, int]:
    counts = {name: text(folder / name / "free_hugepages") for name in names(folder)}
    sizes = {name: re.fullmatch("hugepages-([0-9]{1,9})kB", name) for name in counts}
    return {int(size[1]): int(counts[name]) for name, size in sizes.items() if size and counts[name].isdecimal()}
