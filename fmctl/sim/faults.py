# SPDX-License-Identifier: Apache-2.0
"""Faults that a simulated Fabric Manager shows on demand: reading them, and deciding which one a call meets.

What a fault then does is up to `sim.fmserver` and `sim.nvfm`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from fmctl.core.errors import BadRequest
from fmctl.core.fmcode import Operation


class FaultKind(str, Enum):
    """What happens to a call."""

    DELAY = "delay"
    """The change and its answer come so many seconds later."""
    HANG = "hang"
    """No answer ever comes; the change is not made."""
    CLOSE = "close"
    """The connection closes without an answer; the change is not made."""
    CODE = "code"
    """The answer is a code below 0; the change is not made."""
    DIE_BEFORE = "die-before"
    """Fabric Manager ends as by kill -9 before it makes the change."""
    DIE_AFTER = "die-after"
    """Fabric Manager ends as by kill -9 after the change, before its answer."""
    LIE = "lie"
    """The answer counts more or fewer things than it holds."""


class Counted(str, Enum):
    """What a lie miscounts: partitions and the GPUs of each, or failed GPUs and switches and the ports of each."""

    PARTITIONS = "partitions"
    GPUS = "gpus"
    SWITCHES = "switches"
    PORTS = "ports"


@dataclass(frozen=True)
class Lie:
    """A count that an answer claims instead of the true one."""

    what: Counted
    count: int


@dataclass(frozen=True)
class Fault:
    """One fault, and the calls that meet it: the `nth` of `operation`, or of any, and with `onwards` all later ones."""

    kind: FaultKind
    nth: int
    onwards: bool = False
    operation: Operation | None = None
    code: int = 0
    lie: Lie | None = None
    seconds: float = 0.0

    def meets(self, operation: Operation, nth: int, nth_of_operation: int) -> bool:
        """Whether a call of that operation, the `nth` of all, has this fault."""
        if self.operation not in (None, operation):
            return False
        counted = nth if self.operation is None else nth_of_operation
        return counted >= self.nth if self.onwards else counted == self.nth


@dataclass(frozen=True)
class Faults:
    """All faults of one run, the first that meets a call being its fault."""

    of_calls: tuple[Fault, ...] = ()
    slow_start: float = 0.0
    """Seconds that the start takes."""

    @classmethod
    def parse(cls, specs: Iterable[str]) -> Faults:
        """Read specs such as `hang@activate:2` and `slow-start=5`; raises BadRequest."""
        faults, slow_start = [], 0.0
        for spec in specs:
            if spec.startswith("slow-start"):
                slow_start = _slow_start(spec)
            else:
                faults.append(_fault(spec))
        return cls(tuple(faults), slow_start)


NO_FAULTS = Faults()


class FaultPlan:
    """Faults with the count of calls so far."""

    def __init__(self, faults: Faults = NO_FAULTS) -> None:
        self._faults = faults
        self._calls: Counter[Operation] = Counter()

    def next(self, operation: Operation) -> Fault | None:
        """Count a call, and tell its fault."""
        self._calls[operation] += 1
        nth, nth_of_operation = self._calls.total(), self._calls[operation]
        met = (fault for fault in self._faults.of_calls if fault.meets(operation, nth, nth_of_operation))
        return next(met, None)


_EXAMPLES = {
    FaultKind.DELAY: "delay=5@activate:1+",
    FaultKind.HANG: "hang@activate:2",
    FaultKind.CLOSE: "close@1",
    FaultKind.CODE: "code=-10@activate:1",
    FaultKind.DIE_BEFORE: "die-before@activate:1",
    FaultKind.DIE_AFTER: "die-after@activate:1",
    FaultKind.LIE: "lie=partitions:200@list:1+",
}
_LIE = re.compile(rf"({'|'.join(what.value for what in Counted)}):(\d{{1,10}})", re.ASCII)
_WHEN = re.compile(r"(?:(?P<operation>[^:]*):)?(?P<nth>\d{1,9})(?P<onwards>\+?)", re.ASCII)
_MAX_COUNT = 2**32 - 1
_MIN_CODE = -(2**31)


def _fault(spec: str) -> Fault:
    what, at, when = spec.partition("@")
    name, equals, value = what.partition("=")
    try:
        kind = FaultKind(name)
    except ValueError:
        known = ", ".join([*(kind.value for kind in FaultKind), "slow-start"])
        raise _refusal(spec, f"{name!r} is none of {known}", "hang@activate:2") from None
    if not at:
        raise _refusal(spec, "it does not say at which call", _EXAMPLES[kind])
    nth, onwards, operation = _when(spec, kind, when)
    return replace(_valued(spec, kind, value if equals else None), nth=nth, onwards=onwards, operation=operation)


def _valued(spec: str, kind: FaultKind, value: str | None) -> Fault:
    if kind is FaultKind.CODE:
        if value is None or not re.fullmatch(r"-[1-9]\d{0,9}", value, re.ASCII) or int(value) < _MIN_CODE:
            raise _refusal(spec, "the code is not a whole number below 0", _EXAMPLES[kind])
        return Fault(kind, 1, code=int(value))
    if kind is FaultKind.DELAY:
        if not re.fullmatch(r"\d{1,5}(\.\d{1,3})?", value or "", re.ASCII):
            raise _refusal(spec, "the delay is not a number of seconds", _EXAMPLES[kind])
        return Fault(kind, 1, seconds=float(value or 0))
    if kind is FaultKind.LIE:
        found = _LIE.fullmatch(value or "")
        if not found or int(found[2]) > _MAX_COUNT:
            known = ", ".join(what.value for what in Counted)
            raise _refusal(spec, f"a lie is one of {known}, a colon, and a count below 2^32", _EXAMPLES[kind])
        return Fault(kind, 1, lie=Lie(Counted(found[1]), int(found[2])))
    if value is not None:
        raise _refusal(spec, f"{kind.value} takes no value", _EXAMPLES[kind])
    return Fault(kind, 1)


def _when(spec: str, kind: FaultKind, when: str) -> tuple[int, bool, Operation | None]:
    found = _WHEN.fullmatch(when)
    if not found or int(found["nth"]) < 1:
        raise _refusal(spec, f"{when!r} names no call; calls count from 1", _EXAMPLES[kind])
    operation = found["operation"]
    if operation is None:
        return int(found["nth"]), bool(found["onwards"]), None
    try:
        return int(found["nth"]), bool(found["onwards"]), Operation(operation)
    except ValueError:
        known = ", ".join(operation.value for operation in Operation)
        raise _refusal(spec, f"{operation!r} is none of {known}", _EXAMPLES[kind]) from None


def _slow_start(spec: str) -> float:
    try:
        seconds = float(spec.partition("=")[2])
    except ValueError:
        seconds = math.nan
    if not spec.startswith("slow-start=") or not 0 <= seconds < math.inf:
        raise _refusal(spec, "it does not say how many seconds the start takes", "slow-start=5")
    return seconds


def _refusal(spec: str, why: str, example: str) -> BadRequest:
    return BadRequest(f"fault {spec!r} is refused", why=why, fix=f"write it as in {example}")
