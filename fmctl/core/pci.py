# SPDX-License-Identifier: Apache-2.0
"""PCI identities, as sysfs and the platform files write them."""

from __future__ import annotations

import re
from dataclasses import dataclass


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
