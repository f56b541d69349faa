# SPDX-License-Identifier: Apache-2.0
"""Fabric Manager's own process: the port `FabricProcess`. `control.agent` says when it starts, and how.

Before each start its configuration is written, and what else the hardware needs is started (`guest.nvlink5`). All that
can refuse a start does so before a Fabric Manager that runs is ended.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fmctl import process
from fmctl.core import fmconfig, fmversion
from fmctl.core.answers import FabricFacts, ProcessState
from fmctl.core.errors import FmctlError
from fmctl.core.fmconfig import ConfigValues
from fmctl.core.template import Template
from fmctl.guest import wholefile
from fmctl.guest.fabricstart import FabricStart
from fmctl.guest.kept import STOP_GRACE, KeptProcess
from fmctl.guest.nvlink5 import Ports, SubnetManager

log = logging.getLogger(__name__)

VERSION_TIMEOUT = 10.0
"""Seconds that Fabric Manager has to print its version."""


@dataclass(frozen=True)
class Configuration:
    """The fabricmanager.cfg to write, and what it is made of."""

    path: Path
    stock: Path
    """NVIDIA's own, which may be missing."""
    template: Callable[[], Template]
    values: ConfigValues

    def write(self) -> dict[str, str]:
        """Write it whole, and tell its keys; raises FmctlError where that is not possible."""
        try:
            stock = self.stock.read_text("utf-8", errors="replace")
        except FileNotFoundError:
            stock = ""
        except OSError as error:
            raise _unusable(self.stock, error) from error
        text = fmconfig.make(self.template(), self.values, stock)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            wholefile.replace(self.path, text)
        except OSError as error:
            raise _unusable(self.path, error) from error
        return fmconfig.parse(text)

    def written(self) -> dict[str, str]:
        """The keys of what an earlier agent wrote in this boot; none where none did."""
        try:
            return fmconfig.parse(self.path.read_text("utf-8", errors="replace"))
        except OSError:
            return {}


class FmService:
    """Starts and stops the program `command`, with fixed arguments, in the foreground."""

    def __init__(
        self,
        command: Sequence[str],
        configuration: Configuration,
        run_dir: Path,
        *,
        nvlsm_command: Sequence[str] = (),
        root: Path = Path("/"),
        ports: Ports | None = None,
        stop_grace: float = STOP_GRACE,
    ) -> None:
        """`run_dir` is a folder that a reboot empties, and `root` stands for /.

        A process that is to end has `stop_grace` seconds to do so by itself.
        """
        self._command = tuple(command)
        self._configuration = configuration
        self._root = root
        self._ports = ports or Ports(root)
        self._process = KeptProcess("Fabric Manager", run_dir / "fabric-manager.json", stop_grace=stop_grace)
        self._nvlsm = SubnetManager(nvlsm_command, run_dir / "nvlsm.json", stop_grace=stop_grace)
        self._starts = FabricStart(run_dir / "fabric-start.json", root, configuration.stock)
        self._facts = FabricFacts()
        self._turn = threading.Lock()

    def state(self) -> ProcessState:
        """Whether it runs, or ran in this boot."""
        return self._process.state() if self._command else ProcessState.UNMANAGED

    def facts(self) -> FabricFacts:
        """What was read when Fabric Manager last started, or with `look`, and how NVLSM and the fabric are now."""
        start = self._starts.noted() if self._command else self._starts.seen()
        return replace(self._facts, nvlsm=self._nvlsm.state(), fabric_start=start)

    def look(self) -> None:
        """Read the versions and the configuration of what an earlier agent started; takes as long as the program does.

        A program that has not run in this boot is left alone until it starts.
        """
        with self._turn:
            ran = self.state() in (ProcessState.RUNNING, ProcessState.ENDED)
            version = self._version() if ran else ""
            self._facts = FabricFacts(version, self._driver(), self._configuration.written() if ran else {})

    def start(self, *, restart: bool) -> None:
        """Start it, in the place of one that runs; with `restart` it takes up its state file and waits for a list.

        Raises VersionMismatch where its version is not the driver's, and FmctlError where it cannot be started or
        ended.
        """
        if not self._command:
            raise FmctlError(
                "this agent does not start Fabric Manager",
                why="its setting fm_command is empty",
                fix="set fm_command in the Service VM, or start Fabric Manager there",
            )
        with self._turn:
            self._start(restart=restart)

    def _start(self, *, restart: bool) -> None:
        version, driver = self._version(), self._driver()
        self._facts = replace(self._facts, fm_version=version, driver_version=driver)
        fmversion.refuse_difference(version, driver)
        guid = self._ports.find()
        self._facts = replace(self._facts, config=self._configuration.write())
        self._process.stop()
        if guid is not None:
            self._nvlsm.start(guid, restart=restart)
        if not restart:
            self._starts.begin()
        argv = [*self._command, "-c", str(self._configuration.path)]
        argv += [] if guid is None else ["-g", guid]
        pid = self._process.start([*argv, *(["--restart"] if restart else [])])
        log.info("started Fabric Manager %s as process %d", "to take up its state" if restart else "fresh", pid)

    def _version(self) -> str:
        """Fabric Manager's version; empty where it cannot be told."""
        try:
            return fmversion.parse(process.run([*self._command, "-v"], timeout=VERSION_TIMEOUT))
        except process.CommandFailed as error:
            log.warning("Fabric Manager's version is unknown: %s", error)
            return ""

    def _driver(self) -> str:
        """The NVIDIA driver's version; empty where none is loaded."""
        try:
            return (self._root / "sys" / "module" / "nvidia" / "version").read_text().strip()
        except OSError:
            return ""


def _unusable(path: Path, error: OSError) -> FmctlError:
    return FmctlError(
        "Fabric Manager is not started", why=f"{path}: {error.strerror or error}", fix="correct agent.yaml"
    )
