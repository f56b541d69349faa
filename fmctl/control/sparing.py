# SPDX-License-Identifier: Apache-2.0
"""The port `PciBus` over another one, which asks a function nothing while it is reset.

The kernel lets whoever reads a function's configuration space wait until its reset is over, which may be never (Linux,
pci_cfg_access_lock); and every look at the board reads all of them, also under the turn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fmctl.core.pci import CONFIG_SIZE, Bdf, FunctionState, PciFunction
from fmctl.core.ports import PciBus
from fmctl.core.vfio import WriteOverdue


class SparingBus:
    """A host's functions, of which those that are spared answer as they did before."""

    def __init__(self, bus: PciBus) -> None:
        self._bus = bus
        self._before: dict[Bdf, tuple[FunctionState | None, bytes]] = {}

    @contextlib.contextmanager
    def sparing(self, bdf: Bdf) -> Iterator[None]:
        """Spare a function for as long as the block, and for good where a write in it did not end."""
        if bdf not in self._before:
            self._before = {**self._before, bdf: (self._bus.state(bdf), self._bus.config(bdf))}
        try:
            yield
        except WriteOverdue:
            raise
        except BaseException:
            self._ask_again(bdf)
            raise
        self._ask_again(bdf)

    def _ask_again(self, bdf: Bdf) -> None:
        self._before = {other: answers for other, answers in self._before.items() if other != bdf}

    def functions(self) -> tuple[PciFunction, ...]:
        """Every function, by address."""
        return self._bus.functions()

    def function(self, bdf: Bdf) -> PciFunction | None:
        """That function; None where it is gone."""
        return self._bus.function(bdf)

    def state(self, bdf: Bdf) -> FunctionState | None:
        """What that function answers, or answered before; None where it is gone."""
        before = self._before.get(bdf)
        return before[0] if before else self._bus.state(bdf)

    def config(self, bdf: Bdf, offset: int = 0, size: int = CONFIG_SIZE) -> bytes:
        """Its configuration space from `offset` on, as it is or was before."""
        before = self._before.get(bdf)
        return before[1][offset : offset + size] if before else self._bus.config(bdf, offset, size)

    def vpd(self, bdf: Bdf) -> bytes:
        """Its vital product data; none of a function that is spared."""
        return b"" if bdf in self._before else self._bus.vpd(bdf)
