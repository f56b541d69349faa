# SPDX-License-Identifier: Apache-2.0
"""What a board is recognised by: where each GPU is and which one it is. A GPU map counts for that board alone.

A changed BIOS or slot can change every PCI address, and a map that was right before would then cross-wire tenants.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fmctl.core import acs
from fmctl.core.inventory import Device, Inventory, Role
from fmctl.core.pci import Bdf, PciId

_EXTENDED = 0x100
_SERIAL_ID = 0x0003
_MOST_CAPABILITIES = 48


@dataclass(frozen=True)
class Machine:
    """The host: its kernel's boot id, and what its firmware says of itself, empty where it does not."""

    boot: str = ""
    bios: str = ""
    chassis: str = ""
    """The chassis' serial number."""


@dataclass(frozen=True)
class GpuPrint:
    """A GPU: the ports above it, outermost first, and its identity; `serial` is empty where it has none."""

    bdf: Bdf
    ports: tuple[Bdf, ...]
    id: PciId
    subsystem: PciId | None
    serial: str = ""

    def plain(self) -> list[str]:
        """All of it as texts."""
        path = "/".join(map(str, (*self.ports, self.bdf)))
        return [path, str(self.id), str(self.subsystem or ""), self.serial]

    @classmethod
    def parse(cls, value: object) -> GpuPrint:
        """The way back from `plain`; raises ValueError."""
        match value:
            case [str(path), str(model), str(subsystem), str(serial)]:
                *ports, bdf = map(Bdf.parse, path.split("/"))
                return cls(bdf, tuple(ports), PciId.parse(model), PciId.parse(subsystem) if subsystem else None, serial)
        raise ValueError(f"a GPU's fingerprint is wanted, not {value!r}")


@dataclass(frozen=True)
class Fingerprint:
    """A board on its host."""

    bios: str
    chassis: str
    gpus: tuple[GpuPrint, ...]

    def plain(self) -> dict[str, Any]:
        """All of it, as JSON can write it."""
        return {"bios": self.bios, "chassis": self.chassis, "gpus": [gpu.plain() for gpu in self.gpus]}

    @classmethod
    def parse(cls, value: object) -> Fingerprint:
        """The way back from `plain`; raises ValueError."""
        match value:
            case {"bios": str(bios), "chassis": str(chassis), "gpus": [*gpus]}:
                return cls(bios, chassis, tuple(map(GpuPrint.parse, gpus)))
        raise ValueError(f"a board's fingerprint is wanted, not {value!r}")

    def has_become(self, now: Fingerprint, *, same_boot: bool) -> bool:
        """Whether `now` can be this board still; within a boot it may have lost GPUs, since no address changes then."""
        if (self.bios, self.chassis) != (now.bios, now.chassis):
            return False
        return set(now.gpus) <= set(self.gpus) if same_boot else set(now.gpus) == set(self.gpus)


def digest(*documents: object) -> str:
    """Twelve hexadecimal digits that a person can compare and type, such as 4f2a-9c01-77be."""
    found = hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()
    return "-".join(found[index : index + 4] for index in (0, 4, 8))


def take(inventory: Inventory, machine: Machine, serial: Callable[[Device], str]) -> Fingerprint:
    """The fingerprint of the board as it is now; GPUs that do not answer are lost to it."""
    gpus = [
        GpuPrint(
            device.function.bdf, device.function.ports, device.function.id, device.function.subsystem, serial(device)
        )
        for device in present(inventory)
    ]
    return Fingerprint(machine.bios, machine.chassis, tuple(gpus))


def present(inventory: Inventory) -> tuple[Device, ...]:
    """The GPUs that are there and answer, by address."""
    gpus = [d for d in inventory.devices if d.role is Role.GPU and d.state is not None and d.state.answers]
    return tuple(sorted(gpus, key=lambda device: device.function.bdf))


def serial_number(config: acs.Reader) -> str:
    """The Device Serial Number of a configuration space (PCI Express Base Specification 3.0, 7.12), such as
    48-b0-2d-ff-fe-01-02-03; empty where it has none, or all zeros or ones.
    """
    offset = _EXTENDED
    for _ in range(_MOST_CAPABILITIES):
        header = int.from_bytes(config(offset, 4), "little")
        if header & 0xFFFF == _SERIAL_ID:
            number = config(offset + 4, 4)[::-1].hex(), config(offset + 8, 4)[::-1].hex()
            found = number[1] + number[0]
            return "" if set(found) in ({"0"}, {"f"}, set()) else "-".join(found[i : i + 2] for i in range(0, 16, 2))
        offset = header >> 20 & 0xFFC
        if offset < _EXTENDED or header == 0xFFFFFFFF:
            return ""
    return ""
