# SPDX-License-Identifier: Apache-2.0
"""What an operator must set once on a host, before fmctl can use it. `host.hostfiles` writes the files.

The files are those that need no reboot to decide upon. The kernel's command line is never written: it belongs to the
boot loader, and what is wrong in it keeps a host from booting.

What the files leave out: no `ids=` for vfio-pci, since network cards of the host have the same ids as a B200 board's
functions, and no `softdep` to load vfio-pci first, since fmctl binds by driver_override and takes a function from
whatever driver has it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum

from fmctl.core import hazards
from fmctl.core.kernel import GPU_DRIVERS, KernelFacts


@dataclass(frozen=True)
class HostFile:
    """A file that fmctl writes whole; `path` is relative to the host's root."""

    path: str
    text: str


@dataclass(frozen=True)
class Preparation:
    """What to add to the kernel's command line, what to take off it, and the files to write.

    `firmware` is what must be switched on in the firmware's setup, empty where nothing must.
    """

    add: tuple[str, ...]
    take_off: tuple[str, ...]
    files: tuple[HostFile, ...]
    firmware: str


class FileState(str, Enum):
    """What lies where a file of fmctl's is to be."""

    MISSING = "missing"
    SAME = "same"
    OUTDATED = "outdated"
    """What fmctl wrote at some time, and nobody changed."""
    FOREIGN = "foreign"
    """What somebody else wrote, or changed."""


MODULES = ("vfio-pci", "vhost_vsock")
"""What must be loaded: the driver that VMs get PCI functions through, and the way to the agent in the Service VM."""

_MODULES_LOAD = f"""\
# Passthrough, and the way to the agent in the Service VM.
{chr(10).join(MODULES)}
"""
_MODPROBE = f"""\
# GPUs and NVSwitches belong to VMs: no driver of the host may take them, by itself or by name.
{chr(10).join(f"blacklist {module}" for module in GPU_DRIVERS)}
{chr(10).join(f"install {module} /bin/false" for module in GPU_DRIVERS)}

# A function that no VM has stays powered: some GPUs never return from D3cold (kata-containers issue 11708).
options vfio_pci disable_idle_d3=1
"""


def plan(facts: KernelFacts) -> Preparation:
    """What must be set once on this host, whether it is so already or not."""
    refused = dict.fromkeys(parameter for _, parameter in hazards.refused(facts.command_line))
    return Preparation(
        add=hazards.switches_on(facts),
        take_off=(*refused, *hazards.switches_off(facts)),
        files=(
            _signed("etc/modules-load.d/fmctl.conf", _MODULES_LOAD),
            _signed("etc/modprobe.d/fmctl.conf", _MODPROBE),
        ),
        firmware=hazards.firmware_switch(facts),
    )


def compare(file: HostFile, found: str | None) -> FileState:
    """What is to be said of the text that lies in the file's place, None where nothing does."""
    if found is None:
        return FileState.MISSING
    if found == file.text:
        return FileState.SAME
    _, _, body = found.partition("\n")
    return FileState.OUTDATED if found == _signature(body) + body else FileState.FOREIGN


def _signed(path: str, body: str) -> HostFile:
    return HostFile(path, _signature(body) + body)


def _signature(body: str) -> str:
    """The first line, by which fmctl knows whether anybody changed the rest."""
    digest = hashlib.sha256(body.encode("utf-8", "surrogateescape")).hexdigest()
    return f"# Written by `fmctl host prepare`, and kept as it is once changed. {digest[:16]}\n"
