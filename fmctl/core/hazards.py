# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the host's kernel, in how it was started or what it has loaded, for passthrough to be safe.

`core.isolation` adds what is wrong with the board's place in the PCI tree. `iommu=pt` and `iommu.passthrough=1` are
fine: they concern the devices that drivers of the host have, never those of VFIO.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fmctl.core import acs
from fmctl.core.finding import Finding
from fmctl.core.kernel import AMD, GPU_DRIVERS, INTEL, PARAMETERS, VFIO_PCI, KernelFacts, parameters


@dataclass(frozen=True)
class _Hazard:
    what: str
    why: str
    fix: str = "take it off the kernel's command line, and reboot"


_EVERYWHERE = "take it off the kernel's command line and out of /etc/modprobe.d, and reboot"
_HAZARDS = {
    "pcie-acs-override": _Hazard(
        "the kernel takes devices for separate that may not be",
        "with it, IOMMU groups look right where devices reach each other past the IOMMU",
    ),
    "pci-noacs": _Hazard(
        "the kernel was told to leave access control of PCI Express ports off",
        "without it devices reach each other past the IOMMU; a stock kernel ignores the option, another may not",
    ),
    "disable-acs-redir": _Hazard(
        "the kernel was told to let ports send requests straight to other devices",
        "these requests go past the IOMMU, while IOMMU groups may look right",
    ),
    "config-acs": _Hazard(
        "the kernel was told to switch off what keeps requests from going straight to other devices",
        "these requests go past the IOMMU, while IOMMU groups may look right",
    ),
    "noiommu-mode": _Hazard(
        "VFIO gives out devices that no IOMMU holds back",
        "a tenant could have its device read and write all memory of the host",
        _EVERYWHERE,
    ),
    "unsafe-interrupts": _Hazard(
        "VFIO gives out devices whose interrupts nothing checks",
        "a tenant could have its device raise any interrupt of the host",
        _EVERYWHERE,
    ),
    "interrupt-remapping-off": _Hazard(
        "the IOMMU does not check the interrupts of devices",
        "a tenant could have its device raise any interrupt of the host, and VFIO refuses such a host",
        "take it off the kernel's command line, switch interrupt remapping (on Intel, VT-d with x2APIC) on in the"
        " firmware's setup, and reboot",
    ),
}


def judge(facts: KernelFacts) -> tuple[Finding, ...]:
    """What is wrong with the kernel, what weighs most first."""
    return (*_iommu(facts), *_hazards(facts), *_vfio_pci(facts), *_gpu_drivers(facts))


def refused(command_line: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The parameters that must go, each with its finding's name; several options of one parameter are told apart."""
    options = ((name, option) for name, value in parameters(command_line) for option in _options(name, value))
    named = ((_hazard(name, option), f"{name}={option}" if option else name) for name, option in options)
    return tuple((hazard, parameter) for hazard, parameter in named if hazard)


def switches_off(facts: KernelFacts) -> tuple[str, ...]:
    """The parameters that keep the IOMMU off, where it is off."""
    return () if facts.iommus else _switches(facts, "off")


def switches_on(facts: KernelFacts) -> tuple[str, ...]:
    """The parameters to add where the IOMMU is off: many kernels leave Intel's off by themselves, and none AMD's."""
    lacking = facts.vendor == INTEL and not facts.iommus and not _switches(facts, "on")
    return ("intel_iommu=on",) if lacking else ()


def firmware_switch(facts: KernelFacts) -> str:
    """What the firmware's setup calls the IOMMU, where that is off."""
    return "" if facts.iommus else _FIRMWARE_NAMES.get(facts.vendor, "the IOMMU")


def _switches(facts: KernelFacts, option: str) -> tuple[str, ...]:
    names = ("iommu", _SWITCHES.get(facts.vendor, ""))
    values = [(name, value) for name, value in parameters(facts.command_line) if name in names]
    return tuple(f"{name}={value}" for name, value in values if option in value.split(","))


_SWITCHES = {INTEL: "intel_iommu", AMD: "amd_iommu"}
_FIRMWARE_NAMES = {INTEL: "VT-d", AMD: "the IOMMU (AMD-Vi)"}


def _options(name: str, value: str) -> list[str]:
    return value.split(",") if name in ("pci", "intremap") else [value]


def _hazard(name: str, option: str) -> str:
    """The hazard that a parameter is, empty where it is none."""
    module, _, parameter = name.partition(".")
    if PARAMETERS.get(module, "-") == parameter:
        return _PARAMETER_HAZARDS[parameter] if _is_true(option) else ""
    if name == "pci":
        return _pci_hazard(option)
    if name == "nointremap" or (name == "intremap" and option in ("off", "nosid")):
        return "interrupt-remapping-off"
    return "pcie-acs-override" if name in ("pcie_acs_override", "pci_acs_override") else ""


_PARAMETER_HAZARDS = {
    "enable_unsafe_noiommu_mode": "noiommu-mode",
    "allow_unsafe_interrupts": "unsafe-interrupts",
}


def _is_true(value: str) -> bool:
    """As the kernel reads a boolean parameter, which is true without a value, too."""
    return not value or value[0] in "yYtT1" or value.lower().startswith("on")


def _pci_hazard(option: str) -> str:
    name, _, value = option.partition("=")
    if name == "config_acs":
        return "config-acs" if any(_weakens(part.partition("@")[0]) for part in value.split(";")) else ""
    return {"noacs": "pci-noacs", "disable_acs_redir": "disable-acs-redir"}.get(name, "")


def _weakens(flags: str) -> bool:
    """Whether these flags of `config_acs`, the last of them bit 0, switch a required control off or egress control on.

    An `x` leaves a control to the firmware; what came of that the registers tell.
    """
    digits = dict(enumerate(reversed(flags)))
    bits = {control: digits.get(control.bit_length() - 1) for control in acs.Control}
    off = any(bits[control] == "0" for control in acs.Control if control & acs.REQUIRED)
    return off or bits[acs.Control.EGRESS_CONTROL] == "1"


def _hazards(facts: KernelFacts) -> Iterator[Finding]:
    signs = [*refused(facts.command_line), *_signs(facts)]
    for name, hazard in _HAZARDS.items():
        found = dict.fromkeys(sign for named, sign in signs if named == name)
        if found:
            yield Finding(name, f"{hazard.what}: {', '.join(found)}", hazard.why, hazard.fix)


def _signs(facts: KernelFacts) -> Iterator[tuple[str, str]]:
    """What tells of hazards beside the command line, by the name of the hazard."""
    for module, parameter in PARAMETERS.items():
        value = facts.modules.get(module, "")
        if value and _is_true(value):
            yield _PARAMETER_HAZARDS[parameter], f"/sys/module/{module}/parameters/{parameter} is {value}"
    for group in facts.vfio_groups:
        if group.startswith("noiommu-"):
            yield "noiommu-mode", f"/sys/class/vfio/{group} is there"
    if facts.iommus and "IO-APIC" in facts.interrupt_chips:
        yield "interrupt-remapping-off", "interrupts come from IO-APIC, not from IR-IO-APIC"


def _iommu(facts: KernelFacts) -> Iterator[Finding]:
    if facts.iommus:
        return
    off, on = switches_off(facts), switches_on(facts)
    steps = [f"take {' and '.join(off)} off the kernel's command line"] if off else []
    steps += [f"add {' and '.join(on)} to the kernel's command line"] if on else []
    steps += [f"switch {firmware_switch(facts)} on in the firmware's setup", "reboot"]
    yield Finding(
        "iommu-off",
        "the IOMMU is off" + (f": {', '.join(off)}" if off else ""),
        "/sys/class/iommu is empty; without an IOMMU there is no passthrough, and nothing holds a device back",
        f"{', '.join(steps[:-1])}, and {steps[-1]}",
    )


def _vfio_pci(facts: KernelFacts) -> Iterator[Finding]:
    if VFIO_PCI in facts.modules:
        return
    if facts.has_vfio_pci:
        yield Finding(
            "vfio-pci-not-loaded",
            "the driver vfio-pci is not loaded",
            "VMs get PCI functions through it alone",
            "run `modprobe vfio-pci`, and `fmctl host prepare --write` to have it at every boot",
        )
    else:
        yield Finding(
            "vfio-pci-missing",
            f"the kernel, {facts.release or 'of unknown release'}, has no driver vfio-pci",
            "VMs get PCI functions through it alone, and modprobe would not find it",
            "install the package with the rest of this kernel's modules, or a kernel with CONFIG_VFIO_PCI",
        )


def _gpu_drivers(facts: KernelFacts) -> Iterator[Finding]:
    loaded = [module for module in GPU_DRIVERS if module in facts.modules]
    if loaded:
        yield Finding(
            "gpu-driver-loaded",
            f"drivers of GPUs are loaded on the host: {', '.join(loaded)}",
            "they take GPUs and NVSwitches that belong to VMs, and may change their state",
            f"run `fmctl host prepare --write`, remove packages that load them, and `modprobe -r {' '.join(loaded)}`,"
            " or reboot",
        )
