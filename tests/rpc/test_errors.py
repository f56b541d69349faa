# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2

from fmctl.cli.failure import EXIT_CODES
from fmctl.core.errors import BY_REASON, FmctlError, Reason, Retryable
from fmctl.core.fmcode import FmCode
from fmctl.rpc import errors
from fmctl.rpc.fmctl.v1 import errors_pb2

DOCS = Path(__file__).parents[2] / "docs" / "api.md"

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
TABLE = {
    "BAD_REQUEST": (grpc.StatusCode.INVALID_ARGUMENT, 2),
    "NO_SUCH_PARTITION": (grpc.StatusCode.NOT_FOUND, 3),
    "NO_SUCH_LEASE": (grpc.StatusCode.NOT_FOUND, 3),
    "NO_SUCH_GPU": (grpc.StatusCode.NOT_FOUND, 3),
    "NO_CAPACITY": (grpc.StatusCode.RESOURCE_EXHAUSTED, 7),
    "FRAGMENTED": (grpc.StatusCode.RESOURCE_EXHAUSTED, 7),
    "HOST_CORDONED": (PRECONDITION, 4),
    "MAP_UNVERIFIED": (PRECONDITION, 8),
    "VERSION_MISMATCH": (PRECONDITION, 1),
    "VM_RUNNING": (PRECONDITION, 4),
    "PARTITION_HELD": (PRECONDITION, 4),
    "POLICY_DENIED": (grpc.StatusCode.PERMISSION_DENIED, 1),
    "FABRIC_NOT_READY": (UNAVAILABLE, 5),
    "AGENT_UNREACHABLE": (UNAVAILABLE, 5),
    "OUTCOME_UNKNOWN": (UNAVAILABLE, 5),
    "REQUEST_ID_REUSED": (grpc.StatusCode.ALREADY_EXISTS, 4),
    "ACTIVATION_FAILED": (grpc.StatusCode.ABORTED, 1),
    "COMPACTED": (grpc.StatusCode.OUT_OF_RANGE, 1),
}


def test_the_table_of_status_codes_and_exit_codes() -> None:
    assert {reason.value: (errors.STATUS[reason], EXIT_CODES[reason]) for reason in Reason} == TABLE


def test_the_documentation_has_the_same_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| [^|]+ \| (\d) \|$", DOCS.read_text(), re.MULTILINE)
    assert {reason: (grpc.StatusCode[status], int(code)) for reason, status, code in rows} == TABLE


def test_the_api_names_every_reason_and_no_other() -> None:
    names = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name}
    assert names == {reason.value for reason in Reason} | {"UNSPECIFIED"}


class FailedCall(grpc.RpcError):
    """A failed call as grpc hands it to a client."""

    def __init__(self, code: grpc.StatusCode, details: str, status: bytes | None = None) -> None:
        self._code, self._details, self._status = code, details, status

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:  # type: ignore[override]
        return (("grpc-status-details-bin", self._status),) if self._status else ()


def received(error: FmctlError, *, simulated: bool = False) -> FmctlError:
    status = errors.to_status(error, simulated=simulated)
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    call = FailedCall(code, status.message, status.SerializeToString())
    return errors.from_rpc_error(call, who="fmctld", changes=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: str(reason.value))
def test_an_error_arrives_as_it_left(reason: Reason) -> None:
    sent = BY_REASON[reason]("it failed", why="a 'reason' with ünïcode", fix="mend it", fm_code=-10, partition_id=0)
    got = received(sent)
    assert type(got) is type(sent)
    assert got.metadata() == sent.metadata()


def test_an_error_of_this_machine_arrives_without_a_reason() -> None:
    got = received(FmctlError("disk full", why="no space", fix="free some"))
    assert (type(got), got.what, got.why, got.fix) == (FmctlError, "disk full", "no space", "free some")


@pytest.mark.parametrize("code", FmCode, ids=lambda code: str(code.name))
def test_details_name_every_code(code: FmCode) -> None:
    status = errors.to_status(BY_REASON[Reason.ACTIVATION_FAILED]("x", fm_code=code), simulated=True)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("fmctl", "ACTIVATION_FAILED")
    assert (info.metadata["fm_code"], info.metadata["fm_name"]) == (str(int(code)), code.name)
    assert info.metadata["simulated"] == "true"


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: str(reason.value))
def test_retry_info_comes_where_waiting_helps_and_nowhere_else(reason: Reason) -> None:
    cls = BY_REASON[reason]
    details = errors.to_status(cls("x")).details
    retries = [detail for detail in details if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)]
    assert bool(retries) == issubclass(cls, Retryable) == (errors.STATUS[reason] is UNAVAILABLE)
    for detail in retries:
        info = error_details_pb2.RetryInfo()
        assert detail.Unpack(info)
        assert info.retry_delay.seconds >= 1


@pytest.mark.parametrize(
    ("code", "details", "changes", "reason"),
    [
        (UNAVAILABLE, "failed to connect to all addresses; last error: x", True, Reason.AGENT_UNREACHABLE),
        (UNAVAILABLE, "Socket closed", True, Reason.OUTCOME_UNKNOWN),
        (UNAVAILABLE, "Socket closed", False, Reason.AGENT_UNREACHABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", True, Reason.OUTCOME_UNKNOWN),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", False, Reason.AGENT_UNREACHABLE),
        (grpc.StatusCode.CANCELLED, "", True, Reason.OUTCOME_UNKNOWN),
        (grpc.StatusCode.UNIMPLEMENTED, "", True, Reason.VERSION_MISMATCH),
        (grpc.StatusCode.INTERNAL, "boom", True, None),
    ],
)
def test_a_failure_of_grpc_s_own_is_read_with_care(
    code: grpc.StatusCode, details: str, changes: object, reason: Reason | None
) -> None:
    call = FailedCall(code, details)
    assert errors.from_rpc_error(call, who="fmctld", changes=bool(changes)).reason is reason  # type: ignore[arg-type]
