# SPDX-License-Identifier: Apache-2.0
"""Drivers of PCI functions through sysfs, and who holds an IOMMU group: the port `VfioDevices`.

A write to sysfs, or a read that the kernel answers under the same lock, can hang in the kernel for as long as a driver
likes. So each goes through `host.sysfsaccess`, which gives up past a deadline. Attributes are those of the kernel's
Documentation/ABI/testing/sysfs-bus-pci. `sim.vfiodev` is the other side.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from fmctl.core.errors import FmctlError, VmRunning
from fmctl.core.pci import Bdf
from fmctl.core.ports import DescriptorStore
from fmctl.core.vfio import BUS_MASTER, COMMAND, Exposure, Holder, WriteFailed, WriteOverdue, masters_bus
from fmctl.host import sysfsaccess
from fmctl.host.attributes import content, names, target, text

_NAME = "vfio-group-"
"""What the names begin with under which groups are stored; their numbers follow."""
_COMMAND_LINE = 256 * 1024
"""Bytes of a command line that are read: QEMU's is of some kilobytes."""
_NO_NODE = (errno.ENOENT, errno.ENODEV, errno.ENXIO)


class VfioFiles:
    """Reads and writes below `root`, which has the folders sys, dev and proc; / on a host."""

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        open_node: Callable[[Path, int], int] = os.open,
        store: DescriptorStore | None = None,
        stored: Mapping[str, int] | None = None,
    ) -> None:
        """`open_node` opens a device node as os.open does, for a test that has none.

        `store` holds the groups that are kept while this process is started again, and `stored` is what it held.
        """
        self._pci = root / "sys" / "bus" / "pci"
        self._groups = root / "sys" / "kernel" / "iommu_groups"
        self._vfio = root / "dev" / "vfio"
        self._proc = root / "proc"
        self._open_node = open_node
        self._store = store
        self._opening = threading.Lock()
        """One thread at a time opens groups, or one would take another for a holder."""
        self._kept: dict[int, int] = {}
        for name, descriptor in (stored or {}).items():
            self._take_back(name, descriptor)

    def exposure(self, bdf: Bdf, *, timeout: float) -> Exposure | None:
        """What the function is open to; None where it is gone, or the kernel does not tell in time."""
        try:
            override, config = self._read(bdf, "driver_override", "config", timeout=timeout)
        except (WriteFailed, WriteOverdue):
            return None
        name = override.decode("ascii", "replace").strip()
        return Exposure("" if name == "(null)" else name, masters_bus(config))

    def override(self, bdf: Bdf, driver: str, *, timeout: float) -> None:
        """Let the kernel give the function this driver alone; with an empty name, any."""
        self._write(self._device(bdf) / "driver_override", driver, timeout=timeout)

    def unbind(self, bdf: Bdf, *, timeout: float) -> None:
        """Take the function from its driver."""
        self._write(self._device(bdf) / "driver" / "unbind", str(bdf), timeout=timeout)

    def probe(self, bdf: Bdf, *, timeout: float) -> None:
        """Let the kernel look for a driver for the function."""
        self._write(self._pci / "drivers_probe", str(bdf), timeout=timeout)

    def stop_bus_master(self, bdf: Bdf, *, timeout: float) -> None:
        """Forbid the function to read or write memory by itself; one that reads as all ones is left alone."""
        (config,) = self._read(bdf, "config", timeout=timeout)
        if masters_bus(config):
            command = int.from_bytes(config[COMMAND : COMMAND + 2], "little") & ~BUS_MASTER
            self._put(self._device(bdf) / "config", COMMAND, command.to_bytes(2, "little"), timeout=timeout)

    def reset(self, bdf: Bdf, *, method: str = "", timeout: float) -> None:
        """Reset the function by that method, or else by the first of its reset methods."""
        device = self._device(bdf)
        if not method:
            self._write(device / "reset", "1", timeout=timeout)
            return
        self._write(device / "reset_method", method, timeout=timeout)
        try:
            self._write(device / "reset", "1", timeout=timeout)
        except WriteFailed:
            self._write(device / "reset_method", "default", timeout=timeout)
            raise
        self._write(device / "reset_method", "default", timeout=timeout)

    def holders(self, group: int) -> tuple[Holder, ...] | None:
        """The processes that have the group open; None if nobody has, and empty if somebody has who cannot be seen.

        To open a group is to ask the kernel itself, and does nothing to its devices. It is held for that moment.
        """
        nodes = [self._vfio / str(group), self._vfio / f"noiommu-{group}"]
        with self._opening:
            if group in self._kept:
                return None
            states = [self._is_held(node) for node in nodes]
        if any(states):
            return self._openers([*nodes, *self._device_nodes(group)])
        if False in states:
            return None
        return self._openers(self._device_nodes(group)) or None

    @property
    def kept(self) -> frozenset[int]:
        """The groups that are kept."""
        return frozenset(self._kept)

    def keep(self, group: int) -> None:
        """Open the group, so that nobody else can."""
        with self._opening:
            if group in self._kept:
                return
            self._kept[group] = self._opened(group)
        if self._store is not None:
            self._store.store(f"{_NAME}{group}", self._kept[group])

    def _opened(self, group: int) -> int:
        """A descriptor of the group's node; raises VmRunning or FmctlError."""
        node = self._vfio / str(group)
        try:
            return self._open_node(node, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise VmRunning(f"IOMMU group {group} is in use", why="somebody has it open") from error
            raise FmctlError(
                f"IOMMU group {group} cannot be held", why=f"{node}: {error.strerror or error}", fix="see `dmesg`"
            ) from error

    def give_up(self, groups: Collection[int]) -> None:
        """Keep these groups no longer."""
        mine = [group for group in groups if group in self._kept]
        for group in mine:
            os.close(self._kept.pop(group))
        if mine and self._store is not None:
            self._store.discard([f"{_NAME}{group}" for group in mine])

    def _take_back(self, name: str, descriptor: int) -> None:
        """Keep what was kept before this process was started again; what is none of it is closed."""
        group = name.removeprefix(_NAME)
        if name.startswith(_NAME) and group.isdecimal() and int(group) not in self._kept:
            self._kept[int(group)] = descriptor
            return
        os.close(descriptor)
        if self._store is not None:
            self._store.discard([name])

    def _device(self, bdf: Bdf) -> Path:
        return self._pci / "devices" / str(bdf)

    def _is_held(self, node: Path) -> bool | None:
        """Whether some process has the node open, which one at a time can; None where there is no node."""
        try:
            os.close(self._open_node(node, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            if error.errno in _NO_NODE:
                return None
            if error.errno != errno.EBUSY:
                raise FmctlError(
                    f"who holds {node} cannot be told", why=error.strerror or str(error), fix="run as root"
                ) from error
            return True
        return False

    def _device_nodes(self, group: int) -> list[Path]:
        """The nodes by which a group's functions can be opened without the group, with iommufd."""
        found = self._groups.glob(f"{group}/devices/*/vfio-dev/vfio*")
        return [self._vfio / "devices" / node.name for node in found]

    def _openers(self, nodes: Iterable[Path]) -> tuple[Holder, ...]:
        wanted = {str(node) for node in nodes}
        if not wanted:
            return ()
        pids = (int(name) for name in names(self._proc) if name.isdecimal())
        return tuple(
            self._holder(pid) for pid in sorted(pids) if not wanted.isdisjoint(_links(f"{self._proc}/{pid}/fd"))
        )

    def _holder(self, pid: int) -> Holder:
        """A process, and the VM that its command line names, as libvirt and others start QEMU."""
        folder = self._proc / str(pid)
        arguments = content(folder / "cmdline", _COMMAND_LINE).split(b"\0")
        named = arguments[arguments.index(b"-uuid") + 1 :][:1] if b"-uuid" in arguments else []
        vm_uuid = "".join(name.decode("ascii", "replace").lower() for name in named)
        return Holder(pid, text(folder / "comm") or "?", vm_uuid)

    def _read(self, bdf: Bdf, *attributes: str, timeout: float) -> list[bytes]:
        """The first bytes of each attribute; raises as a write does."""
        paths = [str(self._device(bdf) / attribute) for attribute in attributes]
        lines = sysfsaccess.run(paths[0], "read", *paths, timeout=timeout).decode().splitlines()
        return [bytes.fromhex(line) for line in lines]

    def _write(self, path: Path, line: str, *, timeout: float) -> None:
        """Write a line; an empty one clears an attribute, where a write of nothing would not be made."""
        self._put(path, 0, f"{line}\n".encode(), timeout=timeout)

    def _put(self, path: Path, offset: int, written: bytes, *, timeout: float) -> None:
        sysfsaccess.run(str(path), "write", str(path), str(offset), written.hex(), timeout=timeout)


def _links(folder: str) -> set[str]:
    """What the open files of a process lead to, as far as they can be seen."""
    return {target(f"{folder}/{name}") for name in names(folder)}
