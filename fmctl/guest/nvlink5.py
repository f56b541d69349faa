# SPDX-License-Identifier: Apache-2.0
"""What NVLink 5 hardware needs beside Fabric Manager: the port that leads to the NVSwitches, and NVLSM at it.

There the NVSwitches are reached through the management functions of a ConnectX-7. NVLSM, the NVLink subnet manager,
and Fabric Manager are both told the same port of it. Whether the hardware is of that kind is read from the devices.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fmctl.core.answers import ProcessState
from fmctl.core.errors import FmctlError
from fmctl.guest.kept import STOP_GRACE, KeptProcess

log = logging.getLogger(__name__)

MARK = b"SW_MNG"
"""Stands in the vital product data of a function that leads to NVSwitches."""
SM_DISABLED = 1 << 10
"""IsSMDisabled, of a port's capability mask (InfiniBand)."""
MAX_VPD = 32 * 1024
APPEAR_FOR = 30.0
"""Seconds that the driver has to make an InfiniBand device of such a function."""
LOOK_INTERVAL = 0.5


class Ports:
    """The InfiniBand ports below `root`, which stands for /."""

    def __init__(
        self,
        root: Path,
        *,
        appear_for: float = APPEAR_FOR,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._sys = root / "sys"
        self._appear_for = appear_for
        self._clock = clock
        self._pause = pause

    def find(self) -> str | None:
        """The GUID of the port to tell, such as 0x946dae0300123456; None where the hardware needs none.

        Waits for a device whose function is there; raises FmctlError where it does not come, or has no such port.
        """
        deadline = self._clock() + self._appear_for
        while True:
            devices = self._devices()
            if not devices and not self._has_function():
                return None
            guid = next((guid for device in devices for guid in _guids(device)), None)
            if guid is not None:
                self._require_umad()
                return guid
            if self._clock() >= deadline:
                raise self._missing(devices)
            self._pause(LOOK_INTERVAL)

    def _devices(self) -> list[Path]:
        found = sorted((self._sys / "class" / "infiniband").glob("*"))
        return [device for device in found if MARK in _vpd(device / "device" / "vpd")]

    def _has_function(self) -> bool:
        """Whether a function that leads to NVSwitches is there, with a driver or without."""
        for function in sorted((self._sys / "bus" / "pci" / "devices").glob("*")):
            is_infiniband = _text(function / "class").startswith("0x0207") and _text(function / "vendor") == "0x15b3"
            if is_infiniband and MARK in _vpd(function / "vpd"):
                return True
        return False

    def _require_umad(self) -> None:
        if not any((self._sys / place).exists() for place in ("module/ib_umad", "class/infiniband_mad")):
            raise FmctlError(
                "Fabric Manager is not started",
                why="the kernel module ib_umad, through which it reaches the NVSwitches, is not loaded",
                fix="let the Service VM's image load ib_umad",
            )

    def _missing(self, devices: Sequence[Path]) -> FmctlError:
        what = "Fabric Manager is not started"
        if not devices:
            return FmctlError(
                what,
                why=f"the NVSwitches' management functions have no InfiniBand device after {self._appear_for:g} s",
                fix="let the Service VM's image load mlx5_ib, and see its console",
            )
        names = ", ".join(device.name for device in devices)
        return FmctlError(
            what,
            why=f"no port of {names} both has an address and lets a subnet manager run",
            fix="see the Service VM's console for mlx5_core, and that all management functions are passed to it",
        )


class SubnetManager:
    """NVLSM's own process."""

    def __init__(self, command: Sequence[str], record: Path, *, stop_grace: float = STOP_GRACE) -> None:
        """`record` lies in a folder that a reboot empties."""
        self._command = tuple(command)
        self._process = KeptProcess("NVLSM", record, stop_grace=stop_grace)

    def start(self, guid: str, *, restart: bool) -> None:
        """Start it at that port; with `restart` one that runs goes on, and else is replaced. Raises FmctlError."""
        if restart and self._process.state() is ProcessState.RUNNING:
            return
        self._process.stop()
        if not self._command:
            raise FmctlError(
                "the NVLink subnet manager is not started",
                why="the agent's setting nvlsm_command is empty, and this hardware needs it",
                fix="set nvlsm_command in the Service VM",
            )
        pid = self._process.start([*self._command, "-g", guid])
        log.info("started NVLSM at port %s as process %d", guid, pid)

    def state(self) -> str:
        """What to tell of it; empty where this boot's hardware did not need it."""
        return _STATES[self._process.state()]


_STATES = {
    ProcessState.NOT_STARTED: "",
    ProcessState.UNMANAGED: "",
    ProcessState.RUNNING: "running",
    ProcessState.ENDED: "ended; it is started again with Fabric Manager",
}


def _guids(device: Path) -> Iterator[str]:
    """The GUIDs of a device's ports where a subnet manager may run."""
    for port in sorted((device / "ports").glob("*"), key=lambda port: (len(port.name), port.name)):
        mask, gid = _text(port / "cap_mask"), _text(port / "gids" / "0").replace(":", "")
        if not re.fullmatch("0x[0-9a-f]{1,16}", mask) or not re.fullmatch("[0-9a-f]{32}", gid):
            continue
        guid = gid[16:]
        if not int(mask, 16) & SM_DISABLED and int(guid, 16):
            yield f"0x{guid}"


def _vpd(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_VPD)
    except OSError:
        return b""


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
