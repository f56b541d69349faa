# SPDX-License-Identifier: Apache-2.0
"""The library as a foreign client sees it: return codes, their precedence, and times, as measured on NVIDIA's."""

from __future__ import annotations

import ctypes
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmctl.sim import wire
from tests.sim import abi
from tests.sim.abi import Library, Stopwatch
from tests.sim.servers import fabric_manager, fake_server, tcp_listener, unix_listener, until_closed
from tests.support import eventually

NOBODY = "unix:/nowhere/fm.sock"


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    with fabric_manager(folder) as address:
        yield address


def greet(connection: socket.socket) -> None:
    connection.sendall(wire.GREETING)


# The library itself


def test_nothing_works_before_it_is_initialised(library_path: Path) -> None:
    library = Library(library_path)
    assert library.connect(NOBODY) == (-4, 0)
    assert library.disconnect(1) == -4
    assert set(library.every_call(1).values()) == {-4}
    assert library.lib.fmLibShutdown() == -4


def test_it_is_initialised_and_shut_down_once(library_path: Path) -> None:
    library = Library(library_path).lib
    codes = [library.fmLibInit(), library.fmLibInit(), library.fmLibShutdown(), library.fmLibShutdown()]
    assert codes == [0, -7, 0, -4]


def test_it_says_that_it_is_simulated(fm: Library) -> None:
    assert fm.lib.fmctlSimulated() == 1


def test_shutting_down_closes_connections(library_path: Path, folder: Path) -> None:
    closed = threading.Event()

    def behaviour(connection: socket.socket) -> None:
        greet(connection)
        until_closed(connection)
        closed.set()

    with fake_server(unix_listener(folder), behaviour) as address:
        with Library(library_path) as library:
            handle = library.opened(address)
        assert closed.wait(10)
        assert library.list(handle) == -4
        with library:
            assert library.list(handle) == -9


# Connecting


def test_connecting_needs_parameters_and_a_place_for_the_handle(fm: Library) -> None:
    handle, params = ctypes.c_void_p(), abi.Params(version=abi.V1)
    assert fm.lib.fmConnect(None, ctypes.byref(handle)) == -1
    assert fm.lib.fmConnect(ctypes.byref(params), None) == -1
    params.version = 0
    assert fm.lib.fmConnect(ctypes.byref(params), None) == -1


@pytest.mark.parametrize("version", [0, 1, 0x0300010C, 0x02000114, 0x0200010C, 0x01000110])
def test_parameters_of_another_version_are_refused(fm: Library, version: int) -> None:
    handle, params = ctypes.c_void_p(), abi.Params(version=version, timeout_ms=5000)
    watch = Stopwatch()
    assert fm.lib.fmConnect(ctypes.byref(params), ctypes.byref(handle)) == -6
    assert watch.seconds < 1


@pytest.mark.parametrize("kind", [0, 4, 2**32 - 1])
def test_an_unknown_type_of_address_is_not_supported(fm: Library, kind: int) -> None:
    assert fm.connect("127.0.0.1:6666", 5000, kind)[0] == -3


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1:1", None),
        ("127.0.0.1:1", abi.INET),
        (NOBODY, None),
        (NOBODY, abi.UNIX),
        ("unix:" + "x" * 200, None),
        ("unix:", None),
        ("", None),
        ("   ", None),
        ("..:6666", None),
        ("127.0.0.1:port", None),
        ("127.0.0.1:", None),
        ("rubbish", abi.VSOCK),
        ("2:6666 3", abi.VSOCK),
    ],
)
def test_where_nobody_listens_it_gives_up_after_nine_tenths_of_the_timeout(
    fm: Library, address: str, kind: int | None
) -> None:
    watch = Stopwatch()
    assert fm.connect(address, 300, kind) == (-9, 0)
    assert 0.25 <= watch.seconds < 3


def test_a_server_that_comes_up_meanwhile_is_found(fm: Library, folder: Path) -> None:
    path = folder / "fake.sock"
    answers: list[tuple[int, int]] = []
    waiting = threading.Thread(target=lambda: answers.append(fm.connect(f"unix:{path}", 20_000)))
    waiting.start()
    with fake_server(unix_listener(folder), greet):
        waiting.join()
    assert answers[0][0] == 0


@pytest.mark.parametrize("kind", [None, abi.UNIX])
def test_a_unix_socket_is_reached_with_both_versions(fm: Library, address: str, kind: int | None) -> None:
    code, handle = fm.connect(address, kind=kind)
    assert (code, fm.list(handle), fm.disconnect(handle)) == (0, 0, 0)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "localhost:{}", "127.0.0.1:{} ", " 127.0.0.1:{}\t\n"])
@pytest.mark.parametrize("kind", [None, abi.INET])
def test_tcp_is_reached_by_address_and_by_name(fm: Library, form: str, kind: int | None) -> None:
    with fake_server(tcp_listener(), greet) as address:
        assert fm.connect(form.format(address.split(":")[1]), kind=kind)[0] == 0


def test_an_address_of_ipv6_stands_in_brackets(fm: Library) -> None:
    listener = socket.socket(socket.AF_INET6)
    try:
        listener.bind(("::1", 0))
    except OSError:
        listener.close()
        pytest.skip("there is no IPv6 here")
    with fake_server(listener, greet):
        assert fm.connect(f"[::1]:{listener.getsockname()[1]}")[0] == 0


def test_the_port_may_be_left_out(fm: Library) -> None:
    try:
        listener = tcp_listener("127.66.66.66", 6666)
    except OSError:
        pytest.skip("port 6666 is taken here")
    with fake_server(listener, greet):
        assert fm.connect("127.66.66.66")[0] == 0
        assert fm.connect("127.66.66.66 ")[0] == 0


def test_a_server_that_hangs_is_connected_to(fm: Library, folder: Path) -> None:
    with fake_server(unix_listener(folder), lambda connection: (until_closed(connection), None)[1]) as address:
        assert fm.connect(address)[0] == 0


def test_a_server_that_closes_at_once_is_not(fm: Library, folder: Path) -> None:
    with fake_server(unix_listener(folder), lambda connection: None) as address:
        assert fm.connect(address) == (-9, 0)


# Handles


def test_a_call_needs_a_handle(fm: Library) -> None:
    assert set(fm.every_call(0).values()) == {-1}
    assert fm.disconnect(0) == -1


@pytest.mark.parametrize("handle", [1, 12345, 2**63])
def test_a_made_up_handle_has_no_connection(fm: Library, address: str, handle: int) -> None:
    real = fm.opened(address)
    made_up = real + handle
    assert set(fm.every_call(made_up).values()) == {-9}
    assert fm.disconnect(made_up) == -1
    assert fm.list(real) == 0


def test_a_disconnected_handle_has_no_connection(fm: Library, address: str) -> None:
    handle = fm.opened(address)
    assert fm.disconnect(handle) == 0
    assert set(fm.every_call(handle).values()) == {-9}
    assert fm.disconnect(handle) == -1


def test_a_handle_is_taken_for_a_pointer_to_nothing(fm: Library, address: str) -> None:
    """Go's runtime aborts on a pointer into the first page, and looks at what others point to."""
    assert fm.opened(address) >= 2**63


def test_handles_are_apart(fm: Library, address: str) -> None:
    first, second = fm.opened(address), fm.opened(address)
    assert first != second
    assert fm.disconnect(first) == 0
    assert fm.list(second) == 0


def test_a_server_that_closed_leaves_a_dead_handle(fm: Library, folder: Path) -> None:
    def behaviour(connection: socket.socket) -> None:
        greet(connection)
        connection.recv(1)

    with fake_server(unix_listener(folder), behaviour) as address:
        handle = fm.opened(address)
        assert fm.list(handle) == -9
        assert set(fm.every_call(handle).values()) == {-9}
        assert fm.disconnect(handle) == -1


def test_a_closed_server_shows_at_disconnecting_too(fm: Library, folder: Path) -> None:
    closed = threading.Event()

    def behaviour(connection: socket.socket) -> None:
        greet(connection)
        connection.shutdown(socket.SHUT_RDWR)
        closed.set()

    with fake_server(unix_listener(folder), behaviour) as address:
        handle = fm.opened(address)
        assert closed.wait(10)
        assert fm.disconnect(handle) == -1


# Structures


def test_structures_of_another_version_cause_no_traffic(fm: Library, folder: Path) -> None:
    received: list[bytes] = []
    done = threading.Event()

    def behaviour(connection: socket.socket) -> None:
        greet(connection)
        received.append(until_closed(connection))
        done.set()

    with fake_server(unix_listener(folder), behaviour) as address:
        handle = fm.opened(address)
        assert fm.list(handle, abi.List(version=0x0202030C)) == -6
        assert fm.failed_devices(handle, abi.FailedDevices(version=1)) == -6
        assert fm.unsupported(handle, abi.UnsupportedList()) == -6
        assert fm.lib.fmSetActivatedFabricPartitions(ctypes.c_void_p(handle), ctypes.byref(abi.Activated())) == -6
        fm.disconnect(handle)
        assert done.wait(10)
    assert received == [b""]


def test_a_call_needs_its_structure(fm: Library, address: str) -> None:
    handle = ctypes.c_void_p(fm.opened(address))
    for name in ("GetSupportedFabricPartitions", "GetNvlinkFailedDevices", "GetUnsupportedFabricPartitions"):
        assert getattr(fm.lib, f"fm{name}")(handle, None) == -1
    assert fm.lib.fmSetActivatedFabricPartitions(handle, None) == -1
    assert fm.lib.fmActivateFabricPartitionWithVFs(handle, 1, None, 1) == -1


def test_of_several_mistakes_the_version_is_told_before_the_dead_handle(fm: Library) -> None:
    assert fm.list(99, abi.List(version=0)) == -6
    assert fm.list(0, abi.List(version=0)) == -1


def test_more_than_a_structure_holds_is_never_read(fm: Library, address: str) -> None:
    handle = fm.opened(address)
    assert fm.set_activated(handle, count=65) == -1
    assert fm.set_activated(handle, count=2**32 - 1) == -1
    assert fm.activate_with_vfs(handle, 1, 17) == -1
    assert fm.activate_with_vfs(handle, 1, 16) == -3
    assert fm.list(handle) == 0


def test_a_list_fills_the_whole_structure(fm: Library, address: str) -> None:
    handle, listed = fm.opened(address), abi.List()
    ctypes.memset(ctypes.byref(listed), 0xAA, ctypes.sizeof(listed))
    listed.version = abi.LIST
    assert fm.activate(handle, 1) == 0
    assert fm.list(handle, listed) == 0
    assert (listed.version, listed.count, listed.most) == (abi.LIST, 15, 15)
    row = listed.rows[1]
    assert (row.id, row.active, row.count) == (1, 1, 4)
    gpus = [(gpu.physical_id, gpu.links, gpu.max_links, gpu.line_rate, gpu.uuid) for gpu in row.gpus[:4]]
    assert gpus == [(number, 18, 18, 26562, b"") for number in (1, 2, 3, 4)]
    assert row.gpus[0].pci_bus_id == b"00000000:00:00.0"
    assert not any(bytes(row.gpus[4])) and not any(bytes(listed.rows[15])) and not any(bytes(listed.rows[63]))


def test_a_restart_is_told_its_list(fm: Library, folder: Path) -> None:
    state = folder / "state"
    with fabric_manager(folder, "--state-file", str(state)):
        eventually(state.exists)
    with fabric_manager(folder, "--state-file", str(state), "--restart") as address:
        handle = fm.opened(address)
        assert (fm.list(handle), fm.activate(handle, 1)) == (-8, -8)
        assert fm.set_activated(handle, 1, 2) == 0
        assert fm.activate(handle, 0) == -7


def test_a_lost_gpu_shows_in_the_unsupported_list(fm: Library, folder: Path) -> None:
    with fabric_manager(folder, "--missing-gpu", "1", platform="hgx-a100-8") as address:
        handle, lost, listed = (
            fm.opened(address),
            abi.UnsupportedList(version=abi.UNSUPPORTED),
            abi.List(version=abi.LIST),
        )
        assert (fm.unsupported(handle, lost), fm.list(handle, listed)) == (0, 0)
    assert [(row.id, row.gpus[: row.count]) for row in lost.rows[: lost.count]] == [
        (1, [1, 2, 3, 4, 5, 6, 7, 8]),
        (7, [1, 2, 3, 4]),
        (11, [1, 2]),
        (19, [1]),
    ]
    assert (listed.count, listed.most) == (11, 15)
    assert listed.rows[0].gpus[0].uuid.startswith(b"GPU-")


def asked(fm: Library, address: str) -> abi.FailedDevices:
    """The failed devices, in a structure that held rubbish."""
    failed = abi.FailedDevices()
    ctypes.memset(ctypes.byref(failed), 0xAA, ctypes.sizeof(failed))
    failed.version = abi.FAILED
    assert fm.failed_devices(fm.opened(address), failed) == 0
    return failed


def test_failed_devices_are_none(fm: Library, address: str) -> None:
    failed = asked(fm, address)
    assert failed.version == abi.FAILED
    assert not any(bytes(failed)[4:])


def test_a_lost_gpu_is_a_failed_device(fm: Library, folder: Path) -> None:
    with fabric_manager(folder, "--missing-gpu", "8", "--missing-gpu", "2", platform="hgx-a100-8") as address:
        failed = asked(fm, address)
    assert (failed.version, failed.gpu_count, failed.switch_count) == (abi.FAILED, 2, 0)
    gpus = failed.gpus[:2]
    assert [gpu.pci_bus_id for gpu in gpus] == [b"00000000:34:00.0", b"00000000:E2:00.0"]
    assert [gpu.ports[: gpu.count] for gpu in gpus] == [list(range(12))] * 2
    assert all(gpu.uuid.startswith(b"GPU-") for gpu in gpus) and gpus[0].uuid != gpus[1].uuid
    assert not any(gpus[1].ports[12:]) and not any(bytes(failed.gpus[2])) and not any(bytes(failed.switches))


def test_a_structure_is_filled_with_failed_devices(fm: Library, folder: Path) -> None:
    missing = [argument for gpu in range(1, 17) for argument in ("--missing-gpu", str(gpu))]
    with fabric_manager(folder, *missing, platform="hgx-a100-16") as address:
        failed = asked(fm, address)
    assert (failed.gpu_count, failed.gpus[15].pci_bus_id, failed.gpus[15].count) == (16, b"00000000:E9:00.0", 12)
    assert not any(bytes(failed.switches))


# Servers that misbehave


def test_a_call_to_a_hanging_server_gives_up_and_so_does_the_next(fm: Library, folder: Path) -> None:
    with fabric_manager(folder, "--fault", "hang@1+") as address:
        handle, watch = fm.opened(address), Stopwatch()
        assert (fm.list(handle), fm.activate(handle, 1)) == (-2, -2)
        assert 0.5 <= watch.seconds < 5
        assert fm.disconnect(handle) == 0


def test_its_own_patience_outlasts_a_shortened_one(patient: Library, folder: Path) -> None:
    with fabric_manager(folder, "--latency-ms", "600") as address:
        assert patient.activate(patient.opened(address), 1) == 0


def test_a_late_answer_is_not_taken_for_the_next(fm: Library, folder: Path) -> None:
    def behaviour(connection: socket.socket) -> None:
        greet(connection)
        connection.recv(12)
        connection.recv(12)
        late, timely = wire.reply(-7), wire.reply(-10)
        connection.sendall(late[:5])
        connection.sendall(late[5:] + timely)
        until_closed(connection)

    with fake_server(unix_listener(folder), behaviour) as address:
        handle = fm.opened(address)
        assert (fm.activate(handle, 1), fm.activate(handle, 2)) == (-2, -10)


def test_a_server_that_dies_is_not_valid_any_more(fm: Library, folder: Path) -> None:
    with fabric_manager(folder, "--fault", "die-before@activate:1") as address:
        handle = fm.opened(address)
        assert (fm.list(handle), fm.activate(handle, 1), fm.list(handle)) == (0, -9, -9)


@pytest.mark.parametrize(
    ("fault", "shown"),
    [("lie=partitions:200@1", (200, 8)), ("lie=gpus:99@1", (15, 99)), ("lie=partitions:4294967295@1", (2**32 - 1, 8))],
)
def test_a_lying_count_is_passed_on_and_nothing_else_changes(
    fm: Library, folder: Path, fault: str, shown: tuple[int, int]
) -> None:
    with fabric_manager(folder, "--fault", fault) as address:
        listed = abi.List(version=abi.LIST)
        assert fm.list(fm.opened(address), listed) == 0
    assert (listed.count, listed.rows[0].count) == shown
    assert not any(bytes(listed.rows[15]))


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        ("lie=gpus:4294967295@1", (2**32 - 1, 0, 12)),
        ("lie=switches:13@1", (1, 13, 12)),
        ("lie=ports:65@1", (1, 0, 65)),
        ("lie=gpus:0@1", (0, 0, 12)),
    ],
)
def test_a_lying_count_of_failed_devices_is_passed_on(
    fm: Library, folder: Path, fault: str, shown: tuple[int, int, int]
) -> None:
    with fabric_manager(folder, "--missing-gpu", "1", "--fault", fault, platform="hgx-a100-8") as address:
        failed = asked(fm, address)
    assert (failed.gpu_count, failed.switch_count, failed.gpus[0].count) == shown
    assert failed.gpus[0].ports[:] == [*range(12), *(0,) * 52]
    assert not any(bytes(failed.gpus[1])) and not any(bytes(failed.switches))


@pytest.mark.parametrize(
    "reply",
    [
        struct.pack("<Ii", 4, 0),
        struct.pack("<IiIII", 16, 0, 1, 0, 1),
        struct.pack("<IiIII", 16 + 371, 0, 1, 0, 1) + b"x" * 371,
        struct.pack("<IiIII", 16 + 17 * 372, 0, 17, 0, 17) + b"x" * 17 * 372,
    ],
)
def test_failed_devices_that_cannot_be_read_end_the_connection(fm: Library, folder: Path, reply: bytes) -> None:
    def behaviour(connection: socket.socket) -> None:
        greet(connection)
        connection.recv(64)
        connection.sendall(reply)

    with fake_server(unix_listener(folder), behaviour) as address:
        handle = fm.opened(address)
        assert (fm.failed_devices(handle), fm.failed_devices(handle), fm.disconnect(handle)) == (-9, -9, -1)


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH\r\n",
        struct.pack("<I", 0),
        struct.pack("<I", 2**32 - 1),
        struct.pack("<Ii", 4, 0),
        struct.pack("<IiIII", 16, 0, 1, 1, 65),
        struct.pack("<IiIII", 16, 0, 1, 1, 1),
        struct.pack("<IiIIIIIII", 32, 0, 1, 1, 1, 7, 0, 1, 17),
        struct.pack("<IiIIIIIII", 32, 0, 1, 1, 1, 7, 0, 1, 1) + b"x" * 127,
    ],
)
def test_a_reply_that_cannot_be_read_ends_the_connection(fm: Library, folder: Path, reply: bytes) -> None:
    def behaviour(connection: socket.socket) -> None:
        greet(connection)
        connection.recv(64)
        connection.sendall(reply)

    with fake_server(unix_listener(folder), behaviour) as address:
        handle = fm.opened(address)
        assert (fm.list(handle), fm.list(handle), fm.disconnect(handle)) == (-9, -9, -1)


def test_signals_do_not_disturb_a_call(fm: Library, folder: Path) -> None:
    seen = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    try:
        with fabric_manager(folder, "--latency-ms", "150") as address:
            signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
            handle = fm.opened(address)
            codes = [fm.list(handle), fm.activate(handle, 1), fm.disconnect(handle)]
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert codes == [0, 0, 0]
    assert seen
