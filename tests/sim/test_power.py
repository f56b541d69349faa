# SPDX-License-Identifier: Apache-2.0
"""Programs that end with the pretended Service VM, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fmctl.core.errors import FmctlError
from fmctl.sim import power
from tests.support import Program, eventually

HOLDER = """
import sys, time
from pathlib import Path
from fmctl.sim import power
with power.supply(Path(sys.argv[1])):
    print("on", flush=True)
    time.sleep(1000)
"""


def nvlsm(fifo: Path, folder: Path) -> Program:
    return Program("sim", "nvlsm", "-g", "0x1", "--power", str(fifo), log=folder / "log")


def reads(fifo: Path, pid: int) -> bool:
    return any(link.resolve() == fifo for link in Path(f"/proc/{pid}/fd").iterdir())


def test_they_end_before_the_block_does(tmp_path: Path) -> None:
    fifo = tmp_path / "power"
    with power.supply(fifo):
        program = nvlsm(fifo, tmp_path)
        eventually(lambda: reads(fifo, program.process.pid))
        assert program.process.poll() is None
    assert program.process.wait(2) == 0
    assert not fifo.exists()


def test_they_end_also_when_who_pretends_it_is_killed(tmp_path: Path) -> None:
    fifo = tmp_path / "power"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(fifo)], stdout=subprocess.PIPE)
    assert holder.stdout
    holder.stdout.readline()
    program = nvlsm(fifo, tmp_path)
    eventually(lambda: reads(fifo, program.process.pid))
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert program.process.wait(5) == 0


@pytest.mark.parametrize("left", [True, False])
def test_without_power_none_starts(tmp_path: Path, *, left: bool) -> None:
    fifo = tmp_path / "power"
    if left:
        os.mkfifo(fifo)
    with pytest.raises(FmctlError, match="does not say that the pretended Service VM runs"):
        power.draw(fifo)
