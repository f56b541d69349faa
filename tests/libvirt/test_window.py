# SPDX-License-Identifier: Apache-2.0
"""Real firmware finds room for every memory region in the window that `core.mmio` computes."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fmctl.core import mmio
from fmctl.core.mmio import GIB
from tests.support import eventually

CODE, VARIABLES = (Path(f"/usr/share/OVMF/OVMF_{part}_4M.fd") for part in ("CODE", "VARS"))
REGIONS = (8 * GIB, 32 << 20, 16 << 20)
"""A GPU's in small: QEMU without KVM has addresses of 40 bits only."""
FUNCTIONS = 8


def virtual_gpu(port: str, number: int) -> Iterator[str]:
    """A function for each region, since QEMU's test device has one that can be as large as this."""
    yield from ("-device", f"pcie-root-port,id=port{number},chassis={number + 1},{port}")
    for function, size in enumerate(REGIONS):
        yield from ("-device", f"pci-testdev,bus=port{number},addr=0.{function},multifunction=on,membar={size}")


def machine(folder: Path, window: int, expanders: int) -> list[str]:
    shutil.copy(VARIABLES, folder / "vars.fd")
    argv = [
        *("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "256"),
        *("-nodefaults", "-display", "none"),
        *("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={CODE}"),
        *("-drive", f"if=pflash,format=raw,unit=1,file={folder}/vars.fd"),
        *("-global", f"q35-pcihost.pci-hole64-size={window >> 10}K"),
        *("-fw_cfg", f"name=opt/ovmf/X-PciMmio64Mb,string={window >> 20}"),
        *("-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off"),
    ]
    for number in range(expanders):
        bus = 32 + number * (1 + FUNCTIONS // expanders)
        argv += ["-device", f"pxb-pcie,id=pxb{number},bus_nr={bus},bus=pcie.0,addr={2 + number}"]
    for number in range(FUNCTIONS):
        slot = f"bus=pcie.0,addr=2.{number},multifunction=on"
        if expanders:
            slot = f"bus=pxb{number % expanders},addr={number // expanders}"
        argv += virtual_gpu(slot, number)
    return argv


class Qmp:
    """QEMU's own view of a machine."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        eventually(lambda: path.exists() and self._connected(path))
        self._lines = self._socket.makefile("rw")
        self._lines.readline()
        self.ask("qmp_capabilities")

    def _connected(self, path: Path) -> bool:
        try:
            self._socket.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True

    def ask(self, command: str) -> Any:
        self._lines.write(json.dumps({"execute": command}) + "\n")
        self._lines.flush()
        while True:
            answer = json.loads(self._lines.readline())
            if "return" in answer:
                return answer["return"]

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def placed(buses: Any) -> list[int]:
    """The addresses of all large regions that have one, however deep."""
    found: list[int] = []
    for bus in buses:
        for device in bus["devices"]:
            regions = [r for r in device["regions"] if r.get("prefetch") and r["size"] in REGIONS]
            found += [region["address"] for region in regions if region["address"] > 0]
            found += placed([device["pci_bridge"]]) if "devices" in device.get("pci_bridge", {}) else []
    return found


@pytest.mark.parametrize("expanders", [0, 2])
def test_every_region_has_an_address(expanders: int, folder: Path) -> None:
    window = mmio.window([[REGIONS] * (FUNCTIONS // max(1, expanders))] * max(1, expanders))
    assert CODE.exists(), "tools/setup installs ovmf"
    process = subprocess.Popen(machine(folder, window, expanders), stdin=subprocess.DEVNULL)
    try:
        qmp = Qmp(folder / "qmp.sock")
        eventually(lambda: len(placed(qmp.ask("query-pci"))) == FUNCTIONS * len(REGIONS), within=90)
        addresses = placed(qmp.ask("query-pci"))
        qmp.close()
    finally:
        process.kill()
        process.wait()
    assert window <= min(addresses) and max(addresses) < 2 * window
