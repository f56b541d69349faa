# SPDX-License-Identifier: Apache-2.0
"""Which module of its board a GPU is, by pins that the board ties: what to read of its registers, and what they say.

`core.platform` has the rules of each board, and the port `Registers` reads. Facts: FACTS 5, from NVIDIA's MIT-licensed
gpu-admin-tools; no board was at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fmctl.core.errors import FmctlError
from fmctl.core.pci import PciFunction
from fmctl.core.platform import Expected, StrapRules

GONE = 0xFFFFFFFF
"""What a register reads as whose device is gone, asleep, or in a reset."""
_REFUSED = (0xBADF, 0xBAD0)
"""The upper half of what a register reads as that the GPU's own bus refuses."""


class Unreadable(FmctlError):
    """A GPU does not tell which module it is."""


@dataclass(frozen=True)
class Probe:
    """What to read of a GPU: `settle` are registers to wait for, then those at `offsets`, each four bytes."""

    settle: tuple[Expected, ...]
    offsets: tuple[int, ...]


def is_sane(value: int) -> bool:
    """Whether a register's value is one that the GPU gave."""
    return value != GONE and value >> 16 not in _REFUSED


def probe(rules: StrapRules) -> Probe:
    """What these rules need; the chip id is read again after all, to see that the GPU was there all the time."""
    settle = (rules.chip,) if rules.ready is None else (rules.chip, rules.ready)
    return Probe(settle, (rules.chip.offset, *(bit.offset for bit in rules.bits), rules.chip.offset))


def module_id(rules: StrapRules, function: PciFunction, values: Sequence[int]) -> int:
    """The physical id that the values of `probe`'s offsets say; raises Unreadable, never guesses."""
    if len(values) != len(rules.bits) + 2 or not all(map(is_sane, values)):
        raise Unreadable(
            f"GPU {function.bdf} does not tell its module id", why=f"its registers read as {shown(values)}"
        )
    for chip in (values[0], values[-1]):
        if not rules.chip.holds(chip):
            raise Unreadable(
                f"GPU {function.bdf} does not tell its module id",
                why=f"its chip id reads as {chip:#010x}, where {rules.chip} is wanted",
                fix="compare the platform file with the GPU",
            )
    refuse_unknown(rules, function)
    number = sum(
        (value >> bit.bit & 1) << place for place, (value, bit) in enumerate(zip(values[1:], rules.bits, strict=False))
    )
    return (number ^ rules.inverted) + rules.first


def refuse_unknown(rules: StrapRules, function: PciFunction) -> None:
    """Raise Unreadable for a GPU whose pins may be tied in another way than the rules say."""
    variant = f"{function.id.device:04x}:{function.subsystem.device:04x}" if function.subsystem else "unknown"
    if rules.variants and variant not in rules.variants:
        raise Unreadable(
            f"GPU {function.bdf} does not tell its module id",
            why=f"how the pins of its variant {variant} (device and subsystem id) are tied is not known",
            fix="import `nvidia-smi -q`, and accept the map",
        )


def shown(values: Sequence[int]) -> str:
    """Register values for a person."""
    return ", ".join(f"{value:#010x}" for value in values) or "nothing"
