# SPDX-License-Identifier: Apache-2.0
"""The configuration space of a pretended PCI Express function, as the kernel would read it; `sim.sysfs` has such.

The layout is that of the PCI Express Base Specification, with no more in it than fmctl reads, and the capabilities of
other kinds that it must find its way past.
"""

from __future__ import annotations

from enum import IntEnum

from fmctl.core.acs import REQUIRED, Control
from fmctl.core.pci import CONFIG_SIZE, PCI_BRIDGE, PciFunction

ABLE = REQUIRED | Control.TRANSLATION_BLOCKING | Control.DIRECT_TRANSLATED
"""The controls that pretended ports have."""

_POWER, _EXPRESS = 0x40, 0x60
_ERRORS, _ACS, _SERIAL = 0x100, 0x148, 0x160


class PortType(IntEnum):
    """Device/port types."""

    ENDPOINT = 0
    ROOT_PORT = 4
    UPSTREAM = 5
    DOWNSTREAM = 6


def build(function: PciFunction, kind: PortType, access: Control | None, *, several: bool, serial: int = 0) -> bytes:
    """All of it; `access` are the controls that are on, None without the ACS capability."""
    space = bytearray(CONFIG_SIZE)
    _put(space, 0x00, function.id.vendor, function.id.device)
    _put(space, 0x06, 0x0010, 0, function.pci_class.code)
    space[0x0E] = (function.pci_class == PCI_BRIDGE) | several << 7
    space[0x34] = _POWER
    _put(space, _POWER, 0x01 | _EXPRESS << 8)
    _put(space, _EXPRESS, 0x10, 0x02 | kind << 4)
    _extend(space, _ERRORS, 0x0001, _SERIAL if access is None else _ACS)
    if access is not None:
        _extend(space, _ACS, 0x000D, _SERIAL)
        _put(space, _ACS + 4, ABLE, access)
    _extend(space, _SERIAL, 0x0003, 0)
    space[_SERIAL + 4 : _SERIAL + 12] = serial.to_bytes(8, "little")
    return bytes(space)


def _put(space: bytearray, offset: int, *words: int) -> None:
    for index, word in enumerate(words):
        space[offset + 2 * index : offset + 2 * index + 2] = int(word).to_bytes(2, "little")


def _extend(space: bytearray, offset: int, capability: int, following: int) -> None:
    _put(space, offset, capability, 0x1 | following << 4)
