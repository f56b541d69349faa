# SPDX-License-Identifier: Apache-2.0
"""What many tests need: waiting for a condition, and real fmctl programs that end with their test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2_grpc

T = TypeVar("T")


def eventually(condition: Callable[[], T], within: float = 15.0) -> T:
    """What `condition` returns once it is true; fails when `within` seconds pass first."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not true within {within} s: {condition}"
        time.sleep(0.01)


class Program:
    """`python -m fmctl ...` as a process of its own, its standard error kept. Killed when its block ends."""

    def __init__(self, *arguments: str, log: Path, env: dict[str, str] | None = None) -> None:
        self._log = log
        self._before = log.stat().st_size if log.exists() else 0
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fmctl", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stream,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        """What it wrote, without what an earlier program wrote to the same file."""
        return self._log.read_bytes()[self._before :].decode()

    def says(self, text: str, within: float = 15.0) -> None:
        """Wait until that text stands in its log."""
        eventually(lambda: text in self.log or self.process.poll() is not None, within)
        assert text in self.log, self.log

    def end(self, number: int = signal.SIGTERM, within: float = 15.0) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(within)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


def run(*arguments: str, env: dict[str, str] | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run `fmctl` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "fmctl", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "COLUMNS": "80", **(env or {})},
        check=False,
    )


def health(channel: grpc.Channel) -> Any:
    """The health service's stub, whose published types lack its methods."""
    return health_pb2_grpc.HealthStub(channel)


def children(pid: int) -> Sequence[int]:
    """Every process below `pid`."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        if parent == pid:
            child = int(stat.parent.name)
            found += [child, *children(child)]
    return found
