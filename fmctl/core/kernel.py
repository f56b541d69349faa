# SPDX-License-Identifier: Apache-2.0
"""What the host's kernel says of itself, as far as the safety of passthrough hangs on it. `core.isolation` judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class KernelFacts:
    """The running kernel.

    `modules` are those that are loaded or built in and have parameters, each with the parameters that can be read;
    `available` are modules that modprobe would find. `iommus` are the names in /sys/class/iommu.
    """

    command_line: tuple[str, ...] = ()
    modules: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    available: frozenset[str] = frozenset()
    iommus: tuple[str, ...] = ()
    vendor: str = ""
    """The processor's vendor, as /proc/cpuinfo writes it: GenuineIntel or AuthenticAMD."""
