# SPDX-License-Identifier: Apache-2.0
"""What several sources of a GPU map come to: verified, not yet, or contradictory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from fmctl.core import fingerprint, gpumap, mapsource
from fmctl.core.errors import MapUnverified
from fmctl.core.fingerprint import Fingerprint, Machine
from fmctl.core.inventory import Inventory
from fmctl.core.mapsource import Acceptance, MapRecord, MapState, Source, SourceKind
from fmctl.core.pci import Bdf
from tests.domains import inventory

HOST = inventory("hgx-h100-8")
RIGHT = {bdf: number for number, bdf in gpumap.in_order(HOST).addresses.items()}
FIRST, SECOND, *_, LAST = sorted(RIGHT)
BOARD = fingerprint.take(HOST, Machine("boot", "1.0", "chassis"), lambda device: str(device.function.bdf))
REGISTERS, TOOLS, FM = SourceKind.REGISTERS, SourceKind.ADMIN_TOOLS, SourceKind.FABRIC_MANAGER
SMI, FILE = SourceKind.NVIDIA_SMI, SourceKind.FILE


def record(**readings: Mapping[Bdf, int]) -> MapRecord:
    """What sources, each by its kind's name, said of this host."""
    return MapRecord(BOARD, "boot", tuple(Source(SourceKind[kind], said) for kind, said in readings.items()))


def without(bdf: Bdf) -> dict[Bdf, int]:
    return {other: number for other, number in RIGHT.items() if other != bdf}


def lost(bdf: Bdf) -> Inventory:
    return replace(HOST, devices=tuple(device for device in HOST.devices if device.function.bdf != bdf))


SWAPPED = {**RIGHT, FIRST: RIGHT[SECOND], SECOND: RIGHT[FIRST]}


@pytest.mark.parametrize("others", [{"NVIDIA_SMI": RIGHT}, {"FILE": RIGHT}, {"FABRIC_MANAGER": RIGHT}])
def test_two_independent_sources_that_agree_verify_a_map(others: dict[str, Mapping[Bdf, int]]) -> None:
    verdict = mapsource.judge(record(REGISTERS=RIGHT, **others), HOST)
    assert verdict.state is MapState.VERIFIED and verdict.why.endswith("agree")
    assert verdict.map == gpumap.in_order(HOST)
    verdict.check()


@pytest.mark.parametrize(
    ("readings", "why"),
    [
        ({}, "nobody tells which GPU is at 0000:17:00.0"),
        ({"REGISTERS": RIGHT}, "nothing but registers tells which GPU is which"),
        ({"FILE": RIGHT}, "nothing but file tells which GPU is which"),
        ({"FILE": RIGHT, "NVIDIA_SMI": RIGHT}, "nothing but file and nvidia-smi tells which GPU is which"),
        (
            {"REGISTERS": RIGHT, "ADMIN_TOOLS": RIGHT},
            "nothing but gpu-admin-tools and registers tells which GPU is which",
        ),
        ({"REGISTERS": without(LAST), "FILE": without(LAST)}, f"nobody tells which GPU is at {LAST}"),
        ({"REGISTERS": without(LAST), "FILE": RIGHT}, f"nothing but file tells which GPU is at {LAST}"),
    ],
)
def test_what_one_origin_alone_says_verifies_nothing(readings: dict[str, Mapping[Bdf, int]], why: str) -> None:
    verdict = mapsource.judge(record(**readings), HOST)
    assert verdict.state is MapState.UNVERIFIED and why in verdict.why
    with pytest.raises(MapUnverified) as refusal:
        verdict.check()
    assert "fmctl gpumap discover" in refusal.value.fix or "fmctl gpumap import" in refusal.value.fix


@pytest.mark.parametrize(
    ("readings", "why"),
    [
        ({"REGISTERS": RIGHT, "FILE": SWAPPED}, f"GPU {FIRST} is 1 by registers but 2 by file"),
        ({"REGISTERS": {**RIGHT, FIRST: 2}}, f"the GPUs at {FIRST} and {SECOND} are both said to be 2"),
        ({"REGISTERS": dict.fromkeys(RIGHT, 1)}, "are both said to be 1"),
        ({"REGISTERS": {**RIGHT, LAST: 9}}, f"registers says that GPU {LAST} is 9, and the board has no such"),
        ({"REGISTERS": {FIRST: 1}, "FILE": {SECOND: 1}}, f"the GPUs at {FIRST} and {SECOND} are both said to be 1"),
        ({"NVIDIA_SMI": RIGHT, "FILE": SWAPPED}, f"GPU {FIRST} is 1 by nvidia-smi but 2 by file"),
    ],
)
def test_sources_that_contradict_verify_nothing_even_if_accepted(
    readings: dict[str, Mapping[Bdf, int]], why: str
) -> None:
    verdict = mapsource.judge(record(**readings), HOST)
    assert verdict.state is MapState.CONTRADICTORY and why in verdict.why
    assert not verdict.map.addresses and not verdict.fingerprint
    typed = mapsource.judge(record(REGISTERS=RIGHT), HOST).fingerprint
    for fingerprint_typed in ("", typed):
        accepted = replace(record(**readings), accepted=Acceptance("a person", 1.0, fingerprint_typed))
        assert mapsource.judge(accepted, HOST).state is MapState.CONTRADICTORY


def test_a_person_accepts_one_map_on_one_board() -> None:
    lone = record(FILE=RIGHT)
    typed = mapsource.judge(lone, HOST).fingerprint
    accepted = replace(lone, accepted=Acceptance("a person", 1.0, typed))
    assert mapsource.judge(accepted, HOST).state is MapState.VERIFIED
    assert mapsource.judge(accepted, HOST).why == "a person accepted it"
    assert mapsource.judge(accepted.with_source(Source(FILE, SWAPPED)), HOST).state is MapState.UNVERIFIED
    moved = replace(accepted, board=replace(BOARD, bios="1.1"))
    assert mapsource.judge(moved, HOST).state is MapState.UNVERIFIED
    assert mapsource.judge(accepted.with_source(Source(REGISTERS, SWAPPED)), HOST).state is MapState.CONTRADICTORY


def test_a_gpu_that_was_lost_takes_no_other_with_it() -> None:
    both = record(REGISTERS=RIGHT, FILE=RIGHT)
    verdict = mapsource.judge(both, lost(LAST))
    assert verdict.state is MapState.VERIFIED and LAST not in verdict.map.addresses.values()
    lone = record(FILE=RIGHT)
    accepted = replace(lone, accepted=Acceptance("a person", 1.0, mapsource.judge(lone, HOST).fingerprint))
    assert mapsource.judge(accepted, lost(LAST)).state is MapState.VERIFIED


def test_a_gpu_that_was_not_read_is_told_with_the_reason() -> None:
    left = replace(record(REGISTERS=without(LAST)), unread={LAST: "a VM has it"})
    assert mapsource.judge(left, HOST).why == f"nobody tells which GPU is at {LAST}: a VM has it"


def test_what_is_said_of_other_hosts_gpus_does_not_count() -> None:
    elsewhere = {Bdf(1, bdf.bus, 0, 0): number for bdf, number in RIGHT.items()}
    verdict = mapsource.judge(record(REGISTERS=RIGHT, NVIDIA_SMI=elsewhere), HOST)
    assert verdict.state is MapState.UNVERIFIED


@pytest.mark.parametrize(
    ("board", "hint"),
    [
        ("hgx-h100-8", "`fmctl gpumap discover` while no VM has the GPUs"),
        ("hgx-a100-8", "Fabric Manager lists its partitions"),
        ("hgx-b200-8", "gpu_admin_tools"),
    ],
)
def test_a_board_without_a_map_is_told_what_to_do(board: str, hint: str) -> None:
    with pytest.raises(MapUnverified) as refusal:
        mapsource.blank(inventory(board)).check()
    assert hint in refusal.value.fix


def test_a_record_comes_back_as_it_was() -> None:
    full = replace(record(REGISTERS=RIGHT, FILE=SWAPPED), unread={LAST: "why"}, accepted=Acceptance("p", 2.0, "f"))
    assert MapRecord.parse(full.plain()) == full
    for broken in ({}, {**full.plain(), "board": []}, {**full.plain(), "accepted": 1}, None):
        with pytest.raises(ValueError, match="is wanted"):
            MapRecord.parse(broken)


def test_a_board_is_the_same_while_it_only_loses_gpus_within_a_boot() -> None:
    fewer = replace(BOARD, gpus=BOARD.gpus[1:])
    swapped = replace(BOARD, gpus=(replace(BOARD.gpus[0], serial="another"), *BOARD.gpus[1:]))
    moved = replace(BOARD, gpus=(replace(BOARD.gpus[0], ports=()), *BOARD.gpus[1:]))
    assert BOARD.has_become(BOARD, same_boot=False) and BOARD.has_become(fewer, same_boot=True)
    assert not BOARD.has_become(fewer, same_boot=False) and not fewer.has_become(BOARD, same_boot=True)
    others: list[Fingerprint] = [swapped, moved, replace(BOARD, bios="2"), replace(BOARD, chassis="2")]
    assert not any(BOARD.has_become(other, same_boot=same) for other in others for same in (True, False))
    digests = {fingerprint.digest(board.plain()) for board in (BOARD, fewer, *others)}
    assert len(digests) == 6


def test_a_serial_number_is_found_behind_other_capabilities() -> None:
    space = bytearray(4096)
    space[0x100:0x104] = (0x0001 | 1 << 16 | 0x160 << 20).to_bytes(4, "little")
    space[0x160:0x16C] = (0x0003 | 1 << 16).to_bytes(4, "little") + bytes.fromhex("030201feff2db048")

    def config(offset: int, size: int) -> bytes:
        return bytes(space[offset : offset + size])

    assert fingerprint.serial_number(config) == "48-b0-2d-ff-fe-01-02-03"
    space[0x164:0x16C] = bytes(8)
    assert fingerprint.serial_number(config) == ""
    assert fingerprint.serial_number(lambda offset, size: b"\xff" * size) == ""
    assert fingerprint.serial_number(lambda offset, size: b"") == ""
    looped = (0x0001 | 1 << 16 | 0x100 << 20).to_bytes(4, "little")
    assert fingerprint.serial_number(lambda offset, size: looped) == ""
