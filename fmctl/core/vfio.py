# SPDX-License-Identifier: Apache-2.0
"""By which writes functions get vfio-pci, or no driver at all: the decisions. `control.vfio` acts on them.

A parked function has no driver, none may claim it, and it cannot use the bus: there is nothing that a VM could open.
`core.groups` says which functions go to vfio-pci together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from fmctl.core.errors import FabricNotReady, FmctlError, VmRunning
from fmctl.core.inventory import Role
from fmctl.core.pci import Bdf, PciFunction

VFIO_PCI = "vfio-pci"
PARKED = "fmctl-parked"
"""A driver that does not exist: a function whose override names it stays without a driver."""

COMMAND = 4
"""Where the command register is in a function's configuration space (PCI Local Bus Specification 3.0, 6.2.2)."""
BUS_MASTER = 0x04
"""The bit of the command register that lets a function read and write memory by itself."""


@dataclass(frozen=True)
class Holder:
    """A process that has an IOMMU group open; `vm_uuid` is the VM that it says it is, empty where it does not."""

    pid: int
    command: str
    vm_uuid: str = ""

    def __str__(self) -> str:
        return f"{self.command} (process {self.pid})"


class WriteFailed(FmctlError):
    """The kernel refused a write to sysfs."""


class WriteOverdue(FmctlError):
    """A write to sysfs did not end in time; the kernel may be at it still."""


class HostBusy(FabricNotReady):
    """Another fmctl process changes this host's devices. Nothing was changed."""


@dataclass(frozen=True)
class Exposure:
    """What a function without a driver is open to: one driver alone, any if `override` is empty, and the bus."""

    override: str = ""
    masters_bus: bool = False


class Binding(str, Enum):
    """Who may use a function: a VM, nobody, any driver, or the host; unknown where the kernel does not tell in time."""

    BOUND = "bound"
    PARKED = "parked"
    FREE = "free"
    HOST = "host"
    UNKNOWN = "unknown"


class Action(str, Enum):
    """One write to sysfs, with the text that tells of it."""

    OVERRIDE = "set driver_override to {}"
    UNBIND = "unbind from {}"
    STOP_BUS_MASTER = "stop bus mastering"
    PROBE = "bind to {}"


@dataclass(frozen=True)
class Step:
    """One write, and the driver that it is about; as text a line for a person."""

    bdf: Bdf
    action: Action
    driver: str = ""

    def __str__(self) -> str:
        return f"{self.bdf}: {self.action.value.format(self.driver)}"

    def has_worked(self, function: PciFunction, exposure: Exposure | None) -> bool:
        """Whether the kernel now shows what the step was to bring."""
        if self.action is Action.UNBIND:
            return not function.driver
        if self.action is Action.PROBE:
            return function.driver == self.driver
        if exposure is None:
            return False
        return exposure.override == self.driver if self.action is Action.OVERRIDE else not exposure.masters_bus


@dataclass(frozen=True)
class Usage:
    """A function of the board as it is now.

    `holders` have its IOMMU group open: see `VfioDevices.holders`. `exposure` is there only where it was asked for.
    """

    role: Role
    function: PciFunction
    holders: tuple[Holder, ...] | None = None
    exposure: Exposure | None = None

    @property
    def is_held(self) -> bool:
        """Whether any process has the group open."""
        return self.holders is not None

    @property
    def binding(self) -> Binding:
        """Who may use the function; the exposure of one that has a driver does not matter."""
        if self.function.driver:
            return Binding.BOUND if self.function.driver == VFIO_PCI else Binding.HOST
        if self.exposure is None:
            return Binding.UNKNOWN
        return Binding.PARKED if self.exposure == Exposure(PARKED) else Binding.FREE

    @property
    def held_by(self) -> str:
        """The holders, for a person; empty where there is none."""
        return (" and ".join(map(str, self.holders or ())) or "a process that cannot be seen") if self.is_held else ""

    def __str__(self) -> str:
        return f"{self.role.value} {self.function.bdf} is held by {self.held_by or 'nobody'}"


def masters_bus(config: bytes) -> bool:
    """Whether a function may read and write memory by itself, from its configuration space; not if it is dead."""
    return len(config) > COMMAND and not config.startswith(b"\xff\xff") and bool(config[COMMAND] & BUS_MASTER)


def bind(members: Sequence[PciFunction], exposures: Mapping[Bdf, Exposure | None]) -> tuple[Step, ...]:
    """The steps by which these functions get vfio-pci, none for those that have it.

    Every one is released before the first is bound, as the kernel wants it of a group.
    """
    lacking = [member for member in members if member.driver != VFIO_PCI]
    released = [step for member in lacking for step in _release(member, VFIO_PCI, exposures.get(member.bdf))]
    return (*released, *(Step(member.bdf, Action.PROBE, VFIO_PCI) for member in lacking))


def park(functions: Sequence[PciFunction], exposures: Mapping[Bdf, Exposure | None]) -> tuple[Step, ...]:
    """The steps by which these functions lose their driver, and the power to use the bus; none for a parked one."""
    return tuple(step for function in functions for step in _park(function, exposures.get(function.bdf)))


def refuse_held(usages: Iterable[Usage]) -> None:
    """Raise VmRunning, naming the holders, if any of these is held."""
    held = [usage for usage in usages if usage.is_held]
    if held:
        raise VmRunning(
            "what a VM uses is left as it is",
            why="; ".join(map(str, held)),
            fix="stop that VM, and run the same again",
        )


def _release(function: PciFunction, override: str, exposure: Exposure | None) -> Iterator[Step]:
    """The override comes first, so that no other driver can step in."""
    if function.driver or exposure is None or exposure.override != override:
        yield Step(function.bdf, Action.OVERRIDE, override)
    if function.driver:
        yield Step(function.bdf, Action.UNBIND, function.driver)


def _park(function: PciFunction, exposure: Exposure | None) -> Iterator[Step]:
    """A driver may leave bus mastering on when it goes."""
    yield from _release(function, PARKED, exposure)
    if function.driver or exposure is None or exposure.masters_bus:
        yield Step(function.bdf, Action.STOP_BUS_MASTER)
