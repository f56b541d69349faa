# SPDX-License-Identifier: Apache-2.0
"""Asks each GPU of the board which module it is, as far as nobody uses it. `control.gpumap` keeps what they say."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from fmctl.control.fabric import Turn
from fmctl.control.vfio import Vfio
from fmctl.core import admintools, fingerprint, straps
from fmctl.core.errors import FabricNotReady, FmctlError
from fmctl.core.inventory import Inventory
from fmctl.core.mapsource import SourceKind
from fmctl.core.pci import Bdf
from fmctl.core.platform import ModuleIdMethod, StrapRules
from fmctl.core.ports import Registers
from fmctl.core.straps import Unreadable
from fmctl.core.vfio import VFIO_PCI

log = logging.getLogger(__name__)

SETTLE_TIMEOUT = 10.0
"""Seconds that a GPU has to start after the reset; gpu-admin-tools give Hopper 5, and Blackwell 10."""

AdminTools = Callable[[Bdf], str]
"""What gpu-admin-tools print of the module name of one GPU; raises FmctlError."""


@dataclass
class Findings:
    """What GPUs said, why others said nothing, and which were left alone since they are in use."""

    kind: SourceKind | None = None
    readings: dict[Bdf, int] = field(default_factory=dict)
    unread: dict[Bdf, str] = field(default_factory=dict)
    in_use: set[Bdf] = field(default_factory=set)


class MapReader:
    """Opens a GPU only while nobody holds its group and no active partition has it, since that resets it."""

    def __init__(
        self,
        vfio: Vfio,
        registers: Registers,
        turn: Turn,
        *,
        admin_tools: AdminTools | None = None,
        active: Callable[[], Collection[Bdf]] = tuple,
    ) -> None:
        """`active` are the GPUs of active partitions, as far as it is known which these are."""
        self._vfio = vfio
        self._registers = registers
        self._turn = turn
        self._admin_tools = admin_tools
        self._active = active

    def read(self, found: Inventory, *, timeout: float) -> Findings:
        """What each GPU says; raises FabricNotReady where another change of a lease takes longer."""
        method, rules = found.platform.module_ids.method.value, found.platform.module_ids.straps
        asks: dict[ModuleIdMethod, tuple[SourceKind, Callable[[Bdf], int]]] = {
            ModuleIdMethod.REGISTERS: (SourceKind.REGISTERS, lambda bdf: self._pins(found, rules, bdf)),
        }
        if self._admin_tools is not None:
            asks[ModuleIdMethod.ADMIN_TOOLS] = (SourceKind.ADMIN_TOOLS, functools.partial(_told, self._admin_tools))
        if method not in asks:
            return Findings()
        kind, ask = asks[method]
        findings = Findings(kind)
        for device in fingerprint.present(found):
            bdf = device.function.bdf
            with self._turn.within(timeout):
                why = self._in_use(found, bdf)
                if why:
                    findings.in_use.add(bdf)
                    findings.unread[bdf] = why
                    continue
                try:
                    findings.readings[bdf] = ask(bdf)
                except FabricNotReady:
                    raise
                except FmctlError as error:
                    log.warning("GPU %s does not tell its module id: %s", bdf, error)
                    findings.unread[bdf] = error.why or str(error)
        return findings

    def _in_use(self, found: Inventory, bdf: Bdf) -> str:
        for usage in self._vfio.usages(found, [bdf]):
            if usage.is_held:
                return f"it is held by {usage.held_by}"
        return "an active partition has it" if bdf in self._active() else ""

    def _pins(self, found: Inventory, rules: StrapRules | None, bdf: Bdf) -> int:
        function = self._vfio.function(bdf)
        if rules is None or function.driver not in ("", VFIO_PCI):
            raise Unreadable(f"GPU {bdf} is not read", why=f"its driver is {function.driver}")
        straps.refuse_unknown(rules, function)
        probe = straps.probe(rules)
        if function.driver == VFIO_PCI:
            return straps.module_id(rules, function, self._registers.read(function, probe, timeout=SETTLE_TIMEOUT))
        try:
            return self._bound(found, rules, bdf)
        except FabricNotReady:
            raise
        except FmctlError as error:
            log.warning("GPU %s is read without vfio-pci: %s", bdf, error)
        function = self._vfio.function(bdf)
        return straps.module_id(rules, function, self._registers.read(function, probe, timeout=SETTLE_TIMEOUT))

    def _bound(self, found: Inventory, rules: StrapRules, bdf: Bdf) -> int:
        """What a GPU says that vfio-pci has for that long."""
        self._vfio.bind(found, [bdf])
        try:
            function = self._vfio.function(bdf)
            values = self._registers.read(function, straps.probe(rules), timeout=SETTLE_TIMEOUT)
        finally:
            self._vfio.park(found, [bdf])
        return straps.module_id(rules, function, values)


def _told(tools: AdminTools, bdf: Bdf) -> int:
    said = admintools.parse(tools(bdf))
    if bdf not in said:
        raise Unreadable(
            f"GPU {bdf} does not tell its module id",
            why="gpu-admin-tools print no module name of it",
            fix="run them by hand: nvidia_gpu_tools.py --devices gpus --query-module-name",
        )
    return said[bdf]
