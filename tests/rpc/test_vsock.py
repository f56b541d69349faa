# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
import time
from pathlib import Path

import pytest

from fmctl.core.address import VsockAddress
from fmctl.core.errors import AgentUnreachable, FmctlError, HypervisorUnreachable
from fmctl.rpc.endpoints import SOURCE_PORTS, dial_unix
from fmctl.rpc.relay import STOP_TIMEOUT
from fmctl.rpc.vsock import checked, from_host, refusal, to_agent
from tests.rpc.relaying import VSOCK_PORT, nothing
from tests.rpc.scenarios import descriptors, drain
from tests.rpc.test_endpoints import needs_vsock
from tests.support import eventually

AGENT = VsockAddress(1000, 6767)


@pytest.mark.parametrize(
    ("allowed", "cid", "port", "why"),
    [
        ((2,), 2, 1023, ""),
        ((2,), 2, 0, ""),
        ((2, 5), 5, 512, ""),
        ((2,), 2, 1024, "CID 2 called from a port above 1023, as any of its processes can"),
        ((2,), 2, 2**32 - 2, "CID 2 called from a port above 1023, as any of its processes can"),
        ((2,), 3, 1023, "CID 3 is none of allowed_peers"),
        ((2,), 1, 1023, "CID 1 is none of allowed_peers"),
        ((), 2, 1023, "CID 2 is none of allowed_peers"),
    ],
)
def test_who_may_call(allowed: tuple[int, ...], cid: int, port: int, why: str) -> None:
    assert refusal(allowed, (cid, port)) == why


class World:
    """A dial and a check that note what was done, and when."""

    def __init__(self, *objections: FmctlError | None) -> None:
        self.done: list[str] = []
        self._objections = iter(objections)

    def check(self) -> None:
        self.done.append("check")
        if objection := next(self._objections, None):
            raise objection

    async def dial(self, cleanup: contextlib.ExitStack) -> socket.socket:
        self.done.append("dial")
        return cleanup.enter_context(socket.socket())

    def dialled(self) -> None:
        with contextlib.ExitStack() as cleanup:
            asyncio.run(checked(self.check, self.dial)(cleanup))


def test_the_check_comes_before_and_after() -> None:
    world = World()
    world.dialled()
    assert world.done == ["check", "dial", "check"]


def test_a_check_that_fails_keeps_from_dialling() -> None:
    world = World(AgentUnreachable("another VM has that CID"))
    with pytest.raises(AgentUnreachable, match="another VM has that CID"):
        world.dialled()
    assert world.done == ["check"]


def test_a_check_that_fails_afterwards_undoes_the_dialling() -> None:
    world = World(None, HypervisorUnreachable("libvirt is gone"))
    with pytest.raises(HypervisorUnreachable, match="libvirt is gone"):
        world.dialled()


def test_a_check_that_hangs_is_abandoned_and_no_second_is_started_until_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world, leave = World(), threading.Event()
    started: list[int] = []

    def check() -> None:
        started.append(1)
        leave.wait(30)

    async def attempts() -> None:
        dial = checked(check, world.dial, timeout=0.2)
        for _ in range(3):
            with contextlib.ExitStack() as cleanup, pytest.raises(AgentUnreachable, match=r"not be told within 0\.2 s"):
                await dial(cleanup)
        assert (len(started), world.done) == (1, [])
        leave.set()
        with contextlib.ExitStack() as cleanup:
            await dial(cleanup)
        assert (len(started), world.done) == (3, ["dial"])

    asyncio.run(attempts())
    assert not caplog.messages


def test_a_check_that_blocks_stops_no_other_connection_nor_the_end(folder: Path) -> None:
    leave, waits = threading.Event(), iter((0, 0, 30))

    def check() -> None:
        leave.wait(next(waits))

    with contextlib.ExitStack() as cleanup:
        agent, near, waiting = (cleanup.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3))
        agent.bind(str(folder / "agent.sock"))
        agent.listen()
        path = folder / "relay" / "x.sock"
        with to_agent(path, AGENT, check, dial=dial_unix(folder / "agent.sock")):
            near.connect(str(path))
            far = cleanup.enter_context(agent.accept()[0])
            waiting.connect(str(path))
            blocked = eventually(lambda: [thread for thread in threading.enumerate() if thread.name == "relay-check"])
            assert all(thread.daemon for thread in blocked)
            near.sendall(b"hello")
            assert far.recv(100) == b"hello"
            start = time.monotonic()
        assert time.monotonic() - start < STOP_TIMEOUT / 2
    leave.set()


def test_a_failing_check_is_what_is_told_of_the_agent(folder: Path) -> None:
    path = folder / "relay" / "x.sock"
    objection = AgentUnreachable("the Service VM is not called", why="its domain does not run")

    def check() -> None:
        raise objection

    with to_agent(path, AGENT, check) as relay, socket.socket(socket.AF_UNIX) as near:
        near.connect(str(path))
        assert drain(near) == b""
        eventually(lambda: relay.last_failure)
        assert relay.last_failure is objection


@needs_vsock
def test_each_side_listens_where_it_should_and_leaves_nothing(folder: Path) -> None:
    before = descriptors()
    for _ in range(2):
        with to_agent(folder / "relay" / "x.sock", AGENT, nothing), from_host(VSOCK_PORT, (2,), folder / "agent.sock"):
            with pytest.raises(FmctlError, match=f"vsock port {VSOCK_PORT} cannot be served at"):
                from_host(VSOCK_PORT, (2,), folder / "agent.sock").__enter__()
            assert (folder / "relay" / "x.sock").is_socket()
    assert descriptors() == before


@needs_vsock
def test_a_port_that_cannot_be_called_from_is_told(folder: Path) -> None:
    why, path = "every port below 1024 is in use", folder / "relay" / "x.sock"
    with contextlib.ExitStack() as cleanup:
        for port in SOURCE_PORTS:
            try:
                cleanup.enter_context(socket.socket(socket.AF_VSOCK)).bind((socket.VMADDR_CID_ANY, port))
            except PermissionError:
                why = "calling from a port below 1024 takes CAP_NET_BIND_SERVICE"
            except OSError as error:
                assert error.errno == errno.EADDRINUSE
        relay = cleanup.enter_context(to_agent(path, AGENT, nothing))
        near = cleanup.enter_context(socket.socket(socket.AF_UNIX))
        near.connect(str(path))
        assert drain(near) == b""
        eventually(lambda: relay.last_failure)
        assert str(relay.last_failure) == f"the agent at vsock:1000:6767 cannot be reached: {why}"
