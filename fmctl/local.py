# SPDX-License-Identifier: Apache-2.0
"""Commands that act on the host with no daemon, put together: `host`, or `sim` in its place, under `control`."""

from __future__ import annotations

from pathlib import Path

from fmctl import platforms
from fmctl.control import discovery
from fmctl.core.inventory import Inventory
from fmctl.host.sysfs import Sysfs


def inventory(platform: str = "", root: Path = Path("/sys")) -> Inventory:
    """The board of this host: the named one, or the one that the host's functions fit; raises FmctlError."""
    known = [platforms.resolve(platform)] if platform else list(platforms.every())
    return discovery.discover(Sysfs(root), known)


def simulated_inventory(platform: str) -> Inventory:
    """The board of a pretended host; raises FmctlError."""
    from fmctl.sim.sysfs import SimulatedBus

    board = platforms.resolve(platform)
    return discovery.discover(SimulatedBus(board), [board])
