# SPDX-License-Identifier: Apache-2.0
"""The agent, put together: `fmctl agent` in the Service VM, between `guest` and gRPC."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

from fmctl import process
from fmctl.control.agent import LocalAgent
from fmctl.control.monitor import Monitor
from fmctl.core.answers import FabricState
from fmctl.core.settings import AgentSettings
from fmctl.guest.fmservice import FmService
from fmctl.guest.worker import Worker
from fmctl.rpc.fmctl.v1.fabric_manager_pb2_grpc import add_FabricManagerServiceServicer_to_server
from fmctl.rpc.manager import FabricManagerServicer
from fmctl.rpc.server import MANAGER_SERVICE, Listening, Server

log = logging.getLogger(__name__)

POLL_INTERVAL = 5.0
"""Seconds between two looks at Fabric Manager, for the health service."""


def run(settings: AgentSettings, *, insecure_tcp: bool = False) -> None:
    """Serve until SIGINT or SIGTERM; raises FmctlError where that is not possible."""
    process.hold_lifeline()
    worker = Worker(settings.fm_address, settings.library, settings.connect_timeout_s)
    service = FmService(settings.fm_command, Path(str(settings.run_dir)) / "fabric-manager.json")
    agent = LocalAgent(
        worker, service, _end, library=settings.library or "libnvfm.so.1", call_timeout=settings.call_timeout_s
    )
    server = Server(
        Listening(settings.listen, settings.socket_group, insecure_tcp, settings.reflection),
        MANAGER_SERVICE,
        lambda grpc: add_FabricManagerServiceServicer_to_server(FabricManagerServicer(agent), grpc),
    )

    def look() -> tuple[FabricState, str]:
        status = agent.recent_status(POLL_INTERVAL, timeout=POLL_INTERVAL)
        return status.state, status.message

    try:
        with process.Termination() as termination, server, Monitor(look, server.fabric_changed, interval=POLL_INTERVAL):
            log.info("serving at %s", settings.listen)
            termination.wait()
    finally:
        worker.close()


def _end() -> None:
    """End as by the signal, once the call that asks for it is answered."""
    os.kill(os.getpid(), signal.SIGTERM)
