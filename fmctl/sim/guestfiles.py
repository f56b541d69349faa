# SPDX-License-Identifier: Apache-2.0
"""The files of a pretended Service VM in which the agent looks for hardware, the driver and the kernel's log."""

from __future__ import annotations

from pathlib import Path

from fmctl.core.platform import ErrorFamily, Platform
from fmctl.sim.nvfabricmanager import VERSION

PORT_GUID = "946dae0300000001"
"""The port that leads to the NVSwitches of a board with NVLink 5; made up."""

STOCK_CONFIG = """\
# Stands in for NVIDIA's own file \N{EN DASH} with a space where that has one.
LOG_LEVEL=4
FABRIC_MODE=0
DAEMONIZE=1
STATE_FILE_NAME=/tmp/fabricmanager.state
FM_CMD_BIND_INTERFACE=127.0.0.1\N{SPACE}
FM_CMD_PORT_NUMBER=6666
ACCESS_LINK_FAILURE_MODE=0
TRUNK_LINK_FAILURE_MODE=0
"""


def make(root: Path, platform: Platform) -> None:
    """Write what a guest with that board's NVSwitches shows, below `root`, which stands for /."""
    _write(root / "dev" / "kmsg", "")
    _write(root / "sys" / "module" / "nvidia" / "version", f"{VERSION}\n")
    _write(stock_config(root), STOCK_CONFIG)
    if platform.error_family is ErrorFamily.NVL5:
        _write(root / "sys" / "module" / "ib_umad" / "initstate", "live\n")
        device = root / "sys" / "class" / "infiniband" / "mlx5_0"
        _write(device / "device" / "vpd", "pretended vital product data: SW_MNG\n")
        _write(device / "ports" / "1" / "cap_mask", "0xa651e848\n")
        groups = (PORT_GUID[start : start + 4] for start in range(0, 16, 4))
        _write(device / "ports" / "1" / "gids" / "0", f"fe80:0000:0000:0000:{':'.join(groups)}\n")


def stock_config(root: Path) -> Path:
    """Where NVIDIA's own configuration lies."""
    return root / "usr" / "share" / "nvidia" / "nvswitch" / "fabricmanager.cfg"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
