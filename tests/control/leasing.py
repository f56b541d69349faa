# SPDX-License-Identifier: Apache-2.0
"""A host whose leases are tested: the daemon's real controller, in virtual time, over everything else in memory.

The daemon can die at any commit and at any call to the agent, before or after it; the next one finds what was
committed. The line to the agent can be cut, lose answers, and let a change happen long after its caller gave it up.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest

from fmctl import platforms
from fmctl.control import discovery
from fmctl.control.agent import LocalAgent
from fmctl.control.clean import Cleaner, Tools
from fmctl.control.controller import FabricController
from fmctl.control.exits import VmExits
from fmctl.control.gpus import Gpus
from fmctl.control.sparing import SparingBus
from fmctl.control.vfio import Vfio
from fmctl.core import clean, gpumap
from fmctl.core.answers import AgentStatus, ProcessState, ServiceVmStatus, StartMode
from fmctl.core.book import Entry
from fmctl.core.domain import Domain
from fmctl.core.errors import AgentUnreachable, FmctlError, MapUnverified, OutcomeUnknown, StoreUnusable
from fmctl.core.fmcode import ALREADY_ACTIVE, NOT_ACTIVE, Operation, call_overran
from fmctl.core.gpumap import GpuMap
from fmctl.core.inventory import Inventory
from fmctl.core.lease import Lease
from fmctl.core.partition import PartitionList
from fmctl.core.pci import Bdf
from fmctl.core.plan import LATE
from fmctl.core.platform import Platform
from fmctl.core.policy import Policy
from fmctl.core.request import Request
from fmctl.core.rules import Mode, Rules
from fmctl.core.vfio import VFIO_PCI, Holder
from fmctl.sim.faults import NO_FAULTS, Faults
from fmctl.sim.fmservice import MemoryProcess
from fmctl.sim.gate import MemoryGate
from fmctl.sim.host import SimulatedHost
from fmctl.sim.nvfm import MemoryNvfm
from fmctl.sim.store import MemoryStore

T = TypeVar("T")
BOARDS = ("hgx-h100-8", "hgx-b200-8")
"""A board of each family of Fabric Manager's error codes."""
TIMEOUT = 0.02
"""Seconds of every call: real ones only where a release is waited for."""
MANAGE = Rules(Mode.MANAGE)


class Died(Exception):
    """The daemon's process is gone; no part of it catches this."""


class Fate:
    """When the daemon dies: at its n-th commit or call from now, before or after it."""

    def __init__(self) -> None:
        self._left: dict[str, int] = {}
        self._after = False

    def decide(self, what: str, nth: int, *, after: bool) -> None:
        """`what` is "commit", "call", "reset" or "command"."""
        self._left, self._after = {what: nth}, after

    def spare(self) -> None:
        """Let the daemon live."""
        self._left = {}

    @contextlib.contextmanager
    def at(self, what: str) -> Iterator[None]:
        """Something at which the daemon may die."""
        self._left = {key: nth - (key == what) for key, nth in self._left.items()}
        fatal = self._left.get(what) == 0
        if fatal and not self._after:
            raise Died
        try:
            yield
        finally:
            if fatal:
                raise Died


class MortalStore(MemoryStore):
    """A store at each commit of which the daemon may die, or the disk be full: the next `full_commits`.

    `committed` is told what was, at once.
    """

    def __init__(self, fate: Fate, store_id: str = "store") -> None:
        super().__init__(store_id)
        self.fate = fate
        self.full_commits = 0.0
        self.committed: Callable[[Sequence[Entry]], object] = lambda entries: None

    def survived(self) -> MortalStore:
        """What the next daemon finds."""
        left = self.reopened()
        store = MortalStore(self.fate)
        store._content, store._book = left._content, left._book
        store.full_commits, store.committed = self.full_commits, self.committed
        return store

    def commit(self, entries: Sequence[Entry], *, at: float) -> tuple[Entry, ...]:
        with self.fate.at("commit"):
            if self.full_commits > 0:
                self.full_commits -= 1
                raise StoreUnusable("the store cannot be written", why="the disk is full")
            committed = super().commit(entries, at=at)
            self.committed(committed)
            return committed


@dataclass(frozen=True)
class Landing:
    """A change that happens later, for the lease that held the partition when it was asked for, if one did.

    It is in the hands of that `fabric_manager`, and ends with it.
    """

    fabric_manager: object
    due: float
    operation: Operation
    partition_id: int
    lease_id: str


@dataclass
class Line:
    """The way to the agent. `cut` is how many calls do not get through, `lost` how many answers to changes get lost.

    The next change, or the next that is `slow`, happens `late` seconds after it was given up, where that is set.
    `heard` is told of each change that is asked for, before it happens, and `doubtful` are the partitions of those
    whose answer, or lack of one, tells neither that they were made nor that there was nothing to change.
    """

    agent: LocalAgent
    fate: Fate
    now: Callable[[], float]
    holder: Callable[[int], str]
    running: Callable[[], object]
    cut: float = 0
    lost: float = 0
    late: float | None = None
    slow: Operation | None = None
    landings: list[Landing] = field(default_factory=list)
    doubtful: set[int] = field(default_factory=set)
    heard: Callable[[Operation, int], object] = lambda operation, partition_id: None
    calls: list[tuple[Operation, int]] = field(default_factory=list)

    def list_partitions(self, *, timeout: float) -> PartitionList:
        self._reach()
        return self.agent.list_partitions(timeout=timeout)

    def activate(self, partition_id: int, *, timeout: float) -> None:
        self._ask_once(Operation.ACTIVATE, partition_id, timeout)

    def deactivate(self, partition_id: int, *, timeout: float) -> None:
        self._ask_once(Operation.DEACTIVATE, partition_id, timeout)

    def set_activated(self, partition_ids: Sequence[int], *, timeout: float) -> None:
        self.agent.set_activated(partition_ids, timeout=timeout)

    def status(self, *, timeout: float) -> AgentStatus:
        self._reach()
        return self.agent.status(timeout=timeout)

    def land(self) -> None:
        """Let happen what is due."""
        self.landings = [landing for landing in self.landings if landing.fabric_manager is self.running()]
        for landing in sorted(self.landings, key=lambda landing: landing.due):
            if landing.due <= self.now():
                self.landings.remove(landing)
                with contextlib.suppress(FmctlError):
                    self._ask(landing.operation, landing.partition_id, 30.0)

    def mend(self) -> None:
        """Let everything get through from now on."""
        self.cut, self.lost, self.late, self.slow = 0, 0, None, None

    def _reach(self) -> None:
        if self.cut > 0:
            self.cut -= 1
            raise AgentUnreachable("the agent does not answer")

    def _ask_once(self, operation: Operation, partition_id: int, timeout: float) -> None:
        try:
            self._change(operation, partition_id, timeout)
        except OutcomeUnknown as error:
            if error.fm_code not in ALREADY_ACTIVE | NOT_ACTIVE:
                self.doubtful.add(partition_id)
            raise

    def _change(self, operation: Operation, partition_id: int, timeout: float) -> None:
        with self.fate.at("call"):
            self._reach()
            self.calls.append((operation, partition_id))
            self.heard(operation, partition_id)
            if self.late is not None and self.slow in (None, operation):
                due, self.late = self.now() + self.late, None
                lease_id = self.holder(partition_id)
                self.landings.append(Landing(self.running(), due, operation, partition_id, lease_id))
                raise call_overran(operation, timeout, partition_id)
            self._ask(operation, partition_id, timeout)
            if self.lost > 0:
                self.lost -= 1
                raise OutcomeUnknown("the agent did not answer, and the outcome is unknown")

    def _ask(self, operation: Operation, partition_id: int, timeout: float) -> None:
        change = self.agent.activate if operation is Operation.ACTIVATE else self.agent.deactivate
        change(partition_id, timeout=timeout)


class CountingGate(MemoryGate):
    """A gate that tells the fabric generation."""

    def __init__(self) -> None:
        self.generation = 1

    def status(self) -> ServiceVmStatus:
        return ServiceVmStatus(degraded=self.reason, fabric_generation=self.generation)


@functools.cache
def _platform(board: str) -> Platform:
    return platforms.load(board)


class World:
    """A daemon and its host, on which Fabric Manager was just started fresh and no VM runs."""

    def __init__(
        self,
        board: str = "hgx-h100-8",
        rules: Rules = MANAGE,
        *faults: str,
        started: bool = True,
        policy: Policy | None = None,
        cleans: clean.Rules | None = None,
    ) -> None:
        """With `cleans` GPUs are cleaned between tenants, by these rules, when the test or `settle` says so."""
        self.platform = _platform(board)
        self.now = 1_000_000.0
        self.rules = replace(rules, clean=cleans is not None)
        self.policy = policy or Policy()
        self.cleans = cleans or clean.Rules()
        self.command: Callable[[Sequence[str], float], tuple[int, bytes] | None] = lambda argv, timeout: (0, b"")
        self.host = SimulatedHost(self.platform)
        self.inventory = discovery.discover(self.host.bus, [self.platform])
        self.address: dict[int, Bdf] = dict(gpumap.in_order(self.inventory).addresses)
        for bdf in self.address.values():
            self.host.bus.change(bdf, driver=VFIO_PCI)
        self.nvfm = MemoryNvfm(None, Faults.parse(faults), self.clock)
        self.process = MemoryProcess(self.nvfm, self.platform, self.clock)
        self.agent = LocalAgent(
            self.nvfm, self.process, lambda: None, library="memory", call_timeout=30, clock=self.clock, pause=self.wait
        )
        self.fate = Fate()
        self.line = Line(self.agent, self.fate, self.clock, self.holder, lambda: self.nvfm.fabric)
        self.store = MortalStore(self.fate)
        self.gate = CountingGate()
        vfio = Vfio(self.host.bus, self.host.devices)
        self.gpus = Gpus(
            *(self._inventory, self._gpu_map, vfio, self.host.hypervisor),
            verified=self._verified_map,
            clock=self.clock,
        )
        self._seeing = self.host.devices.holders
        self.vms: dict[str, tuple[int, ...]] = {}
        self.map_is_verified = True
        self.wakes = 0
        self._ids = itertools.count(1)
        self.bus = SparingBus(self.host.bus)
        self.controller = self._daemon()
        self.cleaner = self._cleaner()
        if started:
            self.start_fresh()
            self.gate.generation = 1

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        """Let time pass, and what is due in it happen."""
        self.now += seconds
        self.line.land()

    # The daemon.

    def _daemon(self) -> FabricController:
        return FabricController(
            self.line,
            self.store,
            self.gate,
            self.gpus,
            rules=self.rules,
            policy=self.policy,
            platform=self.platform,
            clock=self.clock,
            now=self.clock,
            wake=self._wake,
            require_map=self._require_map,
            new_id=lambda: f"id-{next(self._ids)}",
        )

    def restart_daemon(self) -> None:
        """Let the daemon be gone, and another one begin with what was committed."""
        self.fate.spare()
        self.store = self.store.survived()
        self.controller = self._daemon()
        self.cleaner = self._cleaner()

    def _cleaner(self) -> Cleaner:
        tools = Tools(self.bus, self.host.devices, self.host.firmware, self.bus.sparing, self._run_command)
        generation = self.controller.generation if self.rules.clean else lambda: 0
        self.exits = VmExits(self.host.hypervisor, self.gpus.held)
        return Cleaner(
            *(self.controller, self.gpus, self._board, tools, self.cleans),
            exits=self.exits,
            generation=generation,
            now=self.clock,
        )

    def _run_command(self, argv: Sequence[str], timeout: float) -> tuple[int, bytes] | None:
        """What `command` answers for an operator's command: None for one that is too slow."""
        with self.fate.at("command"):
            return self.command(argv, timeout)

    def clean(self) -> tuple[int, ...]:
        """Clean what is due, one GPU after the other; which these were."""
        due = self.cleaner.due()
        for gpu in due:
            self.cleaner.clean(gpu)
        return due

    def mortal(self, call: Callable[[], T]) -> T | None:
        """What the call answers; None where the daemon died of it, and another began."""
        try:
            return call()
        except Died:
            self.restart_daemon()
            return None

    def _require_map(self) -> None:
        if not self.map_is_verified:
            raise MapUnverified("the GPU map is not verified")

    def _wake(self) -> None:
        self.wakes += 1

    def reconcile(self) -> None:
        """One turn of the monitor, as far as leases are concerned; raises what a list does."""
        self.controller.reconciler.reconcile()

    def heal(self) -> None:
        """Let nothing fail any more, and Fabric Manager serve."""
        self.fate.spare()
        self.line.mend()
        self.nvfm.fail(NO_FAULTS)
        self.store.full_commits = 0
        self.host.hypervisor.reconnect()
        if self.process.state() is ProcessState.NOT_STARTED:
            self.start_fresh()
        elif self.active is None:
            self.restart_fabric_manager()

    def settle(self) -> None:
        """Let nothing fail, and reconcile until nothing is left to do and no call can come to anything any more."""
        self.heal()
        self.reconcile()
        self.wait(LATE)
        before = -1
        while before != self.store.book.revision:
            before = self.store.book.revision
            self.reconcile()
            self.clean()
            self.wait(LATE)

    # What a scheduler asks for.

    def allocate(
        self, owner: str, request_id: str, *, wait: bool = True, alive: Callable[[], bool] = lambda: True, **asked: Any
    ) -> Lease:
        return self.controller.leases.allocate(
            Request(owner, request_id, **asked), timeout=TIMEOUT, wait=wait, alive=alive
        )

    def release(self, lease_id: str, *, wait: bool = False, **arguments: Any) -> Lease:
        return self.controller.leases.release(lease_id, actor="a person", timeout=TIMEOUT, wait=wait, **arguments)

    def update(self, lease_id: str, etag: str = "", **changes: Any) -> Lease:
        return self.controller.leases.update(lease_id, etag, actor="a person", timeout=TIMEOUT, **changes)

    def activate(self, owner: str, partition_id: int) -> Lease:
        return self.controller.leases.activate(owner, partition_id=partition_id, timeout=TIMEOUT)[0]

    def deactivate(self, owner: str, partition_id: int, *, force: bool = False) -> bool:
        return self.controller.leases.deactivate(owner, partition_id, timeout=TIMEOUT, force=force)

    # What is there.

    @property
    def leases(self) -> list[Lease]:
        """Every lease that holds something, oldest first."""
        return list(self.store.leases())

    def lease(self, lease_id: str) -> Lease:
        return self.store.lease(lease_id)

    def holder(self, partition_id: int) -> str:
        """The id of the lease that holds a partition; empty where none does."""
        lease = self.store.book.holder(partition_id)
        return lease.id if lease else ""

    @property
    def listed(self) -> PartitionList | None:
        """What Fabric Manager itself has; None where it serves nobody."""
        try:
            return self.nvfm.fabric.partitions(self.now) if self.nvfm.fabric else None
        except Exception:
            return None

    @property
    def active(self) -> set[int] | None:
        """Which partitions it has active."""
        return None if self.listed is None else {p.id for p in self.listed.partitions if p.active}

    @property
    def held(self) -> set[int]:
        """The GPUs that VMs truly have open, by physical id."""
        groups = {function.bdf: function.iommu_group for function in self.host.bus.functions()}
        return {
            gpu
            for gpu, bdf in self.address.items()
            if (group := groups[bdf]) is not None and self._seeing(group) is not None
        }

    def gpus_of(self, partition_id: int) -> tuple[int, ...]:
        """The GPUs of a partition by the board's table."""
        return next(row.gpu_ids for row in self.platform.partitions if row.id == partition_id)

    def told(self, kind: str = "") -> list[str]:
        """What the journal tells, of leases or of everything."""
        return [e.what for e in self.store.entries(0, limit=10_000) if not kind or e.kind.value == kind]

    def _inventory(self) -> Inventory:
        return self.inventory

    def _gpu_map(self, inventory: Inventory) -> GpuMap | None:
        return GpuMap(self.address)

    def _verified_map(self, inventory: Inventory) -> GpuMap | None:
        return self._gpu_map(inventory) if self.map_is_verified else None

    def _board(self) -> Inventory:
        """What a look at the board shows now, which takes its time."""
        return discovery.discover(self.bus, [self.platform])

    # What happens to it.

    def start_vm(self, name: str, gpus: Sequence[int]) -> Domain:
        """Start a tenant VM with these GPUs."""
        domain = self.host.hypervisor.add_tenant(name, [self.address[gpu] for gpu in gpus])
        self.vms[name] = tuple(gpus)
        return domain

    def stop_vm(self, name: str) -> None:
        del self.vms[name]
        self.host.hypervisor.kill(uuid_of(name))

    def start_fresh(self) -> None:
        """Start Fabric Manager fresh, in the place of one that runs, as the Service VM's keeper does."""
        self.stop_fabric_manager()
        self.gate.generation += 1
        self.agent.start_fabric_manager(StartMode.FRESH, (), timeout=30.0)

    def stop_fabric_manager(self) -> None:
        """Let Fabric Manager be gone with all calls that it had."""
        self.process.die()

    def restart_fabric_manager(self) -> tuple[int, ...]:
        """Start Fabric Manager to take up its state; what it was told is active."""
        active = self.controller.active()
        self.process.die()
        self.agent.start_fabric_manager(StartMode.RESTART, active, timeout=30.0)
        return active

    def lose_service_vm(self) -> None:
        """Let the Service VM die with all in it."""
        self.process.reboot()

    def blind(self) -> None:
        """Let nobody tell who has GPUs open."""

        def holders(group: int) -> tuple[Holder, ...] | None:
            raise FmctlError("who holds the group cannot be told")

        self.host.devices.holders = holders  # type: ignore[method-assign]

    def see(self) -> None:
        """Let it be told again."""
        self.host.devices.holders = self._seeing  # type: ignore[method-assign]


def uuid_of(name: str) -> str:
    """The UUID of a tenant VM of that name."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))


def refuse(world: World, owner: str, request_id: str, **asked: Any) -> type[FmctlError]:
    """The class of the error that an allocation ends with."""
    with pytest.raises(FmctlError) as refusal:
        world.allocate(owner, request_id, **asked)
    return type(refusal.value)


def nothing_is_left(world: World) -> bool:
    """Whether no partition is active, and no lease is or ever was."""
    return (world.active, world.leases, world.store.leases(over=True)) == (set(), [], ())
