# SPDX-License-Identifier: Apache-2.0
"""The list decides, whatever the code: both error families, and codes that mean two things."""

from __future__ import annotations

import pytest

from fmctl.core import outcome
from fmctl.core.answers import FabricState
from fmctl.core.errors import (
    ActivationFailed,
    AgentUnreachable,
    FabricNotReady,
    FmctlError,
    NoSuchPartition,
    OutcomeUnknown,
    PartitionHeld,
    VersionMismatch,
)
from fmctl.core.fmcode import FmCode
from fmctl.core.partition import Gpu, Partition, PartitionList

PAIR, OTHER_PAIR, QUAD = 3, 4, 1
ALL_CODES = [*(code for code in FmCode if code is not FmCode.SUCCESS), -999, None]


def listing(*active: int) -> PartitionList:
    table = {QUAD: (1, 2, 3, 4), PAIR: (1, 3), OTHER_PAIR: (2, 4)}
    return PartitionList(
        tuple(Partition(row, tuple(Gpu(gpu) for gpu in gpus), row in active) for row, gpus in table.items())
    )


def unknown(code: int | None) -> OutcomeUnknown:
    return OutcomeUnknown("the outcome is unknown", fm_code=code)


@pytest.mark.parametrize("code", ALL_CODES)
def test_an_owner_s_active_partition_is_active_whatever_the_code(code: int | None) -> None:
    assert outcome.settle_activation(unknown(code), listing(PAIR), PAIR, {PAIR: "a"}, ours=True).active


@pytest.mark.parametrize("code", [FmCode.IN_USE, FmCode.PARTITION_ID_IN_USE])
def test_what_was_active_before_and_nobody_s_is_not_taken(code: int) -> None:
    with pytest.raises(PartitionHeld) as refusal:
        outcome.settle_activation(unknown(code), listing(PAIR), PAIR, {}, ours=False)
    assert "owner is unknown" in refusal.value.why


@pytest.mark.parametrize("code", ALL_CODES)
def test_an_overlap_is_named_whatever_the_code(code: int | None) -> None:
    with pytest.raises(PartitionHeld) as refusal:
        outcome.settle_activation(unknown(code), listing(PAIR, OTHER_PAIR), QUAD, {PAIR: "tenant-a"}, ours=False)
    assert refusal.value.why == (
        "partition 3 is active for owner 'tenant-a' and has GPUs 1,3; partition 4 is active and has GPUs 2,4"
    )
    assert refusal.value.fix == "deactivate first: fmctl deactivate 3, fmctl deactivate 4"


@pytest.mark.parametrize("code", ALL_CODES)
def test_an_inactive_partition_is_never_taken_for_success(code: int | None) -> None:
    expected = OutcomeUnknown if code in (None, FmCode.TIMEOUT, FmCode.CONNECTION_NOT_VALID) else ActivationFailed
    with pytest.raises(expected) as refusal:
        outcome.settle_activation(unknown(code), listing(), PAIR, {}, ours=True)
    assert refusal.value.fm_code == code


@pytest.mark.parametrize("code", ALL_CODES)
def test_an_inactive_partition_is_deactivated_whatever_the_code(code: int | None) -> None:
    assert not outcome.settle_deactivation(unknown(code), listing(OTHER_PAIR), PAIR).active


@pytest.mark.parametrize("code", ALL_CODES)
def test_a_partition_still_listed_active_is_never_taken_for_deactivated(code: int | None) -> None:
    expected = OutcomeUnknown if code in (None, FmCode.TIMEOUT, FmCode.CONNECTION_NOT_VALID) else FabricNotReady
    with pytest.raises(expected):
        outcome.settle_deactivation(unknown(code), listing(PAIR), PAIR)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (FabricNotReady("x", fm_code=FmCode.NOT_CONFIGURED), FabricState.INITIALISING),
        (FabricNotReady("x", fm_code=FmCode.NOT_READY), FabricState.INITIALISING),
        (FabricNotReady("x", fm_code=FmCode.CONNECTION_NOT_VALID), FabricState.UNREACHABLE),
        (FabricNotReady("it hangs"), FabricState.UNREACHABLE),
        (AgentUnreachable("x"), FabricState.UNREACHABLE),
        (FabricNotReady("x", fm_code=FmCode.NOT_SUPPORTED), FabricState.FAILED),
        (FabricNotReady("x", fm_code=FmCode.GENERIC_ERROR), FabricState.FAILED),
        (VersionMismatch("its list cannot be read"), FabricState.FAILED),
    ],
    ids=str,
)
def test_the_state_behind_a_list_that_failed(error: FmctlError, state: FabricState) -> None:
    assert outcome.state_behind(error) is state


def test_an_id_that_the_list_lacks_does_not_exist() -> None:
    with pytest.raises(NoSuchPartition):
        outcome.settle_activation(unknown(FmCode.BADPARAM), listing(), 99, {}, ours=False)
    with pytest.raises(NoSuchPartition):
        outcome.settle_deactivation(unknown(FmCode.BADPARAM), listing(), 99)
