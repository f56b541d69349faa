# SPDX-License-Identifier: Apache-2.0
"""What became of a change that Fabric Manager did not answer with success, and what its answers tell of its state.

Pure judgement over a fresh list; `control.fabric` gets the list and acts on the answer. The return code only tells
whether Fabric Manager gave a verdict at all: the list decides.
"""

from __future__ import annotations

from collections.abc import Mapping

from fmctl.core.answers import FabricState
from fmctl.core.errors import (
    ActivationFailed,
    FabricNotReady,
    FmctlError,
    OutcomeUnknown,
    PartitionHeld,
    VersionMismatch,
)
from fmctl.core.fmcode import ALREADY_ACTIVE, INITIALISING, NO_VERDICT, FmCode, describe
from fmctl.core.partition import Partition, PartitionList


def settle_activation(
    failure: OutcomeUnknown, listed: PartitionList, partition_id: int, owners: Mapping[int, str], *, ours: bool
) -> Partition:
    """The partition, if the list shows it active for the caller; else raises what the caller should be told.

    `ours` tells that the caller's claim on the partition stood before this call.
    """
    partition = listed.get(partition_id)
    if partition.active:
        if failure.fm_code in ALREADY_ACTIVE and not ours:
            raise held(partition, None)
        return partition
    blockers = listed.blockers(partition)
    if blockers:
        raise blocked(partition, blockers, owners)
    if not _has_verdict(failure):
        raise failure
    raise ActivationFailed(
        f"partition {partition_id} could not be activated",
        why=f"Fabric Manager answered {_code(failure)}, and lists the partition as inactive",
        fix="use another host, and look at Fabric Manager's log on this one",
        fm_code=failure.fm_code,
        partition_id=partition_id,
    )


def settle_deactivation(failure: OutcomeUnknown, listed: PartitionList, partition_id: int) -> Partition:
    """The partition, if the list shows it inactive; else raises what the caller should be told."""
    partition = listed.get(partition_id)
    if not partition.active:
        return partition
    if not _has_verdict(failure):
        raise failure
    raise FabricNotReady(
        f"partition {partition_id} could not be deactivated",
        why=f"Fabric Manager answered {_code(failure)}, and lists the partition as active",
        fix="try again; if it stays so, look at Fabric Manager's log",
        fm_code=failure.fm_code,
        partition_id=partition_id,
    )


def held(partition: Partition, owner: str | None) -> PartitionHeld:
    """The refusal to touch a partition that is active for somebody else, or for nobody that fmctl knows."""
    if owner is None:
        return PartitionHeld(
            f"partition {partition.id} is already active",
            why="it was not activated through this daemon, so its owner is unknown",
            fix=f"if nobody uses it: fmctl deactivate {partition.id}",
            partition_id=partition.id,
        )
    return PartitionHeld(
        f"partition {partition.id} is held",
        why=f"it is active for owner {owner!r}",
        fix="wait until that owner gives it back, or choose another partition",
        partition_id=partition.id,
    )


def blocked(partition: Partition, blockers: tuple[Partition, ...], owners: Mapping[int, str]) -> PartitionHeld:
    """The refusal to activate a partition that shares GPUs with active ones; names them all."""
    return PartitionHeld(
        f"partition {partition.id} shares GPUs with active partitions",
        why="; ".join(_blocker(partition, other, owners) for other in blockers),
        fix="deactivate first: " + ", ".join(f"fmctl deactivate {other.id}" for other in blockers),
        partition_id=partition.id,
    )


def state_behind(error: FmctlError) -> FabricState:
    """Fabric Manager's state, from the error that a list ended in."""
    if error.fm_code in INITIALISING:
        return FabricState.INITIALISING
    if isinstance(error, VersionMismatch):
        return FabricState.FAILED
    if error.fm_code is None or error.fm_code == FmCode.CONNECTION_NOT_VALID:
        return FabricState.UNREACHABLE
    return FabricState.FAILED


def _blocker(partition: Partition, other: Partition, owners: Mapping[int, str]) -> str:
    shared = [gpu for gpu in other.gpu_ids if gpu in partition.gpu_ids]
    owner = owners.get(other.id)
    holder = f" for owner {owner!r}" if owner else ""
    return f"partition {other.id} is active{holder} and has GPUs {','.join(map(str, shared))}"


def _has_verdict(failure: OutcomeUnknown) -> bool:
    return failure.fm_code is not None and failure.fm_code not in NO_VERDICT


def _code(failure: OutcomeUnknown) -> str:
    return "nothing" if failure.fm_code is None else describe(failure.fm_code)
