# SPDX-License-Identifier: Apache-2.0
"""The simulator's library, built once a run, and initialised once a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fmctl.sim import shim
from tests.sim.abi import Library


@pytest.fixture(scope="session")
def library_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shim.build(tmp_path_factory.mktemp("cache")) / shim.SONAME


@pytest.fixture
def fm(library_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """The library, whose calls give up after a third of a second."""
    monkeypatch.setenv("FMCTL_SIM_CALL_TIMEOUT_MS", "300")
    with Library(library_path) as library:
        yield library


@pytest.fixture
def patient(library_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """The library with its real patience."""
    monkeypatch.delenv("FMCTL_SIM_CALL_TIMEOUT_MS", raising=False)
    with Library(library_path) as library:
        yield library
