# SPDX-License-Identifier: Apache-2.0
"""Libvirt's hook on a pretended host: the port `HookFiles`, in memory. `host.hookfiles` is its other side."""

from __future__ import annotations

from collections.abc import Collection

from fmctl.core.answers import HookLoad
from fmctl.core.pci import Bdf


class MemoryHookFiles:
    """An installed hook, which a libvirt that runs as the processes `daemons` calls or not."""

    def __init__(self, *daemons: int) -> None:
        self.daemons = set(daemons)
        self.managed: frozenset[Bdf] = frozenset()
        self._caller = 0

    def load(self) -> HookLoad:
        """Whether libvirt calls the hook; unknown without one."""
        if not self.daemons:
            return HookLoad.UNKNOWN
        return HookLoad.LOADED if self._caller in self.daemons else HookLoad.NOT_LOADED

    def called(self, pid: int) -> None:
        """Note that the process `pid` called the hook."""
        self._caller = pid if pid in self.daemons else self._caller

    def keep(self, managed: Collection[Bdf]) -> None:
        """Tell the hook which functions are the board's."""
        self.managed = frozenset(managed)
