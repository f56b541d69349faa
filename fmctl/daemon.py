# SPDX-License-Identifier: Apache-2.0
"""The daemon, put together: `fmctl daemon` on the host, between gRPC's two sides; `sim.tree` can be its board."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from pathlib import Path

from fmctl import platforms, process
from fmctl.control.fabric import FabricController
from fmctl.control.monitor import Monitor
from fmctl.core.address import Address
from fmctl.core.settings import AbsolutePath, DaemonSettings
from fmctl.host.claims import FileClaims
from fmctl.rpc.agent_client import AgentClient
from fmctl.rpc.controller import FabricControllerServicer
from fmctl.rpc.fmctl.v1.fabric_controller_pb2_grpc import add_FabricControllerServiceServicer_to_server
from fmctl.rpc.server import CONTROLLER_SERVICE, Listening, Server

log = logging.getLogger(__name__)


def run(settings: DaemonSettings, *, insecure_tcp: bool = False, simulated: bool = False) -> None:
    """Serve until SIGINT or SIGTERM, whether the agent answers or not; raises FmctlError where that is not possible."""
    process.hold_lifeline()
    address = settings.agent or Address.parse("unix:/run/fmctl/agent.sock")
    agent = AgentClient(address)
    controller = FabricController(
        agent,
        FileClaims(Path(settings.claims_file.path)),
        agent_address=str(address),
        platform=platforms.resolve(settings.platform) if settings.platform else None,
        known_platforms=platforms.every(),
        call_timeout=settings.call_timeout_s,
        started=time.time(),
        simulated=simulated,
    )
    server = Server(
        Listening(settings.listen, settings.socket_group, insecure_tcp, settings.reflection),
        CONTROLLER_SERVICE,
        lambda grpc: add_FabricControllerServiceServicer_to_server(FabricControllerServicer(controller), grpc),
        simulated=lambda: controller.simulated,
    )

    monitor = Monitor(controller.refresh, server.fabric_changed, interval=settings.poll_interval_s)
    with contextlib.closing(agent), process.Termination() as termination, server, monitor:
        log.info("serving at %s", settings.listen)
        termination.wait()


def run_simulated(settings: DaemonSettings, platform: str, state_dir: Path | None, *, insecure_tcp: bool) -> None:
    """Serve with a simulated board: a Fabric Manager and an agent of its own, stopped with the daemon."""
    from fmctl.sim.tree import SimulatedBoard

    platforms.resolve(platform)
    with SimulatedBoard(platform, state_dir, call_timeout=settings.call_timeout_s) as board:
        claims = AbsolutePath.parse(str(board.folder / "claims.json"))
        simulated = dataclasses.replace(settings, agent=board.agent_address, platform=platform, claims_file=claims)
        run(simulated, insecure_tcp=insecure_tcp, simulated=True)
