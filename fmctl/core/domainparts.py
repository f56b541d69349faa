# SPDX-License-Identifier: Apache-2.0
"""Parts that the Service VM's domain and those of tenants share, as values for their templates.

`core.domain_xml` and `core.tenantvm` put them together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from fmctl.core.errors import BadRequest, FmctlError
from fmctl.core.pci import Bdf
from fmctl.core.values import AbsolutePath

FIRST_SLOT = 2
"""The first slot of the bus pcie.0 for what is ours; libvirt puts what it adds from slot 1 on, where there is room."""
_LAST_SLOT = 30
"""The last slot that is free; the chipset is in slot 31."""
_FUNCTIONS = 8
"""Root ports that one slot can have."""
_SAFE_PATH = re.compile("/[A-Za-z0-9._+@:=~ /-]*")
"""Paths without characters that XML, QEMU's options or AppArmor's profiles read as their own."""


@dataclass(frozen=True)
class Port:
    """A root port of the guest, with the host's function that is behind it.

    `index` is the number of the bus behind it, `bus` that of the bus it is on: 0 for pcie.0, else an expander's.
    """

    index: int
    bus: int
    slot: int
    function: int
    device: Bdf


@dataclass(frozen=True)
class Firmware:
    """UEFI firmware, and the variables that a VM begins with; libvirt keeps the VM's own copy of these."""

    code: PurePosixPath
    variables: PurePosixPath


def root_ports(devices: Iterable[Bdf], first_index: int = 1) -> tuple[Port, ...]:
    """A root port on pcie.0 for each function, by address; raises FmctlError where there is no room for all."""
    ordered = sorted(devices)
    room = (_LAST_SLOT - FIRST_SLOT + 1) * _FUNCTIONS
    if len(ordered) > room:
        raise FmctlError(f"a VM cannot have {len(ordered)} functions of the host", why=f"it has room for {room}")
    return tuple(
        Port(first_index + number, 0, FIRST_SLOT + number // _FUNCTIONS, number % _FUNCTIONS, device)
        for number, device in enumerate(ordered)
    )


def firmware(code: AbsolutePath, variables: AbsolutePath) -> Firmware:
    """The firmware in these two files; raises BadRequest."""
    return Firmware(safe(code), safe(variables))


def mac(uuid: str) -> str:
    """The address of a domain's network card: the same at every start, in the range that is QEMU's."""
    digest = hashlib.sha256(uuid.encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def safe(path: AbsolutePath) -> PurePosixPath:
    """The path, which may stand in a domain's document; raises BadRequest."""
    if not _SAFE_PATH.fullmatch(str(path)):
        raise BadRequest(
            f"the path {str(path)!r} is refused",
            why="paths in a domain may have letters, digits, blanks and . _ + @ : = ~ - only",
            fix="rename the file or its folder",
        )
    return path.path
