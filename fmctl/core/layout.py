# SPDX-License-Identifier: Apache-2.0
"""Layouts as values: which partitions of Fabric Manager's table a host uses, so that its board keeps one shape.

A layout names sizes, as `4x2` does four partitions of two GPUs; applied it names partitions. `core.layouts` has what
follows from one, and `core.standing` keeps its partitions active where that is asked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fmctl.core import owner as owners
from fmctl.core.partition import MAX_GPUS

if TYPE_CHECKING:
    from fmctl.core.partition import PartitionList

OWNER = owners.RESERVED + "layout"
"""Who holds what is kept active for nobody yet."""
NONE = "none"
"""The word for no layout."""
_PART = re.compile("(?:([1-9][0-9]?)x)?([1-9][0-9]?)")
_APPLIED = re.compile("([0-9x+]+) on ([0-9,]+)(, kept active)?")


@dataclass(frozen=True)
class Layout:
    """The sizes of a layout's partitions in GPUs, largest first."""

    sizes: tuple[int, ...]

    @classmethod
    def parse(cls, value: object) -> Layout:
        """Read `4x2`, `4+2+1+1` or both in one, as in `1x4+2x2`; raises ValueError."""
        parts = [_PART.fullmatch(part) for part in str(value).split("+")]
        if isinstance(value, bool) or not all(parts):
            raise ValueError(f"a layout such as 4x2 or 4+2+1+1 is wanted, not {value!r}")
        sizes = [int(part[2]) for part in parts if part for _ in range(int(part[1] or 1))]
        if sum(sizes) > MAX_GPUS:
            raise ValueError(f"{value} is a layout of {sum(sizes)} GPUs, and no board has more than {MAX_GPUS}")
        return cls(tuple(sorted(sizes, reverse=True)))

    def __str__(self) -> str:
        if len(set(self.sizes)) == 1:
            return f"{len(self.sizes)}x{self.sizes[0]}"
        return "+".join(map(str, self.sizes))


@dataclass(frozen=True)
class Applied:
    """A layout with its partitions, by id, ascending; `kept_active` tells that they are active for nobody, too."""

    layout: Layout
    partitions: tuple[int, ...]
    kept_active: bool = False

    @classmethod
    def parse(cls, text: str) -> Applied:
        """The way back from `str`; raises ValueError."""
        found = _APPLIED.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no layout with its partitions")
        return cls(Layout.parse(found[1]), tuple(map(int, found[2].split(","))), bool(found[3]))

    def __str__(self) -> str:
        ids = ",".join(map(str, self.partitions))
        return f"{self.layout} on {ids}{', kept active' * self.kept_active}"

    def problem(self, listed: PartitionList) -> str:
        """Why the table does not give these partitions; empty where it does."""
        found = [p for p in self.partitions if listed.find(p) is not None]
        sizes = sorted((len(listed.get(p).gpus) for p in found), reverse=True)
        if tuple(sizes) == self.layout.sizes:
            return ""
        return f"the partition table has no partitions {','.join(map(str, self.partitions))} of these sizes any more"


@dataclass(frozen=True)
class LayoutRow:
    """A partition of a layout, and who holds it; empty where nobody does."""

    partition_id: int
    gpus: tuple[int, ...]
    active: bool
    owner: str = ""


@dataclass(frozen=True)
class LayoutState:
    """A layout and how a host differs from it, in words.

    `settings` is what the settings want, `applied` what is in force, and `shown` what `rows` and `differences` are of;
    each is empty for none.
    """

    settings: str = ""
    applied: str = ""
    shown: str = ""
    rows: tuple[LayoutRow, ...] = ()
    differences: tuple[str, ...] = ()
    simulated: bool = False
