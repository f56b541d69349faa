# SPDX-License-Identifier: Apache-2.0
"""PCI identities, as sysfs and the platform files write them."""

from __future__ import annotations

import re
from dataclasses import dataclass

CONFIG_SIZE = 4096
"""Bytes of a PCI Express function's configuration space."""


@dataclass(frozen=True, order=True)
class PciId:
    """Vendor and device id, each 16 bits; written `10de:2330`."""

    vendor: int
    device: int

    @classmethod
    def parse(cls, value: object) -> PciId:
        """Read `10de:2330`; raises ValueError."""
        if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{4}", value):
            raise ValueError(f"a PCI id such as '10de:2330' is wanted, in quotes and lower case, not {value!r}")
        vendor, device = value.split(":")
        return cls(int(vendor, 16), int(device, 16))

    def __str__(self) -> str:
        return f"{self.vendor:04x}:{self.device:04x}"


@dataclass(frozen=True, order=True)
class PciClass:
    """Base class and subclass; written `0302`."""

    code: int

    @classmethod
    def parse(cls, value: object) -> PciClass:
        """Read `0302`; raises ValueError."""
        if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{4}", value):
            raise ValueError(f"a PCI class such as '0302' is wanted, in quotes and lower case, not {value!r}")
        return cls(int(value, 16))

    def __str__(self) -> str:
        return f"{self.code:04x}"


PCI_BRIDGE = PciClass(0x0604)
"""A bridge to another bus, as PCI Express ports are; NVSwitches, whose class is 0680, are none."""


@dataclass(frozen=True, order=True)
class Bdf:
    """Where a PCI function is; written `0000:1b:00.0`, in hexadecimal."""

    domain: int
    bus: int
    device: int
    function: int

    @classmethod
    def parse(cls, value: object) -> Bdf:
        """Read `0000:1b:00.0`; raises ValueError."""
        found = re.fullmatch(_BDF, value, re.ASCII | re.IGNORECASE) if isinstance(value, str) else None
        if found is None:
            raise ValueError(f"a PCI address such as '0000:1b:00.0' is wanted, not {value!r}")
        return cls(*(int(part, 16) for part in found.groups()))

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}.{self.function:x}"


_BDF = "([0-9a-f]{4,8}):([0-9a-f]{2}):([01][0-9a-f])\\.([0-7])"


@dataclass(frozen=True)
class PciFunction:
    """What the kernel knows of a PCI function without asking it. `ports` are the bridges above it, outermost first."""

    bdf: Bdf
    id: PciId
    pci_class: PciClass
    subsystem: PciId | None = None
    driver: str = ""
    iommu_group: int | None = None
    numa_node: int | None = None
    ports: tuple[Bdf, ...] = ()


@dataclass(frozen=True)
class Link:
    """A PCI Express link, as it is and as it could be: gigatransfers per second, and lanes."""

    speed: float
    width: int
    max_speed: float
    max_width: int

    @property
    def is_degraded(self) -> bool:
        """Whether it runs with fewer lanes than it could; the speed falls by itself while a device is idle."""
        return self.width < self.max_width


@dataclass(frozen=True)
class FunctionState:
    """What a PCI function answers when it is asked. `answers` is false for one whose registers read as all ones.

    `bars` are the sizes of its memory regions in bytes, 0 for one it lacks; `reset_methods` are in the kernel's order.
    """

    answers: bool
    link: Link | None = None
    bars: tuple[int, ...] = ()
    reset_methods: tuple[str, ...] = ()
