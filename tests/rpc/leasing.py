# SPDX-License-Identifier: Apache-2.0
"""A host that grants leases, behind a real server: all below the controller is in memory."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from fmctl import platforms
from fmctl.control import discovery
from fmctl.control.agent import LocalAgent
from fmctl.control.controller import FabricController
from fmctl.control.gpus import Gpus
from fmctl.control.hook import Hook, ServiceVmStart
from fmctl.control.parking import Parking
from fmctl.control.vfio import Vfio
from fmctl.core import gpumap
from fmctl.core.address import Address
from fmctl.core.answers import AgentStatus, FabricFacts
from fmctl.core.book import Entry, Kind
from fmctl.core.domain import Domain
from fmctl.core.hook import Rules as HookRules
from fmctl.core.inventory import Inventory
from fmctl.core.loglines import KeptLog
from fmctl.core.partition import PartitionList
from fmctl.core.policy import Policy
from fmctl.core.request import Request
from fmctl.core.rules import Mode, Rules
from fmctl.rpc.dial import Client
from fmctl.rpc.lease_client import LeaseClient
from fmctl.rpc.server import DAEMON_SERVICES, Listening, Server
from fmctl.rpc.services import services
from fmctl.rpc.watches import Watches
from fmctl.sim.fabric import Fabric
from fmctl.sim.faults import Faults
from fmctl.sim.fmservice import Unmanaged
from fmctl.sim.gate import MemoryGate
from fmctl.sim.hookfiles import MemoryHookFiles
from fmctl.sim.host import SimulatedHost
from fmctl.sim.nvfm import MemoryNvfm
from fmctl.sim.store import MemoryStore
from tests.control.hooking import Readiness

C = TypeVar("C", bound=Client)

TIMEOUT = 10.0
VERSION = "580.95.05"


class _Facts(Unmanaged):
    def facts(self) -> FabricFacts:
        return FabricFacts(VERSION, VERSION)


class _Agent:
    """The agent, whose activations can be held up."""

    def __init__(self, agent: LocalAgent) -> None:
        self._agent = agent
        self.may_activate = threading.Event()
        self.may_activate.set()
        self.activating = threading.Event()

    def list_partitions(self, *, timeout: float) -> PartitionList:
        return self._agent.list_partitions(timeout=timeout)

    def activate(self, partition_id: int, *, timeout: float) -> None:
        self.activating.set()
        assert self.may_activate.wait(30)
        self._agent.activate(partition_id, timeout=timeout)

    def deactivate(self, partition_id: int, *, timeout: float) -> None:
        self._agent.deactivate(partition_id, timeout=timeout)

    def set_activated(self, partition_ids: Sequence[int], *, timeout: float) -> None:
        self._agent.set_activated(partition_ids, timeout=timeout)

    def status(self, *, timeout: float) -> AgentStatus:
        return self._agent.status(timeout=timeout)


class Host:
    """A host with a board, whose reconciler looks when the test says so."""

    def __init__(
        self,
        folder: Path,
        *faults: str,
        watches: Watches | None = None,
        mode: Mode = Mode.MANAGE,
        policy: Policy | None = None,
    ) -> None:
        self.address = Address.parse(f"unix:{folder}/fmctld.sock")
        self.board = platforms.load("hgx-h100-8")
        self.machine = SimulatedHost(self.board)
        self.vfio = Vfio(self.machine.bus, self.machine.devices)
        self.nvfm = MemoryNvfm(Fabric.started(self.board, now=0), Faults.parse(faults))
        self.agent = _Agent(LocalAgent(self.nvfm, _Facts(), lambda: None, library="memory", call_timeout=30))
        self.store = MemoryStore()
        self.gate = MemoryGate()
        self.readiness = Readiness()
        self.hook_files = MemoryHookFiles(os.getpid())
        self._watches = watches
        self._mode = mode
        self._policy = policy
        self.wake: Callable[[], object] = lambda: None
        self._clients = contextlib.ExitStack()
        self._server = contextlib.ExitStack()
        self.start()

    def start(self) -> None:
        """Let a daemon serve, over the store as it is."""
        gpus = Gpus(self.inventory, gpumap.in_order, self.vfio, self.machine.hypervisor, verified=gpumap.in_order)
        self.controller = FabricController(
            self.agent,
            self.store,
            self.gate,
            gpus,
            rules=Rules(self._mode),
            policy=self._policy,
            wake=lambda: self.wake(),
            platform=self.board,
            host_id="a-host",
            simulated=True,
        )
        self.controller.status(timeout=TIMEOUT)
        self.watches = self._watches or Watches()
        self.hook = self._hook()
        self.hook.look()
        self.parking = Parking(
            self.controller.store,
            self.vfio,
            self.machine.devices,
            inventory=self.inventory,
            gpu_map=gpumap.in_order,
            observed=lambda: self.controller.reconciler.observed,
        )
        add = services(
            self.controller, None, lambda lines: KeptLog((), 0), self.watches, hook=self.hook, parking=self.parking
        )
        self._server.enter_context(
            Server(
                Listening(self.address, reflection=True),
                DAEMON_SERVICES,
                add,
                simulated=lambda: self.controller.simulated,
            )
        )

    def _hook(self) -> Hook:
        return Hook(
            self.controller.store,
            self.controller.fabric,
            self.controller.leases,
            self.readiness,
            self.hook_files,
            inventory=self.inventory,
            gpu_map=gpumap.in_order,
            generation=lambda: 0,
            observed=lambda: self.controller.reconciler.observed,
            service_vm=ServiceVmStart("6f0f3b54-8d0c-4d9e-9c1b-0f6d63746c01", lambda: ""),
            rules=HookRules(),
        )

    def stop(self) -> None:
        """End the daemon."""
        self._server.close()

    def close(self) -> None:
        """End all."""
        self._clients.close()
        self.stop()
        self.machine.hypervisor.power_off()

    def dial(self, kind: type[C]) -> C:
        """A client that ends with the host."""
        return self._clients.enter_context(contextlib.closing(kind(self.address)))  # type: ignore[call-arg]

    @property
    def client(self) -> LeaseClient:
        return self.dial(LeaseClient)

    def inventory(self) -> Inventory:
        return discovery.discover(self.machine.bus, [self.board])

    def vm(self, *gpus: int, name: str = "tenant") -> Domain:
        """A running VM that has these GPUs."""
        inventory = self.inventory()
        addresses = gpumap.in_order(inventory).addresses
        wanted = [addresses[gpu] for gpu in gpus]
        self.vfio.bind(inventory, wanted)
        return self.machine.hypervisor.add_tenant(name, wanted)

    def tell(self, count: int, size: int = 10) -> None:
        """Write entries that are nobody's, of about so many bytes each."""
        entries = [Entry(Kind.HOST, "", "told", detail=f"{number:010}".ljust(size)) for number in range(count)]
        self.controller.store.commit(entries, at=1.0)

    @property
    def active(self) -> set[int]:
        """What Fabric Manager itself has active."""
        return {p.id for p in self.nvfm.list_partitions(timeout=TIMEOUT).partitions if p.active}


def pair(request_id: str = "r", owner: str = "a") -> Request:
    """A request for two GPUs."""
    return Request(owner, request_id, count=2)
