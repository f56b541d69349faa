# SPDX-License-Identifier: Apache-2.0
"""Which functions get vfio-pci and which get no driver at all: the decisions. `control.vfio` acts on them."""

from __future__ import annotations

from dataclasses import dataclass

from fmctl.core.errors import FmctlError

VFIO_PCI = "vfio-pci"
PARKED = "fmctl-parked"
"""A driver that does not exist: a function whose override names it stays without a driver."""


@dataclass(frozen=True)
class Holder:
    """A process that has an IOMMU group open."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"{self.command} (process {self.pid})"


class WriteFailed(FmctlError):
    """The kernel refused a write to sysfs."""


class WriteOverdue(FmctlError):
    """A write to sysfs did not end in time; the kernel may be at it still."""
