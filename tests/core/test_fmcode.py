# SPDX-License-Identifier: Apache-2.0
"""Fabric Manager's return codes: their names, and the errors that stand for them."""

from __future__ import annotations

import pytest

from fmctl.core import fmcode
from fmctl.core.errors import FabricNotReady, OutcomeUnknown, VersionMismatch
from fmctl.core.fmcode import FmCode, Operation

HEADER = {
    0: "SUCCESS",
    -1: "BADPARAM",
    -2: "GENERIC_ERROR",
    -3: "NOT_SUPPORTED",
    -4: "UNINITIALIZED",
    -5: "TIMEOUT",
    -6: "VERSION_MISMATCH",
    -7: "IN_USE",
    -8: "NOT_CONFIGURED",
    -9: "CONNECTION_NOT_VALID",
    -10: "NVLINK_ERROR",
    -11: "RESOURCE_BAD",
    -12: "RESOURCE_IN_USE",
    -13: "RESOURCE_NOT_IN_USE",
    -14: "RESOURCE_EXHAUSTED",
    -15: "RESOURCE_NOT_READY",
    -16: "PARTITION_EXISTS",
    -17: "PARTITION_ID_IN_USE",
    -18: "PARTITION_ID_NOT_IN_USE",
    -19: "PARTITION_NAME_IN_USE",
    -20: "PARTITION_NAME_NOT_IN_USE",
    -21: "PARTITION_ID_NAME_MISMATCH",
    -22: "NOT_READY",
    -23: "RESOURCE_USED_IN_THIS_PARTITION",
    -24: "RESOURCE_USED_IN_ANOTHER_PARTITION",
    -25: "PARTITION_MISWIRED_TRUNKS",
    -26: "PARTITION_INSUFFICIENT_TRUNKS",
    -27: "PARTITION_MISSING_SWITCHES",
    -28: "PARTITION_NETWORK_CONFIG_ERROR",
    -29: "PARTITION_ROUTE_PROGRAMMING_ERROR",
}
CHANGING = (Operation.ACTIVATE, Operation.DEACTIVATE, Operation.SET_ACTIVATED, Operation.ACTIVATE_WITH_VFS)
READING = (Operation.LIST, Operation.FAILED_DEVICES, Operation.UNSUPPORTED)
INITIALISING = (-8, -22)
OTHER_FAILURES = [code for code in HEADER if code != 0 and code not in INITIALISING]


@pytest.mark.parametrize(("code", "name"), HEADER.items(), ids=HEADER.values())
def test_a_code_has_the_name_of_the_header(code: int, name: str) -> None:
    assert fmcode.name(code) == name
    assert fmcode.describe(code) == f"{code} ({name})"
    assert FmCode[name] == code


def test_no_code_is_missing_or_made_up() -> None:
    assert {int(code) for code in FmCode} == set(HEADER)


@pytest.mark.parametrize("code", [1, -30, -128, 2**31])
def test_a_code_of_no_header_is_named_unknown(code: int) -> None:
    assert fmcode.name(code) == "UNKNOWN"
    assert fmcode.describe(code) == f"{code} (UNKNOWN)"


def test_both_error_families_say_look() -> None:
    assert sorted(fmcode.ALREADY_ACTIVE) == [-17, -7]
    assert sorted(fmcode.NOT_ACTIVE) == [-18, -4]


def test_the_operations_that_change_are_told_from_those_that_read() -> None:
    assert {operation for operation in Operation if operation.changes} == set(CHANGING)
    assert set(Operation) == {*CHANGING, *READING}


@pytest.mark.parametrize("operation", CHANGING, ids=str)
@pytest.mark.parametrize("code", [*OTHER_FAILURES, -30])
def test_after_a_refused_change_the_outcome_is_unknown(operation: Operation, code: int) -> None:
    error = fmcode.call_refused(operation, code, 3)
    assert type(error) is OutcomeUnknown
    assert (error.fm_code, error.partition_id) == (code, 3)
    assert error.why == f"Fabric Manager answered {operation.value} with {fmcode.describe(code)}"


@pytest.mark.parametrize("operation", Operation, ids=str)
@pytest.mark.parametrize("code", INITIALISING)
def test_while_fabric_manager_initialises_nothing_was_changed(operation: Operation, code: int) -> None:
    error = fmcode.call_refused(operation, code, 3)
    assert type(error) is FabricNotReady
    assert (error.fm_code, error.partition_id) == (code, 3)
    assert "initialising" in error.why


@pytest.mark.parametrize("operation", READING, ids=str)
@pytest.mark.parametrize("code", [*OTHER_FAILURES, -30])
def test_a_refused_reading_changed_nothing(operation: Operation, code: int) -> None:
    error = fmcode.call_refused(operation, code)
    assert type(error) is FabricNotReady
    assert error.fm_code == code
    assert fmcode.describe(code) in error.why


def test_a_list_that_is_not_supported_points_at_the_fabric_mode() -> None:
    assert "FABRIC_MODE=1" in fmcode.call_refused(Operation.LIST, -3).fix
    assert "FABRIC_MODE" not in fmcode.call_refused(Operation.LIST, -2).fix


@pytest.mark.parametrize("operation", CHANGING, ids=str)
def test_after_a_change_that_overran_the_outcome_is_unknown(operation: Operation) -> None:
    error = fmcode.call_overran(operation, 70.04, 3)
    assert type(error) is OutcomeUnknown
    assert error.why == f"Fabric Manager did not answer {operation.value} within 70.0 s"
    assert error.partition_id == 3
    assert error.fm_code is None


@pytest.mark.parametrize("operation", READING, ids=str)
def test_a_reading_that_overran_changed_nothing(operation: Operation) -> None:
    error = fmcode.call_overran(operation, 30)
    assert type(error) is FabricNotReady
    assert error.why == f"Fabric Manager did not answer {operation.value} within 30.0 s"


def test_a_connection_that_is_refused_for_its_version_says_which_library_to_use() -> None:
    error = fmcode.connect_refused(-6, "127.0.0.1:6666")
    assert type(error) is VersionMismatch
    assert error.fm_code == -6
    assert "libnvfm" in error.fix


@pytest.mark.parametrize("code", [code for code in HEADER if code not in (0, -6)])
def test_a_connection_that_fails_otherwise_may_be_tried_again(code: int) -> None:
    error = fmcode.connect_refused(code, "unix:/run/fm.sock")
    assert type(error) is FabricNotReady
    assert error.what == "Fabric Manager does not answer at unix:/run/fm.sock"
    assert error.fm_code == code
