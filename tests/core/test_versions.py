# SPDX-License-Identifier: Apache-2.0
"""The matrix that comes with fmctl, and what does not fit by it."""

from __future__ import annotations

import dataclasses

import pytest

from fmctl import platforms, versions
from fmctl.core.finding import Finding
from fmctl.core.platform import Mark
from fmctl.core.versions import Versions, branch_of, check, compare, required_guest_driver

MATRIX = versions.matrix()
GOOD = Versions("580.95.05", "580.95.05", "580.95.05", "2.5.1")


def found(board: str, wanted: Versions) -> dict[str, Finding]:
    return {finding.name: finding for finding in check(MATRIX, platforms.load(board), wanted)}


@pytest.mark.parametrize("board", platforms.names())
def test_every_board_has_its_generation_in_the_matrix_and_a_recent_driver_fits(board: str) -> None:
    generation = MATRIX.generation(platforms.load(board))
    assert generation
    assert found(board, GOOD) == {}


@pytest.mark.parametrize(
    ("board", "oldest"), [("hgx-a100-8", 450), ("hgx-a100-16", 450), ("hgx-h100-8", 525), ("hgx-b200-8", 570)]
)
def test_a_driver_older_than_the_board_is_found(board: str, oldest: int) -> None:
    version, older = f"{oldest}.1.2", f"{oldest - 1}.999.9"
    assert "driver-too-old" not in found(board, Versions(version, version, version, "1"))
    finding = found(board, Versions(older, older, older, "1"))["driver-too-old"]
    assert finding.what == f"{board} needs driver branch {oldest} or later, and the image's driver is {older}"
    assert finding.why.startswith("FM User Guide 2.3")
    assert finding.why.endswith(" (confirmed)")
    assert "service-vm/build" in finding.fix


def test_fabric_manager_must_be_the_driver_s_to_the_last_digit() -> None:
    finding = found("hgx-h100-8", dataclasses.replace(GOOD, driver="580.95.06"))["fabric-manager-differs"]
    assert finding.what == "Fabric Manager's version must be the driver's: 580.95.05, and 580.95.06"


def test_the_guest_s_driver_must_be_fabric_manager_s_to_the_last_digit() -> None:
    (finding,) = found("hgx-h100-8", dataclasses.replace(GOOD, guest_driver="580.95.5")).values()
    assert finding.name == "guest-driver-differs"
    assert finding.what == "a tenant VM's driver must be 580.95.05, and it is 580.95.5"
    assert "802" in finding.why
    assert finding.fix == "install driver 580.95.05 in the tenant VM, or build an image of 580.95.5"
    assert required_guest_driver("580.95.05") == "580.95.05"


def test_a_guest_of_which_nobody_spoke_is_told_what_it_needs() -> None:
    lines = compare(MATRIX, platforms.load("hgx-h100-8"), dataclasses.replace(GOOD, guest_driver=""))
    assert "a tenant VM's driver must be 580.95.05; nobody said what it is" in [line.what for line in lines]
    assert not [line for line in lines if line.finding]


def test_nvlsm_is_needed_on_nvlink_5_alone() -> None:
    without = dataclasses.replace(GOOD, nvlsm="")
    assert found("hgx-h100-8", without) == {}
    (finding,) = found("hgx-b200-8", without).values()
    assert finding.name == "nvlsm-missing"
    assert finding.what == "hgx-b200-8 needs NVLSM beside Fabric Manager, and the image's is none"


def test_what_a_branch_lacks_is_found_on_boards_that_need_it() -> None:
    old = Versions("565.1", "565.1", "565.1", "1")
    assert sorted(found("hgx-b200-8", old)) == ["driver-too-old", "without-management-port"]
    assert sorted(found("hgx-h100-8", old)) == []
    older = Versions("450.1", "450.1", "450.1")
    (finding,) = found("hgx-a100-8", older).values()
    assert finding.name == "without-restart"
    assert finding.what.endswith("since branch 470, and the image's Fabric Manager is 450.1")


@pytest.mark.parametrize(
    ("wanted", "what"),
    [
        (Versions("", "580.1"), "the image's driver is missing"),
        (Versions("580.1", ""), "the image's Fabric Manager is missing"),
        (Versions("580.1-0ubuntu1", "580.1"), "the version of the image's driver is unknown: '580.1-0ubuntu1'"),
        (Versions("580.1", "580.1", "latest"), "the version of the guest's driver is unknown: 'latest'"),
        (Versions("580.1", "580.1", "580"), "the version of the guest's driver is unknown: '580'"),
    ],
)
def test_a_version_that_is_none_is_found_and_nothing_is_compared(wanted: Versions, what: str) -> None:
    (line,) = compare(MATRIX, platforms.load("hgx-h100-8"), wanted)
    assert line.finding
    assert (line.finding.name, line.finding.what) == ("version-unknown", what)


def test_a_board_that_the_matrix_does_not_know_is_found() -> None:
    old = dataclasses.replace(platforms.load("hgx-a100-8"), nvlink_generation=2)
    (finding,) = check(MATRIX, old, GOOD)
    assert finding.name == "board-unknown"
    assert finding.what == "nothing is known of drivers for NVLink 2, which hgx-a100-8 has"


@pytest.mark.parametrize(
    ("version", "known"),
    [
        ("580.95.05", "of branch 580 fmctl knows: its headers were read and its client library was called"),
        ("575.1", "of branch 575 fmctl knows: nothing of it was seen"),
        ("640.1", "of branch 640 fmctl knows nothing"),
    ],
)
def test_what_is_known_of_a_branch_is_told_and_is_no_fault(version: str, known: str) -> None:
    lines = compare(MATRIX, platforms.load("hgx-h100-8"), Versions(version, version, version))
    assert (lines[-1].what, lines[-1].finding) == (known, None)


@pytest.mark.parametrize(
    ("version", "branch"), [("580.95.05", 580), ("615.1", 615), ("580", None), ("", None), ("580.1\n", None)]
)
def test_a_branch_is_the_first_number(version: str, branch: int | None) -> None:
    assert branch_of(version) == branch


def test_branches_stand_once_and_in_order() -> None:
    branches = [each.branch for each in MATRIX.branches]
    assert branches == sorted(set(branches))
    assert {450, 470, 535, 570, 580, 615} <= set(branches)


def test_what_nobody_confirmed_is_told_so() -> None:
    same = MATRIX.same_version
    assert same.fabric_manager_and_driver.mark is Mark.RECALLED
    assert same.guest_driver_and_fabric_manager.mark is Mark.SECONDARY
    lines = compare(MATRIX, platforms.load("hgx-h100-8"), GOOD)
    assert any(line.why.endswith("(recalled from a guide, not confirmed)") for line in lines)
