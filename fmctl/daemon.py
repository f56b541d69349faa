# SPDX-License-Identifier: Apache-2.0
"""The daemon, put together: `fmctl daemon` on the host, between gRPC's two sides; `sim` can be its host."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from pathlib import Path, PurePosixPath

from fmctl import hostgpus, local, notify, platforms, process
from fmctl.control.breakglass import Records
from fmctl.control.closedstore import ClosedStore
from fmctl.control.controller import FabricController
from fmctl.control.discovery import NoBoard
from fmctl.control.domain import World
from fmctl.control.fabric import Turn
from fmctl.control.fabricstarts import FabricStarts
from fmctl.control.gate import HostGate
from fmctl.control.logs import MAX_LINES, GuestLogs
from fmctl.control.monitor import Monitor
from fmctl.control.operator import Operator
from fmctl.control.servicevm import LONGEST_TURN, ServiceVm
from fmctl.control.watch import WatchedStore
from fmctl.core.address import Address, UnixAddress, VsockAddress
from fmctl.core.answers import FabricState, ServiceVmStatus
from fmctl.core.book import Kind
from fmctl.core.errors import FmctlError, InvalidDocument, StoreUnusable
from fmctl.core.loglines import KeptLog
from fmctl.core.platform import Platform
from fmctl.core.ports import Hypervisor
from fmctl.core.rules import Rules as LeaseRules
from fmctl.core.servicevm import Rules
from fmctl.core.settings import DaemonSettings, ServiceVmSettings
from fmctl.core.values import AbsolutePath
from fmctl.host import identity, sysfsaccess
from fmctl.host.generation import FileGeneration
from fmctl.host.store import FileStore
from fmctl.local import Host
from fmctl.notify import Notifier
from fmctl.rpc import vsock
from fmctl.rpc.agent_client import AgentClient
from fmctl.rpc.probe import Probe
from fmctl.rpc.relay import Relay
from fmctl.rpc.server import DAEMON_SERVICES, Listening, Server
from fmctl.rpc.services import services
from fmctl.watchdog import Watchdog

log = logging.getLogger(__name__)

PROBE_INTERVAL = 10.0
"""Seconds between two calls that the daemon makes to itself, for the watchdog."""
LONGEST_PROBE = 60.0
"""Seconds for which none of them may be answered."""
LIBVIRT_SOCKETS = ("libvirt-sock", "virtqemud-sock")
"""The sockets of libvirt's daemon for QEMU: the one for all drivers, and the one for it alone."""
LONGEST_LOOK = 60.0
"""Seconds that the monitor's turn may take: three calls to the agent with deadlines of 5 s, its pause, and a margin."""


def run(settings: DaemonSettings, *, insecure_tcp: bool = False) -> None:
    """Serve until SIGINT or SIGTERM, whether the agent answers or not; raises FmctlError where that is not possible."""
    notifier, stored = notify.take(), notify.stored()
    process.hold_lifeline()
    managed = settings.service_vm.managed
    if managed != (settings.agent is None):
        raise InvalidDocument(
            "the agent's address is not settled",
            why="agent is set, but a Service VM that fmctl manages brings its own" if managed else "agent is not set",
            fix="set service_vm.managed: false with agent, or neither of them",
        )
    host = local.this_host(settings.platform, store=notifier, stored=stored)
    _Daemon(settings, host, _libvirt(settings), notifier, insecure_tcp=insecure_tcp).run()


def run_simulated(
    settings: DaemonSettings, platform: str, state_dir: Path | None, *, insecure_tcp: bool, gpu_map: str = "none"
) -> None:
    """Serve on a pretended host, whose Service VM is a Fabric Manager and an agent; all of it stops with the daemon.

    `gpu_map` is what is wrong with its GPU map, by the name of a MapFault.
    """
    from fmctl.sim.host import MapFault, SimulatedHost
    from fmctl.sim.tree import SimulatedBoard

    notifier = notify.take()
    process.hold_lifeline()
    board = platforms.resolve(platform)
    with SimulatedBoard(board, platform, state_dir, call_timeout=settings.call_timeout_s) as guest:
        pretended = SimulatedHost(board, guest.guest, map_fault=MapFault(gpu_map))
        console = AbsolutePath(PurePosixPath(guest.console_log))
        service_vm = dataclasses.replace(settings.service_vm, managed=True, console_log=console)
        settings = dataclasses.replace(
            settings,
            agent=guest.agent_address,
            service_vm=service_vm,
            platform=platform,
            state_dir=AbsolutePath(PurePosixPath(guest.folder)),
        )
        host = local.around(pretended, board)
        try:
            _Daemon(settings, host, pretended.hypervisor, notifier, insecure_tcp=insecure_tcp, simulated=True).run()
        finally:
            pretended.hypervisor.power_off()


class _Daemon:
    """All that serves: the Service VM's keeper, the way to its agent, the controller, and gRPC around them."""

    def __init__(
        self,
        settings: DaemonSettings,
        host: Host,
        hypervisor: Hypervisor | None,
        notifier: Notifier,
        *,
        insecure_tcp: bool,
        simulated: bool = False,
    ) -> None:
        """Without a hypervisor, which a managed Service VM needs, no VM is followed."""
        self._settings = settings
        self._notifier = notifier
        self._watchdog = Watchdog(notifier)
        self._beat = self._watchdog.loop("monitor", longest=LONGEST_LOOK + settings.poll_interval_s)
        self._told = ""
        self._host = host
        self._hypervisor = hypervisor
        self._agent_address = settings.agent or Address(_vsock(settings.service_vm))
        self._relay = self._to_agent()
        self._agent = AgentClient(self._dialled(), name=str(self._agent_address), failure=self._failure)
        managed = settings.service_vm.managed
        self._service_vm = self._keeper(hypervisor) if hypervisor and managed else None
        self._starts = None if managed else FabricStarts(self._agent, self._generation, self._started_fresh)
        self._logs = GuestLogs(self._agent, record=lambda text: self._records.take(text))
        self._store = _store(Path(settings.state_dir.path))
        watched, turn = WatchedStore(self._store), Turn(settings.call_timeout_s)
        self._which = hostgpus.Which(settings, host, hypervisor, watched, turn, lambda: self._controller)
        self._controller = self._control(watched, turn, simulated=simulated)
        self._records = Records(watched)
        around = hostgpus.Around(
            self._controller, hypervisor, self._service_vm, self._watchdog, lambda: self._monitor.wake()
        )
        self._care = hostgpus.Care(settings, host, self._which, around)
        operator = Operator(self._service_vm) if self._service_vm else None
        self._server = Server(
            Listening(settings.listen, settings.socket_group, insecure_tcp, settings.reflection),
            DAEMON_SERVICES,
            services(
                self._controller,
                operator,
                self._log,
                maps=self._which.maps,
                hook=self._care.hook,
                parking=self._care.parking,
            ),
            simulated=lambda: self._controller.simulated,
        )
        self._monitor = Monitor(self._look, self._fabric_changed, interval=settings.poll_interval_s)

    def _control(self, store: WatchedStore, turn: Turn, *, simulated: bool) -> FabricController:
        settings, host = self._settings, self._host
        return FabricController(
            self._agent,
            store,
            HostGate(host.inventory, host.check, self._service_vm, lambda: self._starts.current if self._starts else 0),
            self._which.gpus,
            require_map=self._which.maps.require,
            turn=turn,
            rules=_rules(settings, clean=_has_gpus(host, managed=settings.service_vm.managed)),
            policy=settings.policy,
            host_id=identity.machine_id(),
            wake=lambda: self._monitor.wake(),
            agent_address=str(self._agent_address),
            platform=_platform(settings, host),
            known_platforms=platforms.every(),
            call_timeout=settings.call_timeout_s,
            started=time.time(),
            simulated=simulated,
            lock=lambda: self._care.status(),
        )

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._store.close)
            stack.callback(sysfsaccess.stop)
            self._care.check()
            self._controller.reconciler.meet_vms()
            if self._hypervisor:
                stack.callback(self._hypervisor.close)
                self._hypervisor.watch(self._monitor.wake)
                self._hypervisor.watch(self._care.wake, self._care.vm_ended)
            stack.callback(self._agent.close)
            termination = stack.enter_context(process.Termination())
            stack.enter_context(self._server)
            for part in (self._relay, self._care, self._service_vm, self._logs, self._monitor):
                if part is not None:
                    stack.enter_context(part)
            self._watch(stack)
            log.info("serving at %s", self._settings.listen)
            self._notifier.ready(self._told)
            stack.callback(self._notifier.stopping)
            termination.wait()

    def _watch(self, stack: contextlib.ExitStack) -> None:
        """Let the service manager's watchdog see that what has no loop of its own answers, too."""
        probe = Probe(self._settings.listen)
        stack.callback(probe.close)
        self._watchdog.probe("server", probe, every=PROBE_INTERVAL, longest=LONGEST_PROBE)
        if self._relay is not None:
            self._watchdog.probe("relay", self._relay.probe, every=PROBE_INTERVAL, longest=LONGEST_PROBE)
        stack.enter_context(self._watchdog)

    def _look(self) -> tuple[FabricState, str]:
        """Fabric Manager's state, and the service manager told of it; the monitor's turn."""
        self._beat()
        if self._starts is not None:
            self._starts.look()
        self._records.flush()
        state, message = self._controller.refresh()
        if state is FabricState.READY:
            self._care.cleaning.look()
        told = _in_words(state, self._service_vm.status() if self._service_vm else None)
        if told != self._told:
            self._notifier.status(told)
        self._told = told
        return state, message

    def _fabric_changed(self, state: FabricState) -> None:
        self._server.fabric_changed(state)
        self._controller.record(Kind.FABRIC, state.value)
        self._which.rounds.wake()
        if self._service_vm is not None:
            self._service_vm.wake()

    def _started_fresh(self, detail: str) -> None:
        self._controller.record(Kind.FABRIC, "started fresh", detail)

    @property
    def _generation(self) -> FileGeneration:
        return FileGeneration(Path(self._settings.state_dir.path) / "fabric-generation")

    def _log(self, lines: int) -> KeptLog:
        return KeptLog(self._logs.recent(lines or MAX_LINES), self._logs.dropped)

    def _keeper(self, hypervisor: Hypervisor) -> ServiceVm:
        settings, host = self._settings, self._host
        vfio = host.vfio(tell=hostgpus.log_step)
        world = World(
            hypervisor,
            self._agent,
            vfio,
            host.inventory,
            host.check,
            functools.partial(host.service_vm, settings),
            lambda: self._controller.active(),
            self._generation,
            host.images(settings),
            lambda inventory: self._care.parking.park(inventory),
        )
        rules = Rules(
            settings.service_vm_restart, settings.service_vm.start_timeout_s, settings.service_vm.restart_limit
        )
        beat = self._watchdog.loop("Service VM", longest=LONGEST_TURN + settings.poll_interval_s)
        return ServiceVm(
            world,
            settings.service_vm,
            rules,
            interval=settings.poll_interval_s,
            beat=beat,
            observed=lambda: self._controller.reconciler.observed,
            record=lambda what, detail: self._controller.record(Kind.SERVICE_VM, what, detail),
        )

    def _to_agent(self) -> Relay | None:
        """What carries calls to an agent that is reached over vsock."""
        where = self._agent_address.where
        return vsock.to_agent(self._relay_path, where, self._verify) if isinstance(where, VsockAddress) else None

    @property
    def _relay_path(self) -> Path:
        return Path(self._settings.run_dir.path) / "relay" / "agent.sock"

    def _dialled(self) -> Address:
        return Address(UnixAddress(str(self._relay_path))) if self._relay else self._agent_address

    def _verify(self) -> None:
        """Raise AgentUnreachable where a managed Service VM has not the context id that is about to be called."""
        if self._service_vm is not None:
            self._service_vm.own.verify_cid()

    def _failure(self) -> FmctlError | None:
        """Why the agent was not reached, as far as the relay knows."""
        return self._relay.last_failure if self._relay else None


def _in_words(state: FabricState, service_vm: ServiceVmStatus | None) -> str:
    """What `systemctl status` shows."""
    words = [f"Fabric Manager is {state.value}"]
    if service_vm is not None:
        words.append(f"Service VM {service_vm.state.value}" + (f" from {service_vm.image}" if service_vm.image else ""))
        if service_vm.degraded:
            words.append(f"no new work: {service_vm.degraded}")
    return "; ".join(words)


def _store(folder: Path) -> FileStore | ClosedStore:
    """The store of leases, or what stands in for one that cannot be opened: then this host is only observed."""
    try:
        return FileStore(folder / local.STORE, journal=folder / local.JOURNAL)
    except StoreUnusable as error:
        log.error("%s; nothing is changed on this host", error)
        return ClosedStore(error, time.time())


def _vsock(settings: ServiceVmSettings) -> VsockAddress:
    return VsockAddress(settings.cid, settings.agent_port)


def _libvirt(settings: DaemonSettings, here: Path = Path("/run/libvirt")) -> Hypervisor | None:
    """Libvirt, by which VMs are followed; None where nothing needs or names it, and this host has none.

    Raises FmctlError where it is needed or named, and its Python module is missing.
    """
    wanted = settings.service_vm.managed or settings.libvirt_uri is not None
    if not wanted and not any((here / name).is_socket() for name in LIBVIRT_SOCKETS):
        return None
    try:
        from fmctl.host.hypervisor import Libvirt
    except FmctlError as error:
        if wanted:
            raise
        log.warning("VMs are not followed: %s", error)
        return None
    return Libvirt(settings.libvirt_uri or local.LIBVIRT_URI)


def _platform(settings: DaemonSettings, host: Host) -> Platform | None:
    """The board that is set, or that the host has; None where Fabric Manager's table must tell."""
    if settings.platform:
        return platforms.resolve(settings.platform)
    try:
        return host.inventory().platform
    except NoBoard:
        return None


def _rules(settings: DaemonSettings, *, clean: bool) -> LeaseRules:
    gone = settings.release_gone_after_s or None
    return LeaseRules(settings.mode, settings.unowned_partitions, gone, clean, settings.clean.deactivate_timeout_s)


def _has_gpus(host: Host, *, managed: bool) -> bool:
    """Whether GPUs are this host's to clean: always where it keeps the Service VM, even if it shows none just now."""
    try:
        return managed or bool(host.inventory().devices)
    except NoBoard:
        return False
