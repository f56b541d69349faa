# SPDX-License-Identifier: Apache-2.0
"""Commands that act on the host with no daemon, put together: `host`, or `sim` in its place, under `control`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from fmctl import platforms, process, templates
from fmctl.control import discovery, isolation
from fmctl.control.vfio import Vfio
from fmctl.core import domain_xml, gpumap, hostprep, tenantcheck, tenantvm
from fmctl.core.domain_xml import Rendered
from fmctl.core.finding import Finding
from fmctl.core.gpumap import GpuMap
from fmctl.core.hostprep import FileState, Preparation
from fmctl.core.inventory import Inventory
from fmctl.core.platform import Platform
from fmctl.core.ports import Kernel, PciBus, VfioDevices
from fmctl.core.settings import AbsolutePath, DaemonSettings
from fmctl.core.template import Template
from fmctl.core.tenantvm import QemuVersion, TenantVm
from fmctl.core.vfio import Step
from fmctl.host import capacity
from fmctl.host.hostfiles import HostFiles
from fmctl.host.kernel import HostKernel
from fmctl.host.lock import locked
from fmctl.host.sysfs import Sysfs
from fmctl.host.vfiodev import VfioFiles
from fmctl.process import CommandFailed

SIMULATED_KERNEL = AbsolutePath.parse("/boot/simulated-service-vm")
"""What a pretended Service VM boots, where the settings name no kernel."""
_QEMU_TIMEOUT = 10.0
"""Seconds that QEMU may take to tell its version."""


@dataclass(frozen=True)
class Host:
    """One host's adapters, real or pretended, and the boards that it may have."""

    bus: PciBus
    kernel: Kernel
    devices: VfioDevices
    boards: Sequence[Platform]
    lock: Callable[[], AbstractContextManager[None]] = nullcontext

    def inventory(self) -> Inventory:
        """The board as it is now; raises NoBoard."""
        return discovery.discover(self.bus, self.boards)

    def check(self, inventory: Inventory) -> None:
        """Raise HostCordoned where passthrough of the board is not safe."""
        isolation.refuse(isolation.check(self.bus, self.kernel, inventory))


def this_host(platform: str = "", root: Path = Path("/")) -> Host:
    """The host that this process runs on, with the named board or any; `root` has its sys, dev, proc and run."""
    boards = [platforms.resolve(platform)] if platform else list(platforms.every())
    lock = functools.partial(locked, root / "run" / "fmctl.lock")
    return Host(Sysfs(root / "sys"), HostKernel(root), VfioFiles(root), boards, lock)


def inventory(platform: str = "", root: Path = Path("/sys")) -> Inventory:
    """The board of this host: the named one, or the one that the host's functions fit; raises FmctlError."""
    known = [platforms.resolve(platform)] if platform else list(platforms.every())
    return discovery.discover(Sysfs(root), known)


def simulated_inventory(platform: str) -> Inventory:
    """The board of a pretended host; raises FmctlError."""
    from fmctl.sim.sysfs import SimulatedBus

    board = platforms.resolve(platform)
    return discovery.discover(SimulatedBus(board), [board])


def vfio(
    platform: str, simulate: str | None, root: Path, *, tell: Callable[[Step], None], dry_run: bool = False
) -> tuple[Vfio, Inventory]:
    """The drivers of this host's board, or of a pretended host's with the board `simulate`; raises FmctlError."""
    host = _simulated_host(simulate) if simulate else this_host(platform, root)
    return Vfio(host.bus, host.devices, lock=host.lock, tell=tell, dry_run=dry_run), host.inventory()


def _simulated_host(platform: str) -> Host:
    from fmctl.sim.kernel import SimulatedKernel
    from fmctl.sim.sysfs import SimulatedBus
    from fmctl.sim.vfiodev import SimulatedVfio

    board = platforms.resolve(platform)
    bus = SimulatedBus(board)
    return Host(bus, SimulatedKernel(), SimulatedVfio(bus), [board])


def host_check(platform: str = "", root: Path = Path("/")) -> tuple[Platform, tuple[Finding, ...]]:
    """The board of this host, and what makes passthrough of it unsafe or impossible; raises FmctlError."""
    found = inventory(platform, root / "sys")
    return found.platform, isolation.check(Sysfs(root / "sys"), HostKernel(root), found)


def simulated_host_check(platform: str) -> tuple[Platform, tuple[Finding, ...]]:
    """The same of a pretended host; raises FmctlError."""
    from fmctl.sim.kernel import SimulatedKernel
    from fmctl.sim.sysfs import SimulatedBus

    board = platforms.resolve(platform)
    bus = SimulatedBus(board)
    return board, isolation.check(bus, SimulatedKernel(), discovery.discover(bus, [board]))


def prepare_host(
    root: Path = Path("/"), *, write: bool = False, force: bool = False
) -> tuple[Preparation, tuple[FileState, ...]]:
    """What must be set once on this host, and what lay in each file's place before any is written."""
    plan, files = hostprep.plan(HostKernel(root).facts()), HostFiles(root)
    return plan, files.write(plan.files, force=force) if write else files.states(plan.files)


def simulated_host_preparation(platform: str) -> tuple[Preparation, tuple[FileState, ...]]:
    """The same of a pretended host, which has none of the files; raises FmctlError."""
    from fmctl.sim.kernel import SimulatedKernel

    platforms.resolve(platform)
    plan = hostprep.plan(SimulatedKernel().facts())
    return plan, tuple(hostprep.compare(file, None) for file in plan.files)


def service_vm(settings: DaemonSettings, inventory: Inventory) -> Rendered:
    """The Service VM's domain as it would be started on a host with that board; raises FmctlError."""
    return domain_xml.render_service_vm(domain_xml.service_vm(settings.service_vm, inventory), _templates(settings))


def simulated_service_vm(settings: DaemonSettings, inventory: Inventory) -> Rendered:
    """The same on a pretended host, which has a kernel for it where the settings name none; raises FmctlError."""
    vm = dataclasses.replace(settings.service_vm, kernel=settings.service_vm.kernel or SIMULATED_KERNEL)
    return service_vm(dataclasses.replace(settings, service_vm=vm), inventory)


def tenant_host(settings: DaemonSettings, platform: str, root: Path, gpu_map: GpuMap | None) -> tenantvm.Host:
    """This host as a tenant VM sees it; without a map its GPUs are taken in the order of their addresses."""
    found = inventory(platform or settings.platform, root / "sys")
    qemu = _qemu_version(str(settings.tenant_vm.emulator or "qemu-system-x86_64"))
    return tenantvm.Host(found, gpu_map or gpumap.in_order(found), capacity.read(root), qemu)


def simulated_tenant_host(platform: str, gpu_map: GpuMap | None) -> tenantvm.Host:
    """A pretended host as a tenant VM sees it, with a QEMU that has no need to be installed; raises FmctlError."""
    from fmctl.sim.capacity import CAPACITY, QEMU

    found = simulated_inventory(platform)
    return tenantvm.Host(found, gpu_map or gpumap.in_order(found), CAPACITY, QEMU)


def tenant_vm(settings: DaemonSettings, vm: TenantVm) -> Rendered:
    """A tenant VM's document; raises FmctlError."""
    return tenantvm.render_tenant_vm(vm, _templates(settings))


def _templates(settings: DaemonSettings) -> dict[str, Template]:
    return templates.read(Path(settings.template_dir.path) if settings.template_dir else None)


def _qemu_version(program: str) -> QemuVersion | None:
    """What a QEMU says of itself; None where it cannot be asked."""
    try:
        return tenantcheck.qemu_version(process.run([program, "--version"], timeout=_QEMU_TIMEOUT))
    except CommandFailed:
        return None
