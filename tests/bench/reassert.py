# SPDX-License-Identifier: Apache-2.0
"""How long a Fabric Manager that died waits for its active partitions, once it takes calls again.

The agent, its worker and Fabric Manager are processes of their own. Each round Fabric Manager is killed and the agent
told to restart it; another thread dials its socket all the while. The time is from the first connection that it takes
until the agent answers that the list is set. `python -m tests.bench.reassert` prints one JSON object, and fails where
the longest is over the limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from fmctl.core.answers import FabricState, StartMode
from tests.integration.test_fmservice import Guest
from tests.support import eventually

NAME = "fm_restart_reassert"
LIMIT = 1.0
"""Seconds that the longest round may take; Fabric Manager itself waits 60 s."""
ROUNDS = 10
ACTIVE = (3, 6)
TIMEOUT = 60.0
DIAL_INTERVAL = 0.001
LATE = ("/bin/sh", "-c", 'sleep "1.$(($$ % 10))"; exec "$@"', "late")
"""Lets Fabric Manager take 1 to 2 s before it is there at all, so that the agent's first attempts fail."""


class Dialler:
    """Dials a unix socket until it is taken, in a thread of its own; `taken` is when that was."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._dial, daemon=True)
        self.taken = 0.0

    def _dial(self) -> None:
        while not self.taken and not self._stopping.wait(DIAL_INTERVAL):
            with socket.socket(socket.AF_UNIX) as caller, contextlib.suppress(OSError):
                caller.connect(self._path)
                self.taken = time.monotonic()

    def __enter__(self) -> Dialler:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join()


def kill(guest: Guest) -> None:
    """Let Fabric Manager, if it runs, be gone."""
    pid = guest.fabric_manager()
    if pid:
        os.kill(pid, signal.SIGKILL)


def once(guest: Guest, fm_socket: Path) -> float:
    """Kill Fabric Manager and let it be restarted; the seconds from its first connection until the list was set."""
    kill(guest)
    eventually(lambda: guest.state is FabricState.ENDED)
    with Dialler(fm_socket) as dialler:
        guest.client.start_fabric_manager(StartMode.RESTART, ACTIVE, timeout=TIMEOUT)
        answered = time.monotonic()
    if not dialler.taken or tuple(guest.active()) != ACTIVE:
        raise RuntimeError(f"Fabric Manager was not restarted with {ACTIVE}")
    return answered - dialler.taken


def measure(rounds: int = ROUNDS) -> list[float]:
    folder = Path(tempfile.mkdtemp(prefix="fmctl-bench-"))
    try:
        with contextlib.ExitStack() as cleanup:
            guest = Guest(folder, cleanup, LATE)
            cleanup.callback(kill, guest)
            guest.client.start_fabric_manager(StartMode.FRESH, (), timeout=TIMEOUT)
            eventually(lambda: guest.state is FabricState.READY)
            for partition in ACTIVE:
                guest.client.activate(partition, timeout=TIMEOUT)
            return [once(guest, folder / "fm.sock") for _ in range(rounds)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def report(times: Sequence[float]) -> bool:
    """Print the longest and the median; whether the longest is within the limit."""
    longest = max(times)
    figures = {"value": round(longest, 3), "unit": "s", "median": round(statistics.median(times), 3), "limit": LIMIT}
    print(json.dumps({"name": NAME, **figures}), flush=True)
    if longest > LIMIT:
        print(f"{NAME} is over its limit: {LIMIT} s", file=sys.stderr)
    return longest <= LIMIT


def main() -> None:
    sys.exit(0 if report(measure()) else 1)


if __name__ == "__main__":
    main()
