# SPDX-License-Identifier: Apache-2.0
"""Errors: one class for each reason, and a form that crosses a process."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmctl.core import errors
from fmctl.core.errors import FmctlError, InvalidDocument, OutcomeUnknown, Reason

CLASSES = {
    Reason.BAD_REQUEST: errors.BadRequest,
    Reason.NO_SUCH_PARTITION: errors.NoSuchPartition,
    Reason.NO_SUCH_LEASE: errors.NoSuchLease,
    Reason.NO_CAPACITY: errors.NoCapacity,
    Reason.FRAGMENTED: errors.Fragmented,
    Reason.HOST_CORDONED: errors.HostCordoned,
    Reason.MAP_UNVERIFIED: errors.MapUnverified,
    Reason.VERSION_MISMATCH: errors.VersionMismatch,
    Reason.VM_RUNNING: errors.VmRunning,
    Reason.PARTITION_HELD: errors.PartitionHeld,
    Reason.POLICY_DENIED: errors.PolicyDenied,
    Reason.FABRIC_NOT_READY: errors.FabricNotReady,
    Reason.AGENT_UNREACHABLE: errors.AgentUnreachable,
    Reason.OUTCOME_UNKNOWN: errors.OutcomeUnknown,
    Reason.REQUEST_ID_REUSED: errors.RequestIdReused,
    Reason.ACTIVATION_FAILED: errors.ActivationFailed,
    Reason.COMPACTED: errors.Compacted,
    Reason.NO_SUCH_GPU: errors.NoSuchGpu,
}
texts = st.text(max_size=20)
numbers = st.none() | st.integers(-(2**31), 2**32)


@pytest.mark.parametrize(("reason", "cls"), CLASSES.items(), ids=[reason.value for reason in CLASSES])
def test_a_reason_stands_for_one_class(reason: Reason, cls: type[FmctlError]) -> None:
    assert errors.BY_REASON[reason] is cls
    assert cls.reason is reason
    assert reason.value == reason.name


def test_no_reason_is_without_a_class() -> None:
    assert set(errors.BY_REASON) == set(Reason) == set(CLASSES)


@pytest.mark.parametrize("cls", CLASSES.values(), ids=lambda cls: cls.__name__)
def test_only_what_may_pass_by_itself_is_retryable(cls: type[FmctlError]) -> None:
    retryable = {errors.FabricNotReady, errors.AgentUnreachable, errors.OutcomeUnknown}
    assert issubclass(cls, errors.Retryable) is (cls in retryable)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        pytest.param(FmctlError("it broke"), "it broke", id="what"),
        pytest.param(FmctlError("it broke", why="it was old", fix="buy another"), "it broke: it was old", id="why"),
    ],
)
def test_the_text_says_what_and_why(error: FmctlError, text: str) -> None:
    assert str(error) == text


@given(st.sampled_from(list(CLASSES)), texts, texts, texts, numbers, numbers)
def test_an_error_survives_crossing_a_process(
    reason: Reason, what: str, why: str, fix: str, fm_code: int | None, partition_id: int | None
) -> None:
    error = CLASSES[reason](what or "it", why=why, fix=fix, fm_code=fm_code, partition_id=partition_id)
    back = errors.restore(reason.value, error.metadata())
    assert type(back) is type(error)
    assert vars(back) == vars(error)


def test_metadata_leaves_out_what_the_error_does_not_know() -> None:
    assert FmctlError("it").metadata() == {"what": "it"}
    assert FmctlError("it", fm_code=0, partition_id=0).metadata() == {"what": "it", "fm_code": "0", "partition_id": "0"}


def test_a_special_case_comes_back_as_the_general_one() -> None:
    back = errors.restore("BAD_REQUEST", InvalidDocument("no").metadata())
    assert type(back) is errors.BadRequest


@pytest.mark.parametrize("reason", ["", "SOMETHING_NEW", "bad_request"])
def test_an_unknown_reason_is_read_as_an_unknown_outcome(reason: str) -> None:
    assert type(errors.restore(reason, {"what": "it"})) is OutcomeUnknown


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        pytest.param({}, ("BAD_REQUEST", None), id="empty"),
        pytest.param({"what": "it", "fm_code": "many"}, ("it", None), id="no-number"),
        pytest.param({"what": "it", "fm_code": "-7", "more": "x"}, ("it", -7), id="a-key-too-many"),
    ],
)
def test_metadata_of_another_version_is_read_as_far_as_it_goes(
    metadata: Mapping[str, str], expected: tuple[str, int | None]
) -> None:
    back = errors.restore("BAD_REQUEST", metadata)
    assert (back.what, back.fm_code) == expected
