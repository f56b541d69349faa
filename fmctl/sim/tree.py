# SPDX-License-Identifier: Apache-2.0
"""What runs in a pretended Service VM, as a process tree: an agent, and what it starts.

An agent that dies is started again, as systemd would do. It starts `sim.nvfabricmanager`, when the daemon says so, as
it would start the real one. `sim.hypervisor` says when the Service VM runs, and `sim.power` ends all with it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fmctl import process
from fmctl.core import schema
from fmctl.core.address import Address
from fmctl.core.domain import Domain
from fmctl.core.errors import BadRequest
from fmctl.core.platform import Platform
from fmctl.sim import guestfiles, power, shim

log = logging.getLogger(__name__)

RESTART_DELAY = 1.0
"""Seconds before what died is started again."""


class SimulatedBoard:
    """The guest of one board. As a context manager it has a folder for as long as the block."""

    def __init__(
        self, board: Platform, platform: str, folder: Path | None = None, *, call_timeout: float = 30.0
    ) -> None:
        """Everything lies in `folder`, or in a temporary one; `platform` is the board's name, or its file's.

        Raises FmctlError where the folder cannot serve.
        """
        self._board = board
        self._platform = platform
        self._call_timeout = call_timeout
        self._temporary = folder is None
        self.folder = (folder or Path(tempfile.mkdtemp(prefix="fmctl-"))).absolute()
        try:
            self.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        except OSError as error:
            raise BadRequest(f"{self.folder} cannot be made", why=error.strerror or str(error)) from error
        self._fm_address, self.agent_address = self._socket("fm"), self._socket("agent")
        self.console_log = self.folder / "console.log"
        self._library = shim.build() / "libnvfm.so.1"

    @contextlib.contextmanager
    def guest(self, domain: Domain) -> Iterator[None]:
        """The agent and what it starts, from their boot to the guest's end; nothing is left of an earlier boot."""
        self.console_log.write_text(f"the pretended guest boots in {domain.name}\n")
        inside = self.folder / "guest"
        shutil.rmtree(inside, ignore_errors=True)
        guestfiles.make(inside, self._board)
        fifo = inside / "power"
        settings = inside / "agent.yaml"
        settings.write_text(schema.dump(self._settings(inside, fifo)))
        with power.supply(fifo), _Kept("agent", ["agent", "--config", str(settings)]):
            yield

    def _settings(self, inside: Path, fifo: Path) -> dict[str, Any]:
        """The agent's settings, all of whose paths lie in the guest's folder."""
        simulated = functools.partial(process.python, "fmctl", "sim")
        return {
            "listen": str(self.agent_address),
            "fm_address": str(self._fm_address),
            "fm_command": simulated("nv-fabricmanager", "--platform", self._platform, "--power", str(fifo)),
            "fm_config": f"{inside}/run/fabricmanager.cfg",
            "fm_stock_config": str(guestfiles.stock_config(inside)),
            "fm_log": f"{inside}/var/log/fabricmanager.log",
            "nvlsm_command": simulated("nvlsm", "--power", str(fifo)),
            "run_dir": f"{inside}/run",
            "agent_dir": f"{inside}/run/agent",
            "system_root": str(inside),
            "library": str(self._library),
            "call_timeout_s": self._call_timeout,
        }

    def _socket(self, name: str) -> Address:
        try:
            return Address.parse(f"unix:{self.folder}/{name}.sock")
        except ValueError as error:
            raise BadRequest(f"{self.folder} cannot hold sockets", why=str(error), fix="use a shorter path") from error

    def __enter__(self) -> SimulatedBoard:
        return self

    def __exit__(self, *error: object) -> None:
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)


class _Kept:
    """A child process that is started again when it dies, for as long as the block."""

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        self._name = name
        self._argv = process.python("fmctl", *arguments)
        self._starting = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"simulated {name}", daemon=True)
        self._child: process.Child | None = None

    def __enter__(self) -> _Kept:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._starting:
            self._stopping.set()
        if self._child is not None:
            self._child.stop()
        self._thread.join()

    def _keep(self) -> None:
        while True:
            with self._starting:
                if self._stopping.is_set():
                    return
                self._child = process.Child(self._argv)
            status = self._child.wait()
            if self._stopping.is_set():
                return
            log.warning("the simulated %s ended with status %s and is started again", self._name, status)
            self._child.stop()
            self._stopping.wait(RESTART_DELAY)
