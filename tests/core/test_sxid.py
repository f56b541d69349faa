# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from fmctl.core import sxid
from fmctl.core.sxid import Severity, SXid


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Non-fatal, Link 46 MC TS crumbstore ECC",
            ("nvidia-nvswitch3", "0000:c1:00.0", 28006, Severity.NON_FATAL, 46),
        ),
        (
            "[   12.345678] nvidia-nvswitch0: SXid (PCI:0000:C1:00.0): 12020, Fatal, Link 7 egress",
            ("nvidia-nvswitch0", "0000:c1:00.0", 12020, Severity.FATAL, 7),
        ),
        (
            "nvidia-nvswitch11: SXid (PCI:0000:05:00.0): 22011, Fatal, no link",
            ("nvidia-nvswitch11", "0000:05:00.0", 22011, Severity.FATAL, None),
        ),
        (
            "nvidia-nvswitch1: SXid (PCI:0000:05:00.0): 24007, Data {0x00000001, 0x0}",
            ("nvidia-nvswitch1", "0000:05:00.0", 24007, Severity.UNTOLD, None),
        ),
        (
            "nvidia-nvswitch1: SXid (PCI:0000:05:00.0): 24007",
            ("nvidia-nvswitch1", "0000:05:00.0", 24007, Severity.UNTOLD, None),
        ),
    ],
)
def test_a_report_is_read(line: str, expected: tuple[str, str, int, Severity, int | None]) -> None:
    found = sxid.parse(line)
    assert found is not None
    assert (found.device, found.pci, found.number, found.severity, found.link) == expected


def test_its_text_is_what_follows_the_number() -> None:
    line = "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Non-fatal, Link 46 words, and more"
    assert sxid.parse(line) == SXid(
        "nvidia-nvswitch3", "0000:c1:00.0", 28006, Severity.NON_FATAL, 46, "Non-fatal, Link 46 words, and more"
    )


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nvidia-nvswitch3: Probing device 0000:c1:00.0",
        "NVRM: Xid (PCI:0000:c1:00): 74, pid=1",
        "nvidia-nvswitch: SXid (PCI:0000:c1:00.0): 28006, Fatal",
        "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): many, Fatal",
        "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 1234567890123, Fatal",
    ],
)
def test_anything_else_is_none(line: str) -> None:
    assert sxid.parse(line) is None
