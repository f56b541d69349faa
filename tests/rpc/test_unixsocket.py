# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import grp
import os
import socket
import stat
from pathlib import Path

import pytest

from fmctl.core.errors import BadRequest, FmctlError
from fmctl.rpc.unixsocket import SocketPlace


def bind(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    return server


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_missing_folder_is_made_for_the_group_alone(folder: Path) -> None:
    before = os.umask(0o077)
    try:
        path = folder / "fmctl" / "x.sock"
        SocketPlace(path).take()
        assert mode(path.parent) == 0o750
    finally:
        os.umask(before)


def test_an_existing_folder_keeps_its_mode(folder: Path) -> None:
    folder.chmod(0o711)
    SocketPlace(folder / "x.sock").take()
    assert mode(folder) == 0o711


def test_the_socket_is_for_the_group(folder: Path) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    place = SocketPlace(folder / "x.sock", group)
    place.take()
    with bind(folder / "x.sock"):
        place.open_to_group()
        assert mode(folder / "x.sock") == 0o660
        assert (folder / "x.sock").group() == group


def test_a_second_server_is_refused_until_the_first_is_gone(folder: Path) -> None:
    first, second = SocketPlace(folder / "x.sock"), SocketPlace(folder / "x.sock")
    first.take()
    with pytest.raises(FmctlError, match="in use: another process serves there"):
        second.take()
    first.release()
    second.take()


def test_what_a_killed_server_left_is_no_obstacle(folder: Path) -> None:
    with bind(folder / "x.sock"):
        pass
    SocketPlace(folder / "x.sock").take()


def test_a_file_that_is_no_socket_is_refused_and_kept(folder: Path) -> None:
    (folder / "x.sock").write_text("precious")
    with pytest.raises(FmctlError, match="it is no socket"):
        SocketPlace(folder / "x.sock").take()
    assert (folder / "x.sock").read_text() == "precious"


def test_release_removes_the_socket(folder: Path) -> None:
    place = SocketPlace(folder / "x.sock")
    place.take()
    with bind(folder / "x.sock"):
        place.release()
        assert not (folder / "x.sock").exists()


def test_an_unknown_group_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(BadRequest, match="no group 'no-such-group'"):
        SocketPlace(folder / "new" / "x.sock", "no-such-group").take()


def test_a_place_that_cannot_be_is_refused_with_the_reason(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(FmctlError, match="Not a directory"):
        SocketPlace(folder / "file" / "x.sock").take()
