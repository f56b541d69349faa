# SPDX-License-Identifier: Apache-2.0
"""Follows how VMs end, for as long as libvirt tells of it, so that a GPU is reset by the method for that.

It is kept in memory: for a daemon that has just started every GPU counts as left by a VM that was killed, until it was
cleaned once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

from fmctl.core.domain import Domain, End
from fmctl.core.errors import FmctlError
from fmctl.core.exits import Exits, VmExit
from fmctl.core.pci import Bdf
from fmctl.core.ports import Hypervisor

LIBVIRT_TIMEOUT = 5.0
"""Seconds that libvirt has to list its domains."""


class VmExits:
    """How the VMs of each GPU ended. Every method but `look` may be called from any thread, and none raises."""

    def __init__(self, hypervisor: Hypervisor | None, held: Callable[[], Collection[Bdf] | None]) -> None:
        """`held` tells which functions of the board somebody has open, None where that cannot be told.

        Without a hypervisor nothing is known.
        """
        self._hypervisor = hypervisor
        self._held = held
        self._lock = threading.Lock()
        self._hearing = 0
        self._exits = Exits()

    def of(self, gpu: Bdf) -> VmExit:
        """How the VMs ended that had the GPU at that address since it was cleaned."""
        exits = self._change(lambda exits: exits)
        return exits.of(gpu)

    def cleaned(self, gpu: Bdf) -> None:
        """Note that a GPU was cleaned, before anybody can get it."""
        self._change(lambda exits: exits.cleaned(gpu))

    def heard(self, end: End) -> None:
        """Note that a domain ended."""
        self._change(lambda exits: exits.ended(end))

    def look(self) -> None:
        """See which VMs have which GPUs, and what else is held; one call after the other."""
        held = self._held()
        domains = self._domains()
        self._change(lambda exits: exits.seen(domains, held))

    def _domains(self) -> tuple[Domain, ...]:
        if self._hypervisor is None:
            return ()
        try:
            return self._hypervisor.domains(timeout=LIBVIRT_TIMEOUT)
        except FmctlError:
            return ()

    def _change(self, change: Callable[[Exits], Exits]) -> Exits:
        """What is known after that change; nothing, while no end would be heard, or after one may not have been."""
        hearing = 0 if self._hypervisor is None else self._hypervisor.hearing
        with self._lock:
            if hearing != self._hearing:
                self._hearing, self._exits = hearing, Exits()
            if hearing:
                self._exits = change(self._exits)
            return self._exits
