# SPDX-License-Identifier: Apache-2.0
"""The GPUs of tests that have no host behind Fabric Manager."""

from __future__ import annotations

from fmctl import platforms
from fmctl.control.discovery import NoBoard
from fmctl.control.gpus import Gpus
from fmctl.control.vfio import Vfio
from fmctl.core.inventory import Inventory
from fmctl.sim.host import SimulatedHost


def _no_board() -> Inventory:
    raise NoBoard("there is no board")


_host = SimulatedHost(platforms.load("hgx-h100-8"))
NO_GPUS = Gpus(_no_board, lambda inventory: None, Vfio(_host.bus, _host.devices), None, verified=lambda inventory: None)
"""A host without a board, on which nobody holds anything."""
