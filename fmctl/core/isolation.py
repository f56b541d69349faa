# SPDX-License-Identifier: Apache-2.0
"""Whether passthrough on a host is safe: the kernel's settings, the IOMMU groups, and access control in the PCI tree.

The rule for access control (ACS). What counts are the ports above a device of the board, and the device itself where it
is one function of several:

- A function with the ACS capability must have on what it can have of source validation, request redirect, completion
  redirect and upstream forwarding, and egress control off. The kernel sees to the former at boot, and firmware leaves
  the latter off.
- A root port or a downstream port without the capability is a finding where a device in another group could be reached
  through it: below the same switch for a downstream port, below the port itself for a root port. Devices in one group
  go to one VM, so that what they do to each other is that VM's own affair. Between root ports the kernel trusts the
  root complex, and so does fmctl.
- What cannot be read is a finding: no knowledge is no safety.

`control.isolation` reads what is judged here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fmctl.core import hazards
from fmctl.core.acs import NONE, REQUIRED, Acs, Control, Unreadable
from fmctl.core.finding import Finding
from fmctl.core.inventory import Device, Inventory, Role
from fmctl.core.kernel import KernelFacts
from fmctl.core.pci import PCI_BRIDGE, Bdf, PciFunction

Access = Mapping[Bdf, "Acs | Unreadable"]
"""What each function that counts says of access control."""


def judge(
    facts: KernelFacts, inventory: Inventory, access: Access, functions: Sequence[PciFunction]
) -> tuple[Finding, ...]:
    """All that makes passthrough unsafe or impossible; `functions` may be empty unless `wants_functions`.

    Of a host whose IOMMU is off nothing is said of groups and ports, since the kernel then makes and sets up none.
    """
    found = hazards.judge(facts)
    if not facts.iommus:
        return found
    return (
        *found,
        *_groups(inventory),
        *_unreadable(inventory, access),
        *_cleared(access),
        *_missing(inventory, access, functions),
    )


def counting(inventory: Inventory) -> tuple[Bdf, ...]:
    """The functions whose access control counts: the ports above the board's devices, and these themselves."""
    found = {bdf for device in inventory.devices for bdf in (*device.function.ports, device.function.bdf)}
    return tuple(sorted(found))


def wants_functions(access: Access) -> bool:
    """Whether the host's other functions matter: they do where a port has no access control."""
    return any(_lacks(found) for found in access.values())


def _groups(inventory: Inventory) -> Iterator[Finding]:
    bare = [device for device in inventory.devices if device.function.iommu_group is None]
    if bare:
        yield Finding(
            "no-iommu-group",
            f"devices have no IOMMU group: {_named(bare)}",
            "no IOMMU holds them back, so they cannot be given to a VM",
            "switch the IOMMU on for their part of the host in the firmware's setup, or update the firmware",
        )
    for group, members in sorted(_by_group(inventory).items()):
        gpus = [device for device in members if device.role is Role.GPU]
        if len(gpus) > 1:
            yield Finding(
                "gpu-shares-group",
                f"GPUs share IOMMU group {group}: {_named(gpus)}",
                "they can reach each other past the IOMMU, and go to one VM alone, so two tenants cannot have them",
                _APART,
            )
        if gpus and len(members) > len(gpus):
            yield Finding(
                "gpu-in-switch-group",
                f"IOMMU group {group} holds a GPU and what the Service VM has: {_named(members)}",
                "a tenant's GPU could reach the NVSwitches past the IOMMU",
                _APART,
            )


_APART = (
    "switch access control (ACS) on in the firmware's setup, or update the firmware; pcie_acs_override would only hide"
    " it"
)


def _by_group(inventory: Inventory) -> dict[int, list[Device]]:
    groups: dict[int, list[Device]] = {}
    for device in inventory.devices:
        if device.function.iommu_group is not None:
            groups.setdefault(device.function.iommu_group, []).append(device)
    return groups


def _named(devices: Iterable[Device]) -> str:
    return ", ".join(f"{device.role.value} {device.function.bdf}" for device in devices)


@dataclass(frozen=True)
class _Riddle:
    why: str
    fix: str


_RIDDLES = {
    Unreadable.UNPRIVILEGED: _Riddle("the kernel shows the rest of it to root alone", "run this as root"),
    Unreadable.SHORT: _Riddle(
        "the kernel reaches no more than its first 256 bytes",
        "take pci=nommconf off the kernel's command line, if it is there, or update the firmware",
    ),
    Unreadable.SILENT: _Riddle("it reads as all ones", "see `dmesg` for what became of the port, and reboot"),
    Unreadable.GONE: _Riddle("the port is no longer there", "run this again"),
}


def _unreadable(inventory: Inventory, access: Access) -> Iterator[Finding]:
    """A device of the board that does not answer is `core.inventory`'s affair; the ports above it still count."""
    devices = {device.function.bdf for device in inventory.devices}
    for reason, riddle in _RIDDLES.items():
        ports = [bdf for bdf, found in access.items() if found is reason and bdf not in devices]
        if ports:
            yield Finding(
                "acs-unreadable",
                f"the configuration space does not tell whether access control is on: {_listed(ports)}",
                f"{riddle.why}; without access control, devices reach each other past the IOMMU",
                riddle.fix,
            )


def _cleared(access: Access) -> Iterator[Finding]:
    by_fault: dict[tuple[Control, Control], list[Bdf]] = {}
    for bdf, found in access.items():
        if isinstance(found, Acs) and found.wrong:
            by_fault.setdefault((found.wrong, _wanted(found)), []).append(bdf)
    for (wrong, wanted), ports in by_fault.items():
        value, mask = int(wanted), int(wanted | Control.EGRESS_CONTROL)
        yield Finding(
            "acs-cleared",
            f"ports let requests past the IOMMU ({_described(wrong)}): {_listed(ports)}",
            "access control (ACS) was changed after the kernel set it at boot, as scripts for GPUDirect do; IOMMU"
            " groups still look right, but devices behind these ports reach each other",
            f"remove what changes it, and `setpci -s PORT ECAP_ACS+6.w={value:x}:{mask:x}` for each port, or reboot",
        )


def _wanted(found: Acs) -> Control:
    return REQUIRED & (found.able or NONE)


def _described(wrong: Control) -> str:
    names = [(control.name or "").lower().replace("_", " ") for control in Control if control & wrong & REQUIRED]
    off = [f"{', '.join(names)} off"] if names else []
    on = ["egress control on"] if wrong & Control.EGRESS_CONTROL else []
    return "; ".join(off + on)


def _missing(inventory: Inventory, access: Access, functions: Sequence[PciFunction]) -> Iterator[Finding]:
    endpoints = [function for function in functions if function.pci_class != PCI_BRIDGE]
    leaky: dict[Bdf, list[str]] = {}
    for device in inventory.devices:
        for depth, port in enumerate(device.function.ports):
            found = access.get(port)
            if found is not None and _lacks(found):
                reached = [str(f.bdf) for f in _reached(device.function, depth, endpoints)]
                leaky.setdefault(port, []).extend(bdf for bdf in reached if bdf not in leaky.get(port, []))
    for port, reached in leaky.items():
        if reached:
            yield Finding(
                "acs-missing",
                f"port {port} has no access control, and leads to devices in other IOMMU groups: {', '.join(reached)}",
                "a device of the board behind it reaches them past the IOMMU, whatever the groups say",
                _APART,
            )


def _lacks(found: Acs | Unreadable) -> bool:
    return isinstance(found, Acs) and found.routes and found.able is None


def _reached(device: PciFunction, depth: int, endpoints: Iterable[PciFunction]) -> Iterator[PciFunction]:
    """What a device reaches through the port of its ports at that depth, in another group."""
    common = device.ports[: max(depth, 1)]
    for endpoint in endpoints:
        if endpoint.ports[: len(common)] == common and endpoint.iommu_group != device.iommu_group:
            yield endpoint


def _listed(bdfs: Iterable[Bdf]) -> str:
    return ", ".join(map(str, bdfs))
