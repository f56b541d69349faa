# SPDX-License-Identifier: Apache-2.0
"""PCI identities: one way to write each, and a refusal for everything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmctl.core.pci import PciClass, PciId

words = st.integers(0, 0xFFFF)


@given(words, words)
def test_an_id_survives_being_written_and_read(vendor: int, device: int) -> None:
    written = str(PciId(vendor, device))
    assert PciId.parse(written) == PciId(vendor, device)
    assert len(written) == 9


@given(words)
def test_a_class_survives_being_written_and_read(code: int) -> None:
    written = str(PciClass(code))
    assert PciClass.parse(written) == PciClass(code)
    assert len(written) == 4


def test_an_id_is_read_as_hexadecimal() -> None:
    assert PciId.parse("10de:2330") == PciId(0x10DE, 0x2330)


def test_a_class_is_read_as_hexadecimal() -> None:
    assert PciClass.parse("0302") == PciClass(0x0302)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("10DE:2330", id="upper-case"),
        pytest.param("0x10de:0x2330", id="prefixed"),
        pytest.param("10de2330", id="no-colon"),
        pytest.param("10de:233", id="short"),
        pytest.param("10de:23300", id="long"),
        pytest.param(" 10de:2330", id="blank"),
        pytest.param("10de:2330\n", id="newline"),
        pytest.param("", id="empty"),
        pytest.param(0x10DE2330, id="number"),
        pytest.param(None, id="nothing"),
    ],
)
def test_what_is_no_id_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="10de:2330") as refused:
        PciId.parse(value)
    assert repr(value) in str(refused.value)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("0X02", id="letter"),
        pytest.param("03AB", id="upper-case"),
        pytest.param("030200", id="with-interface"),
        pytest.param("302", id="short"),
        pytest.param("0302\n", id="newline"),
        pytest.param(302, id="number"),
    ],
)
def test_what_is_no_class_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="0302") as refused:
        PciClass.parse(value)
    assert repr(value) in str(refused.value)
