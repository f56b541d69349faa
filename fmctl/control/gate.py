# SPDX-License-Identifier: Apache-2.0
"""Whether the host takes new work: the port `Gate`, over the host's devices and the keeper in `control.servicevm`."""

from __future__ import annotations

from collections.abc import Callable

from fmctl.control.discovery import NoBoard
from fmctl.control.servicevm import ServiceVm
from fmctl.core.answers import ServiceVmStatus
from fmctl.core.errors import HostCordoned
from fmctl.core.inventory import Inventory

WHAT = "this host takes no new work"


class HostGate:
    """The host's own; without a Service VM to keep, its devices alone decide, and none where it has none."""

    def __init__(
        self,
        inventory: Callable[[], Inventory],
        check: Callable[[Inventory], None],
        service_vm: ServiceVm | None = None,
        generation: Callable[[], int] = lambda: 0,
    ) -> None:
        """`inventory` raises NoBoard where the host has no board; `check` HostCordoned where passthrough is unsafe.

        `generation` is the fabric generation where the Service VM is someone else's.
        """
        self._inventory = inventory
        self._check = check
        self._service_vm = service_vm
        self._generation = generation

    def refuse_new_work(self) -> None:
        """Raise HostCordoned where the Service VM is beyond repair without harm, or a PCIe device could escape."""
        if self._service_vm is not None and self.status().degraded:
            raise HostCordoned(
                WHAT, why=self.status().degraded, fix="see `fmctl status`, and `fmctl service-vm --help`"
            )
        try:
            inventory = self._board()
        except NoBoard as error:
            if self._service_vm is None:
                return
            raise HostCordoned(WHAT, why=str(error), fix=error.fix) from error
        if inventory.devices:
            self._check(inventory)

    def _board(self) -> Inventory:
        """The board as it was last seen: what is asked of it afresh is only whether PCI Express is still tight."""
        seen = self._service_vm.board if self._service_vm else None
        return seen or self._inventory()

    def status(self) -> ServiceVmStatus:
        """The Service VM, as it was last seen; of an unmanaged one nothing but its fabric generation is known."""
        if self._service_vm is None:
            return ServiceVmStatus(fabric_generation=self._generation())
        return self._service_vm.status()
