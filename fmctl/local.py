# SPDX-License-Identifier: Apache-2.0
"""One host, put together: `host`, or `sim` in its place, under `control`.

Commands that need no daemon act on it, and `daemon` serves on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fmctl import files, platforms, process, templates
from fmctl.control import discovery, isolation
from fmctl.control.clean import Tools
from fmctl.control.discovery import NoBoard
from fmctl.control.gpus import Gpus
from fmctl.control.mapreader import AdminTools
from fmctl.control.sparing import SparingBus
from fmctl.control.vfio import Vfio
from fmctl.core import clean, domain_xml, gpumap, hostprep, signature, tenantcheck, tenantvm
from fmctl.core.book import Entry
from fmctl.core.capacity import Capacity
from fmctl.core.domain_xml import Rendered
from fmctl.core.errors import AgentUnreachable, InvalidDocument, VmRunning
from fmctl.core.finding import Finding
from fmctl.core.fingerprint import Machine
from fmctl.core.gpumap import GpuMap
from fmctl.core.hostprep import FileState, Preparation
from fmctl.core.image import Image
from fmctl.core.inventory import Inventory
from fmctl.core.pci import Bdf
from fmctl.core.platform import Platform
from fmctl.core.ports import DescriptorStore, FirmwareReader, HookFiles, ImageStore, Kernel, Registers, VfioDevices
from fmctl.core.settings import CleanSettings, DaemonSettings
from fmctl.core.signature import Trust
from fmctl.core.template import Template
from fmctl.core.tenantvm import QemuVersion, TenantVm
from fmctl.core.values import AbsolutePath
from fmctl.core.vfio import Step
from fmctl.host import capacity, keyfiles, machine, rebuild, storefile
from fmctl.host.firmware import RomFiles
from fmctl.host.hookfiles import HostHookFiles
from fmctl.host.hostfiles import HostFiles
from fmctl.host.imagefiles import ImageFolder, own
from fmctl.host.images import FolderImages
from fmctl.host.kernel import HostKernel
from fmctl.host.lock import queued
from fmctl.host.registers import HostRegisters
from fmctl.host.sysfs import Sysfs
from fmctl.host.vfiodev import VfioFiles
from fmctl.process import CommandFailed

if TYPE_CHECKING:
    from fmctl.sim.host import SimulatedHost

STORE, JOURNAL = "leases.db", "audit.jsonl"
"""The store of leases in the state folder, and its audit journal."""
SIMULATED_KERNEL = AbsolutePath.parse("/boot/simulated-service-vm")
"""What a pretended Service VM boots, where the settings name no kernel."""
ADMIN_TOOLS_TIMEOUT = 60.0
"""Seconds that NVIDIA's gpu-admin-tools may take with one GPU."""
_BOTH_OUTPUTS = ("sh", "-c", 'exec "$@" 2>&1', "sh")
"""Runs a command whose log, which goes to standard error, is its answer."""
_QEMU_TIMEOUT = 10.0
"""Seconds that QEMU may take to tell its version."""
LIBVIRT_URI = "qemu:///system"
"""How libvirt is reached where no setting says so."""
_LIBVIRT_TIMEOUT = 3.0
"""Seconds that libvirt has to list its domains, for a command that goes on without."""


@dataclass(frozen=True)
class Host:
    """One host's adapters, real or pretended, and the boards that it may have."""

    bus: SparingBus
    kernel: Kernel
    devices: VfioDevices
    firmware: FirmwareReader
    boards: Sequence[Platform]
    capacity: Callable[[], Capacity]
    """What it has for the memory of VMs; raises FmctlError."""
    qemu: Callable[[str], QemuVersion | None]
    """What the QEMU of that name says of itself; None where it cannot be asked."""
    hook_files: Callable[[Path], HookFiles]
    """What it keeps of libvirt's hook, in that folder of the daemon's."""
    lock: Callable[[], AbstractContextManager[None]] = nullcontext
    files: HostFiles | None = None
    """Its files; a pretended host has none."""
    registers: Registers | None = None
    machine: Callable[[], Machine] = Machine
    """Its boot and firmware, which are the same for as long as a process lives."""
    written_map: Callable[[], str] = str
    """What a person wrote of a pretended host's GPU map."""
    pretended_tools: AdminTools | None = None
    """A pretended host's gpu-admin-tools."""

    def inventory(self) -> Inventory:
        """The board as it is now; raises NoBoard."""
        return discovery.discover(self.bus, self.boards)

    def findings(self, inventory: Inventory) -> tuple[Finding, ...]:
        """What makes passthrough of the board unsafe or impossible."""
        return isolation.check(self.bus, self.kernel, inventory)

    def check(self, inventory: Inventory) -> None:
        """Raise HostCordoned where passthrough of the board is not safe."""
        isolation.refuse(self.findings(inventory))

    def vfio(self, *, tell: Callable[[Step], None], dry_run: bool = False) -> Vfio:
        """The drivers of its board; `tell` hears of every step."""
        return Vfio(self.bus, self.devices, lock=self.lock, tell=tell, dry_run=dry_run)

    def tools(self) -> Tools:
        """What its GPUs are cleaned with."""
        return Tools(self.bus, self.devices, self.firmware, self.bus.sparing)

    def preparation(self) -> tuple[Preparation, tuple[FileState, ...]]:
        """What must be set once, and what lies in each file's place; raises FmctlError."""
        plan = hostprep.plan(self.kernel.facts())
        if self.files is None:
            return plan, tuple(hostprep.compare(file, None) for file in plan.files)
        return plan, self.files.states(plan.files)

    def prepare(self, *, force: bool) -> tuple[Preparation, tuple[FileState, ...]]:
        """The same, with the files written; tells what lay in their place before. Raises FmctlError."""
        plan = hostprep.plan(self.kernel.facts())
        return plan, self.files.write(plan.files, force=force) if self.files else ()

    def images(self, settings: DaemonSettings) -> ImageStore | None:
        """The images that the Service VM can boot; None where the settings name its files, and on a pretended host."""
        vm = settings.service_vm
        return None if self.files is None or vm.kernel or vm.root_image else image_store(settings)

    def service_vm(self, settings: DaemonSettings, inventory: Inventory, image: Image | None = None) -> Rendered:
        """The Service VM's domain as it would be started with that board now, from that image or from the files that
        the settings name; raises FmctlError.
        """
        vm = settings.service_vm
        if self.files is None and image is None:
            vm = dataclasses.replace(vm, kernel=vm.kernel or SIMULATED_KERNEL)
        return domain_xml.render_service_vm(domain_xml.service_vm(vm, inventory, image), _templates(settings))

    def map_file(self, settings: DaemonSettings) -> tuple[str, str] | None:
        """The name and the text of the map that a person wrote; None where nobody did. Raises FmctlError."""
        if self.files is None:
            text = self.written_map()
            return ("a pretended person's map", text) if text else None
        path = settings.gpu_map
        return (str(path), files.read(Path(path.path))) if path else None

    def admin_tools(self, settings: DaemonSettings) -> AdminTools | None:
        """What asks NVIDIA's gpu-admin-tools, where they are set; raises CommandFailed when it is called."""
        command = settings.gpu_admin_tools
        if self.pretended_tools is not None or not command:
            return self.pretended_tools
        return lambda bdf: process.run(
            [*_BOTH_OUTPUTS, *command, "--devices", str(bdf), "--query-module-name"], timeout=ADMIN_TOOLS_TIMEOUT
        )

    def for_tenant(self, settings: DaemonSettings, gpu_map: GpuMap | None) -> tenantvm.Host:
        """The host as a tenant VM sees it; without a map its GPUs are taken in the order of their addresses."""
        found = self.inventory()
        qemu = self.qemu(str(settings.tenant_vm.emulator or "qemu-system-x86_64"))
        return tenantvm.Host(found, gpu_map or gpumap.in_order(found), self.capacity(), qemu)


def this_host(
    platform: str = "",
    root: Path = Path("/"),
    store: DescriptorStore | None = None,
    stored: Mapping[str, int] | None = None,
) -> Host:
    """The host that this process runs on, with the named board or any; `root` has its sys, dev, proc, etc and run.

    `store` holds IOMMU groups while the process is started again, and `stored` is what it held.
    """
    return Host(
        SparingBus(Sysfs(root / "sys")),
        HostKernel(root),
        VfioFiles(root, store=store, stored=stored),
        RomFiles(root),
        [platforms.resolve(platform)] if platform else list(platforms.every()),
        functools.partial(capacity.read, root),
        _qemu_version,
        functools.partial(HostHookFiles, root),
        queued(root / "run" / "fmctl" / "host.lock"),
        HostFiles(root),
        HostRegisters(root),
        functools.cache(functools.partial(machine.read, root)),
    )


def pretended_host(platform: str) -> Host:
    """A host with that board, which this process alone knows; raises FmctlError."""
    from fmctl.sim.host import SimulatedHost

    board = platforms.resolve(platform)
    return around(SimulatedHost(board), board)


def around(simulated: SimulatedHost, board: Platform) -> Host:
    """A pretended host, put together."""
    from fmctl.sim.capacity import CAPACITY, QEMU
    from fmctl.sim.hookfiles import MemoryHookFiles

    return Host(
        SparingBus(simulated.bus),
        simulated.kernel,
        simulated.devices,
        simulated.firmware,
        [board],
        lambda: CAPACITY,
        lambda program: QEMU,
        lambda run_dir: MemoryHookFiles(),
        registers=simulated.registers,
        machine=lambda: simulated.machine,
        written_map=simulated.written_map,
        pretended_tools=simulated.admin_tools,
    )


def tenant_vm(settings: DaemonSettings, vm: TenantVm) -> Rendered:
    """A tenant VM's document; raises FmctlError."""
    return tenantvm.render_tenant_vm(vm, _templates(settings))


def tenant_devices(settings: DaemonSettings, devices: Iterable[Bdf]) -> Rendered:
    """The elements that give these GPUs to a VM, without the rest of its document; raises FmctlError."""
    return tenantvm.render_devices(devices, _templates(settings))


def image_store(settings: DaemonSettings, keys: Sequence[Path] = ()) -> FolderImages:
    """The Service VM's images on this host, which the settings' keys vouch for, or `keys` instead."""
    return FolderImages(Path(settings.image_dir.path), _trust(settings, keys))


def refuse_open(settings: DaemonSettings, gpus: Collection[int]) -> None:
    """Raise VmRunning where somebody has one of these GPUs of this host open, or where that cannot be told."""
    host = this_host(settings.platform)
    try:
        host.inventory()
        file = host.map_file(settings)
        written = gpumap.parse(*file) if file else None
        vfio = host.vfio(tell=lambda step: None)
        held = Gpus(host.inventory, lambda inventory: written, vfio, None, verified=lambda inventory: None).open()
        unknown = "somebody has GPUs open, and which cannot be told without root's rights and the setting gpu_map"
    except NoBoard:
        held, unknown = None, "this host has no such board, so who has its GPUs open cannot be told from here"
    users = sorted({holder for gpu, holder in (held or {}).items() if gpu in gpus})
    if held is None or users:
        raise VmRunning(
            f"the GPUs {','.join(map(str, sorted(gpus)))} {'are' if users else 'may be'} in use",
            why=f"{', '.join(users)} has them open" if users else unknown,
            fix="stop that VM first" if users else "run this as root on the host of that Service VM",
        )


def verify_service_vm(settings: DaemonSettings, cid: int) -> None:
    """Raise AgentUnreachable unless libvirt says that the running Service VM of the settings has that context id.

    Raises another FmctlError where libvirt does not answer.
    """
    from fmctl.host.hypervisor import Libvirt

    with contextlib.closing(Libvirt(settings.libvirt_uri or LIBVIRT_URI)) as hypervisor:
        domains = hypervisor.domains(timeout=_LIBVIRT_TIMEOUT)
    own = next((domain for domain in domains if domain.uuid == str(settings.service_vm.uuid)), None)
    if own is None or own.cid != cid:
        raise AgentUnreachable(
            f"the VM with the context id {cid} is not called",
            why="the Service VM does not run" if own is None else f"the Service VM has the context id {own.cid}",
            fix="give the Service VM's, as service_vm in fmctld.yaml has it",
        )


def clean_rules(settings: CleanSettings) -> clean.Rules:
    """How GPUs are cleaned, with the operator's list read; raises InvalidDocument where it cannot be."""
    path = settings.firmware_list
    known = None if path is None else clean.firmware_list(files.read(Path(path.path)), str(path))
    for command in (settings.memory_command, settings.firmware_command):
        if command and shutil.which(command[0]) is None:
            raise InvalidDocument(
                f"{command[0]} cannot be run", why="it is no program", fix="correct the settings' clean"
            )
    return clean.Rules(
        settings.memory,
        settings.memory_command,
        settings.memory_timeout_s,
        settings.firmware,
        settings.firmware_command,
        settings.firmware_timeout_s,
        known,
        settings.reset_timeout_s or None,
    )


def backup_store(settings: DaemonSettings, target: Path) -> None:
    """Copy the store of leases into a new file; raises FmctlError."""
    storefile.backup(Path(settings.state_dir.path) / STORE, target)


def rebuild_store(settings: DaemonSettings, *, dry_run: bool) -> tuple[Path | None, tuple[Entry, ...]]:
    """Make the store of leases anew from its journal: where the old one is now, and what the new one begins with.

    Raises FmctlError.
    """
    folder = Path(settings.state_dir.path)
    if dry_run:
        return None, rebuild.planned(folder / JOURNAL, time.time())
    return rebuild.rebuild(folder / STORE, folder / JOURNAL, time.time())


def read_image(folder: Path) -> Image:
    """An image that lies anywhere, as its manifest says it is; raises ImageRefused."""
    return ImageFolder(folder, str(folder), owners=None).read()


def image_folder(folder: Path, settings: DaemonSettings, keys: Sequence[Path] = ()) -> Image:
    """An image that lies anywhere, after every check but that of its owners; raises ImageRefused."""
    return ImageFolder(folder, str(folder), owners=None).vouched(_trust(settings, keys))


def sign_image(folder: Path, key: Path) -> tuple[Path, str]:
    """Sign an image whose files are as its manifest says; where the signature is now, and the key's fingerprint."""
    pem = keyfiles.private(key)
    image = ImageFolder(folder, str(folder), owners=None)
    image.vouched(Trust(tuple, require_signature=False))
    path = keyfiles.write_signature(folder, signature.sign(image.manifest(), pem))
    return path, signature.fingerprint(signature.public_of(pem))


def write_keys(path: Path, pair: signature.KeyPair) -> Path:
    """Write a new private key, and its public half beside it, whose path is returned; raises FmctlError."""
    return keyfiles.write(path, pair)


def _trust(settings: DaemonSettings, keys: Sequence[Path]) -> Trust:
    if keys:
        return Trust(lambda: keyfiles.named(keys))
    pinned = [Path(key.path) for key in settings.image_keys]
    return Trust(lambda: keyfiles.pinned(pinned, owners=own()), require_signature=settings.require_signature)


def _templates(settings: DaemonSettings) -> dict[str, Template]:
    return templates.read(Path(settings.template_dir.path) if settings.template_dir else None)


def _qemu_version(program: str) -> QemuVersion | None:
    try:
        return tenantcheck.qemu_version(process.run([program, "--version"], timeout=_QEMU_TIMEOUT))
    except CommandFailed:
        return None
