# SPDX-License-Identifier: Apache-2.0
"""Fabric Manager's process in memory: the port `FabricProcess` over `sim.nvfm`."""

from __future__ import annotations

import time
from collections.abc import Callable

from fmctl.core.answers import FabricFacts, ProcessState
from fmctl.core.platform import Platform
from fmctl.sim.fabric import Fabric
from fmctl.sim.nvfm import MemoryNvfm
from fmctl.sim.saved import SavedState


class MemoryProcess:
    """Starts one Fabric Manager after another in a `MemoryNvfm`, which it starts out without."""

    def __init__(self, nvfm: MemoryNvfm, platform: Platform, clock: Callable[[], float] = time.monotonic) -> None:
        self._nvfm = nvfm
        self._platform = platform
        self._clock = clock
        self._state = ProcessState.NOT_STARTED
        self._saved: SavedState | None = None
        self._starts = 0
        self._known = False

    def state(self) -> ProcessState:
        """Whether it runs, or ran."""
        return self._state

    def start(self, *, restart: bool) -> None:
        """Start it; a restart with no saved state ends at once, as the real one does."""
        if not restart:
            fabric = Fabric.started(self._platform, now=self._clock())
            self._starts, self._known = self._starts + 1, True
        elif self._saved is None:
            return self.die()
        else:
            fabric = Fabric.restarted(self._platform, self._saved, "memory", now=self._clock())
        self._saved = fabric.state
        self._state = ProcessState.RUNNING
        self._nvfm.replace(fabric)

    def facts(self) -> FabricFacts:
        """Nothing is known of a program that is none, but which fresh start the fabric is of."""
        return FabricFacts(fabric_start=f"start-{self._starts}" if self._known else "")

    def die(self) -> None:
        """Let it be gone, as after kill -9; its saved state stays."""
        self._state = ProcessState.ENDED
        self._nvfm.replace(None)

    def reboot(self) -> None:
        """Let the guest boot anew: nothing runs, nothing is saved."""
        self._state = ProcessState.NOT_STARTED
        self._saved, self._known = None, False
        self._nvfm.replace(None)


class Unmanaged:
    """A Fabric Manager that something else starts."""

    def state(self) -> ProcessState:
        """Always unmanaged."""
        return ProcessState.UNMANAGED

    def start(self, *, restart: bool) -> None:
        """Does nothing."""

    def facts(self) -> FabricFacts:
        """Nothing is known of it."""
        return FabricFacts()
