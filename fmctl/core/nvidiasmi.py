# SPDX-License-Identifier: Apache-2.0
"""What `nvidia-smi -q` prints of each GPU's module id, as text or with -x as XML. `core.mapsource` weighs it.

Where the module id stands differs: `Module ID` beside the board's numbers up to branch 555, `Module Id` in the block
`Platform Info` from 565 on (seen in real outputs, tests/core/samples). A GPU that is on no board says 1, or the number
that its neighbour says too, so the numbers alone prove nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fmctl.core.errors import InvalidDocument
from fmctl.core.pci import Bdf

_IN_A_VM = "pass-through"


@dataclass(frozen=True)
class Listing:
    """The module id of each GPU that has one, and the driver's version, empty where it is not told."""

    driver: str
    module_ids: Mapping[Bdf, int]


@dataclass(frozen=True)
class _Form:
    """Where the two forms of the output have what is looked for."""

    gpu: re.Pattern[str]
    module_id: re.Pattern[str]
    mode: re.Pattern[str]
    driver: re.Pattern[str]


_TEXT = _Form(
    re.compile(r"^GPU ([0-9A-F]{4,8}:[0-9A-F]{2}:[0-9A-F]{2}\.[0-7])\s*$", re.MULTILINE | re.IGNORECASE),
    re.compile(r"^\s+(?:GPU )?Module ID\s*: *(\S*)", re.MULTILINE | re.IGNORECASE),
    re.compile(r"^\s+Virtualization Mode\s*: *(\S*)", re.MULTILINE | re.IGNORECASE),
    re.compile(r"^Driver Version\s*: *(\S+)", re.MULTILINE | re.IGNORECASE),
)
_XML = _Form(
    re.compile(r'<gpu id="([0-9A-F:.]+)">', re.IGNORECASE),
    re.compile(r"<(?:gpu_)?module_id>\s*(\S*?)\s*</", re.IGNORECASE),
    re.compile(r"<virtualization_mode>\s*(\S*?)\s*</", re.IGNORECASE),
    re.compile(r"<driver_version>\s*(\S*?)\s*</", re.IGNORECASE),
)


def is_output(text: str) -> bool:
    """Whether a text looks like an output of `nvidia-smi -q`, rather than a map in YAML."""
    return "NVSMI LOG" in text or "<nvidia_smi_log" in text


def parse(text: str, source: str) -> Listing:
    """Read an output; raises InvalidDocument, which names `source` and the reason.

    One that was made in a VM is refused: its addresses are the VM's.
    """
    form = _XML if "<nvidia_smi_log" in text else _TEXT
    sections = list(_sections(form, text, source))
    if not sections:
        raise _refusal(source, "it has no line that begins a GPU", "give it the output of `nvidia-smi -q` on this host")
    found: dict[Bdf, int] = {}
    for bdf, section in sections:
        mode = form.mode.search(section)
        if mode and mode[1].lower() == _IN_A_VM:
            raise _refusal(
                source,
                f"it was made in a VM that GPU {bdf} was passed to, whose addresses are not the host's",
                "run `nvidia-smi -q` on the host itself, before its GPUs go to VMs",
            )
        if bdf in found:
            raise _refusal(source, f"it tells of GPU {bdf} twice", "give it one whole output")
        module_id = form.module_id.search(section)
        if module_id and re.fullmatch("[0-9]{1,3}", module_id[1]):
            found[bdf] = int(module_id[1])
    if not found:
        raise _refusal(source, "it tells no GPU's module id", "use a driver of branch 525 or later")
    driver = form.driver.search(text)
    return Listing(driver[1] if driver else "", found)


def _sections(form: _Form, text: str, source: str) -> Iterator[tuple[Bdf, str]]:
    """Each GPU's address, and what is told of it."""
    begins = list(form.gpu.finditer(text))
    for index, begin in enumerate(begins):
        end = begins[index + 1].start() if index + 1 < len(begins) else len(text)
        try:
            bdf = Bdf.parse(begin[1])
        except ValueError as error:
            raise _refusal(source, str(error), "give it one whole output") from None
        yield bdf, text[begin.end() : end]


def _refusal(source: str, why: str, fix: str) -> InvalidDocument:
    return InvalidDocument(f"{source} is refused", why=why, fix=fix)
