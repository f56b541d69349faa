# SPDX-License-Identifier: Apache-2.0
"""What this host keeps of libvirt's hook: the port `HookFiles`. `cli.hook` reads the list of functions.

Libvirt looks for hooks when it starts and not later, so that one which is installed may not be called. Its parent is
libvirt's daemon: the hook is loaded as long as the one that called it last goes on.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from pathlib import Path

from fmctl.core.answers import HookLoad
from fmctl.core.pci import Bdf
from fmctl.host.attributes import text

log = logging.getLogger(__name__)

HOOK = Path("etc", "libvirt", "hooks", "qemu.d", "fmctl")
MANAGED = "managed-functions"
"""The list of the board's functions, an address a line, in the daemon's run_dir."""
CALLER = "hook-caller"
_DAEMONS = ("libvirtd", "virtqemud")


class HostHookFiles:
    """The hook below `root`, / on a host, and notes in the folder `run_dir`, which end with the host's boot."""

    def __init__(self, root: Path, run_dir: Path) -> None:
        self._root = root
        self._run_dir = run_dir
        self._kept: str | None = None

    def load(self) -> HookLoad:
        """Whether libvirt calls the hook."""
        if not (self._root / HOOK).exists():
            return HookLoad.NOT_INSTALLED
        found = re.fullmatch("([0-9]+) .+", text(self._run_dir / CALLER))
        loaded = found is not None and self._identity(int(found[1])) == found[0]
        return HookLoad.LOADED if loaded else HookLoad.NOT_LOADED

    def called(self, pid: int) -> None:
        """Note that the process `pid` called the hook."""
        identity = self._identity(pid)
        if identity:
            self._write(CALLER, identity)

    def keep(self, managed: Collection[Bdf]) -> None:
        """Tell the hook which functions are the board's."""
        content = "".join(f"{bdf}\n" for bdf in sorted(managed))
        if content != self._kept and self._write(MANAGED, content):
            self._kept = content

    def _identity(self, pid: int) -> str:
        """What no other process of this boot has; empty for one that is gone, or is not libvirt's."""
        stat = text(self._root / "proc" / str(pid) / "stat")
        command, _, others = stat.partition(" (")[2].rpartition(") ")
        fields = others.split()
        return f"{pid} {fields[_START]}" if command in _DAEMONS and len(fields) > _START else ""

    def _write(self, name: str, content: str) -> bool:
        """Write the file whole, or leave it as it is."""
        path = self._run_dir / name
        try:
            new = path.with_suffix(".new")
            new.write_text(content, "ascii")
            new.replace(path)
        except OSError as error:
            log.warning("%s is not written: %s", path, error)
            return False
        return True


_START = 19
"""When a process started, among the fields of /proc/PID/stat that follow its name: the 22nd of all (proc(5))."""
