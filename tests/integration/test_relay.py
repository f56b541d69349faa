# SPDX-License-Identifier: Apache-2.0
"""Two relays in a row, over TCP in vsock's place, with a bare gRPC server or an agent behind them."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import pytest

from fmctl.core.address import Address
from fmctl.core.errors import AgentUnreachable
from fmctl.rpc.agent_client import AgentClient
from tests.integration.conftest import Chain
from tests.rpc.relaying import VSOCK_PORT, Network, Tcp
from tests.rpc.scenarios import CALLS, RelayScenarios
from tests.rpc.test_endpoints import needs_vsock
from tests.support import eventually, run


class TestOverTcp(RelayScenarios):
    @pytest.fixture
    def network(self) -> Network:
        return Tcp()


@pytest.fixture
def client(folder: Path) -> Iterator[AgentClient]:
    """The daemon's client of the agent that serves in the folder, through both relays."""
    network, path = Tcp(), folder / "relay" / "agent.sock"
    client = AgentClient(Address.parse(f"unix:{path}"))
    with network.service_vm(folder / "agent.sock"), network.host(path), contextlib.closing(client):
        yield client


def active(client: AgentClient) -> list[int]:
    return [p.id for p in client.list_partitions(timeout=15).partitions if p.active]


def test_an_agent_is_driven_through_both_relays_and_so_is_its_successor(chain: Chain, client: AgentClient) -> None:
    chain.fabric_manager()
    agent = chain.agent()
    eventually(lambda: active(client) == [])
    client.activate(3, timeout=15)
    assert active(client) == [3]
    agent.end(signal.SIGKILL)
    with pytest.raises(AgentUnreachable):
        client.list_partitions(timeout=15)
    chain.agent()

    def found() -> bool:
        with contextlib.suppress(AgentUnreachable):
            return active(client) == [3]
        return False

    eventually(found)


def test_many_calls_to_an_agent_at_once(chain: Chain, client: AgentClient) -> None:
    chain.fabric_manager()
    chain.agent()
    eventually(lambda: active(client) == [])
    with futures.ThreadPoolExecutor(CALLS) as callers:
        answers = list(callers.map(lambda _: client.status(timeout=30), range(CALLS)))
    assert len({answer.version for answer in answers}) == 1


@needs_vsock
def test_an_agent_listens_at_its_vsock_port_and_gives_it_back(chain: Chain) -> None:
    settings = chain.folder / "agent.yaml"
    settings.write_text(f"vsock_port: {VSOCK_PORT}\n")
    agent = chain.agent("--config", str(settings))
    with socket.socket(socket.AF_VSOCK) as other:
        with pytest.raises(OSError, match="Address already in use"):
            other.bind((socket.VMADDR_CID_ANY, VSOCK_PORT))
        assert agent.end(signal.SIGTERM) == 0
        other.bind((socket.VMADDR_CID_ANY, VSOCK_PORT))
        done = run("agent", "--config", str(settings), "--listen", chain.at("agent"))
    assert (done.returncode, f"vsock port {VSOCK_PORT} cannot be served at" in done.stderr) == (1, True)


def test_a_vsock_port_without_a_unix_socket_behind_it_is_refused(folder: Path) -> None:
    settings = folder / "agent.yaml"
    settings.write_text(f"vsock_port: {VSOCK_PORT}\nlisten: 127.0.0.1:1\n")
    done = run("agent", "--config", str(settings), "--insecure-tcp")
    assert (done.returncode, "the agent listens at 127.0.0.1" in done.stderr) == (2, True)
