# SPDX-License-Identifier: Apache-2.0
"""The agent, put together: `fmctl agent` in the Service VM, between `guest` and gRPC."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from pathlib import Path

from fmctl import process
from fmctl.control.agent import LocalAgent
from fmctl.control.logbuffer import LogBuffer
from fmctl.control.monitor import Monitor
from fmctl.core.address import UnixAddress
from fmctl.core.answers import FabricState
from fmctl.core.errors import BadRequest
from fmctl.core.settings import AgentSettings
from fmctl.guest.fmservice import FmService
from fmctl.guest.package import Package
from fmctl.guest.worker import Worker
from fmctl.rpc.fmctl.v1.fabric_manager_pb2_grpc import add_FabricManagerServiceServicer_to_server
from fmctl.rpc.manager import FabricManagerServicer
from fmctl.rpc.server import MANAGER_SERVICE, Listening, Server
from fmctl.rpc.vsock import from_host

log = logging.getLogger(__name__)

POLL_INTERVAL = 5.0
"""Seconds between two looks at Fabric Manager, for the health service."""
DIGEST = "FMCTL_AGENT_DIGEST"
"""Environment variable by which what starts the agent tells the SHA-256 of the archive that it runs from."""


def run(settings: AgentSettings, *, insecure_tcp: bool = False) -> None:
    """Serve until SIGINT or SIGTERM; raises FmctlError where that is not possible."""
    process.hold_lifeline()
    worker = Worker(settings.fm_address, settings.library, settings.connect_timeout_s)
    service = FmService(settings.fm_command, Path(str(settings.run_dir)) / "fabric-manager.json")
    package = Package(Path(str(settings.agent_dir)), os.environ.get(DIGEST, ""))
    logs = LogBuffer()
    agent = LocalAgent(
        worker,
        service,
        _end,
        library=settings.library or "libnvfm.so.1",
        call_timeout=settings.call_timeout_s,
        package=package,
        logs=logs,
    )
    server = Server(
        Listening(settings.listen, settings.socket_group, insecure_tcp, settings.reflection),
        (MANAGER_SERVICE,),
        lambda grpc: add_FabricManagerServiceServicer_to_server(FabricManagerServicer(agent), grpc),
    )

    def look() -> tuple[FabricState, str]:
        status = agent.recent_status(POLL_INTERVAL, timeout=POLL_INTERVAL)
        return status.state, status.message

    try:
        monitor = Monitor(look, server.fabric_changed, interval=POLL_INTERVAL)
        with process.Termination() as termination, _relay(settings), server, logs, monitor:
            log.info("serving at %s", settings.listen)
            termination.wait()
    finally:
        worker.close()


def _relay(settings: AgentSettings) -> contextlib.AbstractContextManager[object]:
    """The way in from the host; it outlives the server, whose last answers it carries."""
    if not settings.vsock_port:
        return contextlib.nullcontext()
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
