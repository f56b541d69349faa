# SPDX-License-Identifier: Apache-2.0
"""The host's kernel as its files show it: the port `Kernel`. `sim.kernel` is its other side.

Files of /proc and /sys are those of the kernel's Documentation/ABI and filesystems/proc.rst, those of /lib/modules as
kmod's depmod writes them.
"""

from __future__ import annotations

import re
from pathlib import Path

from fmctl.core.kernel import PARAMETERS, VFIO_PCI, WATCHED, KernelFacts, words
from fmctl.host.attributes import content, names, text

_CPUINFO_LIMIT = 1024
"""Enough for the first processor's vendor; the whole file takes the kernel long on a host with many."""
_MODULE_LIST_LIMIT = 16 << 20
_INTERRUPTS = 16


class HostKernel:
    """Reads below `root`, which is / on a host."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def facts(self) -> KernelFacts:
        """Its command line, modules and IOMMUs, as they are now."""
        classes, release = self._root / "sys" / "class", text(self._root / "proc/sys/kernel/osrelease")
        modules = self._modules()
        return KernelFacts(
            command_line=words(text(self._root / "proc" / "cmdline")),
            modules=modules,
            has_vfio_pci=VFIO_PCI in modules or self._can_load(release, VFIO_PCI),
            iommus=names(classes / "iommu"),
            vfio_groups=names(classes / "vfio"),
            interrupt_chips=self._interrupt_chips(),
            vendor=self._vendor(),
            release=release,
        )

    def _modules(self) -> dict[str, str]:
        loaded = self._root / "sys" / "module"
        return {
            name: text(loaded / name / "parameters" / PARAMETERS[name]) if name in PARAMETERS else ""
            for name in WATCHED
            if (loaded / name).is_dir()
        }

    def _can_load(self, release: str, module: str) -> bool:
        """Whether modprobe would find a module, compressed or not, or the kernel has it built in."""
        folder = self._root / "lib" / "modules" / release
        file = re.compile(rb"^\S*/%s\.ko[.:\s]" % module.replace("_", "[-_]").encode(), re.MULTILINE)
        lists = (folder / "modules.dep", folder / "modules.builtin")
        return bool(release) and any(file.search(content(path, _MODULE_LIST_LIMIT)) for path in lists)

    def _interrupt_chips(self) -> tuple[str, ...]:
        interrupts = self._root / "sys" / "kernel" / "irq"
        chips = {text(interrupts / str(number) / "chip_name") for number in range(_INTERRUPTS)}
        return tuple(sorted(chips - {"", "(null)"}))

    def _vendor(self) -> str:
        found = re.search(r"^vendor_id\s*: (\S+)", text(self._root / "proc" / "cpuinfo", _CPUINFO_LIMIT), re.MULTILINE)
        return found[1] if found else ""
