# SPDX-License-Identifier: Apache-2.0
"""Which PCI functions of a host are a board's, and what is wrong with them. `control.discovery` asks the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from fmctl.core.pci import Bdf, FunctionState, PciFunction
from fmctl.core.platform import Devices, Platform


class Role(str, Enum):
    """What a function is to the board."""

    GPU = "gpu"
    NVSWITCH = "nvswitch"
    MEMORY_CONTROLLER = "memory-controller"


class Fault(str, Enum):
    """In what way a host differs from its platform file."""

    MISSING = "missing"
    EXTRA = "extra"
    DEAD = "dead"
    DEGRADED = "degraded"


@dataclass(frozen=True)
class Device:
    """A function of the board, with the name of its model; `state` is None where it vanished while it was looked at."""

    role: Role
    model: str
    function: PciFunction
    state: FunctionState | None = None


@dataclass(frozen=True)
class Problem:
    """One difference between host and platform file, in words."""

    fault: Fault
    role: Role
    text: str


@dataclass(frozen=True)
class Inventory:
    """The board's functions by role and address, and what is wrong with them."""

    platform: Platform
    devices: tuple[Device, ...]
    problems: tuple[Problem, ...]


def kinds(platform: Platform) -> dict[Role, Devices]:
    """The kinds of function that the platform file names, by role."""
    named = {Role.GPU: platform.gpus, Role.NVSWITCH: platform.nvswitches}
    if platform.memory_controller is not None:
        named[Role.MEMORY_CONTROLLER] = platform.memory_controller
    return named


def wants_vpd(platform: Platform, functions: Iterable[PciFunction]) -> tuple[Bdf, ...]:
    """The functions whose vital product data must be read to tell whether they are the board's."""
    wanting = [kind for kind in kinds(platform).values() if kind.vpd]
    return tuple(f.bdf for f in functions if any(_has_identity(kind, f) for kind in wanting))


def match(platform: Platform, functions: Sequence[PciFunction], vpds: Mapping[Bdf, bytes]) -> tuple[Device, ...]:
    """The functions that are the board's: by class, id and, where the platform file says so, vital product data."""
    return tuple(
        Device(role, _model(kind, function), function)
        for role, kind in kinds(platform).items()
        for function in functions
        if _has_identity(kind, function) and (not kind.vpd or kind.vpd.encode() in vpds.get(function.bdf, b""))
    )


def distance(platform: Platform, devices: Sequence[Device]) -> int | None:
    """By how many functions the host differs from the platform's counts; None if it has no GPU of that platform."""
    if not any(device.role is Role.GPU for device in devices):
        return None
    return sum(
        abs(_count(devices, role) - kind.count) for role, kind in kinds(platform).items() if kind.count is not None
    )


def judge(platform: Platform, devices: Sequence[Device]) -> Inventory:
    """The inventory of devices whose state was asked for, with every difference from the platform file."""
    problems = [problem for role, kind in kinds(platform).items() for problem in _counted(role, kind, devices)]
    problems += [problem for device in devices for problem in _asked(device)]
    return Inventory(platform, tuple(devices), tuple(problems))


def _has_identity(kind: Devices, function: PciFunction) -> bool:
    return function.pci_class == kind.pci_class and any(model.id == function.id for model in kind.models)


def _model(kind: Devices, function: PciFunction) -> str:
    return next(model.name for model in kind.models if model.id == function.id)


def _count(devices: Iterable[Device], role: Role) -> int:
    return sum(device.role is role for device in devices)


def _counted(role: Role, kind: Devices, devices: Sequence[Device]) -> list[Problem]:
    found = _count(devices, role)
    if kind.count is None or found == kind.count:
        return []
    fault = Fault.MISSING if found < kind.count else Fault.EXTRA
    return [Problem(fault, role, f"{found} of {kind.count} {role.value} functions are there")]


def _asked(device: Device) -> list[Problem]:
    name = f"{device.role.value} {device.function.bdf}"
    state = device.state
    if state is None:
        return [Problem(Fault.MISSING, device.role, f"{name} vanished while it was looked at")]
    if not state.answers:
        return [Problem(Fault.DEAD, device.role, f"{name} does not answer: its registers read as all ones")]
    if state.link is not None and state.link.is_degraded:
        return [
            Problem(
                Fault.DEGRADED,
                device.role,
                f"{name} has {state.link.width} of {state.link.max_width} PCI Express lanes",
            )
        ]
    return []
