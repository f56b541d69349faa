# SPDX-License-Identifier: Apache-2.0
"""Which fresh start of Fabric Manager the NVSwitches are set up by: a name that differs after each.

Where the agent starts Fabric Manager it notes each fresh start itself. Where something else does, the process tells: a
Fabric Manager that was not seen before started fresh, unless it was told to take up its state (FM User Guide,
"Resiliency"). `guest.fmservice` passes the name on.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fmctl.core import fmconfig

log = logging.getLogger(__name__)

PROGRAM = "nv-fabricmanager"
_ASKS = {"-v", "--version", "-h", "--help"}
"""Arguments by which the program prints something and ends."""
_TAKES_UP = {"-r", "--restart"}


@dataclass(frozen=True)
class _Process:
    """One that runs. `started` is in clock ticks since boot (proc(5))."""

    pid: int
    started: int
    argv: tuple[str, ...]


class FabricStart:
    """The name, of which a record lies in a folder that a reboot empties."""

    def __init__(self, record: Path, root: Path, stock: Path) -> None:
        """`root` stands for /, and `stock` is the configuration of a Fabric Manager that names none."""
        self._record = record
        self._root = root
        self._stock = stock
        self._turn = threading.Lock()

    def begin(self) -> None:
        """Note that the agent starts Fabric Manager fresh; what cannot be written is an OSError."""
        with self._turn:
            self._write(uuid.uuid4().hex, "")

    def noted(self) -> str:
        """The name of the last start that was noted; empty where none was since the guest booted."""
        return self._read()[0]

    def seen(self) -> str:
        """The name of the start by which a Fabric Manager that something else starts set the fabric up.

        While none runs it is the last one's, since traffic goes on; empty where none was seen since the guest booted.
        """
        with self._turn:
            start, process = self._read()
            running = min(self._processes(), key=lambda each: each.started, default=None)
            if running is None:
                return start
            named = f"{self._boot_id()}.{running.pid}.{running.started}"
            if named != process:
                start = start if start and self._takes_up(running) else named
                try:
                    self._write(start, named)
                except OSError as error:
                    log.warning("which Fabric Manager runs is not noted: %s", error)
            return start

    def _processes(self) -> Iterator[_Process]:
        for folder in (self._root / "proc").glob("[0-9]*"):
            try:
                argv = tuple((folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1])
                if not argv or Path(argv[0]).name != PROGRAM or _ASKS & set(argv):
                    continue
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                yield _Process(int(folder.name), int(fields[19]), argv)
            except (OSError, ValueError, IndexError):
                continue  # it has ended

    def _takes_up(self, running: _Process) -> bool:
        if _TAKES_UP & set(running.argv):
            return True
        path = _option(running.argv, "-c")
        file = self._root / path.lstrip("/") if path else self._stock
        try:
            return fmconfig.parse(file.read_text("utf-8", errors="replace")).get("FABRIC_MODE_RESTART") == "1"
        except OSError:
            return False

    def _boot_id(self) -> str:
        try:
            return (self._root / "proc" / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
        except OSError:
            return ""

    def _read(self) -> tuple[str, str]:
        """The name, and the process that was seen when it was noted; empty where there is none."""
        try:
            noted = json.loads(self._record.read_text())
            return str(noted["start"]), str(noted["process"])
        except (OSError, ValueError, KeyError, TypeError):
            return "", ""

    def _write(self, start: str, process: str) -> None:
        self._record.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._record.with_suffix(".new")
        temporary.write_text(json.dumps({"start": start, "process": process}))
        temporary.replace(self._record)


def _option(argv: Sequence[str], name: str) -> str:
    """The value that follows an option; empty where it is not given."""
    return next((value for option, value in itertools.pairwise(argv) if option == name), "")
