# SPDX-License-Identifier: Apache-2.0
"""The GPU map: which PCI function has which physical id. A wrong one gives a tenant another tenant's NVLinks.

The map is different in every chassis, so there is no default; `core.inventory` knows the functions that it must name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fmctl.core import schema
from fmctl.core.errors import MapUnverified
from fmctl.core.inventory import Inventory, Role
from fmctl.core.pci import Bdf


@dataclass(frozen=True)
class GpuMap:
    """The address of each GPU by its physical id; written `1: '0000:1b:00.0'`, a line for each GPU."""

    addresses: Mapping[int, Bdf]

    @classmethod
    def parse(cls, value: object) -> GpuMap:
        """Read a mapping of physical ids to addresses; raises ValueError."""
        if not isinstance(value, dict) or not value:
            raise ValueError("a line such as 1: '0000:1b:00.0' is wanted for each GPU")
        addresses = {_physical_id(key): _address(key, text) for key, text in value.items()}
        for bdf in addresses.values():
            same = [physical_id for physical_id, other in addresses.items() if other == bdf]
            if len(same) > 1:
                raise ValueError(f"GPUs {_listed(same)} have the same address {bdf}")
        return cls(dict(sorted(addresses.items())))

    def refuse_other(self, other: GpuMap, source: str) -> None:
        """Raise MapUnverified where `source` says by `other` that a GPU is elsewhere than this verified map has it."""
        wrong = [number for number, bdf in other.addresses.items() if self.addresses.get(number, bdf) != bdf]
        if wrong:
            raise MapUnverified(
                f"{source} contradicts the daemon's verified GPU map",
                why=f"they differ about the GPUs {_listed(wrong)}",
                fix="compare it with `fmctl gpumap show`, and correct the file or leave it out",
            )

    def check(self, inventory: Inventory) -> None:
        """Raise MapUnverified unless the map has exactly the board's physical ids, and names every GPU of the host.

        It may name a GPU that the host has lost; its partitions alone are then without it.
        """
        wanted, named = set(inventory.platform.physical_ids), set(self.addresses)
        gpus = {device.function.bdf for device in inventory.devices if device.role is Role.GPU}
        faults = [
            _fault("it lacks the physical ids", wanted - named),
            _fault(f"{inventory.platform.name} has no physical ids", named - wanted),
            _fault("it does not name the GPUs at", gpus - set(self.addresses.values())),
        ]
        if any(faults):
            raise MapUnverified(
                "the GPU map does not fit this host",
                why="; ".join(filter(None, faults)),
                fix="compare it with `fmctl inventory`, and correct the map",
            )


def parse(text: str, source: str) -> GpuMap:
    """Read a map's file; raises InvalidDocument, which names `source` and the reason."""
    return schema.load(GpuMap, text, source)


def in_order(inventory: Inventory) -> GpuMap:
    """The map of a pretended host, whose GPUs have their physical ids in the order of their addresses."""
    gpus = sorted(device.function.bdf for device in inventory.devices if device.role is Role.GPU)
    return GpuMap(dict(zip(inventory.platform.physical_ids, gpus, strict=False)))


def not_set() -> MapUnverified:
    """The error of who needs a map where there is none."""
    return MapUnverified(
        "which GPU has which physical id is not known",
        why="no GPU map is set, and the addresses alone do not tell",
        fix="write what `fmctl gpumap show -o map` prints into a file, and name it with --gpu-map or by the setting"
        " gpu_map",
    )


def not_verified() -> MapUnverified:
    """The error of who needs the verified map where there is none."""
    return MapUnverified(
        "which GPU has which physical id is not sure", why="the GPU map is not verified", fix="see `fmctl gpumap show`"
    )


def _physical_id(key: object) -> int:
    if type(key) is not int or not 1 <= key < 2**32:
        raise ValueError(f"{key!r} is no physical id: a whole number from 1 is wanted")
    return key


def _address(key: object, text: object) -> Bdf:
    if not isinstance(text, str):
        raise ValueError(f"GPU {key}: an address is wanted in quotes, such as '0000:1b:00.0', not {text!r}")
    try:
        return Bdf.parse(text)
    except ValueError as error:
        raise ValueError(f"GPU {key}: {error}") from None


def _fault(what: str, which: Iterable[Any]) -> str:
    return f"{what} {_listed(which)}" if which else ""


def _listed(items: Iterable[Any]) -> str:
    return ", ".join(map(str, sorted(items)))
