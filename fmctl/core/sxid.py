# SPDX-License-Identifier: Apache-2.0
"""SXids: the NVSwitch driver's reports of errors, as they stand in the kernel's log."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


class Severity(str, Enum):
    """What an SXid says of itself; a line that goes on about an earlier one may say nothing."""

    FATAL = "fatal"
    NON_FATAL = "non-fatal"
    UNTOLD = "untold"


@dataclass(frozen=True)
class SXid:
    """One report. `link` is None where it concerns no single NVLink."""

    device: str
    pci: str
    number: int
    severity: Severity
    link: int | None
    text: str
    """What follows the number."""


def parse(line: str) -> SXid | None:
    """The report in a line of the kernel's log; None where there is none."""
    found = _REPORT.search(line)
    if found is None:
        return None
    text = found["text"].strip()
    severity = _SEVERITY.match(text)
    link = _LINK.search(text)
    return SXid(
        device=found["device"],
        pci=found["pci"].lower(),
        number=int(found["number"]),
        severity=Severity(severity[0].lower()) if severity else Severity.UNTOLD,
        link=int(link[1]) if link else None,
        text=text,
    )


_REPORT = re.compile(
    r"(?P<device>nvidia-nvswitch[0-9]{1,4}): SXid \(PCI:(?P<pci>[0-9A-Fa-f:.]{7,16})\): (?P<number>[0-9]{1,9})\b,?"
    r"(?P<text>.*)"
)
_SEVERITY = re.compile("Non-fatal|Fatal")
_LINK = re.compile(r"\bLink ([0-9]{1,4})\b")
