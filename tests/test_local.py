# SPDX-License-Identifier: Apache-2.0
"""What the composition root for one host makes of settings about the GPU map."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmctl import local
from fmctl.core import admintools
from fmctl.core.pci import Bdf
from fmctl.core.settings import DaemonSettings
from fmctl.core.values import AbsolutePath
from fmctl.process import CommandFailed

BDF = Bdf(0, 0x1B, 0, 0)


def tools(folder: Path, script: str) -> DaemonSettings:
    path = folder / "tools.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    return DaemonSettings(gpu_admin_tools=("sh", str(path)))


def test_gpu_admin_tools_are_asked_of_one_gpu_alone(tmp_path: Path) -> None:
    script = f'[ "$*" = "--devices {BDF} --query-module-name" ] && echo "INFO GPU $2 B200 0x2901 module name SXM_7"'
    ask = local.this_host().admin_tools(tools(tmp_path, script))
    assert ask and admintools.parse(ask(BDF)) == {BDF: 7}


def test_gpu_admin_tools_that_log_to_standard_error_are_read_too(tmp_path: Path) -> None:
    script = 'echo "INFO GPU $2 B200 0x2901 module name SXM_7" >&2'
    ask = local.this_host().admin_tools(tools(tmp_path, script))
    assert ask and admintools.parse(ask(BDF)) == {BDF: 7}


def test_gpu_admin_tools_that_fail_are_an_error(tmp_path: Path) -> None:
    ask = local.this_host().admin_tools(tools(tmp_path, "echo no such device >&2; exit 3"))
    with pytest.raises(CommandFailed, match="failed with status 3"):
        assert ask and ask(BDF)


def test_without_the_settings_there_is_neither_tool_nor_file() -> None:
    host = local.this_host()
    assert host.admin_tools(DaemonSettings()) is None and host.map_file(DaemonSettings()) is None


def test_the_settings_file_is_read_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "map.yaml"
    settings = DaemonSettings(gpu_map=AbsolutePath.parse(str(file)))
    for text in ("1: a\n", "1: b\n"):
        file.write_text(text)
        assert local.this_host().map_file(settings) == (str(file), text)
