# SPDX-License-Identifier: Apache-2.0
"""Measure, print one JSON object a line, and fail where a ratio or a size is over its limit."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

from fmctl.core.address import Address
from fmctl.rpc.client import ControllerClient
from tests.support import Program, children, eventually, health, run

LIMITS = {"cli_list": 1.3, "rpc_list": 2.0, "rpc_activate": 2.0, "daemon_rss": 1.05, "agent_rss": 1.05}
"""The highest ratio of each; of a size, over that after a tenth of the calls."""
SIZES = {"daemon_rss": 80.0, "agent_rss": 60.0}
"""The highest size, in MiB."""

MEMORY = Path("/dev/shm")
"""A file system in memory, such as /run is on a host; claims and sockets lie there."""

ROUNDS = 1_000
CLI_RUNS = 31
FEW_CALLS, MANY_CALLS = 1_000, 10_000


@dataclass(frozen=True)
class Bench:
    """The programs under measurement, at zero latency, and the reference server."""

    daemon: Program
    address: str
    bare_address: str

    def pid_of(self, word: str) -> int:
        """The process below the daemon whose command line has that word."""
        for pid in children(self.daemon.process.pid):
            if word in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                return pid
        raise LookupError(word)


@contextmanager
def programs() -> Iterator[Bench]:
    folder = Path(tempfile.mkdtemp(prefix="fmctl-bench-", dir=MEMORY if MEMORY.is_dir() else None))
    address, bare_address = f"unix:{folder}/fmctld.sock", f"unix:{folder}/bare.sock"
    bare = subprocess.Popen([sys.executable, "-m", "tests.bench.bare_server", bare_address])
    arguments = ("daemon", "--simulate", "hgx-h100-8", "--listen", address, "--state-dir", str(folder / "board"))
    try:
        with Program(*arguments, log=folder / "log") as daemon:
            done = run("wait", "--address", address, "--timeout", "60")
            if done.returncode:
                sys.exit(daemon.log + done.stderr)
            eventually(lambda: Path(bare_address.removeprefix("unix:")).exists())
            yield Bench(daemon, address, bare_address)
    finally:
        bare.terminate()
        bare.wait()
        shutil.rmtree(folder)


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def report(name: str, value: float, unit: str, reference: float) -> bool:
    """Print one result; whether it is within its limits."""
    ratio = value / reference
    figures = {"value": round(value, 3), "unit": unit, "reference": round(reference, 3), "ratio": round(ratio, 3)}
    print(json.dumps({"name": name, **figures}), flush=True)
    good = ratio <= LIMITS[name] and value <= SIZES.get(name, value)
    if not good:
        print(f"{name} is over its limit: ratio {LIMITS[name]}, size {SIZES.get(name)}", file=sys.stderr)
    return good


def cli_list(bench: Bench) -> bool:
    """The whole command against a bare script, turn by turn."""
    fmctl = [str(Path(sys.executable).parent / "fmctl"), "list", "--address", bench.address]
    bare = [sys.executable, str(Path(__file__).parent / "bare_client.py"), bench.address]
    ours, theirs = [], []
    for _ in range(CLI_RUNS):
        ours.append(seconds(lambda: subprocess.run(fmctl, stdout=subprocess.DEVNULL, check=True)))
        theirs.append(seconds(lambda: subprocess.run(bare, check=True)))
    return report("cli_list", 1e3 * statistics.median(ours), "ms", 1e3 * statistics.median(theirs))


def calls(bench: Bench) -> bool:
    """List and activate at the daemon, against twice a bare health check, turn by turn."""
    client = ControllerClient(Address.parse(bench.address))
    listing, activating, checking = [], [], []
    with grpc.insecure_channel(bench.bare_address) as channel:
        check = health(channel).Check
        for _ in range(ROUNDS):
            checking.append(seconds(lambda: check(health_pb2.HealthCheckRequest(), timeout=10)))
            listing.append(seconds(lambda: client.list_partitions(timeout=10)))
            activating.append(seconds(lambda: client.activate("bench", partition_id=3, timeout=10)))
            client.deactivate("bench", 3, timeout=10)
    client.close()
    reference = 2 * 1e6 * statistics.median(checking)
    results = [
        report("rpc_list", 1e6 * statistics.median(listing), "us", reference),
        report("rpc_activate", 1e6 * statistics.median(activating), "us", reference),
    ]
    return all(results)


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise LookupError(pid)


def memory(bench: Bench) -> bool:
    """Resident size after many calls, against that after a tenth of them."""
    pids = {"daemon_rss": bench.daemon.process.pid, "agent_rss": bench.pid_of("agent")}
    client = ControllerClient(Address.parse(bench.address))
    sizes: dict[int, dict[str, float]] = {}
    for count in range(1, MANY_CALLS + 1):
        if count % 2:
            client.list_partitions(timeout=10)
        elif count % 4:
            client.activate("bench", partition_id=3, timeout=10)
        else:
            client.deactivate("bench", 3, timeout=10)
        if count in (FEW_CALLS, MANY_CALLS):
            sizes[count] = {name: resident_mib(pid) for name, pid in pids.items()}
    client.close()
    results = [report(name, sizes[MANY_CALLS][name], "MiB", sizes[FEW_CALLS][name]) for name in pids]
    return all(results)


def main() -> None:
    with programs() as bench:
        results = [memory(bench), calls(bench), cli_list(bench)]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
