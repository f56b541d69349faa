# SPDX-License-Identifier: Apache-2.0
"""Finding the board: asks the host what `core.inventory` needs to know, and nothing of functions that are not ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fmctl.core import inventory
from fmctl.core.errors import FmctlError
from fmctl.core.inventory import Device, Inventory
from fmctl.core.pci import PciFunction
from fmctl.core.platform import Platform
from fmctl.core.ports import PciBus


class NoBoard(FmctlError):
    """The host has no board that fmctl knows, or fmctl cannot tell which one it is."""


def discover(bus: PciBus, platforms: Sequence[Platform]) -> Inventory:
    """The board among `platforms` that the host's functions fit best, in detail; raises NoBoard.

    With one platform, that is taken as the operator's word, and its absence is told as missing functions.
    """
    functions = bus.functions()
    if len(platforms) == 1:
        return _inventory(bus, platforms[0], _match(bus, platforms[0], functions))
    matched = {platform.name: (platform, _match(bus, platform, functions)) for platform in platforms}
    distances = {name: inventory.distance(platform, devices) for name, (platform, devices) in matched.items()}
    fitting = {name: distance for name, distance in distances.items() if distance is not None}
    best = [name for name, distance in fitting.items() if distance == min(fitting.values())]
    if len(best) != 1:
        raise _no_board(best)
    return _inventory(bus, *matched[best[0]])


def _match(bus: PciBus, platform: Platform, functions: Sequence[PciFunction]) -> tuple[Device, ...]:
    vpds = {bdf: bus.vpd(bdf) for bdf in inventory.wants_vpd(platform, functions)}
    return inventory.match(platform, tuple(functions), vpds)


def _inventory(bus: PciBus, platform: Platform, devices: Sequence[Device]) -> Inventory:
    return inventory.judge(platform, [replace(device, state=bus.state(device.function.bdf)) for device in devices])


def _no_board(fitting: Sequence[str]) -> NoBoard:
    if fitting:
        return NoBoard(
            "the board is not known for certain",
            why=f"what this host has fits {' and '.join(fitting)} equally well",
            fix="name the board with --platform, or set `platform`",
        )
    return NoBoard(
        "there is no HGX board here",
        why="no PCI function has the class and id of a GPU that a platform file names",
        fix="see `lspci -nn -d 10de:`, and describe an unknown board in a platform file",
    )
