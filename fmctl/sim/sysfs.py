# SPDX-License-Identifier: Apache-2.0
"""The PCI functions of a pretended HGX host, made from a platform file: the port `PciBus`.

Each function of the board sits behind a root port of its own and in an IOMMU group of its own, as on DGX hosts; with
`shared_group` all that the Service VM gets is in one group with its ports, which have no access control, as on
Supermicro hosts. Beside the board
there is what every host has, and a network card that only its vital product data tells from the board's.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from fmctl.core.acs import REQUIRED, Control
from fmctl.core.inventory import Role, kinds
from fmctl.core.pci import CONFIG_SIZE, PCI_BRIDGE, Bdf, FunctionState, Link, PciClass, PciFunction, PciId
from fmctl.core.platform import Devices, Platform
from fmctl.sim import pciconfig
from fmctl.sim.pciconfig import PortType

ROOT_PORT = PciId(0x8086, 0x352A)
SWITCH = PciId(0x1000, 0xC030)
_FIRST_BUS = {Role.MEMORY_CONTROLLER: 0x02, Role.NVSWITCH: 0x04, Role.GPU: 0x17}
_LAST_BUS = 0xFF
_BARS = {
    Role.GPU: (16 << 20, 0, 128 << 30, 0, 32 << 20, 0),
    Role.NVSWITCH: (32 << 20, 0, 0, 0, 0, 0),
    Role.MEMORY_CONTROLLER: (4 << 20, 0, 0, 0, 0, 0),
}
_LINK = Link(speed=32.0, width=16, max_speed=32.0, max_width=16)
_SHARED_GROUP = 8
_SECOND_SOCKET = 0x80
"""The first bus of the second NUMA node."""


@dataclass(frozen=True)
class SimulatedFunction:
    """A function with all that it would answer.

    `access` are the controls of ACS that are on, None without that capability; `several` tells that its device has more
    functions. `serial` is its PCI serial number. Of its configuration space `shown` bytes can be read. `rom` is its
    expansion ROM, empty without one.
    """

    function: PciFunction
    state: FunctionState
    vpd: bytes = b""
    kind: PortType = PortType.ENDPOINT
    access: Control | None = None
    several: bool = False
    serial: int = 0
    shown: int = CONFIG_SIZE
    rom: bytes = b""

    @functools.cached_property
    def config(self) -> bytes:
        """Its configuration space."""
        if not self.state.answers:
            return b"\xff" * self.shown
        return pciconfig.build(self.function, self.kind, self.access, several=self.several, serial=self.serial)[
            : self.shown
        ]


class SimulatedBus:
    """The functions of a pretended host, any of which can vanish, die or lose lanes."""

    def __init__(self, platform: Platform, *, shared_group: bool = False) -> None:
        """The functions stand by address, so that a look at all of them need not sort them."""
        host = _host(platform, shared_group=shared_group)
        self._functions = _by_address({simulated.function.bdf: simulated for simulated in host})

    def functions(self) -> tuple[PciFunction, ...]:
        """Every function, by address."""
        return tuple(simulated.function for simulated in self._functions.values())

    def function(self, bdf: Bdf) -> PciFunction | None:
        """That function; None where it is gone."""
        simulated = self._functions.get(bdf)
        return simulated.function if simulated else None

    def state(self, bdf: Bdf) -> FunctionState | None:
        """What that function answers; None where it is gone."""
        simulated = self._functions.get(bdf)
        return simulated.state if simulated else None

    def config(self, bdf: Bdf, offset: int = 0, size: int = CONFIG_SIZE) -> bytes:
        """Its configuration space from `offset` on; none where it is gone."""
        simulated = self._functions.get(bdf)
        return simulated.config[offset : offset + size] if simulated else b""

    def vpd(self, bdf: Bdf) -> bytes:
        """Its vital product data."""
        simulated = self._functions.get(bdf)
        return simulated.vpd if simulated else b""

    def rom(self, bdf: Bdf) -> bytes:
        """Its expansion ROM; none of a function that is gone, or dead."""
        simulated = self._functions.get(bdf)
        return simulated.rom if simulated and simulated.state.answers else b""

    def everything(self) -> tuple[SimulatedFunction, ...]:
        """Every function with all that it would answer, for who lays them out as files."""
        return tuple(self._functions.values())

    def add(self, simulated: SimulatedFunction) -> None:
        """Let a function be there, in the place of any that was."""
        self._functions = _by_address({**self._functions, simulated.function.bdf: simulated})

    def remove(self, bdf: Bdf) -> None:
        """Let a function be gone."""
        del self._functions[bdf]

    def change(self, bdf: Bdf, **fields: Any) -> None:
        """Let the kernel know other things of a function, such as `driver` or `iommu_group`."""
        simulated = self._functions[bdf]
        self._functions[bdf] = replace(simulated, function=replace(simulated.function, **fields))

    def join(self, bdf: Bdf, group: int) -> None:
        """Let a function and the ports above it be in that IOMMU group, too."""
        for member in (*self._functions[bdf].function.ports, bdf):
            self.change(member, iommu_group=group)

    def intrude(self, group: int) -> Bdf:
        """Let a drive that is not the board's be in that IOMMU group, behind a port of its own; its address."""
        port, bdf = Bdf(0, 0, 0x1F, 6), Bdf(0, 0x13, 0, 0)
        self.add(_port(port, group))
        self.add(_drive(bdf, group, (port,)))
        return bdf

    def put_behind_switch(self, *gpus: Bdf) -> tuple[Bdf, ...]:
        """Let GPUs be behind one switch, below the root port of the first, each at a port of its own; these ports."""
        (root,) = self._functions[gpus[0]].function.ports
        bus = gpus[0].bus - 2
        upstream = Bdf(0, bus, 0, 0)
        ports = tuple(Bdf(0, bus + 1, index, 0) for index in range(len(gpus)))
        self.add(_port(upstream, 200 + bus, PortType.UPSTREAM, (root,)))
        for index, (port, gpu) in enumerate(zip(ports, gpus, strict=True), 1):
            self.add(_port(port, 500 + 16 * bus + index, PortType.DOWNSTREAM, (root, upstream)))
            self.change(gpu, ports=(root, upstream, port))
        return ports

    def behave(self, bdf: Bdf, **fields: Any) -> None:
        """Let a function differ in another field of SimulatedFunction, such as `access` or `shown`."""
        self._functions[bdf] = replace(self._functions[bdf], **fields)

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
        self.behave(bdf, state=state)


def _by_address(functions: dict[Bdf, SimulatedFunction]) -> dict[Bdf, SimulatedFunction]:
    return dict(sorted(functions.items()))


def gpu_addresses(platform: Platform) -> dict[int, Bdf]:
    """Where a pretended host has each GPU of the board, by physical id."""
    count = platform.gpus.count or 1
    buses = (_bus(Role.GPU, index, count) for index in range(count))
    return {number: Bdf(0, bus, 0, 0) for number, bus in zip(platform.physical_ids, buses, strict=True)}


def _host(platform: Platform, *, shared_group: bool) -> Iterator[SimulatedFunction]:
    number = 10
    for role, kind in kinds(platform).items():
        for index in range(kind.count or 1):
            bus = _bus(role, index, kind.count or 1)
            port = Bdf(0, 0, 1 + number // 8 % 31, number % 8)
            shares = shared_group and role is not Role.GPU
            yield replace(_port(port, _SHARED_GROUP), access=None) if shares else _port(port, number)
            yield _member(role, kind, Bdf(0, bus, 0, 0), port, _SHARED_GROUP if shares else number + 1)
            number += 2
    if platform.nvswitches.vpd:
        bus = _FIRST_BUS[Role.NVSWITCH] - 1
        yield _port(Bdf(0, 0, 1, 0), 2)
        network_card = _member(Role.NVSWITCH, platform.nvswitches, Bdf(0, bus, 0, 0), Bdf(0, 0, 1, 0), 3)
        yield replace(network_card, vpd=b"ConnectX-7 network adapter")
    yield _drive(Bdf(0, 1, 0, 0), 4, ())


def _bus(role: Role, index: int, count: int) -> int:
    """GPUs are spread over both sockets; the others share the first."""
    first = _FIRST_BUS[role]
    return first + index * ((_LAST_BUS - first) // count if role is Role.GPU else 1)


def _port(bdf: Bdf, group: int, kind: PortType = PortType.ROOT_PORT, ports: tuple[Bdf, ...] = ()) -> SimulatedFunction:
    """A port with its access control as the kernel leaves it at boot; an upstream port has none."""
    identity = ROOT_PORT if kind is PortType.ROOT_PORT else SWITCH
    function = PciFunction(bdf, identity, PCI_BRIDGE, None, "pcieport", group, 0, ports)
    access = None if kind is PortType.UPSTREAM else REQUIRED
    return SimulatedFunction(function, FunctionState(answers=True), kind=kind, access=access)


def _drive(bdf: Bdf, group: int, ports: tuple[Bdf, ...]) -> SimulatedFunction:
    drive = PciFunction(bdf, PciId(0x144D, 0xA824), PciClass(0x0108), None, "nvme", group, 0, ports)
    return SimulatedFunction(drive, FunctionState(answers=True, reset_methods=("flr", "bus")))


def _member(role: Role, kind: Devices, bdf: Bdf, port: Bdf, group: int) -> SimulatedFunction:
    model = kind.models[0]
    node = 1 if bdf.bus >= _SECOND_SOCKET else 0
    driver = "mlx5_core" if kind.vpd else ""
    function = PciFunction(bdf, model.id, kind.pci_class, PciId(model.id.vendor, 0x16C1), driver, group, node, (port,))
    methods = ("flr", "bus") if role is Role.GPU else ("bus",)
    state = FunctionState(answers=True, link=_LINK, bars=_BARS[role], reset_methods=methods)
    vpd = f"ConnectX-7 {kind.vpd} management".encode() if kind.vpd else b""
    serial = 0x48B0_2DFF_FE00_0000 | bdf.bus if role is Role.GPU else 0
    return SimulatedFunction(function, state, vpd, serial=serial)
