# SPDX-License-Identifier: Apache-2.0
"""Which functions are passed on together, and what may not be passed on. `core.vfio` decides by which writes.

The unit of passthrough is the IOMMU group: all of its endpoints go to vfio-pci. Bridges stay as they are, since the
kernel lets a group be used beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fmctl.core.errors import BadRequest, FmctlError, HostCordoned
from fmctl.core.inventory import Inventory, Role
from fmctl.core.pci import PCI_BRIDGE, Bdf, PciClass, PciFunction

_OTHER_BRIDGES = (PciClass(0x0600), PciClass(0x0601))
"""Host and ISA bridges."""
_LAYOUT_FIX = (
    "change the slots, or the firmware's ACS settings, so that the kernel makes other groups;"
    " never pcie_acs_override, which hides what a group is"
)


def ours(functions: Iterable[PciFunction], inventory: Inventory, wanted: Iterable[Bdf]) -> tuple[PciFunction, ...]:
    """The wanted functions as they are now; raises BadRequest or FmctlError for one that cannot be acted on."""
    present = {function.bdf: function for function in functions}
    known = roles(inventory)
    found = []
    for bdf in dict.fromkeys(wanted):
        if bdf not in known:
            raise BadRequest(
                f"{bdf} is not a function of the board", why=inventory.platform.title, fix="see `fmctl inventory`"
            )
        if bdf not in present:
            raise gone(bdf)
        found.append(present[bdf])
    return tuple(found)


def members(functions: Sequence[PciFunction], inventory: Inventory, wanted: Iterable[Bdf]) -> tuple[PciFunction, ...]:
    """Every endpoint of the IOMMU groups that the wanted functions are in.

    Raises as `ours` does, and HostCordoned for a group that may not be passed on: one with an endpoint that is not the
    board's, or one with a GPU and anything else.
    """
    found: list[PciFunction] = []
    for group in dict.fromkeys(_group(function) for function in ours(functions, inventory, wanted)):
        endpoints = [f for f in functions if f.iommu_group == group and not _is_bridge(f)]
        _refuse_mixed(group, endpoints, roles(inventory))
        found += endpoints
    return tuple(found)


def gone(bdf: Bdf) -> FmctlError:
    """What to say of a function that the kernel no longer lists."""
    return FmctlError(f"{bdf} is gone", why="the kernel no longer lists it", fix="see `dmesg` and `fmctl inventory`")


def roles(inventory: Inventory) -> dict[Bdf, Role]:
    """What each function is to the board."""
    return {device.function.bdf: device.role for device in inventory.devices}


def _group(function: PciFunction) -> int:
    if function.iommu_group is None:
        raise HostCordoned(
            f"{function.bdf} is in no IOMMU group",
            why="the IOMMU is off",
            fix="see `fmctl host check` for what to set in the firmware and on the kernel's command line",
        )
    return function.iommu_group


def _is_bridge(function: PciFunction) -> bool:
    """Whether the kernel lets a group be used beside it: a PCI bridge, or another one that has no driver."""
    return function.pci_class == PCI_BRIDGE or (function.pci_class in _OTHER_BRIDGES and not function.driver)


def _refuse_mixed(group: int, endpoints: Sequence[PciFunction], known: Mapping[Bdf, Role]) -> None:
    foreign = [endpoint for endpoint in endpoints if endpoint.bdf not in known]
    if foreign:
        raise HostCordoned(
            f"IOMMU group {group} has a device that is not the board's",
            why="; ".join(f"{f.bdf} ({f.id}), driver {f.driver or 'none'}" for f in foreign),
            fix=_LAYOUT_FIX,
        )
    if len(endpoints) > 1 and any(known[endpoint.bdf] is Role.GPU for endpoint in endpoints):
        raise HostCordoned(
            f"a GPU shares IOMMU group {group}, and would reach what is not its tenant's",
            why=", ".join(f"{known[endpoint.bdf].value} {endpoint.bdf}" for endpoint in endpoints),
            fix=_LAYOUT_FIX,
        )
