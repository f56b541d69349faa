# SPDX-License-Identifier: Apache-2.0
"""What a host has for the memory of VMs, as far as a VM's document depends on it. `host.capacity` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Pages = Mapping[int, int]
"""How many huge pages are free, by their size in KiB."""


@dataclass(frozen=True)
class Node:
    """A NUMA node, with its processors in the kernel's form `0-31,64-95`."""

    id: int
    cpus: str
    free_pages: Pages = field(default_factory=dict)


@dataclass(frozen=True)
class Capacity:
    """A host's NUMA nodes by id, and the huge pages of all together.

    `address_bits` is how long a physical address can be, None where the host does not tell.
    """

    nodes: Mapping[int, Node] = field(default_factory=dict)
    free_pages: Pages = field(default_factory=dict)
    address_bits: int | None = None
