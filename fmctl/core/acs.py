# SPDX-License-Identifier: Apache-2.0
"""What a function's configuration space says of access control (ACS). `core.isolation` judges it.

ACS decides whether a PCI Express port sends a peer's request up to the IOMMU, or straight across to another port, past
it. The kernel switches it on at boot and makes IOMMU groups by it, once: what is cleared later, as guides to GPUDirect
do with setpci, leaves the groups as they were. So the registers alone tell how things are.

Names and numbers are those of the PCI Express Base Specification 3.0: 7.8 for the PCI Express capability, 7.16 for ACS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntFlag

Reader = Callable[[int, int], bytes]
"""Reads a configuration space from an offset, so many bytes, and fewer past its end."""


class Control(IntFlag):
    """The controls, at the same bits in the capability and in the control register."""

    SOURCE_VALIDATION = 0x01
    TRANSLATION_BLOCKING = 0x02
    REQUEST_REDIRECT = 0x04
    COMPLETION_REDIRECT = 0x08
    UPSTREAM_FORWARDING = 0x10
    EGRESS_CONTROL = 0x20
    DIRECT_TRANSLATED = 0x40


NONE = Control(0)
REQUIRED = (
    Control.SOURCE_VALIDATION | Control.REQUEST_REDIRECT | Control.COMPLETION_REDIRECT | Control.UPSTREAM_FORWARDING
)
"""What the kernel, too, asks of a port before it puts what lies behind into a group of its own.

Translation blocking and direct translated requests are not asked for: the IOMMU itself trusts a device with physical
addresses once it may send translated requests, whichever way these go.
"""


class Unreadable(Enum):
    """Why a configuration space does not tell."""

    GONE = "gone"
    SILENT = "silent"
    """It reads as all ones."""
    UNPRIVILEGED = "unprivileged"
    """The kernel shows the reader its first 64 bytes."""
    SHORT = "short"
    """The kernel itself reaches no more than its first 256 bytes."""


@dataclass(frozen=True)
class Acs:
    """The access control of a function.

    `routes` tells that it decides where requests from behind it go: a root port, a switch's downstream port, an
    upstream port that is one function of several, or a bridge to conventional PCI. `able` are the controls that it has,
    None without the capability, and `on` those that are switched on. One function of several may have it, too, for what
    these send to each other.
    """

    routes: bool
    able: Control | None = None
    on: Control = NONE

    @property
    def wrong(self) -> Control:
        """The controls that let requests past the IOMMU as they are: required ones that are off, or egress control.

        A required control that the capability lacks counts as on: the specification leaves one out only where the
        hardware always does it or has no such path, and the kernel reads it so. Egress control that is on sends
        requests straight to the ports that its vector does not name, redirection or not (table of 6.12.3).
        """
        return (REQUIRED & (self.able or NONE) & ~self.on) | (self.on & Control.EGRESS_CONTROL)


def read(config: Reader) -> Acs | Unreadable:
    """What a configuration space says, from as few reads as will do."""
    try:
        return _read(config)
    except _Lost as lost:
        return lost.reason


class _Lost(Exception):
    def __init__(self, reason: Unreadable) -> None:
        super().__init__(reason)
        self.reason = reason


def _read(config: Reader) -> Acs | Unreadable:
    header = config(0, 64)
    if len(header) < 64:
        return Unreadable.GONE
    if header[:4] == b"\xff\xff\xff\xff":
        return Unreadable.SILENT
    if not config(64, 4):
        return Unreadable.UNPRIVILEGED
    express = _express(config, header)
    if express is None:
        return Acs(routes=header[_HEADER_TYPE] & ~_SEVERAL_FUNCTIONS == _BRIDGE)
    several = bool(header[_HEADER_TYPE] & _SEVERAL_FUNCTIONS)
    if express in _ENDPOINTS and not several:
        return Acs(routes=False)
    if not config(_EXTENDED, 4):
        return Unreadable.SHORT
    return _access(config, routes=express in _ROUTING or (several and express == _UPSTREAM_PORT))


_HEADER_TYPE = 0x0E
_SEVERAL_FUNCTIONS = 0x80
_BRIDGE = 0x01
_STATUS = 0x06
_HAS_CAPABILITIES = 0x10
_CAPABILITIES = 0x34
_EXPRESS_ID = 0x10
_EXTENDED = 0x100
_ACS_ID = 0x000D
_ENDPOINTS = (0, 1, 9)
"""Device/port types: endpoint, legacy endpoint, and endpoint of the root complex."""
_UPSTREAM_PORT = 5
_ROUTING = (4, 6, 7, 8)
"""Root port, downstream port, and the bridges between PCI Express and PCI."""


def _express(config: Reader, header: bytes) -> int | None:
    """The device/port type; None for a function without the PCI Express capability."""
    if not header[_STATUS] & _HAS_CAPABILITIES:
        return None
    offset, seen = header[_CAPABILITIES] & 0xFC, set[int]()
    while offset >= 64 and offset not in seen:
        seen.add(offset)
        word = _word(config, offset)
        if word & 0xFF == _EXPRESS_ID:
            return word >> 20 & 0xF
        offset = word >> 8 & 0xFC
    return None


def _access(config: Reader, *, routes: bool) -> Acs:
    offset, seen = _EXTENDED, set[int]()
    while offset >= _EXTENDED and offset not in seen:
        seen.add(offset)
        word = _word(config, offset)
        if word & 0xFFFF == _ACS_ID:
            registers = _word(config, offset + 4)
            return Acs(routes, Control(registers & 0x7F), Control(registers >> 16 & 0x7F))
        offset = word >> 20 & 0xFFC
    return Acs(routes)


def _word(config: Reader, offset: int) -> int:
    """Four bytes of a space that was there a moment ago."""
    word = config(offset, 4)
    if len(word) < 4:
        raise _Lost(Unreadable.GONE)
    if word == b"\xff\xff\xff\xff":
        raise _Lost(Unreadable.SILENT)
    return int.from_bytes(word, "little")
