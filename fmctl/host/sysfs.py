# SPDX-License-Identifier: Apache-2.0
"""The host's PCI functions as sysfs shows them: the port `PciBus`. `sim.sysfs` is its other side.

Attributes are those of the kernel's Documentation/ABI/testing/sysfs-bus-pci. Functions come and go under a reader's
hands, so a missing attribute is never an error.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import replace
from pathlib import Path

from fmctl.core.pci import CONFIG_SIZE, Bdf, FunctionState, Link, PciClass, PciFunction, PciId
from fmctl.host.attributes import content, linked, names, target, text

_BARS = 6
_VPD_LIMIT = 32 * 1024
"""Bytes of vital product data that a function can have (PCI Local Bus Specification 3.0, appendix I)."""


_Inode = tuple[int, int]
"""Which folder it is that a name leads to: the kernel gives every function one of its own."""


class Sysfs:
    """Reads below `root`, which is /sys on a host. Every method may be called from any thread.

    A host has hundreds of functions, looked at all the time: what stays as it is for as long as a function is there is
    read once. (A NUMA node can be written; who does so is heard by a process that starts afterwards.)
    """

    def __init__(self, root: Path = Path("/sys")) -> None:
        self._devices = str(root / "bus" / "pci" / "devices")
        self._known: dict[str, tuple[_Inode, PciFunction]] = {}

    def functions(self) -> tuple[PciFunction, ...]:
        """Every function, by address; asks none of them anything."""
        present = names(self._devices)
        for name in self._known.keys() - set(present):
            self._known.pop(name, None)
        return tuple(sorted((f for f in map(self._function, present) if f is not None), key=lambda f: f.bdf))

    def function(self, bdf: Bdf) -> PciFunction | None:
        """That function; None where it is gone. Asks it nothing."""
        return self._function(str(bdf))

    def _function(self, name: str) -> PciFunction | None:
        """What the kernel knows of a function; None where it is gone."""
        device = f"{self._devices}/{name}"
        inode = _inode(device)
        if inode is None:
            return None
        before, known = self._known.get(name, (None, None))
        if known is None or inode != before:
            known = _identity(device, name)
            if known is None:
                return None
            self._known[name] = inode, known
        driver, group = linked(f"{device}/driver"), _decimal(linked(f"{device}/iommu_group"))
        return replace(known, driver=driver, iommu_group=group)

    def state(self, bdf: Bdf) -> FunctionState | None:
        """What that function answers; None where it is gone."""
        device = f"{self._devices}/{bdf}"
        config = content(f"{device}/config", 4)
        if not config:
            return None
        if config == b"\xff" * len(config):
            return FunctionState(answers=False)
        return FunctionState(
            answers=True,
            link=_link(device),
            bars=_bars(text(f"{device}/resource")),
            reset_methods=tuple(text(f"{device}/reset_method").split()),
        )

    def config(self, bdf: Bdf, offset: int = 0, size: int = CONFIG_SIZE) -> bytes:
        """Its configuration space from `offset` on; 64 bytes of it without privileges, none where it is gone."""
        return content(f"{self._devices}/{bdf}/config", size, offset)

    def vpd(self, bdf: Bdf) -> bytes:
        """Its vital product data; empty where it has none or is gone."""
        return content(f"{self._devices}/{bdf}/vpd", _VPD_LIMIT)


def _inode(device: str) -> _Inode | None:
    """The folder of a function; None where it is gone."""
    try:
        found = os.stat(device)  # noqa: PTH116 (without a Path)
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def _identity(device: str, name: str) -> PciFunction | None:
    """What does not change of a function; None where it is gone."""
    identity, code = _id(device, "vendor", "device"), _hexadecimal(text(f"{device}/class"))
    if identity is None or code is None:
        return None
    return PciFunction(
        bdf=Bdf.parse(name),
        id=identity,
        pci_class=PciClass(code >> 8),
        subsystem=_id(device, "subsystem_vendor", "subsystem_device"),
        numa_node=_decimal(text(f"{device}/numa_node")),
        ports=_ports(target(device)),
    )


def _hexadecimal(word: str) -> int | None:
    return int(word, 16) if re.fullmatch("0x[0-9a-f]{1,8}", word) else None


def _decimal(word: str) -> int | None:
    """A count from 0; the kernel writes -1 for a NUMA node that there is not."""
    return int(word) if re.fullmatch("[0-9]{1,9}", word) else None


def _id(device: str, vendor: str, product: str) -> PciId | None:
    numbers = _hexadecimal(text(f"{device}/{vendor}")), _hexadecimal(text(f"{device}/{product}"))
    return None if numbers[0] is None or numbers[1] is None else PciId(numbers[0], numbers[1])


def _ports(link: str) -> tuple[Bdf, ...]:
    """The bridges above a function, from the folders that its link leads through."""
    ports = []
    for folder in link.split("/")[:-1]:
        with contextlib.suppress(ValueError):
            ports.append(Bdf.parse(folder))
    return tuple(ports)


def _link(device: str) -> Link | None:
    """The link; None for a function that has none, such as one built into the processor."""
    speed, max_speed = (_rate(text(f"{device}/{name}")) for name in ("current_link_speed", "max_link_speed"))
    width, max_width = (_decimal(text(f"{device}/{name}")) for name in ("current_link_width", "max_link_width"))
    if speed is None or width is None or max_speed is None or max_width is None:
        return None
    return Link(speed, width, max_speed, max_width)


def _rate(words: str) -> float | None:
    """The number of `16.0 GT/s PCIe`."""
    found = re.match(r"([0-9]+(?:\.[0-9]+)?) GT/s", words)
    return float(found[1]) if found else None


def _bars(lines: str) -> tuple[int, ...]:
    """Sizes of the first six regions, from lines of start, end and flags."""
    sizes = []
    for start, end in re.findall("^(0x[0-9a-f]+) (0x[0-9a-f]+) ", lines, re.MULTILINE)[:_BARS]:
        size = int(end, 16) - int(start, 16) + 1
        sizes.append(size if size > 1 else 0)
    return tuple(sizes)
