# SPDX-License-Identifier: Apache-2.0
"""Errors across gRPC: `core.errors` to google.rpc.Status and back.

This is the one table of status codes; docs/api.md shows it, and a test compares the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from fmctl.core import errors
from fmctl.core.errors import AgentUnreachable, FmctlError, OutcomeUnknown, Reason, Retryable, VersionMismatch

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.rpc.status_pb2 import Status

DOMAIN = "fmctl"

STATUS = {
    Reason.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.NO_SUCH_PARTITION: grpc.StatusCode.NOT_FOUND,
    Reason.NO_SUCH_LEASE: grpc.StatusCode.NOT_FOUND,
    Reason.NO_SUCH_GPU: grpc.StatusCode.NOT_FOUND,
    Reason.NO_CAPACITY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.FRAGMENTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.HOST_CORDONED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.MAP_UNVERIFIED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.VERSION_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.VM_RUNNING: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.PARTITION_HELD: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.POLICY_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.FABRIC_NOT_READY: grpc.StatusCode.UNAVAILABLE,
    Reason.AGENT_UNREACHABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.OUTCOME_UNKNOWN: grpc.StatusCode.UNAVAILABLE,
    Reason.REQUEST_ID_REUSED: grpc.StatusCode.ALREADY_EXISTS,
    Reason.ACTIVATION_FAILED: grpc.StatusCode.ABORTED,
    Reason.COMPACTED: grpc.StatusCode.OUT_OF_RANGE,
}


def to_status(error: FmctlError, *, simulated: bool = False) -> Status:
    """The status that carries the error; one with no reason is INTERNAL."""
    from google.protobuf import duration_pb2
    from google.rpc import error_details_pb2, status_pb2

    from fmctl.core.fmcode import name

    metadata = error.metadata()
    if error.fm_code is not None:
        metadata["fm_name"] = name(error.fm_code)
    if simulated:
        metadata["simulated"] = "true"
    code = STATUS[error.reason] if error.reason else grpc.StatusCode.INTERNAL
    status = status_pb2.Status(code=code.value[0], message=str(error))
    reason = error.reason.value if error.reason else ""
    details: list[Message] = [error_details_pb2.ErrorInfo(domain=DOMAIN, reason=reason, metadata=metadata)]
    if isinstance(error, Retryable):
        delay = duration_pb2.Duration(seconds=int(error.retry_after))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        status.details.add().Pack(detail)
    return status


def from_rpc_error(error: grpc.Call, *, who: str, changes: bool) -> FmctlError:
    """The error that a failed call carries, or the careful reading of one that fmctl did not send.

    `who` names the other side, and `changes` tells whether the call may have changed something.
    """
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            if not info.reason:
                texts = info.metadata  # a protobuf map gives the empty text for what it lacks
                return FmctlError(texts["what"], why=texts["why"], fix=texts["fix"])
            return errors.restore(info.reason, info.metadata)
    return _foreign(error.code(), error.details() or "", who, changes=changes)


def _foreign(code: grpc.StatusCode, details: str, who: str, *, changes: bool) -> FmctlError:
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return VersionMismatch(
            f"{who} does not know this call", why=details, fix="see that both sides are fmctl of one version"
        )
    unsent = details.startswith("failed to connect to all addresses")
    if code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        return FmctlError(f"{who} failed", why=f"{code.name}: {details}", fix="look at its log")
    why = "no answer in time" if code is grpc.StatusCode.DEADLINE_EXCEEDED else _reason(details)
    if changes and not unsent:
        return OutcomeUnknown(
            f"{who} did not answer, and the outcome is unknown",
            why=why,
            fix="list the partitions, or make the same call again",
        )
    return AgentUnreachable(f"{who} does not answer", why=why, fix="see that it runs, and that the address is right")


def _reason(details: str) -> str:
    """The last and telling part of gRPC's chain of reasons, such as "Connection refused"."""
    return details.rsplit(": ", 1)[-1]
