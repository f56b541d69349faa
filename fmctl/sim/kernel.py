# SPDX-License-Identifier: Apache-2.0
"""The kernel of a pretended host: the port `Kernel`. It is set up well for passthrough until a test says otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fmctl.core.kernel import AMD, INTEL, VFIO_PCI, KernelFacts

_ROOT = "root=/dev/nvme0n1p2"
_MODULES = {VFIO_PCI: "", "vfio": "N", "vfio_iommu_type1": "N"}
_COMMON = KernelFacts(modules=_MODULES, has_vfio_pci=True, interrupt_chips=("IR-IO-APIC",), release="6.8.0-60-generic")
_HOSTS = {
    INTEL: replace(
        _COMMON, vendor=INTEL, command_line=(_ROOT, "ro", "intel_iommu=on", "iommu=pt"), iommus=("dmar0", "dmar1")
    ),
    AMD: replace(_COMMON, vendor=AMD, command_line=(_ROOT, "ro", "iommu=pt"), iommus=("ivhd0", "ivhd1")),
}


class SimulatedKernel:
    """The kernel of a host with processors of that vendor."""

    def __init__(self, vendor: str = INTEL) -> None:
        self._facts = _HOSTS[vendor]

    def facts(self) -> KernelFacts:
        """What it says of itself now."""
        return self._facts

    def change(self, **fields: Any) -> None:
        """Let it say other things, such as no `iommus`."""
        self._facts = replace(self._facts, **fields)

    def boot_with(self, *parameters: str) -> None:
        """Let its command line have these parameters, too."""
        self.change(command_line=(*self._facts.command_line, *parameters))

    def load(self, module: str, parameter: str = "") -> None:
        """Let a module be loaded, with this value of the parameter that matters."""
        self.change(modules={**self._facts.modules, module: parameter})

    def unload(self, module: str) -> None:
        """Let a module not be loaded; modprobe still finds it."""
        self.change(modules={name: value for name, value in self._facts.modules.items() if name != module})
