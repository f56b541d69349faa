# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fmctl.core.errors import FmctlError, HostCordoned
from fmctl.rpc.endpoints import dial_unix
from fmctl.rpc.relay import STOP_TIMEOUT, Limits, Relay
from tests.rpc.scenarios import descriptors, drain
from tests.support import eventually


class Place:
    """A relay between two unix sockets of a folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "near.sock"
        self.far = folder / "far.sock"

    def listen(self, cleanup: contextlib.ExitStack) -> socket.socket:
        return listening(self.path, cleanup)

    def relay(self, **options: Any) -> Relay:
        return Relay("the agent", self.listen, options.pop("dial", dial_unix(self.far)), **options)

    def connect(self) -> socket.socket:
        near = socket.socket(socket.AF_UNIX)
        near.settimeout(15)
        near.connect(str(self.path))
        return near

    def hears(self) -> bytes:
        """What a caller hears until it is hung up on."""
        with self.connect() as near, contextlib.suppress(ConnectionError):
            return drain(near)
        return b""


def listening(path: Path, cleanup: contextlib.ExitStack) -> socket.socket:
    listener = cleanup.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(path))
    cleanup.callback(path.unlink)
    listener.listen()
    listener.settimeout(15)
    return listener


@pytest.fixture
def place(folder: Path) -> Place:
    return Place(folder)


@pytest.fixture
def agent(place: Place) -> Iterator[socket.socket]:
    """The far side's listening socket."""
    with contextlib.ExitStack() as cleanup:
        yield listening(place.far, cleanup)


def failing(error: Exception) -> Callable[[contextlib.ExitStack], Any]:
    async def dial(cleanup: contextlib.ExitStack) -> socket.socket:
        raise error

    return dial


async def hanging(cleanup: contextlib.ExitStack) -> socket.socket:
    cleanup.enter_context(socket.socket(socket.AF_UNIX))
    await asyncio.Event().wait()
    raise AssertionError


def test_a_refused_peer_is_hung_up_on_and_nothing_is_dialled(place: Place, agent: socket.socket) -> None:
    with place.relay(refusal=lambda peer: "it may not call") as relay:
        assert place.hears() == b""
        agent.settimeout(0)
        with pytest.raises(BlockingIOError):
            agent.accept()
        assert relay.last_failure is None


def test_the_rule_is_told_the_peer_s_address(place: Place, agent: socket.socket) -> None:
    peers: list[tuple[str, int]] = []

    def refusal(peer: tuple[str, int]) -> str:
        peers.append(peer)
        return ""

    with socket.create_server(("127.0.0.1", 0)) as listener:
        relay = Relay("the agent", lambda cleanup: listener, dial_unix(place.far), refusal=refusal)
        with relay, socket.create_connection(listener.getsockname()) as near:
            agent.accept()[0].close()
            assert peers == [near.getsockname()]


def test_a_flood_of_refused_peers_is_one_line_in_the_log(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    reasons = iter(["CID 3"] * 50 + ["CID 4"] * 50)
    with place.relay(refusal=lambda peer: next(reasons)):
        for _ in range(100):
            assert place.hears() == b""
    refused = "a connection to the agent was refused: CID"
    assert caplog.messages == [f"{refused} 3", f"{refused} 4"]


def test_what_goes_on_is_logged_again_after_a_while(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with place.relay(refusal=lambda peer: "x", limits=Limits(quiet=0.0)):
        for _ in range(3):
            place.hears()
    assert len(caplog.messages) == 3


def test_no_more_connections_are_taken_than_the_limit_until_one_ends(place: Place, agent: socket.socket) -> None:
    with place.relay(limits=Limits(connections=2)), contextlib.ExitStack() as cleanup:
        nears = [cleanup.enter_context(place.connect()) for _ in range(2)]
        fars = [cleanup.enter_context(agent.accept()[0]) for _ in nears]
        assert place.hears() == b""
        nears[0].close()
        assert drain(fars[0]) == b""
        fars[0].close()

        def taken() -> bool:
            agent.settimeout(0.2)
            with place.connect(), contextlib.suppress(TimeoutError):
                agent.accept()[0].close()
                return True
            return False

        eventually(taken)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (HostCordoned("no", why="a reason"), "no: a reason"),
        (OSError(errno.ECONNREFUSED, "Connection refused"), "the agent cannot be reached: Connection refused"),
        (OSError("no number"), "the agent cannot be reached: no number"),
    ],
)
def test_why_the_far_side_cannot_be_reached_is_kept_and_logged(
    place: Place, error: Exception, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    with place.relay(dial=failing(error)) as relay:
        assert place.hears() == b""
        eventually(lambda: relay.last_failure)
        assert str(relay.last_failure) == failure
    assert caplog.messages == [failure]


def test_a_far_side_that_does_not_take_the_connection_in_time_is_given_up(place: Place) -> None:
    with place.relay(dial=hanging, limits=Limits(dial=0.2)) as relay:
        before = descriptors()
        assert place.hears() == b""
        assert str(relay.last_failure) == "the agent cannot be reached: no answer within 0.2 s"
        assert descriptors() == before


def test_a_far_side_that_hangs_up_unheard_was_not_reached(place: Place, agent: socket.socket) -> None:
    with place.relay() as relay:
        before = descriptors()
        for words, failure in ((b"", True), (b"hello", False), (b"", True)):
            with place.connect() as near:
                far, _ = agent.accept()
                far.sendall(words)
                far.close()
                assert drain(near) == words
            eventually(lambda: descriptors() == before)
            assert ("it took the connection and did not answer" in str(relay.last_failure)) is failure


def test_an_answer_is_heard_when_it_comes(place: Place, agent: socket.socket) -> None:
    with place.relay() as relay, place.connect() as near:
        relay.last_failure = FmctlError("from before")
        far, _ = agent.accept()
        with far:
            near.sendall(b"question")
            assert far.recv(100) == b"question"
            assert relay.last_failure
            far.sendall(b"a")
            assert near.recv(100) == b"a"
            assert relay.last_failure is None


def test_a_side_that_hangs_is_left_once_the_other_has_ended(place: Place, agent: socket.socket) -> None:
    with place.relay(limits=Limits(half_closed=0.3)):
        before = descriptors()
        near = place.connect()
        far, _ = agent.accept()
        with far:
            near.close()
            eventually(lambda: descriptors() == before + 1)
            assert drain(far) == b""


def test_a_side_that_goes_on_is_not_left(place: Place, agent: socket.socket) -> None:
    with place.relay(limits=Limits(half_closed=0.6)), place.connect() as near:
        far, _ = agent.accept()
        with far:
            near.shutdown(socket.SHUT_WR)
            assert drain(far) == b""
            for _ in range(5):
                time.sleep(0.3)
                far.sendall(b"more")
        assert drain(near) == b"more" * 5


def test_an_idle_connection_is_not_left(place: Place, agent: socket.socket) -> None:
    with place.relay(limits=Limits(half_closed=0.1, dial=0.1)), place.connect() as near:
        far, _ = agent.accept()
        with far:
            time.sleep(0.5)
            near.sendall(b"hello")
            assert far.recv(100) == b"hello"


def test_a_reset_of_one_side_closes_the_other_and_is_no_news(
    place: Place, agent: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """A unix socket that is closed with bytes unread resets its connection."""
    with place.relay(), place.connect() as near:
        far, _ = agent.accept()
        far.sendall(b"hello")
        assert near.recv(100) == b"hello"
        near.sendall(b"never read")
        eventually(lambda: far.recv(1, socket.MSG_PEEK))
        far.close()
        with contextlib.suppress(ConnectionError):
            assert drain(near) == b""
    assert not caplog.messages


def test_where_descriptors_ran_out_the_relay_goes_on_once_there_are_some(
    place: Place, agent: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with place.relay(), socket.socket(socket.AF_UNIX) as near:
        near.settimeout(15)
        resource.setrlimit(resource.RLIMIT_NOFILE, (near.fileno() + 1, limits[1]))
        try:
            near.connect(str(place.path))
            eventually(lambda: caplog.messages)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        far, _ = agent.accept()
        far.close()
        assert drain(near) == b""
    assert caplog.messages[0] == "connections to the agent cannot be accepted: Too many open files"


def test_accepting_that_fails_is_not_tried_again_at_once(place: Place) -> None:
    class Exhausted(socket.socket):
        tries = 0

        def accept(self) -> tuple[socket.socket, Any]:
            self.tries += 1
            raise OSError(errno.EMFILE, "Too many open files")

    with Exhausted(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as near:
        listener.bind(str(place.path))
        listener.listen()
        with Relay("the agent", lambda cleanup: listener, hanging):
            near.connect(str(place.path))
            eventually(lambda: listener.tries)
            time.sleep(0.3)
            assert listener.tries == 1


def test_a_place_that_cannot_be_listened_at_is_refused_and_nothing_is_left(place: Place) -> None:
    def listen(cleanup: contextlib.ExitStack) -> socket.socket:
        place.listen(cleanup)
        raise FmctlError("no")

    before = descriptors(), threading.active_count()
    with pytest.raises(FmctlError, match="no"), Relay("the agent", listen, hanging):
        raise AssertionError
    assert not place.path.exists()
    assert (descriptors(), threading.active_count()) == before


def test_stopping_ends_connections_that_are_dialled_idle_or_stuck(place: Place, agent: socket.socket) -> None:
    before = descriptors(), threading.active_count()
    with contextlib.ExitStack() as cleanup:
        with place.relay():
            idle, stuck = (cleanup.enter_context(place.connect()) for _ in range(2))
            for _ in range(2):
                cleanup.enter_context(agent.accept()[0])
            stuck.settimeout(0.3)
            with pytest.raises(TimeoutError):
                stuck.sendall(bytes(64 << 20))
            start = time.monotonic()
        assert time.monotonic() - start < STOP_TIMEOUT / 2
        assert drain(idle) == b""
        with place.relay(dial=hanging):
            near = cleanup.enter_context(place.connect())
            time.sleep(0.1)
            start = time.monotonic()
        assert time.monotonic() - start < STOP_TIMEOUT / 2
        assert drain(near) == b""
        assert not place.path.exists()
    assert (descriptors(), threading.active_count()) == before


def test_a_relay_s_probe_tells_whether_its_loop_turns(place: Place, agent: socket.socket) -> None:
    held = threading.Event()

    async def holding(cleanup: contextlib.ExitStack) -> socket.socket:
        held.set()
        time.sleep(1)  # as a loop would that is stuck
        raise OSError(errno.ECONNREFUSED, "no")

    relay = place.relay(dial=holding)
    with pytest.raises(TimeoutError):
        relay.probe(0.01)
    with relay:
        relay.probe(5)
        with place.connect():
            assert held.wait(5)
            with pytest.raises(TimeoutError):
                relay.probe(0.1)
            relay.probe(5)
