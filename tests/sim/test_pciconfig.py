# SPDX-License-Identifier: Apache-2.0
"""Pretended configuration spaces, at the offsets that the PCI specifications give."""

from __future__ import annotations

import struct

from fmctl import platforms
from fmctl.core.acs import REQUIRED
from fmctl.core.pci import PCI_BRIDGE
from fmctl.sim import pciconfig
from fmctl.sim.pciconfig import ABLE, PortType
from fmctl.sim.sysfs import SimulatedBus


def extended(space: bytes) -> dict[int, int]:
    """The extended capabilities, where each is by its number."""
    found, offset = {}, 0x100
    while offset:
        number, following = struct.unpack_from("<HH", space, offset)
        assert following & 0xF == 1
        found[number] = offset
        offset = following >> 4
    return found


def test_the_header_says_what_the_kernel_knows() -> None:
    for entry in SimulatedBus(platforms.load("hgx-b200-8")).everything():
        function, space = entry.function, entry.config
        assert struct.unpack_from("<HH", space, 0) == (function.id.vendor, function.id.device)
        assert struct.unpack_from("<H", space, 0x0A) == (function.pci_class.code,)
        assert space[0x0E] == (1 if function.pci_class == PCI_BRIDGE else 0)
        assert space[space[space[0x34] + 1]] == 0x10
        assert space[space[space[0x34] + 1] + 2] == 0x02 | entry.kind << 4


def test_ports_have_access_control_among_other_capabilities() -> None:
    (port, *_) = (e for e in SimulatedBus(platforms.load("hgx-h100-8")).everything() if e.kind is PortType.ROOT_PORT)
    places = extended(port.config)
    assert sorted(places) == [0x0001, 0x0003, 0x000D]
    assert struct.unpack_from("<HH", port.config, places[0x000D] + 4) == (0x5F, 0x1D) == (ABLE, REQUIRED)
    without = pciconfig.build(port.function, port.kind, None, several=True)
    assert sorted(extended(without)) == [0x0001, 0x0003]
    assert without[0x0E] == 0x81
