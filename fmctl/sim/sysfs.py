# SPDX-License-Identifier: Apache-2.0
"""The PCI functions of a pretended HGX host, made from a platform file: the port `PciBus`.

Each function of the board sits behind a root port of its own and in an IOMMU group of its own, as on DGX hosts; beside
the board there is what every host has, and a network card that only its vital product data tells from the board's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from fmctl.core.inventory import Role, kinds
from fmctl.core.pci import Bdf, FunctionState, Link, PciClass, PciFunction, PciId
from fmctl.core.platform import Devices, Platform

ROOT_PORT = PciId(0x8086, 0x352A)
_BRIDGE = PciClass(0x0604)
_FIRST_BUS = {Role.MEMORY_CONTROLLER: 0x02, Role.NVSWITCH: 0x04, Role.GPU: 0x17}
_LAST_BUS = 0xFF
_BARS = {
    Role.GPU: (16 << 20, 0, 128 << 30, 0, 32 << 20, 0),
    Role.NVSWITCH: (32 << 20, 0, 0, 0, 0, 0),
    Role.MEMORY_CONTROLLER: (4 << 20, 0, 0, 0, 0, 0),
}
_LINK = Link(speed=32.0, width=16, max_speed=32.0, max_width=16)
_SECOND_SOCKET = 0x80
"""The first bus of the second NUMA node."""


@dataclass(frozen=True)
class SimulatedFunction:
    """A function with all that it would answer."""

    function: PciFunction
    state: FunctionState
    vpd: bytes = b""

    @property
    def config(self) -> bytes:
        """Its configuration space: the two ids, and zeros."""
        if not self.state.answers:
            return b"\xff" * 64
        ids = (self.function.id.vendor, self.function.id.device)
        return b"".join(number.to_bytes(2, "little") for number in ids) + bytes(60)


class SimulatedBus:
    """The functions of a pretended host, any of which can vanish, die or lose lanes."""

    def __init__(self, platform: Platform) -> None:
        self._functions = {simulated.function.bdf: simulated for simulated in _host(platform)}

    def functions(self) -> tuple[PciFunction, ...]:
        """Every function, by address."""
        return tuple(self._functions[bdf].function for bdf in sorted(self._functions))

    def state(self, bdf: Bdf) -> FunctionState | None:
        """What that function answers; None where it is gone."""
        simulated = self._functions.get(bdf)
        return simulated.state if simulated else None

    def config(self, bdf: Bdf) -> bytes:
        """Its configuration space; none where it is gone."""
        simulated = self._functions.get(bdf)
        return simulated.config if simulated else b""

    def vpd(self, bdf: Bdf) -> bytes:
        """Its vital product data."""
        simulated = self._functions.get(bdf)
        return simulated.vpd if simulated else b""

    def everything(self) -> tuple[SimulatedFunction, ...]:
        """Every function with all that it would answer, for who lays them out as files."""
        return tuple(self._functions[bdf] for bdf in sorted(self._functions))

    def add(self, simulated: SimulatedFunction) -> None:
        """Let a function be there, in the place of any that was."""
        self._functions[simulated.function.bdf] = simulated

    def remove(self, bdf: Bdf) -> None:
        """Let a function be gone."""
        del self._functions[bdf]

    def change(self, bdf: Bdf, **fields: Any) -> None:
        """Let the kernel know other things of a function, such as `driver` or `iommu_group`."""
        simulated = self._functions[bdf]
        self._functions[bdf] = replace(simulated, function=replace(simulated.function, **fields))

    def kill(self, bdf: Bdf) -> None:
        """Let a function's registers read as all ones."""
        self._answer(bdf, FunctionState(answers=False))

    def narrow(self, bdf: Bdf, width: int) -> None:
        """Let a function's link have only so many lanes."""
        state = self._functions[bdf].state
        if state.link is None:
            raise ValueError(f"{bdf} has no link")
        self._answer(bdf, replace(state, link=replace(state.link, width=width)))

    def _answer(self, bdf: Bdf, state: FunctionState) -> None:
        self._functions[bdf] = replace(self._functions[bdf], state=state)


def _host(platform: Platform) -> Iterator[SimulatedFunction]:
    group = 10
    for role, kind in kinds(platform).items():
        for index in range(kind.count or 1):
            bus = _bus(role, index, kind.count or 1)
            port = Bdf(0, 0, 1 + group // 8 % 31, group % 8)
            yield _bridge(port, group)
            yield _member(role, kind, Bdf(0, bus, 0, 0), port, group + 1)
            group += 2
    if platform.nvswitches.vpd:
        bus = _FIRST_BUS[Role.NVSWITCH] - 1
        network_card = _member(Role.NVSWITCH, platform.nvswitches, Bdf(0, bus, 0, 0), Bdf(0, 0, 1, 0), 3)
        yield replace(network_card, vpd=b"ConnectX-7 network adapter")
    drive = PciFunction(Bdf(0, 1, 0, 0), PciId(0x144D, 0xA824), PciClass(0x0108), None, "nvme", 4, 0)
    yield SimulatedFunction(drive, FunctionState(answers=True, reset_methods=("flr", "bus")))


def _bus(role: Role, index: int, count: int) -> int:
    """GPUs are spread over both sockets; the others share the first."""
    first = _FIRST_BUS[role]
    return first + index * ((_LAST_BUS - first) // count if role is Role.GPU else 1)


def _bridge(port: Bdf, group: int) -> SimulatedFunction:
    bridge = PciFunction(port, ROOT_PORT, _BRIDGE, None, "pcieport", group, 0)
    return SimulatedFunction(bridge, FunctionState(answers=True))


def _member(role: Role, kind: Devices, bdf: Bdf, port: Bdf, group: int) -> SimulatedFunction:
    model = kind.models[0]
    node = 1 if bdf.bus >= _SECOND_SOCKET else 0
    function = PciFunction(bdf, model.id, kind.pci_class, PciId(model.id.vendor, 0x16C1), "", group, node, (port,))
    methods = ("flr", "bus") if role is Role.GPU else ("bus",)
    state = FunctionState(answers=True, link=_LINK, bars=_BARS[role], reset_methods=methods)
    vpd = f"ConnectX-7 {kind.vpd} management".encode() if kind.vpd else b""
    return SimulatedFunction(function, state, vpd)
