# SPDX-License-Identifier: Apache-2.0
"""Every error that fmctl raises on purpose.

An error says what happened, why, and what to do. Its class carries a reason from a closed list, and with it the
meaning for a caller: fix the call, clear something first, go elsewhere, or try again. `rpc.errors` turns it into a
gRPC status and back, `cli.failure` into text and an exit code; nothing between them needs to know either.

    FmctlError
    ├── BadRequest                 the call itself is wrong
    │   ├── InvalidDocument        a settings or platform file is wrong
    │   └── NoSuchImage            the store has no Service VM image of that name
    ├── NoSuchPartition
    ├── NoSuchLease
    ├── NoSuchGpu
    ├── Compacted                  the entries after that revision are not there, or never were
    ├── NoCapacity
    │   ├── Fragmented             enough GPUs, but no free partition of that size
    │   └── LimitReached           a rule of the host lets its owner, or all owners, hold no more GPUs
    ├── Refused                    something must be cleared first
    │   ├── HostCordoned, MapUnverified, VersionMismatch, VmRunning, PartitionHeld
    │   │   └── StoreUnusable      of HostCordoned: leases cannot be read or written
    ├── PolicyDenied
    │   └── ImageRefused           a Service VM image that nobody vouches for
    ├── RequestIdReused
    ├── ActivationFailed
    └── Retryable                  the same call may be made again
        ├── FabricNotReady         nothing was changed
        │   ├── FabricBusy         another call is under way
    │   ├── HostBusy           another fmctl process changes the host's devices
    │   └── HypervisorUnreachable
        ├── AgentUnreachable       nothing was changed
        └── OutcomeUnknown         something may have been changed
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import ClassVar


class Reason(str, Enum):
    """Why a call failed: the closed list that callers may switch on."""

    BAD_REQUEST = "BAD_REQUEST"
    NO_SUCH_PARTITION = "NO_SUCH_PARTITION"
    NO_SUCH_LEASE = "NO_SUCH_LEASE"
    NO_SUCH_GPU = "NO_SUCH_GPU"
    NO_CAPACITY = "NO_CAPACITY"
    FRAGMENTED = "FRAGMENTED"
    HOST_CORDONED = "HOST_CORDONED"
    MAP_UNVERIFIED = "MAP_UNVERIFIED"
    VERSION_MISMATCH = "VERSION_MISMATCH"
    VM_RUNNING = "VM_RUNNING"
    PARTITION_HELD = "PARTITION_HELD"
    POLICY_DENIED = "POLICY_DENIED"
    FABRIC_NOT_READY = "FABRIC_NOT_READY"
    AGENT_UNREACHABLE = "AGENT_UNREACHABLE"
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    ACTIVATION_FAILED = "ACTIVATION_FAILED"
    COMPACTED = "COMPACTED"


class FmctlError(Exception):
    """What happened, why, and what to do about it.

    `fm_code` is the Fabric Manager return code behind the error, where there is one, and `partition_id` the partition
    it concerns. `reason` is None for what only happens on this machine, and no API call can answer.
    """

    reason: ClassVar[Reason | None] = None

    def __init__(
        self, what: str, *, why: str = "", fix: str = "", fm_code: int | None = None, partition_id: int | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix
        self.fm_code = fm_code
        self.partition_id = partition_id

    def __str__(self) -> str:
        return f"{self.what}: {self.why}" if self.why else self.what

    def metadata(self) -> dict[str, str]:
        """All of the error but its reason, as texts that can cross a process; `restore` is the way back."""
        texts = {"what": self.what, "why": self.why, "fix": self.fix}
        numbers = {"fm_code": self.fm_code, "partition_id": self.partition_id}
        return {key: text for key, text in texts.items() if text} | {
            key: f"{number:d}" for key, number in numbers.items() if number is not None
        }


class BadRequest(FmctlError):
    """The call is malformed; making it again changes nothing."""

    reason = Reason.BAD_REQUEST


class InvalidDocument(BadRequest):
    """A settings or platform file is refused; the text names the file, the key and the reason."""


class NoSuchImage(BadRequest):
    """The store has no image of that name; as with a platform's name, the call itself names the wrong thing."""


class NoSuchPartition(FmctlError):
    """The board has no partition with that id, or with exactly those GPUs."""

    reason = Reason.NO_SUCH_PARTITION


class NoSuchLease(FmctlError):
    """No lease has that id."""

    reason = Reason.NO_SUCH_LEASE


class NoSuchGpu(FmctlError):
    """The host has no GPU with that physical id."""

    reason = Reason.NO_SUCH_GPU


class Compacted(FmctlError):
    """The entries after that revision were compacted, or the revision is another store's: list again, then go on."""

    reason = Reason.COMPACTED


class NoCapacity(FmctlError):
    """The host has too few free GPUs for the request."""

    reason = Reason.NO_CAPACITY


class Fragmented(NoCapacity):
    """Enough GPUs are free, but no partition of that size is."""

    reason = Reason.FRAGMENTED


class LimitReached(NoCapacity):
    """A rule of the host lets the owner, or all owners together, hold no more GPUs than they do."""


class Refused(FmctlError):
    """Something must be cleared before the call can be served."""


class HostCordoned(Refused):
    """The host takes no new work."""

    reason = Reason.HOST_CORDONED


class StoreUnusable(HostCordoned):
    """The store of leases cannot be read or written, so no lease is made or ended; what it holds stays as it is."""


class MapUnverified(Refused):
    """The GPU map is not verified, so nothing may be activated."""

    reason = Reason.MAP_UNVERIFIED


class MapPending(MapUnverified):
    """Which GPU is which is being found out, which takes the time that GPUs need to answer."""


class VersionMismatch(Refused):
    """Two components of different versions cannot work together."""

    reason = Reason.VERSION_MISMATCH


class VmRunning(Refused):
    """A running VM holds the GPUs."""

    reason = Reason.VM_RUNNING


class PartitionHeld(Refused):
    """The partition, or one that shares a GPU with it, is held."""

    reason = Reason.PARTITION_HELD


class PolicyDenied(FmctlError):
    """This host will never serve the call."""

    reason = Reason.POLICY_DENIED


class ImageRefused(PolicyDenied):
    """A Service VM image is not what it says, or nobody whom this host trusts vouches for it.

    It is not HOST_CORDONED, which a caller waits out or has cleared on this host: however the host is mended, this
    image stays refused, and another must be brought, or signed.
    """


class RequestIdReused(FmctlError):
    """The request id already stands for a different request."""

    reason = Reason.REQUEST_ID_REUSED


class ActivationFailed(FmctlError):
    """Fabric Manager refused the activation, and a list shows the partition inactive."""

    reason = Reason.ACTIVATION_FAILED


class Retryable(FmctlError):
    """The same call, with the same request id, may be made again."""

    retry_after: ClassVar[float] = 1.0
    """Seconds to wait before the call is made again."""


class FabricNotReady(Retryable):
    """Fabric Manager does not take the call now. Nothing was changed."""

    reason = Reason.FABRIC_NOT_READY


class FabricBusy(FabricNotReady):
    """Fabric Manager still serves another call of this agent's, which tells nothing of how it is."""


class HypervisorUnreachable(FabricNotReady):
    """Libvirt does not answer. Nothing was changed."""


class AgentUnreachable(Retryable):
    """The other end of the connection does not answer. Nothing was changed."""

    reason = Reason.AGENT_UNREACHABLE


class OutcomeUnknown(Retryable):
    """The call may or may not have taken effect; the same call again settles it."""

    reason = Reason.OUTCOME_UNKNOWN


def _by_reason(cls: type[FmctlError]) -> dict[Reason, type[FmctlError]]:
    found = {reason: leaf for child in cls.__subclasses__() for reason, leaf in _by_reason(child).items()}
    return found if cls.reason is None else {**found, cls.reason: cls}


BY_REASON = _by_reason(FmctlError)
"""The most general class that carries each reason."""


def restore(reason: str, metadata: Mapping[str, str]) -> FmctlError:
    """The error that `metadata` was taken from; a reason unknown here is read as the careful one, OutcomeUnknown."""
    try:
        cls = BY_REASON[Reason(reason)]
    except ValueError:
        cls = OutcomeUnknown
    return cls(
        metadata.get("what", reason),
        why=metadata.get("why", ""),
        fix=metadata.get("fix", ""),
        fm_code=_number(metadata.get("fm_code")),
        partition_id=_number(metadata.get("partition_id")),
    )


def _number(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
