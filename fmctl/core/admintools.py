# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's gpu-admin-tools log with --query-module-name: a line `GPU 0000:45:00.0 ... module name SXM_3`.

The tool reads the pins of Hopper's boards, as `core.straps` does, and asks Blackwell's firmware (FACTS 5; read in its
code, no output was at hand). The number after SXM_ is the physical id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from fmctl.core.errors import FmctlError
from fmctl.core.pci import Bdf

_LINE = re.compile(
    r"\bGPU ([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]) .*\bmodule name SXM_([0-9]{1,3})\s*$",
    re.IGNORECASE | re.MULTILINE,
)


def parse(text: str) -> Mapping[Bdf, int]:
    """The physical id of each GPU that a line tells; raises FmctlError where one tells two."""
    found: dict[Bdf, int] = {}
    for address, number in _LINE.findall(text):
        bdf = Bdf.parse(address)
        if found.setdefault(bdf, int(number)) != int(number):
            raise FmctlError(f"gpu-admin-tools tell two module names of GPU {bdf}")
    return found
