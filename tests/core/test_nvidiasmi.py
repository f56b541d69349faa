# SPDX-License-Identifier: Apache-2.0
"""Reading what `nvidia-smi -q` printed on real hosts; tests/core/samples/README.md says where each was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmctl.core import nvidiasmi
from fmctl.core.errors import InvalidDocument
from fmctl.core.pci import Bdf

SAMPLES = Path(__file__).parent / "samples"


@pytest.mark.parametrize(
    ("file", "driver", "module_ids"),
    [
        ("h100-535.txt", "535.161.08", {0x19: 2, 0x3B: 4, 0x4C: 1, 0x5D: 3, 0x9B: 7, 0xBB: 5, 0xCB: 6, 0xDB: 8}),
        ("h100-565.txt", "565.57.01", {0x18: 2, 0x2A: 4, 0x3A: 1, 0x5D: 3, 0x9A: 6, 0xAB: 8, 0xBA: 5, 0xDB: 7}),
        ("a100-555.txt", "555.42.02", {0x68: 3, 0x9E: 7, 0xC2: 5, 0xD4: 6}),
        ("a100-535.xml", "535.54.03", {0x01: 4}),
        ("h100-nvl-550.txt", "550.54.14", {0xAD: 4, 0xAE: 4}),
        ("rtx5090-570.txt", "570.124.06", {0x02: 1}),
    ],
)
def test_real_outputs_are_read(file: str, driver: str, module_ids: dict[int, int]) -> None:
    listing = nvidiasmi.parse((SAMPLES / file).read_text(), file)
    assert listing.driver == driver
    assert listing.module_ids == {Bdf(0, bus, 0, 0): number for bus, number in module_ids.items()}


def test_every_sample_has_its_source_named() -> None:
    readme = (SAMPLES / "README.md").read_text()
    assert [path.name for path in SAMPLES.iterdir() if f"| {path.name} |" not in readme] == ["README.md"]


def test_an_output_from_inside_a_vm_is_refused() -> None:
    with pytest.raises(InvalidDocument, match=r"made in a VM .* whose addresses are not the host's"):
        nvidiasmi.parse((SAMPLES / "h200-550.txt").read_text(), "h200-550.txt")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it has no line that begins a GPU"),
        ("NVSMI LOG\nGPU 00000000:19:00.0\n    Product Name : A\n", "it tells no GPU's module id"),
        ("GPU 00000000:19:00.0\n    Module ID : N/A\n", "it tells no GPU's module id"),
        ("GPU 00000000:19:00.0\n  Module ID : 1\nGPU 00000000:19:00.0\n  Module ID : 1\n", "GPU 0000:19:00.0 twice"),
        ('<nvidia_smi_log><gpu id="19:00"><module_id>1</module_id>', "'0000:1b:00.0' is wanted, not '19:00'"),
        ("<nvidia_smi_log>", "it has no line that begins a GPU"),
    ],
)
def test_what_is_no_output_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(InvalidDocument) as refusal:
        nvidiasmi.parse(text, "smi.txt")
    assert why in refusal.value.why and refusal.value.what == "smi.txt is refused" and refusal.value.fix


@pytest.mark.parametrize("label", ["Module ID", "Module Id", "GPU Module ID", "GPU Module Id"])
def test_the_label_is_read_in_every_spelling(label: str) -> None:
    listing = nvidiasmi.parse(f"GPU 00000001:3B:00.0\n        {label}   : 5\n", "smi.txt")
    assert listing.module_ids == {Bdf(1, 0x3B, 0, 0): 5}


def test_a_gpu_without_a_number_is_left_out_and_the_others_are_read() -> None:
    text = "GPU 00000000:19:00.0\n    Module ID : N/A\nGPU 00000000:1A:00.0\n    Module ID : 2\n"
    assert nvidiasmi.parse(text, "smi.txt").module_ids == {Bdf(0, 0x1A, 0, 0): 2}
