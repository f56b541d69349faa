# SPDX-License-Identifier: Apache-2.0
"""Reading faults, and which call meets which."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmctl.core.errors import BadRequest
from fmctl.core.fmcode import Operation
from fmctl.sim.faults import Counted, Fault, FaultKind, FaultPlan, Faults, Lie

LIST, ACTIVATE = Operation.LIST, Operation.ACTIVATE


def kinds(specs: list[str], calls: list[Operation]) -> list[str]:
    plan = FaultPlan(Faults.parse(specs))
    met = [plan.next(operation) for operation in calls]
    return [fault.kind.value if fault else "" for fault in met]


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("hang@3", Fault(FaultKind.HANG, 3)),
        ("delay=2.5@activate:1+", Fault(FaultKind.DELAY, 1, onwards=True, operation=ACTIVATE, seconds=2.5)),
        ("close@1+", Fault(FaultKind.CLOSE, 1, onwards=True)),
        ("hang@activate:2", Fault(FaultKind.HANG, 2, operation=ACTIVATE)),
        ("code=-22@list:1+", Fault(FaultKind.CODE, 1, onwards=True, operation=LIST, code=-22)),
        ("die-before@1", Fault(FaultKind.DIE_BEFORE, 1)),
        ("die-after@set-activated:1", Fault(FaultKind.DIE_AFTER, 1, operation=Operation.SET_ACTIVATED)),
        ("lie=partitions:200@1", Fault(FaultKind.LIE, 1, lie=Lie(Counted.PARTITIONS, 200))),
        ("lie=switches:13@1", Fault(FaultKind.LIE, 1, lie=Lie(Counted.SWITCHES, 13))),
        ("lie=ports:65@1", Fault(FaultKind.LIE, 1, lie=Lie(Counted.PORTS, 65))),
        ("lie=gpus:4294967295@2", Fault(FaultKind.LIE, 2, lie=Lie(Counted.GPUS, 2**32 - 1))),
    ],
)
def test_a_fault_is_read(spec: str, fault: Fault) -> None:
    assert Faults.parse([spec]) == Faults((fault,))


def test_a_slow_start_is_read() -> None:
    assert Faults.parse(["slow-start=2.5", "hang@1"]).slow_start == 2.5


@pytest.mark.parametrize(
    ("spec", "why", "example"),
    [
        ("", "is none of delay, hang, close,", "hang@activate:2"),
        ("explode@1", "'explode' is none of delay, hang, close,", "hang@activate:2"),
        ("hang", "does not say at which call", "hang@activate:2"),
        ("hang@", "'' names no call", "hang@activate:2"),
        ("hang@0", "'0' names no call; calls count from 1", "hang@activate:2"),
        ("hang@-1", "names no call", "hang@activate:2"),
        ("hang@1++", "names no call", "hang@activate:2"),
        ("hang@9999999999", "names no call", "hang@activate:2"),
        ("hang@activate", "'activate' names no call", "hang@activate:2"),
        ("hang@launch:1", "'launch' is none of list, activate,", "hang@activate:2"),
        ("hang=3@1", "hang takes no value", "hang@activate:2"),
        ("delay@1", "the delay is not a number of seconds", "delay=5@activate:1+"),
        ("delay=-1@1", "the delay is not a number of seconds", "delay=5@activate:1+"),
        ("code@1", "not a whole number below 0", "code=-10@activate:1"),
        ("code=7@1", "not a whole number below 0", "code=-10@activate:1"),
        ("code=0@1", "not a whole number below 0", "code=-10@activate:1"),
        ("code=-9999999999@1", "not a whole number below 0", "code=-10@activate:1"),
        ("lie=links:3@1", "a lie is one of partitions, gpus, switches, ports, a colon", "lie=partitions:200@list:1+"),
        ("lie=gpus:4294967296@1", "a count below 2^32", "lie=partitions:200@list:1+"),
        ("slow-start", "how many seconds", "slow-start=5"),
        ("slow-start=-1", "how many seconds", "slow-start=5"),
        ("slow-start=inf", "how many seconds", "slow-start=5"),
        ("slow-start=nan", "how many seconds", "slow-start=5"),
    ],
)
def test_a_bad_spec_is_refused_with_an_example(spec: str, why: str, example: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        Faults.parse([spec])
    assert repr(spec) in refusal.value.what
    assert why in refusal.value.why
    assert refusal.value.fix == f"write it as in {example}"
    Faults.parse([example])


@given(st.text())
def test_any_text_is_a_fault_or_a_bad_request(text: str) -> None:
    try:
        Faults.parse([text])
    except BadRequest:
        return


def test_a_fault_meets_the_nth_call_alone() -> None:
    assert kinds(["hang@2"], [LIST] * 3) == ["", "hang", ""]


def test_a_plus_meets_all_later_calls_too() -> None:
    assert kinds(["close@2+"], [LIST] * 4) == ["", "close", "close", "close"]


def test_calls_of_an_operation_are_counted_apart() -> None:
    assert kinds(["hang@activate:2"], [LIST, ACTIVATE, LIST, ACTIVATE]) == ["", "", "", "hang"]
    assert kinds(["hang@2"], [LIST, ACTIVATE, LIST, ACTIVATE]) == ["", "hang", "", ""]


def test_the_first_fault_given_wins() -> None:
    assert kinds(["close@2", "hang@1+"], [LIST] * 3) == ["hang", "close", "hang"]
