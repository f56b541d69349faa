# SPDX-License-Identifier: Apache-2.0
"""Reading what gpu-admin-tools print; the lines follow its code, since no output was at hand."""

from __future__ import annotations

import pytest

from fmctl.core import admintools
from fmctl.core.errors import FmctlError
from fmctl.core.pci import Bdf

OUTPUT = """NVIDIA GPU Tools version v2025.10.21o
Command line arguments: ['nvidia_gpu_tools.py', '--devices', 'gpus', '--query-module-name']
2026-07-21,08:13:49.425 INFO     Selected GPU 0000:1b:00.0 B200 0x2901 BAR0 0x29042000000
2026-07-21,08:13:49.425 INFO     GPU 0000:1b:00.0 B200 0x2901 BAR0 0x29042000000 module name SXM_3
2026-07-21,08:13:49.998 INFO     GPU 0001:43:00.0 B200 0x2901 BAR0 0x29142000000 module name SXM_1
2026-07-21,08:13:50.425 INFO     NvSwitch 0000:05:00.0 LS10 0x22a3 BAR0 0x1000 module name NVSwitch_0
2026-07-21,08:13:51.425 ERROR    GPU 0000:52:00.0 B200 0x2901 BAR0 0x0 does not support module name query
"""


def test_each_line_with_a_module_name_is_read() -> None:
    assert admintools.parse(OUTPUT) == {Bdf(0, 0x1B, 0, 0): 3, Bdf(1, 0x43, 0, 0): 1}
    assert admintools.parse("") == {}


def test_two_names_of_one_gpu_are_refused() -> None:
    with pytest.raises(FmctlError, match=r"two module names of GPU 0000:1b:00\.0"):
        admintools.parse(OUTPUT + "INFO GPU 0000:1b:00.0 B200 0x2901 BAR0 0x1 module name SXM_4\n")
