# SPDX-License-Identifier: Apache-2.0
"""Registers of a PCI function's BAR0: the port `Registers`. `sim.registers` is its other side.

By VFIO where the function is bound to vfio-pci: nobody else has it then, the kernel wakes it, and a kernel that is
locked down allows it. One without a driver is read by sysfs. `control.gpumap` has it bound first where it can.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

from fmctl import process
from fmctl.core.errors import VmRunning
from fmctl.core.pci import PciFunction
from fmctl.core.straps import Probe, Unreadable, shown
from fmctl.core.vfio import VFIO_PCI
from fmctl.host import registersjob

_JOB = (sys.executable, "-I", "-S", registersjob.__file__)
KERNEL_TIMEOUT = 30.0
"""Seconds that the kernel may take besides: it resets a GPU that it opens, and again when it closes it."""


class HostRegisters:
    """Reads below `root`, which has the folders sys and dev; / on a host."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self, function: PciFunction, probe: Probe, *, timeout: float) -> tuple[int, ...]:
        """The values at the probe's offsets, once its registers settled; raises Unreadable or VmRunning."""
        if function.driver not in ("", VFIO_PCI):
            raise Unreadable(
                f"GPU {function.bdf} is not read",
                why=f"its driver is {function.driver}",
                fix="`fmctl vfio unbind`, so that no host driver has it",
            )
        way = "vfio" if function.driver == VFIO_PCI else "sysfs"
        try:
            return self._by(way, function, probe, timeout)
        except _Refused as refusal:
            if refusal.number == errno.EBUSY:
                raise VmRunning(f"GPU {function.bdf} is not read", why="a process has its group open") from None
            why, fix = os.strerror(refusal.number), _FIXES.get(refusal.number, "")
            raise Unreadable(f"GPU {function.bdf} cannot be read by {way}", why=why, fix=fix) from None

    def _by(self, way: str, function: PciFunction, probe: Probe, timeout: float) -> tuple[int, ...]:
        asked = {
            "way": way,
            "root": str(self._root).rstrip("/"),
            "bdf": str(function.bdf),
            "group": str(function.iommu_group),
            "settle": [[wait.offset, wait.value, wait.mask] for wait in probe.settle],
            "offsets": probe.offsets,
            "patience": timeout,
        }
        done = process.attempt([*_JOB, json.dumps(asked)], timeout=timeout + KERNEL_TIMEOUT)
        if done is None:
            raise Unreadable(f"GPU {function.bdf} cannot be read", why="the kernel does not return from it")
        status, output = done
        values = tuple(int(line, 16) for line in output.split())
        if status == registersjob.UNSETTLED:
            raise Unreadable(
                f"GPU {function.bdf} did not become ready in {timeout:g} s",
                why=f"a register that it must settle in reads as {shown(values)}",
                fix="see `dmesg`; a reset of its bus may help",
            )
        if status >= registersjob.ERRNO_BASE:
            raise _Refused(status - registersjob.ERRNO_BASE)
        if status or len(values) != len(probe.offsets):
            raise Unreadable(f"GPU {function.bdf} cannot be read", why=f"the process for it ended with status {status}")
        return values


class _Refused(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.number = number


_FIXES = {
    errno.EACCES: "run as root",
    errno.EPERM: "a kernel that is locked down allows it by VFIO alone: load vfio-pci, and bind the GPU",
    errno.ENOENT: "see `fmctl inventory`",
}
