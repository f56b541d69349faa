# SPDX-License-Identifier: Apache-2.0
"""An error as a person reads it, and as a script does."""

from __future__ import annotations

from fmctl.core.errors import FmctlError, Reason

FAILURE = 1
USAGE = 2
NOT_FOUND = 3
CONFLICT = 4
UNREACHABLE = 5
DRIFT = 6
NO_CAPACITY = 7
UNVERIFIED_MAP = 8
INTERRUPTED = 130

EXIT_CODES = {
    Reason.BAD_REQUEST: USAGE,
    Reason.NO_SUCH_PARTITION: NOT_FOUND,
    Reason.NO_SUCH_LEASE: NOT_FOUND,
    Reason.NO_SUCH_GPU: NOT_FOUND,
    Reason.NO_CAPACITY: NO_CAPACITY,
    Reason.FRAGMENTED: NO_CAPACITY,
    Reason.HOST_CORDONED: CONFLICT,
    Reason.MAP_UNVERIFIED: UNVERIFIED_MAP,
    Reason.VERSION_MISMATCH: FAILURE,
    Reason.VM_RUNNING: CONFLICT,
    Reason.PARTITION_HELD: CONFLICT,
    Reason.POLICY_DENIED: FAILURE,
    Reason.FABRIC_NOT_READY: UNREACHABLE,
    Reason.AGENT_UNREACHABLE: UNREACHABLE,
    Reason.OUTCOME_UNKNOWN: UNREACHABLE,
    Reason.REQUEST_ID_REUSED: CONFLICT,
    Reason.ACTIVATION_FAILED: FAILURE,
    Reason.COMPACTED: FAILURE,
}


def exit_code(error: FmctlError) -> int:
    """The exit status that stands for the error."""
    return EXIT_CODES[error.reason] if error.reason else FAILURE


def defect(error: Exception) -> FmctlError:
    """What to say of an exception that nobody foresaw."""
    return FmctlError(
        "this is a defect of fmctl",
        why=f"{type(error).__name__}: {error}",
        fix="set FMCTL_DEBUG=1 to see the trace, and report it",
    )


def text(error: FmctlError) -> str:
    """What happened, why, and what to do, a line each."""
    lines = [f"fmctl: {error.what}"]
    if error.why:
        lines.append(f"  why: {error.why}")
    if error.fix:
        lines.append(f"  do:  {error.fix}")
    return "\n".join(lines)
