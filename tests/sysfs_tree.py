# SPDX-License-Identifier: Apache-2.0
"""A pretended host's PCI functions as files, laid out as the kernel lays them out."""

from __future__ import annotations

from pathlib import Path

from fmctl.core.pci import Bdf, FunctionState
from fmctl.sim.sysfs import SimulatedBus, SimulatedFunction


def write(bus: SimulatedBus, root: Path) -> None:
    """Make bus/pci/devices below `root`, with links into a tree of folders that shows the ports."""
    links = root / "bus" / "pci" / "devices"
    links.mkdir(parents=True)
    for simulated in bus.everything():
        _write_function(simulated, root, links)


def folder(root: Path, bdf: Bdf) -> Path:
    """The folder of one function."""
    return root / "bus" / "pci" / "devices" / str(bdf)


def _write_function(simulated: SimulatedFunction, root: Path, links: Path) -> None:
    function = simulated.function
    parts = [f"pci{function.bdf.domain:04x}:00", *map(str, function.ports), str(function.bdf)]
    device = root.joinpath("devices", *parts)
    device.mkdir(parents=True, exist_ok=True)
    (links / str(function.bdf)).symlink_to(Path("../../../devices", *parts))
    attributes = {
        "vendor": f"0x{function.id.vendor:04x}",
        "device": f"0x{function.id.device:04x}",
        "class": f"0x{function.pci_class.code:04x}00",
        "numa_node": "-1" if function.numa_node is None else str(function.numa_node),
        "subsystem_vendor": f"0x{function.subsystem.vendor:04x}" if function.subsystem else "",
        "subsystem_device": f"0x{function.subsystem.device:04x}" if function.subsystem else "",
        **_state(simulated.state),
    }
    for name, text in attributes.items():
        if text:
            (device / name).write_text(text + "\n")
    (device / "driver_override").write_text("(null)\n")
    (device / "config").write_bytes(simulated.config)
    if simulated.vpd:
        (device / "vpd").write_bytes(simulated.vpd)
    if function.driver:
        (device / "driver").symlink_to(f"../../bus/pci/drivers/{function.driver}")
    if function.iommu_group is not None:
        (device / "iommu_group").symlink_to(f"../../kernel/iommu_groups/{function.iommu_group}")


def _state(state: FunctionState) -> dict[str, str]:
    texts = {"reset_method": " ".join(state.reset_methods), "resource": _resource(state.bars)}
    if state.link:
        texts["current_link_speed"] = f"{state.link.speed:.1f} GT/s PCIe"
        texts["max_link_speed"] = f"{state.link.max_speed:.1f} GT/s PCIe"
        texts["current_link_width"] = str(state.link.width)
        texts["max_link_width"] = str(state.link.max_width)
    return texts


def _resource(bars: tuple[int, ...]) -> str:
    start, lines = 1 << 40, []
    for size in bars:
        end = start + size - 1 if size else 0
        lines.append(f"0x{start if size else 0:016x} 0x{end:016x} 0x{0x14220C if size else 0:016x}")
        start += size
    return "\n".join(lines)
