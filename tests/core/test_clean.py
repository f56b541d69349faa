# SPDX-License-Identifier: Apache-2.0
"""What a cleaning does next, and what it comes to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fmctl import platforms
from fmctl.core import clean
from fmctl.core.book import Book, Entry, Kind, Mark, MarkKind
from fmctl.core.clean import FirmwareList, Found, Rules, Step, Verdict
from fmctl.core.errors import BadRequest, InvalidDocument
from fmctl.core.exits import VmExit
from fmctl.core.lease import Lease, LeaseState
from fmctl.core.pci import Bdf, PciClass, PciFunction, PciId
from fmctl.core.platform import ResetMethod
from fmctl.core.rules import Firmware
from fmctl.sim import pciconfig
from fmctl.sim.pciconfig import PortType

H100, H200 = PciId(0x10DE, 0x2330), PciId(0x10DE, 0x2335)
GPU = PciFunction(Bdf(0, 0x17, 0, 0), H100, PciClass(0x0302))
GOOD, BAD = "a" * 64, "b" * 64
LIST = FirmwareList({H100: frozenset({GOOD})})
ENFORCE = Rules(firmware=Firmware.ENFORCE, firmware_list=LIST)
HEADER = pciconfig.build(GPU, PortType.ENDPOINT, None, several=False)[: clean.HEADER]
HOPPER = platforms.load("hgx-h100-8").reset


def taken(rules: Rules) -> list[Step]:
    """The steps of a cleaning in which all goes well."""
    found, steps = Found(), []
    while isinstance(step := clean.next_step(rules, found), Step):
        steps.append(step)
        found = found.well(step)
    assert step is Verdict.CLEAN
    return steps


def booked(*entries: Entry, book: Book | None = None) -> Book:
    before = book or Book()
    return before.after([entry.committed(before.revision + n, 0.0) for n, entry in enumerate(entries, 1)])


def test_the_reset_comes_first_and_a_look_at_the_device_last() -> None:
    assert taken(Rules()) == [Step.RESET, Step.ANSWERS, Step.MEMORY, Step.FIRMWARE, Step.SOUND]


def test_firmware_that_is_off_is_not_asked_for() -> None:
    assert taken(Rules(firmware=Firmware.OFF)) == [Step.RESET, Step.ANSWERS, Step.MEMORY, Step.SOUND]


@pytest.mark.parametrize("step", [None, *Step])
def test_any_problem_is_a_quarantine_however_far_the_cleaning_was(step: Step | None) -> None:
    assert clean.next_step(Rules(), Found(step).failed("it smokes")) is Verdict.QUARANTINE


@pytest.mark.parametrize(
    ("vm_exit", "offered", "methods"),
    [
        (VmExit.CLEAN, ("flr", "bus"), (ResetMethod.FLR, ResetMethod.BUS)),
        (VmExit.CLEAN, ("bus", "flr", "pm"), (ResetMethod.FLR, ResetMethod.BUS)),
        (VmExit.CLEAN, ("bus",), (ResetMethod.BUS,)),
        (VmExit.UNCLEAN, ("flr", "bus"), (ResetMethod.BUS,)),
        (VmExit.UNCLEAN, ("flr",), ()),
        (VmExit.CLEAN, ("pm", "device_specific"), ()),
        (VmExit.CLEAN, (), ()),
    ],
)
def test_a_vm_that_was_killed_leaves_only_the_method_that_clears_it(
    vm_exit: VmExit, offered: tuple[str, ...], methods: tuple[ResetMethod, ...]
) -> None:
    assert clean.methods(HOPPER, vm_exit, offered) == methods


def test_a_reset_has_the_platform_s_deadline_unless_a_setting_gives_another() -> None:
    assert Rules().deadline(HOPPER) == 90.0
    assert Rules(reset_timeout=5.0).deadline(HOPPER) == 5.0


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (HEADER, ""),
        (b"", "gone"),
        (b"\xff" * 64, "all ones"),
        (HEADER[:63], "only 63 bytes"),
        (b"\0" * 64, "it says that it is 0000:0000"),
        (HEADER[:2] + b"\x35\x23" + HEADER[4:], "it is 10de:2335, not 10de:2330"),
        (HEADER[:10] + b"\0\x06" + HEADER[12:], "class is 0600, not 0302"),
    ],
    ids=["sound", "gone", "dead", "short", "zeros", "another model", "another class"],
)
def test_a_configuration_space_is_sound_only_as_that_of_the_device(header: bytes, problem: str) -> None:
    found = clean.unsound(GPU, header)
    assert problem in found and bool(found) == bool(problem)


@pytest.mark.parametrize(
    ("rules", "device", "digest", "problem", "note"),
    [
        (Rules(), H100, GOOD, "", f"the SHA-256 {GOOD} by its ROM"),
        (Rules(), H100, "", "", "no evidence of its firmware"),
        (Rules(firmware_list=LIST), H100, BAD, "", "not on the list"),
        (ENFORCE, H100, GOOD, "", "which is on the list"),
        (ENFORCE, H100, BAD, "not on the list for 10de:2330", ""),
        (ENFORCE, H200, GOOD, "not on the list for 10de:2335", ""),
        (ENFORCE, H100, "", "no evidence of its firmware", ""),
    ],
    ids=["record", "record none", "record another", "listed", "not listed", "another device", "no evidence"],
)
def test_firmware_is_judged_by_the_list_of_its_device(
    rules: Rules, device: PciId, digest: str, problem: str, note: str
) -> None:
    found = clean.judge_firmware(rules, Found(Step.MEMORY), device, digest, "its ROM")
    assert problem in found.problem and bool(found.problem) == bool(problem)
    assert found.done is (Step.MEMORY if problem else Step.FIRMWARE)
    assert all(note in each for each in found.notes) and bool(found.notes) == bool(note)


@pytest.mark.parametrize(
    ("evidence", "refused"),
    [
        ({H100: True}, ""),
        ({H100: None}, ""),
        ({}, ""),
        ({H100: False}, "no source tells the firmware of 10de:2330"),
        ({H100: True, H200: True}, "the list has no firmware for 10de:2335"),
    ],
)
def test_enforce_is_refused_where_no_gpu_could_pass(evidence: dict[PciId, bool | None], refused: str) -> None:
    clean.refuse_unproven(Rules(), dict.fromkeys(evidence, False))
    if not refused:
        clean.refuse_unproven(ENFORCE, evidence)
        return
    with pytest.raises(InvalidDocument, match=refused):
        clean.refuse_unproven(ENFORCE, evidence)


def test_a_list_of_firmware_names_devices_and_digests() -> None:
    text = f"'10de:2330': ['{GOOD}', '{BAD}']\n'10de:2335': ['{BAD}']\n"
    assert clean.firmware_list(text, "x").allowed == {H100: {GOOD, BAD}, H200: {BAD}}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "'10de:2330': []", f"'10de:2330': '{GOOD}'", f"10de: ['{GOOD}']", "'10de:2330': [aa]", "1: [x]"],
)
def test_a_list_that_is_malformed_is_refused(text: str) -> None:
    with pytest.raises(InvalidDocument, match="x is refused"):
        clean.firmware_list(text, "x")


@pytest.mark.parametrize(
    ("output", "digest"),
    [(f"{GOOD}\n".encode(), GOOD), (f"{GOOD}  file\nmore".encode(), GOOD), (b"", ""), (b"none", ""), (b"\xff", "")],
)
def test_a_command_prints_its_digest_first(output: bytes, digest: str) -> None:
    assert clean.digest_of(output) == digest


def test_a_gpu_waits_to_be_cleaned_unless_it_is_quarantined_or_held() -> None:
    lease = Lease("a", "owner", "r", "{}", LeaseState.ACTIVE, (3,), (1,), spare=(3,))
    book = replace(booked(*clean.marked((1, 2, 3, 4), "why", 5.0)), leases={"a": lease})
    stuck = booked(*clean.stuck(book, (4,), "refused", 6.0), book=book)
    assert sorted(clean.waiting(stuck)) == [2]
    assert clean.stuck(stuck, (4,), "refused again", 7.0) == ()


def test_only_what_its_own_lease_left_is_waited_for() -> None:
    book = booked(*clean.marked((1, 2), "why", 5.0), *clean.marked((3,), "later", 9.0))
    assert clean.being_cleaned(book, (1, 2, 3, 4), 5.0) == (1, 2)


def test_a_failed_cleaning_is_told_with_what_was_found_before() -> None:
    found = Found().well(Step.RESET, "reset by bus").failed("it smokes")
    book = booked(*clean.marked((1,), "why", 5.0))
    after = booked(*clean.quarantined(1, found, 6.0), book=book)
    assert after.marks == {(Kind.GPU, "1", MarkKind.QUARANTINED): Mark(MarkKind.QUARANTINED, "it smokes", 6.0)}
    assert clean.quarantined(1, found, 6.0)[0].detail == "reset by bus; it smokes"


def test_a_person_s_word_with_a_reason_leads_to_another_cleaning() -> None:
    book = booked(*clean.stuck(Book(), (1,), "refused", 5.0))
    with pytest.raises(BadRequest, match="not quarantined"):
        clean.unquarantined(book, 2, "fine", 6.0, actor="ann")
    with pytest.raises(BadRequest, match="stays quarantined"):
        clean.unquarantined(book, 1, " ", 6.0, actor="ann")
    entries = clean.unquarantined(book, 1, "replaced", 6.0, actor="ann")
    assert sorted(clean.waiting(booked(*entries, book=book))) == [1]
    assert [(entry.actor, "replaced" in entry.detail) for entry in entries] == [("ann", True)] * 2
