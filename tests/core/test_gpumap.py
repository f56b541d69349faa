# SPDX-License-Identifier: Apache-2.0
"""The GPU map: reading it, and comparing it with the host."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fmctl.core import gpumap
from fmctl.core.errors import InvalidDocument, MapUnverified
from fmctl.core.gpumap import GpuMap
from fmctl.core.pci import Bdf
from tests.domains import inventory

HOST = inventory("hgx-h100-8")
MAP = gpumap.in_order(HOST)


def test_a_map_is_read_in_any_order() -> None:
    read = gpumap.parse("3: '0000:1B:00.0'\n1: 0000:df:00.0\n", "map.yaml")
    assert list(read.addresses.items()) == [(1, Bdf(0, 0xDF, 0, 0)), (3, Bdf(0, 0x1B, 0, 0))]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a line such as 1: '0000:1b:00.0' is wanted for each GPU"),
        ("- '0000:1b:00.0'", "a line such as 1: '0000:1b:00.0' is wanted for each GPU"),
        ("0: '0000:1b:00.0'", "0 is no physical id: a whole number from 1 is wanted"),
        ("4294967296: '0000:1b:00.0'", "4294967296 is no physical id: a whole number from 1 is wanted"),
        ("true: '0000:1b:00.0'", "True is no physical id: a whole number from 1 is wanted"),
        ("one: '0000:1b:00.0'", "'one' is no physical id: a whole number from 1 is wanted"),
        ("1: 1b:00.0", "GPU 1: a PCI address such as '0000:1b:00.0' is wanted, not '1b:00.0'"),
        ("1: '../../x'", "GPU 1: a PCI address such as '0000:1b:00.0' is wanted, not '../../x'"),
        ("2: 0000:43:00.0", "GPU 2: an address is wanted in quotes, such as '0000:1b:00.0', not 2580.0"),
        ("1: '0000:1b:00.0'\n2: '0000:1b:00.0'", "GPUs 1, 2 have the same address 0000:1b:00.0"),
        ("1: '0000:1b:00.0'\n1: '0000:1c:00.0'", "key 1 stands twice"),
    ],
)
def test_a_bad_map_is_refused_with_its_file_and_the_reason(text: str, why: str) -> None:
    with pytest.raises(InvalidDocument) as refusal:
        gpumap.parse(text, "map.yaml")
    assert refusal.value.what == "map.yaml is refused"
    assert why in refusal.value.why


def test_a_map_that_fits_the_host_is_taken() -> None:
    MAP.check(HOST)
    assert list(MAP.addresses) == list(range(1, 9))
    assert list(MAP.addresses.values()) == sorted(MAP.addresses.values())


def test_the_host_may_have_lost_a_gpu() -> None:
    MAP.check(replace(HOST, devices=tuple(d for d in HOST.devices if d.function.bdf != MAP.addresses[4])))


def test_gpus_of_a_host_that_lost_one_have_no_order_to_go_by() -> None:
    fewer = replace(HOST, devices=tuple(d for d in HOST.devices if d.function.bdf != MAP.addresses[4]))
    with pytest.raises(MapUnverified) as refusal:
        gpumap.in_order(fewer).check(fewer)
    assert refusal.value.why == "it lacks the physical ids 8"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({8: None, 7: None}, "it lacks the physical ids 7, 8; it does not name the GPUs at 0000:c5:00.0, 0000:e2:00.0"),
        ({9: "0000:ff:00.0"}, "hgx-h100-8 has no physical ids 9"),
        ({8: "0000:ff:00.0"}, "it does not name the GPUs at 0000:e2:00.0"),
        ({8: "0000:04:00.0"}, "it does not name the GPUs at 0000:e2:00.0"),
    ],
)
def test_a_map_of_another_host_is_refused(changes: dict[int, str | None], why: str) -> None:
    addresses = {**MAP.addresses, **{key: Bdf.parse(text) for key, text in changes.items() if text}}
    kept = {key: bdf for key, bdf in addresses.items() if changes.get(key, "") is not None}
    with pytest.raises(MapUnverified) as refusal:
        GpuMap(kept).check(HOST)
    assert refusal.value.why == why
    assert refusal.value.fix == "compare it with `fmctl inventory`, and correct the map"
