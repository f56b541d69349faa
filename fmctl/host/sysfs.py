# SPDX-License-Identifier: Apache-2.0
"""The host's PCI functions as sysfs shows them: the port `PciBus`. `sim.sysfs` is its other side.

Attributes are those of the kernel's Documentation/ABI/testing/sysfs-bus-pci. Functions come and go under a reader's
hands, so a missing attribute is never an error.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from fmctl.core.pci import Bdf, FunctionState, Link, PciClass, PciFunction, PciId

_BARS = 6
_CONFIG_LIMIT = 4096
_VPD_LIMIT = 32 * 1024
"""Bytes of vital product data that a function can have (PCI Local Bus Specification 3.0, appendix I)."""


class Sysfs:
    """Reads below `root`, which is /sys on a host."""

    def __init__(self, root: Path = Path("/sys")) -> None:
        self._devices = root / "bus" / "pci" / "devices"

    def functions(self) -> tuple[PciFunction, ...]:
        """Every function, by address; asks none of them anything."""
        try:
            devices = list(self._devices.iterdir())
        except FileNotFoundError:
            return ()
        found = (_function(device) for device in devices)
        return tuple(sorted((f for f in found if f is not None), key=lambda f: f.bdf))

    def state(self, bdf: Bdf) -> FunctionState | None:
        """What that function answers; None where it is gone."""
        device = self._devices / str(bdf)
        config = _bytes(device / "config", 4)
        if not config:
            return None
        if config == b"\xff" * len(config):
            return FunctionState(answers=False)
        return FunctionState(
            answers=True,
            link=_link(device),
            bars=_bars(_text(device / "resource")),
            reset_methods=tuple(_text(device / "reset_method").split()),
        )

    def config(self, bdf: Bdf) -> bytes:
        """Its configuration space; 64 bytes of it without privileges, none where it is gone."""
        return _bytes(self._devices / str(bdf) / "config", _CONFIG_LIMIT)

    def vpd(self, bdf: Bdf) -> bytes:
        """Its vital product data; empty where it has none or is gone."""
        return _bytes(self._devices / str(bdf) / "vpd", _VPD_LIMIT)


def _function(device: Path) -> PciFunction | None:
    """What the kernel knows of a function; None where it is gone."""
    identity, code = _id(device, "vendor", "device"), _hexadecimal(_text(device / "class"))
    if identity is None or code is None:
        return None
    return PciFunction(
        bdf=Bdf.parse(device.name),
        id=identity,
        pci_class=PciClass(code >> 8),
        subsystem=_id(device, "subsystem_vendor", "subsystem_device"),
        driver=_linked(device / "driver"),
        iommu_group=_decimal(_linked(device / "iommu_group")),
        numa_node=_decimal(_text(device / "numa_node")),
        ports=_ports(device),
        override=_override(device),
    )


def _override(device: Path) -> str:
    """The kernel writes `(null)` where there is none."""
    text = _text(device / "driver_override")
    return "" if text == "(null)" else text


def _text(path: Path) -> str:
    return _bytes(path, 4096).decode("ascii", "replace").strip()


def _bytes(path: Path, limit: int) -> bytes:
    """At most `limit` bytes of a file; empty where it is missing, unreadable, or its function is gone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _up_to(descriptor, limit)
        finally:
            os.close(descriptor)
    return b""


def _up_to(descriptor: int, limit: int) -> bytes:
    content = b""
    while len(content) < limit:
        chunk = os.read(descriptor, limit - len(content))
        if not chunk:
            break
        content += chunk
    return content


def _linked(path: Path) -> str:
    """The name of what a link leads to; empty where there is no link."""
    try:
        return path.readlink().name
    except OSError:
        return ""


def _hexadecimal(text: str) -> int | None:
    return int(text, 16) if re.fullmatch("0x[0-9a-f]{1,8}", text) else None


def _decimal(text: str) -> int | None:
    """A count from 0; the kernel writes -1 for a NUMA node that there is not."""
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


def _id(device: Path, vendor: str, product: str) -> PciId | None:
    numbers = _hexadecimal(_text(device / vendor)), _hexadecimal(_text(device / product))
    return None if numbers[0] is None or numbers[1] is None else PciId(numbers[0], numbers[1])


def _ports(device: Path) -> tuple[Bdf, ...]:
    """The bridges above a function, from the folders that its link leads through."""
    try:
        folders = device.readlink().parts[:-1]
    except OSError:
        return ()
    ports = []
    for folder in folders:
        with contextlib.suppress(ValueError):
            ports.append(Bdf.parse(folder))
    return tuple(ports)


def _link(device: Path) -> Link | None:
    """The link; None for a function that has none, such as one built into the processor."""
    speed, max_speed = (_rate(_text(device / name)) for name in ("current_link_speed", "max_link_speed"))
    width, max_width = (_decimal(_text(device / name)) for name in ("current_link_width", "max_link_width"))
    if speed is None or width is None or max_speed is None or max_width is None:
        return None
    return Link(speed, width, max_speed, max_width)


def _rate(text: str) -> float | None:
    """The number of `16.0 GT/s PCIe`."""
    found = re.match(r"([0-9]+(?:\.[0-9]+)?) GT/s", text)
    return float(found[1]) if found else None


def _bars(text: str) -> tuple[int, ...]:
    """Sizes of the first six regions, from lines of start, end and flags."""
    sizes = []
    for start, end in re.findall("^(0x[0-9a-f]+) (0x[0-9a-f]+) ", text, re.MULTILINE)[:_BARS]:
        size = int(end, 16) - int(start, 16) + 1
        sizes.append(size if size > 1 else 0)
    return tuple(sizes)
