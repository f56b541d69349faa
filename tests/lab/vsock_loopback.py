# SPDX-License-Identifier: Apache-2.0
"""The relays over vsock itself, by the machine's loopback; pytest collects this file only where it is named.

Run as root where the kernel module vsock_loopback is loaded: `python -m pytest tests/lab/vsock_loopback.py`.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from fmctl.core.address import VsockAddress
from fmctl.core.errors import FmctlError
from fmctl.rpc.endpoints import listen_vsock
from fmctl.rpc.vsock import from_host, to_agent
from tests.rpc.relaying import LOCAL_CID, Client, Network, Vsock, nothing
from tests.rpc.scenarios import RelayScenarios
from tests.support import Program, health

PORT = 6767
NO_SUCH_CID = 4242


class TestOverVsock(RelayScenarios):
    short_connections = 600  # more than there are ports to call from, and few enough for an emulated machine

    @pytest.fixture
    def network(self) -> Network:
        return Vsock(PORT)


@pytest.mark.parametrize(
    ("allowed", "source_port", "reached"),
    [
        ((LOCAL_CID,), 1023, True),
        ((2, LOCAL_CID), 1, True),
        ((LOCAL_CID,), 1024, False),
        ((LOCAL_CID,), socket.VMADDR_PORT_ANY, False),
        ((2,), 1023, False),
        ((), 1023, False),
    ],
)
def test_who_may_call(folder: Path, allowed: tuple[int, ...], source_port: int, reached: object) -> None:
    with socket.socket(socket.AF_UNIX) as agent, from_host(PORT, allowed, folder / "agent.sock"):
        agent.settimeout(15)
        agent.bind(str(folder / "agent.sock"))
        agent.listen()
        with socket.socket(socket.AF_VSOCK) as caller:
            caller.settimeout(15)
            caller.bind((socket.VMADDR_CID_ANY, source_port))
            caller.connect((LOCAL_CID, PORT))
            if reached:
                accepted, _ = agent.accept()
                with accepted:
                    accepted.sendall(b"hello")
                    assert caller.recv(100) == b"hello"
            else:
                with contextlib.suppress(ConnectionError):
                    assert caller.recv(100) == b""


@pytest.mark.parametrize(
    ("agent", "why"),
    [
        (VsockAddress(LOCAL_CID, PORT), "its VM runs, and nothing listens at that port"),
        (VsockAddress(NO_SUCH_CID, PORT), "no running VM has that CID"),
    ],
)
def test_why_the_agent_cannot_be_reached_is_told(folder: Path, agent: VsockAddress, why: str) -> None:
    path = folder / "relay" / "agent.sock"
    with to_agent(path, agent, nothing) as relay, Client(path) as client:
        with pytest.raises(grpc.RpcError):
            client.say(b"x", timeout=15)
        assert relay.last_failure
        assert relay.last_failure.why == why


def test_a_port_is_served_at_once_only() -> None:
    with contextlib.ExitStack() as cleanup:
        listen_vsock(PORT, cleanup)
        with pytest.raises(FmctlError, match=f"vsock port {PORT} cannot be served at: Address already in use"):
            listen_vsock(PORT, cleanup)


def test_without_the_capability_it_is_named() -> None:
    script = (
        "import asyncio, contextlib\n"
        "from fmctl.core.address import VsockAddress\n"
        "from fmctl.rpc.endpoints import dial_vsock\n"
        f"asyncio.run(dial_vsock(VsockAddress({LOCAL_CID}, {PORT}))(contextlib.ExitStack()))\n"
    )
    done = subprocess.run(
        ["/usr/bin/setpriv", "--bounding-set=-net_bind_service", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "takes CAP_NET_BIND_SERVICE" in done.stderr


def test_the_agent_serves_at_its_vsock_port(folder: Path) -> None:
    settings, path = folder / "agent.yaml", folder / "relay" / "agent.sock"
    settings.write_text(f"listen: unix:{folder}/agent.sock\nvsock_port: {PORT}\nallowed_peers: [{LOCAL_CID}]\n")
    with Program("agent", "--config", str(settings), log=folder / "agent.log") as program:
        program.says("serving at", within=60)
        with to_agent(path, VsockAddress(LOCAL_CID, PORT), nothing), Client(path) as client:
            answer = health(client.channel).Check(health_pb2.HealthCheckRequest(), timeout=15)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
