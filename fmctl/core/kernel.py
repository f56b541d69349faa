# SPDX-License-Identifier: Apache-2.0
"""What the host's kernel says of itself, as far as the safety of passthrough hangs on it.

`host.kernel` reads it, and `core.hazards` tells what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

INTEL = "GenuineIntel"
AMD = "AuthenticAMD"

VFIO_PCI = "vfio_pci"
GPU_DRIVERS = (
    "nvidia_uvm",
    "nvidia_peermem",
    "nvidia_drm",
    "nvidia_modeset",
    "nvidia",
    "nvidiafb",
    "nouveau",
    "nova_core",
)
"""Modules that drive GPUs or NVSwitches on the host, where none may, in an order in which they can be unloaded."""

PARAMETERS = {
    "vfio": "enable_unsafe_noiommu_mode",
    "vfio_iommu_type1": "allow_unsafe_interrupts",
    "iommufd": "allow_unsafe_interrupts",
}
"""The parameter by which each of these modules gives up what passthrough relies on."""

WATCHED = (VFIO_PCI, *GPU_DRIVERS, *PARAMETERS)
"""Every module that is asked for."""


@dataclass(frozen=True)
class KernelFacts:
    """The running kernel.

    `modules` are those of WATCHED that are loaded or built in, each with the value of its parameter in PARAMETERS,
    empty where it has none; `has_vfio_pci` is whether vfio-pci is among them or modprobe would find it. `iommus` are
    the names in /sys/class/iommu, `vfio_groups` those in /sys/class/vfio, and `interrupt_chips` the chips that serve
    the first sixteen interrupts.
    """

    command_line: tuple[str, ...] = ()
    modules: Mapping[str, str] = field(default_factory=dict)
    has_vfio_pci: bool = False
    iommus: tuple[str, ...] = ()
    vfio_groups: tuple[str, ...] = ()
    interrupt_chips: tuple[str, ...] = ()
    vendor: str = ""
    """The processor's vendor, as /proc/cpuinfo writes it: GenuineIntel or AuthenticAMD."""
    release: str = ""
    """The kernel's, as `uname -r` prints it."""


def words(command_line: str) -> tuple[str, ...]:
    """The kernel's own parameters of /proc/cmdline; what follows `--` is for the first process.

    Quotes keep blanks together, and those around a word or its value fall away.
    """
    found, quoted = [""], False
    for character in command_line.strip():
        quoted ^= character == '"'
        if character.isspace() and not quoted:
            found.append("")
        elif character != '"':
            found[-1] += character
    kept = [word for word in found if word]
    return tuple(kept[: kept.index("--")] if "--" in kept else kept)


def parameters(command_line: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Each parameter's name, dashes read as the underscores that they are to the kernel, and its value."""
    for word in command_line:
        name, _, value = word.partition("=")
        yield name.replace("-", "_"), value
