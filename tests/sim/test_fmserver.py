# SPDX-License-Identifier: Apache-2.0
"""The server in virtual time: its start, its window, latency and faults, over a real socket."""

from __future__ import annotations

import asyncio
import dataclasses
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from fmctl import platforms
from fmctl.core.address import Address
from fmctl.core.errors import BadRequest, FmctlError
from fmctl.core.fmcode import FmCode
from fmctl.sim.faults import Faults
from fmctl.sim.fmserver import Options, serve
from fmctl.sim.saved import SavedState, StateUnusable
from tests.sim import clock

T = TypeVar("T")

H100 = platforms.load("hgx-h100-8")
LIST, ACTIVATE, DEACTIVATE, SET_ACTIVATED, FAILED, UNSUPPORTED, WITH_VFS = range(1, 8)


class Client:
    """A client of the wire itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, options: Options) -> Client:
        reader, writer = await asyncio.open_unix_connection(str(options.listen).removeprefix("unix:"))
        client = cls(reader, writer)
        assert await client.reply() == (0, b"")
        return client

    def send(self, operation: int, argument: int = 0, payload: bytes = b"") -> None:
        self.writer.write(struct.pack("<III", 8 + len(payload), operation, argument) + payload)

    async def reply(self) -> tuple[int, bytes]:
        length, code = struct.unpack("<Ii", await self._reader.readexactly(8))
        return code, await self._reader.readexactly(length - 4)

    async def call(self, operation: int, argument: int = 0, *ids: int) -> int:
        self.send(operation, len(ids) or argument, struct.pack(f"<{len(ids)}I", *ids))
        code, _ = await self.reply()
        return code

    async def is_closed(self) -> bool:
        return await self._reader.read() == b""


@pytest.fixture
def options(folder: Path) -> Options:
    return Options(H100, Address.parse(f"unix:{folder / 'fm.sock'}"), state_file=folder / "state")


def session(options: Options, script: Callable[[Client], Awaitable[T]]) -> T:
    """Run a server, and a script with a client of it."""

    async def main() -> T:
        stopped = asyncio.Event()
        server = asyncio.create_task(serve(options, stopped))
        while not Path(str(options.listen).removeprefix("unix:")).exists():
            assert not server.done(), server.exception()
            await asyncio.sleep(0)
        client = await Client.to(options)
        try:
            return await script(client)
        finally:
            client.writer.close()
            stopped.set()
            await server

    return clock.run(main())


def now() -> float:
    return asyncio.get_running_loop().time()


def test_it_serves_every_operation(options: Options) -> None:
    async def script(client: Client) -> list[int]:
        operations = (LIST, UNSUPPORTED, FAILED)
        codes = [await client.call(operation) for operation in operations]
        codes += [await client.call(ACTIVATE, 1), await client.call(ACTIVATE, 1), await client.call(DEACTIVATE, 1)]
        return [*codes, await client.call(SET_ACTIVATED), await client.call(WITH_VFS, 1)]

    assert session(options, script) == [0, 0, 0, 0, FmCode.IN_USE, 0, FmCode.NOT_SUPPORTED, FmCode.NOT_SUPPORTED]


def test_a_delayed_call_has_its_effect_and_its_answer_later_and_others_go_on(options: Options) -> None:
    async def script(client: Client) -> tuple[int, float, int, float]:
        other = await Client.to(options)
        began = now()
        client.send(ACTIVATE, 1)
        await asyncio.sleep(1)
        before = await other.call(DEACTIVATE, 1)
        asked = now() - began
        other.writer.close()
        code, _ = await client.reply()
        return before, asked, code, now() - began

    delayed = dataclasses.replace(options, faults=Faults.parse(["delay=5@activate:1+"]))
    assert session(delayed, script) == (FmCode.UNINITIALIZED, 1.0, 0, 5.0)


def test_a_list_shows_a_change_at_once(options: Options) -> None:
    async def script(client: Client) -> list[bytes]:
        lists = []
        for operation in (LIST, ACTIVATE, LIST, LIST):
            client.send(operation, 1 if operation == ACTIVATE else 0)
            lists.append((await client.reply())[1])
        return lists

    before, _, after, again = session(options, script)
    assert before != after == again


def test_a_start_takes_its_time_and_then_saves_the_state(options: Options) -> None:
    assert options.state_file
    state_file = options.state_file

    async def script(client: Client) -> tuple[int, bool, int]:
        early = await client.call(LIST)
        await asyncio.sleep(29)
        saved_early = state_file.exists()
        await asyncio.sleep(2)
        return early, saved_early, await client.call(LIST)

    slow = dataclasses.replace(options, faults=Faults.parse(["slow-start=30"]))
    assert session(slow, script) == (FmCode.NOT_CONFIGURED, False, FmCode.SUCCESS)
    assert SavedState.from_json(state_file.read_text(), "file") == SavedState.of(H100)
    assert [path.name for path in state_file.parent.iterdir()] == ["state"]


def save(options: Options, state: SavedState) -> Options:
    assert options.state_file
    options.state_file.write_text(state.to_json())
    return dataclasses.replace(options, restart=True)


def test_a_restart_is_told_in_time_and_serves_on(options: Options) -> None:
    async def script(client: Client) -> list[int]:
        await asyncio.sleep(59)
        codes = [await client.call(LIST), await client.call(SET_ACTIVATED, 0, 1, 2)]
        await asyncio.sleep(3600)
        return [*codes, await client.call(ACTIVATE, 1)]

    restarted = save(options, SavedState.of(H100))
    assert session(restarted, script) == [FmCode.NOT_CONFIGURED, 0, FmCode.IN_USE]


def test_a_restart_that_is_told_nothing_ends_with_an_error(options: Options) -> None:
    restarted = save(options, SavedState.of(H100))

    async def main() -> float:
        with pytest.raises(FmctlError, match="not told which partitions are active within 60 s") as failed:
            await serve(restarted, asyncio.Event())
        assert failed.value.reason is None
        return now()

    assert clock.run(main()) == pytest.approx(60, abs=0.1)
    assert not Path(str(options.listen).removeprefix("unix:")).exists()


def test_a_slow_restart_has_its_window_after_its_start(options: Options) -> None:
    restarted = save(options, SavedState.of(H100))

    async def script(client: Client) -> list[int]:
        codes = [await client.call(SET_ACTIVATED)]
        await asyncio.sleep(89)
        return [*codes, await client.call(SET_ACTIVATED)]

    slow = dataclasses.replace(restarted, faults=Faults.parse(["slow-start=30"]))
    assert session(slow, script) == [FmCode.NOT_CONFIGURED, 0]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        (b"{", "it is damaged"),
        (b"\xff", "it is not UTF-8 text"),
        (SavedState.of(platforms.load("hgx-b200-8")).to_json().encode(), "it is of hgx-b200-8"),
    ],
)
def test_a_restart_refuses_a_bad_state(options: Options, content: bytes | None, why: str) -> None:
    assert options.state_file
    if content is not None:
        options.state_file.write_bytes(content)
    with pytest.raises(StateUnusable, match=why):
        clock.run(serve(dataclasses.replace(options, restart=True), asyncio.Event()))


def test_a_restart_needs_a_state_file(options: Options) -> None:
    with pytest.raises(BadRequest, match="needs a state file"):
        clock.run(serve(dataclasses.replace(options, restart=True, state_file=None), asyncio.Event()))


def test_a_state_that_cannot_be_saved_is_an_error(options: Options) -> None:
    with pytest.raises(FmctlError, match="cannot be saved in /nowhere/state"):
        clock.run(serve(dataclasses.replace(options, state_file=Path("/nowhere/state")), asyncio.Event()))


def test_latency_passes_before_the_change(options: Options) -> None:
    async def script(client: Client) -> tuple[int, float, int]:
        client.send(ACTIVATE, 1)
        await asyncio.sleep(1.9)
        other = await Client.to(options)
        other.send(DEACTIVATE, 1)
        code, _ = await client.reply()
        done_at = now()
        second, _ = await other.reply()
        other.writer.close()
        return code, done_at, second

    slow = dataclasses.replace(options, latency=2.0)
    code, done_at, second = session(slow, script)
    assert (code, second) == (0, 0)
    assert done_at == pytest.approx(2, abs=0.1)


def test_a_call_takes_effect_though_its_client_is_gone(options: Options) -> None:
    async def script(client: Client) -> int:
        other = await Client.to(options)
        other.send(ACTIVATE, 1)
        await asyncio.sleep(1)
        other.writer.close()
        await asyncio.sleep(5)
        return await client.call(ACTIVATE, 1)

    assert session(dataclasses.replace(options, latency=2.0), script) == FmCode.IN_USE


def test_a_code_is_answered_without_the_change(options: Options) -> None:
    async def script(client: Client) -> list[int]:
        return [await client.call(ACTIVATE, 1) for _ in range(3)]

    faulty = dataclasses.replace(options, faults=Faults.parse(["code=-10@activate:1"]))
    assert session(faulty, script) == [FmCode.NVLINK_ERROR, 0, FmCode.IN_USE]


def test_a_close_ends_the_connection_without_the_change(options: Options) -> None:
    async def script(client: Client) -> tuple[bool, int]:
        client.send(ACTIVATE, 1)
        closed = await client.is_closed()
        other = await Client.to(options)
        code = await other.call(ACTIVATE, 1)
        other.writer.close()
        return closed, code

    assert session(dataclasses.replace(options, faults=Faults.parse(["close@1"])), script) == (True, 0)


def test_a_hang_leaves_other_connections_alone(options: Options) -> None:
    async def script(client: Client) -> int:
        client.send(ACTIVATE, 1)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.reply(), 1000)
        other = await Client.to(options)
        code = await other.call(ACTIVATE, 1)
        other.writer.close()
        return code

    assert session(dataclasses.replace(options, faults=Faults.parse(["hang@1"])), script) == 0


def test_a_lie_changes_what_a_list_counts(options: Options) -> None:
    async def script(client: Client) -> list[int]:
        counts = []
        for operation in (LIST, LIST, UNSUPPORTED, FAILED):
            client.send(operation)
            _, payload = await client.reply()
            counts.append(struct.unpack_from("<I", payload)[0])
        return counts

    faults = Faults.parse(
        ["lie=partitions:200@list:2", "lie=gpus:99@failed-devices:1", "lie=partitions:7@unsupported:1"]
    )
    assert session(dataclasses.replace(options, faults=faults), script) == [15, 200, 7, 99]


@pytest.mark.parametrize("rubbish", [b"\xff" * 4, struct.pack("<III", 8, 99, 0), b"GET / HTTP/1.1\r\n\r\n"])
def test_rubbish_costs_its_sender_the_connection_alone(options: Options, rubbish: bytes) -> None:
    async def script(client: Client) -> tuple[bool, int]:
        other = await Client.to(options)
        other.writer.write(rubbish)
        closed = await other.is_closed()
        other.writer.close()
        return closed, await client.call(LIST)

    assert session(options, script) == (True, 0)


def test_who_sends_too_far_ahead_is_cut_off(options: Options) -> None:
    async def script(client: Client) -> bool:
        for _ in range(2000):
            client.send(LIST)
        return await client.is_closed()

    assert session(dataclasses.replace(options, faults=Faults.parse(["hang@1"])), script)


def test_calls_sent_ahead_are_answered_in_order(options: Options) -> None:
    async def script(client: Client) -> list[int]:
        client.send(ACTIVATE, 1)
        client.send(ACTIVATE, 0)
        client.send(DEACTIVATE, 1)
        return [(await client.reply())[0] for _ in range(3)]

    assert session(dataclasses.replace(options, latency=1.0), script) == [0, FmCode.IN_USE, 0]
