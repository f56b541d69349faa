# SPDX-License-Identifier: Apache-2.0
"""The agent, put together: `fmctl agent` in the Service VM, between `guest` and gRPC."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from fmctl import notify, process, templates
from fmctl.control.agent import LocalAgent
from fmctl.control.logbuffer import LogBuffer
from fmctl.control.monitor import Monitor
from fmctl.core.address import UnixAddress
from fmctl.core.agentsettings import AgentSettings
from fmctl.core.answers import FabricState
from fmctl.core.errors import BadRequest
from fmctl.core.fmconfig import ConfigValues
from fmctl.core.loglines import LogSource
from fmctl.guest.audit import AuditFile
from fmctl.guest.fmlog import FmLog
from fmctl.guest.fmservice import Configuration, FmService
from fmctl.guest.kernellog import KernelLog
from fmctl.guest.package import Package
from fmctl.guest.worker import Worker
from fmctl.rpc.fmctl.v1.fabric_manager_pb2_grpc import add_FabricManagerServiceServicer_to_server
from fmctl.rpc.manager import FabricManagerServicer
from fmctl.rpc.probe import Probe
from fmctl.rpc.relay import Relay
from fmctl.rpc.server import MANAGER_SERVICE, Listening, Server
from fmctl.rpc.vsock import from_host
from fmctl.watchdog import Watchdog

if TYPE_CHECKING:
    from fmctl.control.breakglass import BreakGlass

log = logging.getLogger(__name__)

POLL_INTERVAL = 5.0
"""Seconds between two looks at Fabric Manager, for the health service."""
LONGEST_TURN = 20.0
"""Seconds that a loop of the agent's may take for a turn, or the server for an answer to its own process."""
TRAIL = "break-glass.jsonl"
"""The record, in the agent's folder, of what a person changed past the daemon."""
DIGEST = "FMCTL_AGENT_DIGEST"
"""Environment variable by which what starts the agent tells the SHA-256 of the archive that it runs from."""


def run(settings: AgentSettings, *, insecure_tcp: bool = False) -> None:
    """Serve until SIGINT or SIGTERM; raises FmctlError where that is not possible."""
    notifier = notify.take()
    process.hold_lifeline()
    _Agent(settings, notifier, insecure_tcp=insecure_tcp).run()


class _Agent:
    """All that serves: the way in from the host, gRPC, Fabric Manager's process and library, and the logs."""

    def __init__(self, settings: AgentSettings, notifier: notify.Notifier, *, insecure_tcp: bool) -> None:
        self._settings = settings
        self._notifier = notifier
        self._root = Path(str(settings.system_root))
        self._worker = Worker(settings.fm_address, settings.library, settings.connect_timeout_s)
        self._service = _service(settings, self._root)
        self._package = Package(Path(str(settings.agent_dir)), os.environ.get(DIGEST, ""), notifier.ready)
        self._logs = LogBuffer()
        self._agent = LocalAgent(
            self._worker,
            self._service,
            _end,
            library=settings.library or "libnvfm.so.1",
            call_timeout=settings.call_timeout_s,
            package=self._package,
            logs=self._logs,
        )
        self._trail = AuditFile(Path(str(settings.run_dir)) / TRAIL)
        self._glass: BreakGlass | None = None
        self._making = threading.Lock()
        servicer = FabricManagerServicer(self._agent, self._break_glass)
        self._server = Server(
            Listening(settings.listen, settings.socket_group, insecure_tcp, settings.reflection),
            (MANAGER_SERVICE,),
            lambda grpc: add_FabricManagerServiceServicer_to_server(servicer, grpc),
        )

    def _break_glass(self) -> BreakGlass:
        """What changes partitions past the daemon: put together when it is needed, since it hardly ever is."""
        from fmctl.control.breakglass import BreakGlass

        with self._making:
            if self._glass is None:
                timeout = self._settings.call_timeout_s
                self._glass = BreakGlass(self._agent, self._trail, self._logs, call_timeout=timeout)
            return self._glass

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM."""
        if self._trail.lines():
            self._break_glass()  # so that a daemon is told of them
        threading.Thread(target=self._service.look, name="look at Fabric Manager", daemon=True).start()
        with contextlib.ExitStack() as stack:
            stack.callback(self._worker.close)
            termination = stack.enter_context(process.Termination())
            relay = _relay(self._settings)
            if relay is not None:
                stack.enter_context(relay)
            stack.enter_context(self._server)
            self._follow(stack)
            self._watch(stack, relay)
            log.info("serving at %s", self._settings.listen)
            if self._package.on_trial:
                log.info("this agent is on trial until the daemon asks for its status")
            else:
                self._notifier.ready()
            stack.callback(self._notifier.stopping)
            termination.wait()

    def _follow(self, stack: contextlib.ExitStack) -> None:
        """Collect the logs until the block ends, and end the streams that tell them before the server does."""
        stack.enter_context(self._logs)
        add = self._logs.add
        stack.enter_context(FmLog(Path(str(self._settings.fm_log)), functools.partial(add, LogSource.FABRIC_MANAGER)))
        stack.enter_context(KernelLog(self._root / "dev" / "kmsg", functools.partial(add, LogSource.KERNEL)))

    def _watch(self, stack: contextlib.ExitStack, relay: Relay | None) -> None:
        """Look at Fabric Manager for the health service, and at ourselves for the service manager's watchdog."""
        watchdog = Watchdog(self._notifier)
        beat = watchdog.loop("monitor", longest=LONGEST_TURN)

        def look() -> tuple[FabricState, str]:
            beat()
            status = self._agent.recent_status(POLL_INTERVAL, timeout=POLL_INTERVAL)
            return status.state, status.message

        probe = Probe(self._settings.listen)
        stack.callback(probe.close)
        watchdog.probe("server", probe, every=POLL_INTERVAL, longest=LONGEST_TURN)
        if relay is not None:
            watchdog.probe("relay", relay.probe, every=POLL_INTERVAL, longest=LONGEST_TURN)
        stack.enter_context(Monitor(look, self._server.fabric_changed, interval=POLL_INTERVAL))
        stack.enter_context(watchdog)


def _service(settings: AgentSettings, root: Path) -> FmService:
    run_dir = Path(str(settings.run_dir))
    values = ConfigValues(
        settings.fm_address, str(run_dir / "fabricmanager.state"), str(settings.fm_log), settings.fm_log_max_mib
    )
    configuration = Configuration(
        Path(str(settings.fm_config)),
        Path(str(settings.fm_stock_config)),
        templates.fabric_manager_config,
        values,
    )
    return FmService(settings.fm_command, configuration, run_dir, nvlsm_command=settings.nvlsm_command, root=root)


def _relay(settings: AgentSettings) -> Relay | None:
    """The way in from the host; it outlives the server, whose last answers it carries."""
    if not settings.vsock_port:
        return None
    where = settings.listen.where
    if not isinstance(where, UnixAddress):
        raise BadRequest(
            f"vsock port {settings.vsock_port} cannot be served at",
            why=f"it leads to the agent's unix socket, and the agent listens at {where}",
            fix="listen at unix:PATH, or set vsock_port to 0",
        )
    return from_host(settings.vsock_port, settings.allowed_peers, Path(where.path))


def _end() -> None:
    """End as by the signal, once the call that asks for it is answered."""
    os.kill(os.getpid(), signal.SIGTERM)
