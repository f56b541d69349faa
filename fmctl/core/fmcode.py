# SPDX-License-Identifier: Apache-2.0
"""Fabric Manager's return codes, and what one of them alone can tell.

The values are those of the public SDK header `nv_fm_types.h`, branches 450 to 615; a branch that lacks the later ones
never returns them. A code is never the outcome of a change: several mean two things (-4 is "library not initialised"
and "partition not active"), and two families of boards use different codes for one fact. So a code other than 0 to an
activation or a deactivation only says *look*, and `core.outcome` judges what the list then shows.
"""

from __future__ import annotations

from enum import Enum, IntEnum

from fmctl.core.errors import FabricNotReady, FmctlError, OutcomeUnknown, VersionMismatch


class FmCode(IntEnum):
    """`fmReturn_t`, without its FM_ST_ prefix."""

    SUCCESS = 0
    BADPARAM = -1
    GENERIC_ERROR = -2
    NOT_SUPPORTED = -3
    UNINITIALIZED = -4
    TIMEOUT = -5
    VERSION_MISMATCH = -6
    IN_USE = -7
    NOT_CONFIGURED = -8
    CONNECTION_NOT_VALID = -9
    NVLINK_ERROR = -10
    RESOURCE_BAD = -11
    RESOURCE_IN_USE = -12
    RESOURCE_NOT_IN_USE = -13
    RESOURCE_EXHAUSTED = -14
    RESOURCE_NOT_READY = -15
    PARTITION_EXISTS = -16
    PARTITION_ID_IN_USE = -17
    PARTITION_ID_NOT_IN_USE = -18
    PARTITION_NAME_IN_USE = -19
    PARTITION_NAME_NOT_IN_USE = -20
    PARTITION_ID_NAME_MISMATCH = -21
    NOT_READY = -22
    RESOURCE_USED_IN_THIS_PARTITION = -23
    RESOURCE_USED_IN_ANOTHER_PARTITION = -24
    PARTITION_MISWIRED_TRUNKS = -25
    PARTITION_INSUFFICIENT_TRUNKS = -26
    PARTITION_MISSING_SWITCHES = -27
    PARTITION_NETWORK_CONFIG_ERROR = -28
    PARTITION_ROUTE_PROGRAMMING_ERROR = -29


class Operation(str, Enum):
    """A call of the SDK that reaches Fabric Manager."""

    LIST = "list"
    ACTIVATE = "activate"
    DEACTIVATE = "deactivate"
    SET_ACTIVATED = "set-activated"
    FAILED_DEVICES = "failed-devices"
    UNSUPPORTED = "unsupported"
    ACTIVATE_WITH_VFS = "activate-with-vfs"

    @property
    def changes(self) -> bool:
        """Whether the call can change a partition."""
        return self in _CHANGES


_CHANGES = frozenset({Operation.ACTIVATE, Operation.DEACTIVATE, Operation.SET_ACTIVATED, Operation.ACTIVATE_WITH_VFS})

INITIALISING = frozenset({FmCode.NOT_CONFIGURED, FmCode.NOT_READY})
"""Fabric Manager runs but serves nobody yet (SDK header, FM User Guide)."""

ALREADY_ACTIVE = frozenset({FmCode.IN_USE, FmCode.PARTITION_ID_IN_USE})
"""What an activation of an active partition answers: -7 up to NVLink 4, -17 on NVLink 5 (seen in the field)."""

NOT_ACTIVE = frozenset({FmCode.UNINITIALIZED, FmCode.PARTITION_ID_NOT_IN_USE})
"""What a deactivation of an inactive partition answers: -4 up to NVLink 4, -18 on NVLink 5 (seen in the field)."""

NO_VERDICT = frozenset({FmCode.TIMEOUT, FmCode.CONNECTION_NOT_VALID})
"""Codes that the client library makes up when Fabric Manager's own answer did not arrive."""


def name(code: int) -> str:
    """The header's name of a code, without its prefix, or "UNKNOWN" for one that no header has."""
    try:
        return FmCode(code).name
    except ValueError:
        return "UNKNOWN"


def describe(code: int) -> str:
    """A code with its name, as messages show it."""
    return f"{code:d} ({name(code)})"


def connect_refused(code: int, address: str) -> FmctlError:
    """The error for an `fmConnect` that failed; nothing was asked of Fabric Manager."""
    if code == FmCode.VERSION_MISMATCH:
        return VersionMismatch(
            "libnvfm refused the connection parameters",
            why=f"fmConnect returned {describe(code)}",
            fix="use a libnvfm of branch 450 or later; a vsock address needs branch 580 or later",
            fm_code=code,
        )
    return FabricNotReady(
        f"Fabric Manager does not answer at {address}",
        why=f"fmConnect returned {describe(code)}",
        fix="see that nv-fabricmanager runs, and that fm_address matches its FM_CMD_* settings",
        fm_code=code,
    )


def call_refused(operation: Operation, code: int, partition_id: int | None = None) -> FmctlError:
    """The error for a call that Fabric Manager, or the library on its behalf, answered with a code other than 0."""
    why = f"Fabric Manager answered {operation.value} with {describe(code)}"
    if code in INITIALISING:
        return FabricNotReady(
            "Fabric Manager is not ready",
            why=f"{why}: it is still initialising, or waits for the list of active partitions",
            fix="try again shortly",
            fm_code=code,
            partition_id=partition_id,
        )
    if operation.changes:
        return OutcomeUnknown(
            f"the outcome of {operation.value} is unknown",
            why=why,
            fix="list the partitions, or make the same call again",
            fm_code=code,
            partition_id=partition_id,
        )
    fix = "look at Fabric Manager's log"
    if code == FmCode.NOT_SUPPORTED:
        fix = "set FABRIC_MODE=1 (shared NVSwitch mode) in fabricmanager.cfg and start Fabric Manager again"
    return FabricNotReady(f"Fabric Manager did not serve {operation.value}", why=why, fix=fix, fm_code=code)


def call_overran(operation: Operation, seconds: float, partition_id: int | None = None) -> FmctlError:
    """The error for a call that no code ended: its deadline passed, or the process that made it died."""
    why = f"Fabric Manager did not answer {operation.value} within {seconds:.1f} s"
    if operation.changes:
        return OutcomeUnknown(
            f"the outcome of {operation.value} is unknown",
            why=why,
            fix="list the partitions, or make the same call again",
            partition_id=partition_id,
        )
    return FabricNotReady("Fabric Manager hangs", why=why, fix="look at Fabric Manager's log")
