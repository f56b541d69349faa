# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder whose path is short enough for unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="fmctl-test-"))
    yield path
    shutil.rmtree(path)
