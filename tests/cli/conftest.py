# SPDX-License-Identifier: Apache-2.0
"""A daemon with a host in memory behind it, and commands that are processes of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.rpc.leasing import Host
from tests.support import run

Fmctl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def host(folder: Path) -> Iterator[Host]:
    host = Host(folder)
    yield host
    host.close()


@pytest.fixture
def fmctl(host: Host) -> Fmctl:
    def fmctl(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run(*arguments, env={"FMCTL_ADDRESS": str(host.address)})

    return fmctl
