# SPDX-License-Identifier: Apache-2.0
"""The expansion ROM of PCI functions through sysfs: the port `FirmwareReader`. `sim.firmware` is its other side.

Public dumps of H100 show no ROM, so that this may well find nothing on the boards that fmctl is for.
"""

from __future__ import annotations

from pathlib import Path

from fmctl.core.pci import Bdf
from fmctl.core.vfio import WriteFailed
from fmctl.host import sysfsaccess

_SIGNATURE = b"\x55\xaa"
"""With which a ROM begins (PCI Firmware Specification 3.0, 5.1)."""


class RomFiles:
    """Reads below `root`, which has the folder sys; / on a host."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._devices = root / "sys" / "bus" / "pci" / "devices"

    def rom(self, bdf: Bdf, *, timeout: float) -> bytes:
        """Its expansion ROM; empty where it has none, or none that the kernel can read."""
        folder = self._devices / str(bdf)
        try:
            content = sysfsaccess.run(str(folder / "rom"), "rom", str(folder), timeout=timeout)
        except WriteFailed:
            return b""
        return content if content.startswith(_SIGNATURE) else b""
