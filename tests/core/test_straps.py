# SPDX-License-Identifier: Apache-2.0
"""What a GPU's pins say of the module that it is, and when they say nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import cast

import pytest

from fmctl import platforms
from fmctl.core import straps
from fmctl.core.pci import Bdf, PciClass, PciFunction, PciId
from fmctl.core.platform import StrapRules
from fmctl.core.straps import Unreadable

RULES = cast(StrapRules, platforms.load("hgx-h100-8").module_ids.straps)
GPU = PciFunction(Bdf(0, 0x1B, 0, 0), PciId(0x10DE, 0x2330), PciClass(0x0302), PciId(0x10DE, 0x16C1))
CHIP = 0x180000A1
HIGH, LOW = 0x00004000, 0x00000000


@pytest.mark.parametrize(
    ("pins", "module"),
    [
        ((LOW, LOW, HIGH), 1),
        ((HIGH, LOW, HIGH), 2),
        ((LOW, HIGH, HIGH), 3),
        ((HIGH, HIGH, HIGH), 4),
        ((LOW, LOW, LOW), 5),
        ((HIGH, LOW, LOW), 6),
        ((LOW, HIGH, LOW), 7),
        ((HIGH, HIGH, LOW), 8),
    ],
)
def test_hopper_s_three_pins_name_the_module(pins: Sequence[int], module: int) -> None:
    others = [pin | 0x7FFFBFFF for pin in pins]
    for values in (pins, [*others[:2], 0x12340000 | pins[2]]):
        assert straps.module_id(RULES, GPU, (CHIP, *values, CHIP)) == module


def test_what_is_read_are_the_registers_that_gpu_admin_tools_read_with_the_chip_id_around_them() -> None:
    probe = straps.probe(RULES)
    assert probe.offsets == (0x0, 0x21200 + 4 * 0x9, 0x21200 + 4 * 0x11, 0x21200 + 4 * 0x12, 0x0)
    assert [(wait.offset, wait.value) for wait in probe.settle] == [(0x0, 0x18000000), (0x200BC, 0xFF)]


@pytest.mark.parametrize(
    "values",
    [
        (),
        (CHIP, HIGH, HIGH, CHIP),
        (0xFFFFFFFF,) * 5,
        (CHIP, HIGH, HIGH, 0xFFFFFFFF, CHIP),
        (CHIP, 0xBADF1100, HIGH, HIGH, CHIP),
        (0xBAD00200, HIGH, HIGH, HIGH, CHIP),
        (0x170000A1, HIGH, HIGH, HIGH, CHIP),
        (0x00000000, 0, 0, 0, 0x00000000),
        (CHIP, HIGH, HIGH, HIGH, 0xFFFFFFFF),
        (CHIP, HIGH, HIGH, HIGH, 0x0),
    ],
)
def test_what_no_living_hopper_says_is_unreadable_and_never_a_number(values: tuple[int, ...]) -> None:
    with pytest.raises(Unreadable, match=r"GPU 0000:1b:00\.0 does not tell its module id"):
        straps.module_id(RULES, GPU, values)


@pytest.mark.parametrize("change", [{"subsystem": PciId(0x10DE, 0x1234)}, {"subsystem": None}])
def test_a_variant_whose_pins_are_not_known_is_unreadable(change: dict[str, PciId | None]) -> None:
    strange = dataclasses.replace(GPU, **change)  # type: ignore[arg-type]
    with pytest.raises(Unreadable, match=r"how the pins of its variant .* are tied is not known"):
        straps.module_id(RULES, strange, (CHIP, HIGH, HIGH, HIGH, CHIP))


def test_rules_without_variants_hold_for_all() -> None:
    rules = dataclasses.replace(RULES, variants=(), inverted=0, first=0)
    assert straps.module_id(rules, dataclasses.replace(GPU, subsystem=None), (CHIP, HIGH, LOW, HIGH, CHIP)) == 5


def _chip(mask: int) -> Callable[[], object]:
    return lambda: dataclasses.replace(RULES.chip, mask=mask)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: dataclasses.replace(RULES.chip, offset=2), "no multiple of 4"),
        (_chip(0xFF), "has bits that mask"),
        (lambda: dataclasses.replace(RULES.bits[0], offset=0x21225), "no multiple of 4"),
        (lambda: dataclasses.replace(RULES, bits=()), "bits has 0 pins"),
        (lambda: dataclasses.replace(RULES, variants=("2330",)), "is no device and subsystem id"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(make: Callable[[], object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make()
