# SPDX-License-Identifier: Apache-2.0
"""The agent's logs over gRPC: nothing is lost, nobody is held up, and every thread comes back."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmctl.control.agent import LocalAgent
from fmctl.control.logbuffer import MAX_READERS, LogBuffer
from fmctl.control.logs import GuestLogs
from fmctl.core.address import Address
from fmctl.core.errors import AgentUnreachable, FabricNotReady, FmctlError
from fmctl.core.loglines import LogLine, LogPosition, LogSource
from fmctl.rpc.agent_client import AgentClient
from fmctl.rpc.fmctl.v1.fabric_manager_pb2_grpc import add_FabricManagerServiceServicer_to_server
from fmctl.rpc.manager import FabricManagerServicer
from fmctl.rpc.probe import Probe
from fmctl.rpc.server import MANAGER_SERVICE, THREADS, Listening, Server
from fmctl.sim.fmservice import Unmanaged
from fmctl.sim.nvfm import MemoryNvfm
from tests.support import eventually

FM, KERNEL = LogSource.FABRIC_MANAGER, LogSource.KERNEL
START = LogPosition()


class Guest:
    """An agent's server, which may end and be started again."""

    def __init__(self, folder: Path) -> None:
        self.address = Address.parse(f"unix:{folder}/agent.sock")
        self.stack = contextlib.ExitStack()
        self.start()

    def start(self) -> None:
        self.buffer = LogBuffer(max_lines=1000)
        agent = LocalAgent(MemoryNvfm(None), Unmanaged(), lambda: None, library="", call_timeout=5, logs=self.buffer)
        server = Server(
            Listening(self.address),
            (MANAGER_SERVICE,),
            lambda grpc: add_FabricManagerServiceServicer_to_server(FabricManagerServicer(agent), grpc),
        )
        self.stack.enter_context(server)
        self.stack.enter_context(self.buffer)

    def stop(self) -> None:
        self.stack.close()


@pytest.fixture
def guest(folder: Path) -> Iterator[Guest]:
    guest = Guest(folder)
    yield guest
    guest.stop()


@pytest.fixture
def client(guest: Guest) -> Iterator[AgentClient]:
    with contextlib.closing(AgentClient(guest.address)) as client:
        yield client


def test_a_line_arrives_as_it_was(guest: Guest, client: AgentClient) -> None:
    guest.buffer.add(KERNEL, 1_700_000_000.25, "x \N{EURO SIGN}")
    stream = client.logs(START)
    line = next(stream)
    assert line == LogLine(KERNEL, 1_700_000_000.25, "x \N{EURO SIGN}", 1, guest.buffer.instance, 0)
    guest.buffer.add(FM, 1.0, "y")
    assert next(stream).text == "y"
    stream.close()


def test_a_reader_goes_on_where_it_stopped(guest: Guest, client: AgentClient) -> None:
    for text in "abc":
        guest.buffer.add(FM, 1.0, text)
    stream = client.logs(LogPosition(guest.buffer.instance, 2))
    assert next(stream).text == "c"
    stream.close()


def test_readers_that_went_away_leave_room(guest: Guest, client: AgentClient) -> None:
    guest.buffer.add(FM, 1.0, "a")
    for _ in range(3 * THREADS):
        assert eventually(lambda: _first(client)) == "a"
    assert client.status(timeout=5).version


def _first(client: AgentClient) -> str:
    """The first line; empty while the server has not noticed yet that others are gone."""
    stream = client.logs(START)
    try:
        return next(stream).text
    except FabricNotReady:
        return ""
    finally:
        stream.close()


def test_too_many_readers_are_refused_and_other_calls_are_served(guest: Guest, client: AgentClient) -> None:
    guest.buffer.add(FM, 1.0, "a")
    streams = [client.logs(START) for _ in range(MAX_READERS)]
    assert [next(stream).text for stream in streams] == ["a"] * MAX_READERS
    with pytest.raises(FabricNotReady, match="callers are told them already"):
        next(client.logs(START))
    assert client.status(timeout=5).version
    for stream in streams:
        stream.close()


def test_a_slow_reader_holds_up_neither_the_log_nor_the_others(guest: Guest, client: AgentClient) -> None:
    """What lies in gRPC's own buffers it still gets."""
    slow, quick = client.logs(START), client.logs(START)
    guest.buffer.add(FM, 1.0, "first")
    assert next(slow).text == next(quick).text == "first"
    began = time.monotonic()
    for _ in range(20_000):
        guest.buffer.add(FM, 1.0, "x" * 1000)
    guest.buffer.add(FM, 1.0, "last")
    assert time.monotonic() - began < 10
    for stream in (quick, slow):
        seen = dropped = 0
        for line in stream:
            seen, dropped = seen + 1, dropped + line.dropped
            if line.text == "last":
                break
        assert seen + dropped == 20_001
        stream.close()


def test_streams_end_at_once_with_the_agent(guest: Guest, client: AgentClient) -> None:
    stream = client.logs(START)
    ended: list[float] = []

    def read() -> None:
        with contextlib.suppress(FmctlError):
            list(stream)
        ended.append(time.monotonic())

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.2)
    began = time.monotonic()
    guest.stop()
    assert time.monotonic() - began < 3
    thread.join(5)
    assert ended


def test_the_daemon_hears_an_agent_that_was_away(guest: Guest, client: AgentClient) -> None:
    with GuestLogs(client, first_pause=0.05) as logs:
        guest.buffer.add(FM, 1.0, "a")
        eventually(lambda: [line.text for line in logs.recent(10)] == ["a"])
        guest.stop()
        guest.start()
        guest.buffer.add(FM, 1.0, "a")
        guest.buffer.add(FM, 1.0, "b")
        eventually(lambda: [line.text for line in logs.recent(10)] == ["a", "b"], within=30)


def test_an_agent_that_is_not_there_is_unreachable(folder: Path) -> None:
    with (
        contextlib.closing(AgentClient(Address.parse(f"unix:{folder}/none.sock"))) as client,
        pytest.raises(AgentUnreachable),
    ):
        next(client.logs(START))


def test_a_server_s_probe_is_its_own_health_check(guest: Guest) -> None:
    with contextlib.closing(Probe(guest.address)) as probe:
        probe()
        guest.stop()
        with pytest.raises(AgentUnreachable):
            probe()
