# SPDX-License-Identifier: Apache-2.0
"""Gives the board's functions to vfio-pci and takes them back, as `core.vfio` decides, one verified write at a time.

A running VM that holds an IOMMU group loses its devices when one of them is unbound, so who holds what is asked before
the first write, and again before every one that could hurt. Nothing ever goes back to a host driver.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from fmctl.core import groups, vfio
from fmctl.core.inventory import Inventory
from fmctl.core.pci import Bdf, PciFunction
from fmctl.core.ports import PciBus, VfioDevices
from fmctl.core.vfio import Action, Exposure, Holder, Step, Usage, WriteFailed, WriteOverdue

log = logging.getLogger(__name__)

READ_TIMEOUT = 5.0
"""Seconds within which the kernel tells a function's exposure, unless a write to the function is stuck."""
WRITE_TIMEOUT = 60.0
"""Seconds that one write may take: a driver lets go of its device first, and the kernel may reset it."""

_GO_ON = "see `dmesg`, mend it, and run the same again: it goes on from here"


def _log(step: Step) -> None:
    log.info("%s", step)


class Vfio:
    """The drivers of the board's functions. Every method may be called from any thread."""

    def __init__(
        self,
        bus: PciBus,
        devices: VfioDevices,
        *,
        lock: Callable[[], AbstractContextManager[None]] = nullcontext,
        write_timeout: float = WRITE_TIMEOUT,
        tell: Callable[[Step], None] = _log,
        dry_run: bool = False,
    ) -> None:
        """`lock` keeps every other change of this host out, and raises HostBusy.

        `tell` hears of every step that was taken; with `dry_run` of those that would be, and nothing is written.
        """
        self._bus = bus
        self._devices = devices
        self._lock = nullcontext if dry_run else lock
        self._write_timeout = write_timeout
        self._tell = tell
        self._dry_run = dry_run

    def bind(self, inventory: Inventory, wanted: Iterable[Bdf]) -> None:
        """Give vfio-pci every endpoint of the groups that the wanted functions are in, where it lacks one.

        Raises what `core.groups.members` does, and VmRunning where a group that needs a write is held: nothing is
        written then. Raises WriteFailed or WriteOverdue at the first write that did not do its work; what was done
        before stays done, and the same call again goes on from there.
        """
        with self._lock():
            members = groups.members(self._bus.functions(), inventory, wanted)
            self._take(vfio.bind(members, self._exposures(members)), inventory, members)

    def park(self, inventory: Inventory, wanted: Iterable[Bdf]) -> None:
        """Leave the wanted functions, and no others of their groups, without a driver; raises as `bind` does."""
        with self._lock():
            self._park(inventory, groups.ours(self._bus.functions(), inventory, wanted))

    def park_unheld(self, inventory: Inventory, wanted: Iterable[Bdf]) -> tuple[Usage, ...]:
        """Park those of the wanted functions whose groups nobody holds, and return the others."""
        with self._lock():
            usages = self._usages(inventory, groups.ours(self._bus.functions(), inventory, wanted))
            self._park(inventory, [usage.function for usage in usages if not usage.is_held])
            return tuple(usage for usage in usages if usage.is_held)

    def usages(self, inventory: Inventory, wanted: Iterable[Bdf]) -> tuple[Usage, ...]:
        """The wanted functions of the board that are there, and who holds them; raises FmctlError without privileges.

        To name a holder takes a look at every process.
        """
        chosen = set(wanted)
        return self._usages(inventory, [function for function in self._present(inventory) if function.bdf in chosen])

    def status(self, inventory: Inventory) -> tuple[Usage, ...]:
        """The same with their exposures, which takes some milliseconds for each that has no driver."""
        functions = self._present(inventory)
        exposures = self._exposures(functions)
        return tuple(replace(u, exposure=exposures.get(u.function.bdf)) for u in self._usages(inventory, functions))

    def _present(self, inventory: Inventory) -> tuple[PciFunction, ...]:
        present = {function.bdf: function for function in self._bus.functions()}
        return tuple(present[bdf] for bdf in groups.roles(inventory) if bdf in present)

    def _exposures(self, functions: Iterable[PciFunction]) -> dict[Bdf, Exposure | None]:
        """The exposures of the functions without a driver."""
        return {f.bdf: self._devices.exposure(f.bdf, timeout=READ_TIMEOUT) for f in functions if not f.driver}

    def _usages(self, inventory: Inventory, functions: Sequence[PciFunction]) -> tuple[Usage, ...]:
        roles = groups.roles(inventory)
        held: dict[int | None, tuple[Holder, ...] | None] = {
            group: self._devices.holders(group)
            for group in dict.fromkeys(function.iommu_group for function in functions)
            if group is not None
        }
        return tuple(Usage(roles[f.bdf], f, held.get(f.iommu_group)) for f in functions)

    def _park(self, inventory: Inventory, functions: Sequence[PciFunction]) -> None:
        self._take(vfio.park(functions, self._exposures(functions)), inventory, functions)

    def _take(self, steps: Sequence[Step], inventory: Inventory, functions: Sequence[PciFunction]) -> None:
        """Take the steps, each verified; a VM that starts meanwhile is not hurt either."""
        known = {function.bdf: function for function in functions}
        vfio.refuse_held(self._usages(inventory, [known[bdf] for bdf in dict.fromkeys(step.bdf for step in steps)]))
        for step in steps:
            if not self._dry_run:
                if step.action is Action.UNBIND:
                    vfio.refuse_held(self._usages(inventory, [known[step.bdf]]))
                self._write(step)
                self._verify(step)
            self._tell(step)

    def _write(self, step: Step) -> None:
        devices, timeout = self._devices, self._write_timeout
        try:
            if step.action is Action.OVERRIDE:
                devices.override(step.bdf, step.driver, timeout=timeout)
            elif step.action is Action.UNBIND:
                devices.unbind(step.bdf, timeout=timeout)
            elif step.action is Action.PROBE:
                devices.probe(step.bdf, timeout=timeout)
            else:
                devices.stop_bus_master(step.bdf, timeout=timeout)
        except WriteFailed as error:
            self.function(step.bdf)
            raise WriteFailed(f"{step} failed", why=str(error), fix=error.fix or _GO_ON) from error
        except WriteOverdue as error:
            raise WriteOverdue(f"{step} did not end in {timeout:g} s", why=str(error), fix=_GO_ON) from error

    def _verify(self, step: Step) -> None:
        function = self.function(step.bdf)
        exposure = self._devices.exposure(step.bdf, timeout=READ_TIMEOUT)
        if not step.has_worked(function, exposure):
            override = exposure.override or "none" if exposure else "unknown"
            raise WriteFailed(
                f"{step} had no effect",
                why=f"it has driver {function.driver or 'none'} and driver_override {override}",
                fix=_GO_ON,
            )

    def function(self, bdf: Bdf) -> PciFunction:
        """The function as the kernel shows it now; raises FmctlError where it is gone."""
        function = self._bus.function(bdf)
        if function is None:
            raise groups.gone(bdf)
        return function
