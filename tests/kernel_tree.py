# SPDX-License-Identifier: Apache-2.0
"""What a pretended host's kernel says of itself, as files, laid out as the kernel and depmod lay them out."""

from __future__ import annotations

from pathlib import Path

from fmctl.core.kernel import PARAMETERS, VFIO_PCI, KernelFacts


def write(facts: KernelFacts, root: Path) -> None:
    """Make proc, sys and lib/modules below `root`."""
    put(root / "proc/cmdline", "BOOT_IMAGE=/boot/vmlinuz " + " ".join(facts.command_line))
    put(root / "proc/sys/kernel/osrelease", facts.release)
    processor = f"processor\t: 0\nvendor_id\t: {facts.vendor}\ncpu family\t: 6\nflags\t\t: fpu vme\n\n"
    put(root / "proc/cpuinfo", processor * 64)
    for name, value in facts.modules.items():
        load(root, name, value)
    folder = root / "lib/modules" / facts.release
    put(folder / "modules.dep", module_list("drm/drm", *(["vfio/pci/vfio-pci"] if facts.has_vfio_pci else [])))
    put(folder / "modules.builtin", "kernel/drivers/pci/hotplug/shpchp.ko\n")
    for number, chip in enumerate((*facts.interrupt_chips, "(null)", "")):
        put(root / f"sys/kernel/irq/{number}/chip_name", chip)
    for name in facts.iommus:
        (root / "sys/class/iommu" / name).mkdir(parents=True)
    for name in facts.vfio_groups:
        (root / "sys/class/vfio" / name).mkdir(parents=True)


def load(root: Path, module: str, value: str = "") -> None:
    """Let a module be loaded, with this value of the parameter that matters."""
    parameters = root / "sys/module" / module / "parameters"
    parameters.mkdir(parents=True, exist_ok=True)
    if value:
        put(parameters / PARAMETERS[module], value)
    elif module == VFIO_PCI:
        put(parameters / "ids", "")


def module_list(*names: str, suffix: str = ".ko.zst") -> str:
    """Lines of modules.dep."""
    return "".join(f"kernel/drivers/{name}{suffix}: kernel/lib/other{suffix}\n" for name in names)


def put(path: Path, text: str) -> None:
    """A file with one line more than the text, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
