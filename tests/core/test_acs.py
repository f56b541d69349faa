# SPDX-License-Identifier: Apache-2.0
"""Access control as configuration spaces tell of it, and spaces that lead a reader astray."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmctl.core import acs
from fmctl.core.acs import NONE, REQUIRED, Acs, Control, Unreadable
from fmctl.core.pci import PCI_BRIDGE, Bdf, PciClass, PciFunction, PciId
from fmctl.sim import pciconfig
from fmctl.sim.pciconfig import ABLE, PortType

PORT = PciFunction(Bdf(0, 0, 1, 0), PciId(0x8086, 0x352A), PCI_BRIDGE)
GPU = PciFunction(Bdf(0, 0x17, 0, 0), PciId(0x10DE, 0x2330), PciClass(0x0302))


def reader(space: bytes) -> acs.Reader:
    return lambda offset, size: space[offset : offset + size]


def read(space: bytes | bytearray) -> Acs | Unreadable:
    return acs.read(reader(bytes(space)))


def port(access: Control | None = REQUIRED, kind: PortType = PortType.ROOT_PORT, *, several: bool = False) -> bytearray:
    return bytearray(pciconfig.build(PORT, kind, access, several=several))


def endpoint(access: Control | None = None, *, several: bool = False) -> bytearray:
    return bytearray(pciconfig.build(GPU, PortType.ENDPOINT, access, several=several))


def changed(space: bytearray, offset: int, content: bytes) -> bytearray:
    space[offset : offset + len(content)] = content
    return space


@pytest.mark.parametrize("kind", [PortType.ROOT_PORT, PortType.DOWNSTREAM])
def test_a_port_tells_what_it_has_and_what_is_on(kind: PortType) -> None:
    assert read(port(kind=kind)) == Acs(routes=True, able=ABLE, on=REQUIRED)


def test_the_registers_have_the_specification_s_bits() -> None:
    found = read(changed(port(), 0x14C, b"\x7f\0\x42\0"))
    assert isinstance(found, Acs)
    assert found.able == sum(Control) and found.on == Control.TRANSLATION_BLOCKING | Control.DIRECT_TRANSLATED
    assert [int(control) for control in Control] == [1, 2, 4, 8, 16, 32, 64]


def test_the_low_bits_of_pointers_are_left_alone() -> None:
    space = changed(changed(port(), 0x34, b"\x43"), 0x41, b"\x61")
    assert read(changed(space, 0x102, b"\xb2\x14")) == Acs(routes=True, able=ABLE, on=REQUIRED)


def test_a_port_without_the_capability_tells_so() -> None:
    assert read(port(None)) == Acs(routes=True)


def test_an_upstream_port_routes_as_one_function_of_several() -> None:
    assert read(port(None, PortType.UPSTREAM)) == Acs(routes=False)
    assert read(port(None, PortType.UPSTREAM, several=True)) == Acs(routes=True)


def test_an_endpoint_has_nothing_to_tell_unless_its_device_has_several_functions() -> None:
    assert read(endpoint(NONE)) == Acs(routes=False)
    assert read(endpoint(NONE, several=True)) == Acs(routes=False, able=ABLE)


@pytest.mark.parametrize("kind", [0, 1, 9], ids=["native", "legacy", "of-the-root-complex"])
def test_no_kind_of_endpoint_routes(kind: int) -> None:
    assert read(changed(endpoint(NONE), 0x62, bytes([0x02 | kind << 4]))) == Acs(routes=False)


@pytest.mark.parametrize("kind", [7, 8], ids=["to conventional", "from conventional"])
def test_a_bridge_between_kinds_of_bus_routes(kind: int) -> None:
    assert read(changed(port(None), 0x62, bytes([0x02 | kind << 4]))) == Acs(routes=True)


@pytest.mark.parametrize(
    ("offset", "content"),
    [
        pytest.param(0x06, b"\0\0", id="no-capabilities"),
        pytest.param(0x34, b"\0", id="empty-list"),
        pytest.param(0x34, b"\x3c", id="list-in-the-header"),
        pytest.param(0x60, b"\x05", id="of-other-kinds"),
    ],
)
def test_a_function_without_the_express_capability_routes_if_it_is_a_bridge(offset: int, content: bytes) -> None:
    assert read(changed(port(), offset, content)) == Acs(routes=True)
    assert read(changed(port(several=True), offset, content)) == Acs(routes=True)
    assert read(changed(endpoint(several=True), offset, content)) == Acs(routes=False)


@pytest.mark.parametrize(
    ("on", "wrong"),
    [
        pytest.param(REQUIRED, NONE, id="all-on"),
        pytest.param(NONE, REQUIRED, id="all-off"),
        pytest.param(REQUIRED & ~Control.SOURCE_VALIDATION, Control.SOURCE_VALIDATION, id="source-validation"),
        pytest.param(REQUIRED & ~Control.REQUEST_REDIRECT, Control.REQUEST_REDIRECT, id="request-redirect"),
        pytest.param(REQUIRED & ~Control.COMPLETION_REDIRECT, Control.COMPLETION_REDIRECT, id="completion-redirect"),
        pytest.param(REQUIRED & ~Control.UPSTREAM_FORWARDING, Control.UPSTREAM_FORWARDING, id="upstream-forwarding"),
        pytest.param(REQUIRED | Control.EGRESS_CONTROL, Control.EGRESS_CONTROL, id="egress-control"),
        pytest.param(REQUIRED | Control.TRANSLATION_BLOCKING, NONE, id="translation-blocking"),
        pytest.param(REQUIRED | Control.DIRECT_TRANSLATED, NONE, id="direct-translated"),
    ],
)
def test_what_is_wrong_is_what_lets_requests_past_the_iommu(on: Control, wrong: Control) -> None:
    found = read(port(on))
    assert isinstance(found, Acs)
    assert found.wrong == wrong


def test_a_control_that_a_port_lacks_counts_as_on() -> None:
    lacking = Control.COMPLETION_REDIRECT | Control.UPSTREAM_FORWARDING
    found = read(changed(port(REQUIRED & ~lacking), 0x14C, int(ABLE & ~lacking).to_bytes(2, "little")))
    assert isinstance(found, Acs)
    assert (found.able, found.wrong) == (ABLE & ~lacking, NONE)


def test_nothing_is_wrong_with_what_has_no_access_control() -> None:
    assert Acs(routes=True).wrong == NONE


def test_bits_of_later_specifications_are_left_alone() -> None:
    assert read(changed(port(), 0x14C, b"\xdf\xff\x1d\xff")) == Acs(routes=True, able=ABLE, on=REQUIRED)


def all_ones() -> bytes:
    return b"\xff" * 4096


@pytest.mark.parametrize(
    ("space", "reason"),
    [
        pytest.param(b"", Unreadable.GONE, id="gone"),
        pytest.param(bytes(port())[:63], Unreadable.GONE, id="going"),
        pytest.param(all_ones(), Unreadable.SILENT, id="all-ones"),
        pytest.param(all_ones()[:64], Unreadable.SILENT, id="all-ones-unprivileged"),
        pytest.param(bytes(port())[:64], Unreadable.UNPRIVILEGED, id="unprivileged"),
        pytest.param(bytes(port())[:256], Unreadable.SHORT, id="no-extended-space"),
        pytest.param(bytes(port())[:0x42], Unreadable.GONE, id="goes-before"),
        pytest.param(bytes(port())[:0x149], Unreadable.GONE, id="goes-on-the-way"),
        pytest.param(bytes(port())[:0x14E], Unreadable.GONE, id="goes-at-the-end"),
        pytest.param(bytes(changed(port(), 0x40, b"\xff" * 4)), Unreadable.SILENT, id="falls-silent-early"),
        pytest.param(bytes(port())[:256] + all_ones()[256:], Unreadable.SILENT, id="falls-silent-before"),
        pytest.param(bytes(changed(port(), 0x148, b"\xff" * 4)), Unreadable.SILENT, id="falls-silent-on-the-way"),
        pytest.param(bytes(changed(port(), 0x14C, b"\xff" * 4)), Unreadable.SILENT, id="falls-silent-at-the-end"),
    ],
)
def test_what_cannot_be_read_is_told_and_never_passes(space: bytes, reason: Unreadable) -> None:
    assert read(space) is reason


def test_capabilities_that_lead_in_circles_are_left() -> None:
    assert read(changed(port(None), 0x160, (0x0003 | 0x1 << 16 | 0x100 << 20).to_bytes(4, "little"))) == Acs(True)
    assert read(changed(port(), 0x40, b"\x01\x40")) == Acs(routes=True)


def test_a_capability_that_points_back_into_the_first_part_ends_the_walk() -> None:
    assert read(changed(port(None), 0x160, (0x0003 | 0x1 << 16 | 0x40 << 20).to_bytes(4, "little"))) == Acs(True)


@given(st.binary(max_size=400), st.integers(0, 0x180))
def test_no_garbage_breaks_the_reader(garbage: bytes, offset: int) -> None:
    space = bytes(changed(port(), offset, garbage))[:4096]
    reads = 0

    def counted(at: int, size: int) -> bytes:
        nonlocal reads
        reads += 1
        return space[at : at + size]

    found = acs.read(counted)
    assert isinstance(found, (Acs, Unreadable))
    assert reads < 1100


def test_no_more_is_read_than_must_be() -> None:
    asked: list[tuple[int, int]] = []

    def watched(offset: int, size: int) -> bytes:
        asked.append((offset, size))
        return bytes(port())[offset : offset + size]

    acs.read(watched)
    assert sum(size for _, size in asked) < 100
