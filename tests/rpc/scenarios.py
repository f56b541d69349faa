# SPDX-License-Identifier: Apache-2.0
"""What must hold of two relays in a row, whatever lies between them: TCP in the test suite, vsock in the lab."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import socket
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from fmctl.core.errors import AgentUnreachable
from fmctl.rpc import keepalive
from fmctl.rpc.relay import STOP_TIMEOUT, Relay
from tests.rpc.relaying import Client, Echo, Network, ServiceVm
from tests.support import eventually

CALLS = 200
MIB = 1 << 20


class Chain:
    """A unix socket, the host's relay, the network, the Service VM's relay, and the agent's unix socket."""

    def __init__(self, folder: Path, network: Network) -> None:
        self.folder = folder
        self.network = network
        self.agent = folder / "agent.sock"
        self.path = folder / "relay" / "agent.sock"
        self.objection: AgentUnreachable | None = None

    def check(self) -> None:
        if self.objection:
            raise self.objection

    def service_vm(self) -> Relay:
        return self.network.service_vm(self.agent)

    def host(self) -> Relay:
        return self.network.host(self.path, self.check)

    def connect(self) -> socket.socket:
        near = socket.socket(socket.AF_UNIX)
        near.settimeout(15)
        near.connect(str(self.path))
        return near

    @contextlib.contextmanager
    def listening(self) -> Iterator[socket.socket]:
        """An agent that speaks no gRPC."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.settimeout(15)
            listener.bind(str(self.agent))
            listener.listen(64)
            yield listener

    @contextlib.contextmanager
    def ends(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Both ends of one connection."""
        with self.service_vm(), self.host(), self.listening() as listener, self.connect() as near:
            far, _ = listener.accept()
            with far:
                far.settimeout(15)
                yield near, far


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def drain(source: socket.socket) -> bytes:
    """All that comes until the end of the stream."""
    received = bytearray()
    while chunk := source.recv(MIB):
        received += chunk
    return bytes(received)


def fill(sink: socket.socket) -> bytes:
    """Send until nothing was taken for a second; what was taken."""
    sent = bytearray()
    sink.settimeout(1)
    try:
        while True:
            block = hashlib.sha256(sent[-32:]).digest() * 2_048
            sent += block[: sink.send(block)]
    except TimeoutError:
        sink.settimeout(15)
        return bytes(sent)


def code(call: Any) -> Any:
    """How a call failed."""
    return call.exception(timeout=15).code()


def answers(client: Client) -> bool:
    """Whether a call is answered now; one that comes while a connection is dying may fail with it."""
    try:
        return client.say(b"y", wait_for_ready=True, timeout=15) == b"y"
    except grpc.RpcError:
        return False


class RelayScenarios:
    """Over the network of the fixture `network`, which a subclass gives."""

    short_connections = 2_000

    @pytest.fixture
    def chain(self, folder: Path, network: Network) -> Chain:
        return Chain(folder, network)

    @pytest.fixture
    def echo(self, chain: Chain) -> Iterator[Echo]:
        """A gRPC server behind both relays."""
        with chain.service_vm(), chain.host(), Echo(chain.agent) as echo:
            yield echo

    def test_each_end_hears_what_the_other_says(self, chain: Chain) -> None:
        with chain.ends() as (near, far):
            near.sendall(b"question")
            assert far.recv(100) == b"question"
            far.sendall(b"answer")
            assert near.recv(100) == b"answer"

    def test_the_end_of_one_stream_leaves_the_other(self, chain: Chain) -> None:
        with chain.ends() as (near, far):
            near.sendall(b"question")
            near.shutdown(socket.SHUT_WR)
            assert drain(far) == b"question"
            with futures.ThreadPoolExecutor() as answering:
                answering.submit(far.sendall, b"a" * 8 * MIB).add_done_callback(lambda _: far.shutdown(socket.SHUT_WR))
                assert drain(near) == b"a" * 8 * MIB

    def test_the_far_end_may_end_its_stream_first(self, chain: Chain) -> None:
        with chain.ends() as (near, far):
            far.shutdown(socket.SHUT_WR)
            assert drain(near) == b""
            near.sendall(b"still here")
            near.shutdown(socket.SHUT_WR)
            assert drain(far) == b"still here"

    @pytest.mark.parametrize("closing", ["near", "far"])
    def test_closing_one_end_closes_the_other_and_all_between(self, chain: Chain, closing: str) -> None:
        with chain.service_vm(), chain.host(), chain.listening() as listener:
            before = descriptors()
            near = chain.connect()
            far, _ = listener.accept()
            first, second = (near, far) if closing == "near" else (far, near)
            first.close()
            with second:
                assert drain(second) == b""
            eventually(lambda: descriptors() == before)

    def test_a_slow_reader_slows_its_writer_and_loses_nothing(self, chain: Chain) -> None:
        with chain.ends() as (near, far):
            for writer, reader in ((near, far), (far, near)):
                sent = fill(writer)
                assert 64 * 1024 < len(sent) < 16 * MIB
                writer.shutdown(socket.SHUT_WR)
                assert hashlib.sha256(drain(reader)).digest() == hashlib.sha256(sent).digest()

    def test_a_stuck_reader_stops_nobody_else(self, chain: Chain) -> None:
        with chain.service_vm(), chain.host(), chain.listening() as listener, chain.connect() as stuck:
            hung, _ = listener.accept()
            with hung:
                fill(stuck)
                with chain.connect() as near:
                    far, _ = listener.accept()
                    with far:
                        near.sendall(b"hello")
                        assert far.recv(100) == b"hello"

    def test_thousands_of_short_connections_leave_nothing(self, chain: Chain) -> None:
        with chain.service_vm(), chain.host(), chain.listening() as listener:
            before = descriptors()
            for _ in range(self.short_connections):
                with chain.connect() as near:
                    near.sendall(b"x")
                    far, _ = listener.accept()
                    with far:
                        assert far.recv(1) == b"x"
            eventually(lambda: descriptors() == before)

    def test_a_large_message_arrives_whole(self, chain: Chain, echo: Echo) -> None:
        message = hashlib.sha256().digest() * (2 * MIB)
        assert len(message) == 64 * MIB
        with Client(chain.path) as client:
            assert client.say(message, timeout=120) == message

    def test_many_calls_at_once(self, chain: Chain, echo: Echo) -> None:
        with Client(chain.path) as client:
            calls = [client.wait.future(b"%d" % number, timeout=60) for number in range(CALLS)]
            for _ in calls:
                assert echo.entered.acquire(timeout=30)
            echo.leave.set()
            assert [call.result() for call in calls] == [b"%d" % number for number in range(CALLS)]

    def test_many_streams_of_many_clients(self, chain: Chain, echo: Echo) -> None:
        def poured(_: int) -> int:
            with Client(chain.path) as client:
                return sum(len(block) for block in client.pour(b"64", timeout=60))

        with futures.ThreadPoolExecutor(8) as clients:
            assert list(clients.map(poured, range(32))) == [4 * MIB] * 32

    def test_a_failing_check_keeps_the_agent_from_being_dialled(self, chain: Chain) -> None:
        chain.objection = AgentUnreachable("the Service VM is not running", why="no such domain")
        with chain.service_vm(), chain.host() as host, Echo(chain.agent), Client(chain.path) as client:
            assert code(client.say.future(b"x", timeout=15)) is grpc.StatusCode.UNAVAILABLE
            assert host.last_failure is chain.objection
            chain.objection = None
            assert client.say(b"x", wait_for_ready=True, timeout=15) == b"x"
            assert host.last_failure is None

    def test_what_is_not_there_yet_is_told_and_found_once_it_is(self, chain: Chain) -> None:
        with chain.host() as host, Client(chain.path) as client:
            assert code(client.say.future(b"x", timeout=15)) is grpc.StatusCode.UNAVAILABLE
            assert host.last_failure
            with chain.service_vm() as service_vm:
                eventually(lambda: "took the connection and did not answer" in str(host.last_failure))
                assert "No such file" in str(service_vm.last_failure)
                with Echo(chain.agent):
                    assert client.say(b"x", wait_for_ready=True, timeout=15) == b"x"
                    assert not (host.last_failure or service_vm.last_failure)

    def test_a_killed_service_vm_fails_its_calls_and_its_successor_takes_new_ones(self, chain: Chain) -> None:
        with chain.host(), Client(chain.path) as client:
            with ServiceVm(chain.folder, chain.network):
                assert client.say(b"x", wait_for_ready=True, timeout=15) == b"x"
                call = client.wait.future(b"x", timeout=60)
                with pytest.raises(grpc.FutureTimeoutError):
                    call.result(timeout=0.5)
            assert code(call) is grpc.StatusCode.UNAVAILABLE
            with ServiceVm(chain.folder, chain.network):
                eventually(lambda: answers(client))

    def test_keepalive_finds_a_frozen_service_vm(self, chain: Chain) -> None:
        with (
            ServiceVm(chain.folder, chain.network) as service_vm,
            chain.host(),
            Client(chain.path, keepalive.client(1.0, 1.0)) as client,
        ):
            assert client.say(b"x", wait_for_ready=True, timeout=15) == b"x"
            call = client.wait.future(b"x", timeout=60)
            assert client.say(b"x", timeout=15) == b"x"
            time.sleep(0.2)
            service_vm.send(signal.SIGSTOP)
            assert code(call) is grpc.StatusCode.UNAVAILABLE
            service_vm.send(signal.SIGCONT)
            eventually(lambda: answers(client))

    def test_stopping_while_busy_is_quick_and_leaves_nothing(self, chain: Chain) -> None:
        before = descriptors()
        with chain.service_vm(), Echo(chain.agent) as echo, Client(chain.path) as client:
            with chain.host():
                calls = [client.wait.future(b"x", timeout=60) for _ in range(20)]
                for _ in calls:
                    assert echo.entered.acquire(timeout=15)
                pouring = client.pour(b"1000000", timeout=60)
                next(pouring)
                start = time.monotonic()
            assert time.monotonic() - start < STOP_TIMEOUT / 2
            assert {code(call) for call in calls} == {grpc.StatusCode.UNAVAILABLE}
            with pytest.raises(grpc.RpcError):
                list(pouring)
        eventually(lambda: descriptors() <= before)
