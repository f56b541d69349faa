# SPDX-License-Identifier: Apache-2.0
"""The Service VM's keeper over a pretended host: libvirt, PCI tree, drivers, agent and Fabric Manager in memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from fmctl import platforms
from fmctl.control import discovery
from fmctl.control.agent import LocalAgent
from fmctl.control.domain import World
from fmctl.control.gate import HostGate
from fmctl.control.operator import Operator
from fmctl.control.servicevm import ServiceVm
from fmctl.control.vfio import Vfio
from fmctl.core.answers import AgentStatus, ServiceVmState, StartMode
from fmctl.core.domain import Domain
from fmctl.core.domain_xml import Rendered
from fmctl.core.errors import AgentUnreachable, HostCordoned
from fmctl.core.image import AGENT, FILES, MANIFEST, Image
from fmctl.core.inventory import Inventory, Role
from fmctl.core.loglines import LogPosition, LogStream
from fmctl.core.partition import PartitionList
from fmctl.core.pci import Bdf
from fmctl.core.servicevm import Rules
from fmctl.core.settings import ServiceVmSettings
from fmctl.core.signature import Trust
from fmctl.core.vfio import HostBusy
from fmctl.sim.fmservice import MemoryProcess
from fmctl.sim.generation import MemoryGeneration
from fmctl.sim.host import SimulatedHost
from fmctl.sim.images import MemoryImages
from fmctl.sim.nvfm import MemoryNvfm
from tests.support import eventually

SETTINGS = ServiceVmSettings()
UUID = str(SETTINGS.uuid)
PAIR = (3, 4)
"""Places of two GPUs among the board's."""
BROKEN = b"an agent that never answers"


def image_files(*, agent: bytes = b"agent", root: bytes = b"root", driver: str = "580.95.05") -> dict[str, bytes]:
    """The files of an image, with the manifest that vouches for them."""
    files = {**dict.fromkeys(FILES, b"x"), AGENT: agent, "root.squashfs": root}
    manifest = {
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "format": 1,
        "kernel_arguments": "console=ttyS0",
        "packages": {},
        "simulated": False,
        "versions": {"agent": "0.1.0", "debian": "12", "kernel": "6.1", "python": "3.11", "driver": driver}
        | {"fabric_manager": driver},
    }
    return {**files, MANIFEST: json.dumps(manifest).encode()}


def image_store(**images: dict[str, bytes]) -> MemoryImages:
    """A store with these images, unsigned."""
    store = MemoryImages(Trust(lambda: (), require_signature=False))
    for name, files in images.items():
        store.put(name, files)
    return store


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Guest:
    """The agent in the Service VM, with the Fabric Manager that it starts: both live as long as the domain."""

    def __init__(self, clock: Clock) -> None:
        self.nvfm = MemoryNvfm(None, clock=clock)
        self.process = MemoryProcess(self.nvfm, platforms.load("hgx-h100-8"), clock)
        self.agent = LocalAgent(
            self.nvfm, self.process, self._restarted, library="", call_timeout=30, clock=clock, pause=lambda _: None
        )
        self.runs = False
        self.answers = True
        self.boots_mute = False
        self.restarts = 0
        self.heals = True
        self.started: list[StartMode] = []
        self.digest = ""
        self.replaced: list[str] = []
        self.silent_for = 0

    def boot(self) -> None:
        self.process.reboot()
        self.runs, self.answers = True, not self.boots_mute

    def end(self) -> None:
        self.process.reboot()
        self.runs = False

    def status(self, *, timeout: float) -> AgentStatus:
        return replace(self._reached().status(timeout=timeout), digest=self.digest)

    def replace(self, archive: bytes, digest: str, *, timeout: float) -> None:
        self._reached()
        self.replaced.append(digest)
        if archive == BROKEN:
            self.silent_for = 3
        else:
            self.digest = digest

    def logs(self, after: LogPosition) -> LogStream:
        raise AgentUnreachable("this guest tells no logs")

    def start_fabric_manager(self, mode: StartMode, active: Sequence[int], *, timeout: float) -> None:
        reached = self._reached()
        self.started.append(mode)
        reached.start_fabric_manager(mode, active, timeout=timeout)

    def restart(self, *, timeout: float) -> None:
        self.restarts += 1
        self.answers = self.answers or self.heals
        self._reached().restart(timeout=timeout)

    def list_partitions(self, *, timeout: float) -> PartitionList:
        return self._reached().list_partitions(timeout=timeout)

    def activate(self, partition_id: int, *, timeout: float) -> None:
        self._reached().activate(partition_id, timeout=timeout)

    def deactivate(self, partition_id: int, *, timeout: float) -> None:
        self._reached().deactivate(partition_id, timeout=timeout)

    def set_activated(self, partition_ids: Sequence[int], *, timeout: float) -> None:
        self._reached().set_activated(partition_ids, timeout=timeout)

    def _reached(self) -> LocalAgent:
        self.silent_for -= 1
        if not self.runs or not self.answers or self.silent_for >= 0:
            raise AgentUnreachable("the agent does not answer")
        return self.agent

    def _restarted(self) -> None:
        return None


class Host(SimulatedHost):
    """A whole pretended host with its keeper, whose steps the test takes one by one."""

    def __init__(self, rules: Rules | None = None, interval: float = 5.0, images: MemoryImages | None = None) -> None:
        self.clock = Clock()
        self.images = images
        self.board = platforms.load("hgx-h100-8")
        self.guest = Guest(self.clock)
        super().__init__(self.board, self._guest)
        self.unsafe = ""
        self.busy = False
        self.changes = 0
        self.template = "1"
        self.active: tuple[int, ...] = ()
        self.generation = MemoryGeneration()
        self.images_refused: set[str] = set()
        world = World(
            self.hypervisor,
            self.guest,
            Vfio(self.bus, self.devices, lock=self._lock),
            self.inventory,
            self._check,
            self._render,
            lambda: self.active,
            self.generation,
            self.images,
        )
        self.keeper = ServiceVm(world, SETTINGS, rules or Rules(), interval=interval, clock=self.clock)
        self.operator = Operator(self.keeper)

    @contextlib.contextmanager
    def _guest(self, domain: Domain) -> Iterator[None]:
        if domain.uuid != UUID:
            yield
            return
        self.guest.boot()
        if self.images is not None and domain.image:
            self.guest.digest = self.images.read(domain.image).manifest.files[AGENT]
            self.guest.answers = self.images.agent(domain.image) != BROKEN
        try:
            yield
        finally:
            self.guest.end()

    def inventory(self) -> Inventory:
        return discovery.discover(self.bus, [self.board])

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        self.changes += 1
        if self.busy:
            raise HostBusy("another fmctl process changes this host's devices")
        yield

    def _check(self, inventory: Inventory) -> None:
        if self.unsafe:
            raise HostCordoned("passthrough is not safe on this host", why=self.unsafe, fix="mend it")

    def gate(self) -> HostGate:
        return HostGate(self.inventory, self._check, self.keeper)

    def _render(self, inventory: Inventory, image: Image | None) -> Rendered:
        if image is not None:
            self.hypervisor.refuse("no such machine type" if image.name in self.images_refused else "")
        devices = "".join(_hostdev(d.function.bdf) for d in inventory.devices if d.role is not Role.GPU)
        name = image.name if image else ""
        mark = (
            f"<fmctl:service-vm xmlns:fmctl='urn:fmctl:domain:1' fingerprint='{self.template}{name}' image='{name}'/>"
        )
        xml = (
            f"<domain><name>{SETTINGS.name}</name><uuid>{UUID}</uuid><metadata>{mark}</metadata><devices>{devices}"
            f"<vsock><cid auto='no' address='{SETTINGS.cid}'/></vsock></devices></domain>"
        )
        return Rendered(xml, f"{self.template}{name}")

    def step(self, after: float = 0.0) -> ServiceVmState:
        """One step, and what the status says then."""
        self.clock.now += after
        self.keeper.step()
        return self.keeper.status().state

    def ready(self) -> Host:
        """Take steps until it is ready; a guest boots in a thread of its own."""
        eventually(lambda: self.step(0.1) is ServiceVmState.READY)
        return self

    def tenant(self, name: str = "tenant", places: Sequence[int] = PAIR) -> None:
        """Start a VM with the GPUs at these places."""
        bdfs = [self.gpus[place] for place in places]
        Vfio(self.bus, self.devices).bind(self.inventory(), bdfs)
        self.hypervisor.add_tenant(name, bdfs)

    @property
    def gpus(self) -> list[Bdf]:
        return [d.function.bdf for d in self.inventory().devices if d.role is Role.GPU]

    @property
    def switches(self) -> list[Bdf]:
        return [d.function.bdf for d in self.inventory().devices if d.role is not Role.GPU]

    def drivers(self, bdfs: Sequence[Bdf]) -> set[str]:
        return {function.driver for function in self.bus.functions() if function.bdf in bdfs}

    def domain(self) -> Domain | None:
        return next((d for d in self.hypervisor.domains(timeout=1) if d.uuid == UUID), None)

    def resets(self) -> int:
        """How often the board's switches have been reset."""
        return sum(self.devices.resets[bdf] for bdf in self.switches)


def _hostdev(bdf: Bdf) -> str:
    where = f"domain='{bdf.domain:#x}' bus='{bdf.bus:#x}' slot='{bdf.device:#x}' function='{bdf.function:#x}'"
    return f"<hostdev mode='subsystem' type='pci' managed='no'><source><address {where}/></source></hostdev>"
