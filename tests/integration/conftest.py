# SPDX-License-Identifier: Apache-2.0
"""Whole programs: a simulated board under one daemon, or Fabric Manager, agent and daemon one by one."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fmctl.sim import shim
from tests.support import Program, run


@dataclass(frozen=True)
class Fmctl:
    """The command line, with the address of one daemon."""

    address: str
    program: Program

    def __call__(self, *arguments: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        return run(*arguments, "--timeout", str(timeout), env={"FMCTL_ADDRESS": self.address})

    def done(self, *arguments: str) -> str:
        """Its standard output, of a command that must succeed."""
        done = self(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def active(self) -> list[int]:
        listed = json.loads(self.done("list", "-o", "json"))
        return [p["id"] for p in listed["partitions"] if p["status"] == "active"]

    def status(self) -> Any:
        return json.loads(self.done("status", "-o", "json"))


StartDaemon = Callable[..., Fmctl]


@pytest.fixture
def start_daemon(folder: Path) -> Iterator[StartDaemon]:
    """Starts `fmctl daemon --simulate BOARD`, ready unless told otherwise."""
    with contextlib.ExitStack() as cleanup:

        def start(*arguments: str, board: str = "hgx-h100-8", ready: bool = True, address: str = "") -> Fmctl:
            address = address or f"unix:{folder}/fmctld.sock"
            argv = ["daemon", "--simulate", board, "--state-dir", str(folder / "board"), "--listen", address]
            program = cleanup.enter_context(Program(*argv, *arguments, log=folder / "daemon.log"))
            fmctl = Fmctl(address, program)
            if ready:
                fmctl.done("wait", "--for", "ready")
            return fmctl

        yield start


@dataclass
class Chain:
    """Fabric Manager, agent and daemon as programs of their own, each started when the test says so."""

    folder: Path
    cleanup: contextlib.ExitStack

    def fabric_manager(self, *arguments: str, board: str = "hgx-h100-8") -> Program:
        argv = ["sim", "fm", "--platform", board, "--listen", self.at("fm"), *arguments]
        program = self._start("fm", *argv)
        program.says("listens")
        return program

    def agent(self, *arguments: str) -> Program:
        library = str(shim.build() / "libnvfm.so.1")
        argv = ["agent", "--listen", self.at("agent"), "--fm-address", self.at("fm"), "--library", library]
        program = self._start("agent", *argv, *arguments)
        program.says("serving at")
        return program

    def daemon(self, settings: str = "", *arguments: str) -> Fmctl:
        file = self.folder / "fmctld.yaml"
        places = f"listen: {self.at('fmctld')}\nagent: {self.at('agent')}\nstate_dir: {self.folder}\n"
        places += "service_vm: {managed: false}\n"
        file.write_text(places + settings + "\n")
        program = self._start("daemon", "daemon", "--config", str(file), *arguments)
        program.says("serving at")
        return Fmctl(self.at("fmctld"), program)

    @property
    def journal(self) -> str:
        """What the daemon's audit journal says so far."""
        path = self.folder / "audit.jsonl"
        return path.read_text() if path.exists() else ""

    def at(self, name: str) -> str:
        return f"unix:{self.folder}/{name}.sock"

    def _start(self, name: str, *argv: str) -> Program:
        return self.cleanup.enter_context(Program(*argv, log=self.folder / f"{name}.log"))


@pytest.fixture
def chain(folder: Path) -> Iterator[Chain]:
    with contextlib.ExitStack() as cleanup:
        yield Chain(folder, cleanup)
