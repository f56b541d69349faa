# SPDX-License-Identifier: Apache-2.0
"""Building the library: what it exports, and builders that meet each other or lack something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fmctl.core.errors import FmctlError
from fmctl.sim import shim

FUNCTIONS = {
    "fmActivateFabricPartition",
    "fmActivateFabricPartitionWithVFs",
    "fmConnect",
    "fmDeactivateFabricPartition",
    "fmDisconnect",
    "fmGetNvlinkFailedDevices",
    "fmGetSupportedFabricPartitions",
    "fmGetUnsupportedFabricPartitions",
    "fmLibInit",
    "fmLibShutdown",
    "fmSetActivatedFabricPartitions",
}


def output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_it_exports_the_sdk_s_functions_and_its_own_mark(library_path: Path) -> None:
    symbols = {line.split()[-1] for line in output("nm", "-D", "--defined-only", str(library_path)).splitlines()}
    assert symbols == FUNCTIONS | {"fmctlSimulated"}


def test_it_is_found_under_nvidia_s_names(library_path: Path) -> None:
    assert "SONAME" in output("readelf", "-d", str(library_path))
    assert "[libnvfm.so.1]" in output("readelf", "-d", str(library_path))
    assert (library_path.parent / "libnvfm.so").resolve() == library_path.resolve()


def test_it_is_built_without_a_warning() -> None:
    assert {"-std=c11", "-Wall", "-Wextra", "-Werror"} <= set(shim.FLAGS)


def test_it_is_built_once(tmp_path: Path) -> None:
    folder = shim.build(tmp_path)
    built = (folder / shim.SONAME).stat()
    assert shim.build(tmp_path) == folder
    assert os.path.samestat((folder / shim.SONAME).stat(), built)


def test_other_flags_make_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shim.build(tmp_path)
    monkeypatch.setattr(shim, "FLAGS", (*shim.FLAGS, "-DOTHER"))
    assert shim.build(tmp_path) != folder


def test_many_may_build_at_once(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "fmctl", "sim", "lib"]
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    builders = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) for _ in range(4)]
    answers = [(builder.communicate(timeout=60)[0], builder.returncode) for builder in builders]
    (folder,) = (tmp_path / "fmctl").iterdir()
    assert answers == [(f"{folder}\n", 0)] * 4
    assert sorted(path.name for path in folder.iterdir()) == [shim.LINK, shim.SONAME]


def test_who_lost_the_race_uses_the_winner_s(tmp_path: Path) -> None:
    winner, loser = tmp_path / "folder", tmp_path / "built"
    for folder in (winner, loser):
        folder.mkdir()
        (folder / shim.SONAME).write_text(folder.name)
    shim._publish(loser, winner)
    assert (winner / shim.SONAME).read_text() == "folder"


def test_no_compiler_is_told_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FmctlError, match="there is no C compiler") as failed:
        shim.build(tmp_path)
    assert failed.value.fix == "install gcc"


def test_a_compiler_that_fails_is_told_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho no headers here >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FmctlError, match="no headers here"):
        shim.build(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FmctlError, match="cannot be kept in"):
        shim.build(tmp_path / "file")


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"XDG_CACHE_HOME": "/c", "HOME": "/h"}, "/c/fmctl"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/fmctl"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/fmctl"),
    ],
)
def test_the_cache_is_where_xdg_says(environment: dict[str, str], folder: str) -> None:
    assert shim.cache_folder(environment) == Path(folder)


def test_without_a_home_there_is_no_cache() -> None:
    with pytest.raises(FmctlError, match="neither XDG_CACHE_HOME nor HOME"):
        shim.cache_folder({})
