# SPDX-License-Identifier: Apache-2.0
"""What a person asks of the Service VM: start, stop and destroy. `control.servicevm` keeps it running in between.

Each start and each end resets every NVSwitch, so whom that would interrupt is named, and only told to does it happen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from fmctl.control.servicevm import ServiceVm
from fmctl.core import servicevm
from fmctl.core.answers import ServiceVmStatus
from fmctl.core.errors import VmRunning
from fmctl.core.servicevm import Memory, Tenant

log = logging.getLogger(__name__)

Pause = Callable[[float], object]


class Operator:
    """A person's commands, each taking the keeper's turn."""

    def __init__(self, keeper: ServiceVm) -> None:
        self._keeper = keeper

    def start(self, *, interrupt_tenants: bool, timeout: float) -> ServiceVmStatus:
        """Start it unless it runs; raises VmRunning where that resets NVSwitches that a running VM may use."""
        with self._keeper.turn(timeout):
            seen, inventory = self._keeper.look()
            if seen.domain is None:
                _refuse_interrupting("start", seen.tenants, interrupt_tenants=interrupt_tenants)
                self._keeper.start(inventory)
            return self._keeper.after()

    def stop(self, *, interrupt_tenants: bool, timeout: float) -> ServiceVmStatus:
        """Shut it down, and let it stay down; raises VmRunning where a running VM may use the NVSwitches."""
        return self._end("stop", self._keeper.own.shut_down, interrupt_tenants=interrupt_tenants, timeout=timeout)

    def destroy(self, *, interrupt_tenants: bool, timeout: float) -> ServiceVmStatus:
        """End it at once, and let it stay down; raises VmRunning where a running VM may use the NVSwitches."""
        return self._end("destroy", self._keeper.own.destroy, interrupt_tenants=interrupt_tenants, timeout=timeout)

    def _end(
        self, verb: str, end: Callable[[float, Pause], None], *, interrupt_tenants: bool, timeout: float
    ) -> ServiceVmStatus:
        with self._keeper.turn(timeout):
            seen, inventory = self._keeper.look()
            if seen.domain is not None:
                _refuse_interrupting(verb, seen.tenants, interrupt_tenants=interrupt_tenants)
            self._keeper.remember(Memory(wanted=False))
            if seen.domain is not None:
                log.info("%s the Service VM on request", verb)
                end(timeout, self._keeper.pause)
            self._keeper.own.park(inventory)
            return self._keeper.after()


def _refuse_interrupting(verb: str, tenants: Sequence[Tenant] | None, *, interrupt_tenants: bool) -> None:
    if interrupt_tenants:
        return
    using = servicevm.interrupted(tenants)
    if using is None or using:
        raise VmRunning(
            f"the Service VM is not changed: to {verb} it resets every NVSwitch",
            why="who holds GPUs is not known" if using is None else f"that interrupts {', '.join(map(str, using))}",
            fix="stop those VMs first, or add --interrupt-tenants",
        )
