# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from fmctl.core.errors import FmctlError
from fmctl.core.vfio import HostBusy
from fmctl.host.lock import locked, queued
from fmctl.process import Child, python
from tests.support import eventually

HOLDER = """
import sys, threading
from pathlib import Path
from fmctl.host.lock import locked
with locked(Path(sys.argv[1])):
    Path(sys.argv[1] + ".taken").touch()
    threading.Event().wait()
"""


def test_a_second_block_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    path = tmp_path / "fmctl.lock"
    with locked(path):
        with pytest.raises(HostBusy) as refusal, locked(path):
            raise AssertionError("both are in")
        assert refusal.value.why == f"it has {path} locked"
        assert f"fuser {path}" in refusal.value.fix
    with locked(path):
        pass
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_block_that_fails_lets_go_and_keeps_its_own_error(tmp_path: Path) -> None:
    path = tmp_path / "fmctl.lock"
    with pytest.raises(BlockingIOError, match="from the block"), locked(path):
        raise BlockingIOError(errno.EAGAIN, "from the block")
    with locked(path):
        pass


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "fmctl.lock"
    with Child([*python("")[:1], "-c", HOLDER, str(path)]) as child:
        eventually((tmp_path / "fmctl.lock.taken").exists)
        with pytest.raises(HostBusy), locked(path):
            raise AssertionError("both are in")
        child.kill()
    with locked(path):
        pass


def test_its_folder_is_made(tmp_path: Path) -> None:
    with locked(tmp_path / "fmctl" / "x.lock"):
        assert (tmp_path / "fmctl").stat().st_mode & 0o777 == 0o750


def test_a_lock_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    with (
        pytest.raises(FmctlError, match=os.strerror(errno.ENOENT)) as failure,
        locked(tmp_path / "none" / "none" / "x.lock"),
    ):
        raise AssertionError("it is in")
    assert failure.value.fix == "run as root"


def test_threads_of_one_process_wait_for_each_other(tmp_path: Path) -> None:
    lock, order = queued(tmp_path / "fmctl.lock"), []

    def second() -> None:
        with lock():
            order.append("second")

    with lock():
        thread = threading.Thread(target=second)
        thread.start()
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_thread_does_not_wait_for_ever(tmp_path: Path) -> None:
    lock = queued(tmp_path / "fmctl.lock", timeout=0.05)
    with lock(), pytest.raises(HostBusy, match="already"), lock():
        raise AssertionError("both are in")
    with lock():
        pass
