# SPDX-License-Identifier: Apache-2.0
"""Measure, print one JSON object a line, and fail where a ratio or a size is over its limit."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

from fmctl.core.address import Address
from fmctl.core.request import Request
from fmctl.rpc.client import ControllerClient
from fmctl.rpc.lease_client import LeaseClient
from tests.bench import allocation, reassert
from tests.support import Program, children, eventually, health, run

LIMITS = {"cli_list": 1.3, "rpc_list": 2.0, "allocate": 2.0, "allocate_p99": 3.0, "daemon_rss": 1.05, "agent_rss": 1.05}
"""The highest ratio of each; of a size, over that after a tenth of the calls."""
SIZES = {"daemon_rss": 80.0, "agent_rss": 60.0}
"""The highest size, in MiB."""

MEMORY = Path("/dev/shm")
"""A file system in memory, such as /run is on a host; sockets lie there."""

ROUNDS = 1_000
CLI_RUNS = 31
FEW_CALLS, MANY_CALLS = 1_000, 10_000


@dataclass(frozen=True)
class Bench:
    """The programs under measurement, at zero latency, and the reference server."""

    daemon: Program
    address: str
    bare_address: str
    state: Path
    """Where the daemon's store lies, on a disk."""

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
    state = Path(tempfile.mkdtemp(prefix="fmctl-bench-", dir=Path.home()))
    arguments = ("daemon", "--simulate", "hgx-h100-8", "--listen", address, "--state-dir", str(state / "board"))
    try:
        with Program(*arguments, log=folder / "log") as daemon:
            done = run("wait", "--address", address, "--timeout", "60")
            if done.returncode:
                sys.exit(daemon.log + done.stderr)
            eventually(lambda: Path(bare_address.removeprefix("unix:")).exists())
            yield Bench(daemon, address, bare_address, state)
    finally:
        bare.terminate()
        bare.wait()
        shutil.rmtree(folder)
        shutil.rmtree(state)


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
    """List at the daemon, against twice a bare health check, turn by turn."""
    client = ControllerClient(Address.parse(bench.address))
    listing, checking = [], []
    with grpc.insecure_channel(bench.bare_address) as channel:
        check = health(channel).Check
        for _ in range(ROUNDS):
            checking.append(seconds(lambda: check(health_pb2.HealthCheckRequest(), timeout=10)))
            listing.append(seconds(lambda: client.list_partitions(timeout=10)))
    client.close()
    return report("rpc_list", 1e6 * statistics.median(listing), "us", 2 * 1e6 * statistics.median(checking))


def leases(bench: Bench) -> bool:
    """Allocate to ACTIVE, against two bare calls and two commits that are on the disk, turn by turn."""
    client = LeaseClient(Address.parse(bench.address))
    allocating, reference = [], []
    with grpc.insecure_channel(bench.bare_address) as channel, bare_store(bench.state) as store:
        check = health(channel).Check
        for number in range(ROUNDS):
            request = Request("bench", f"bench-{number}", count=2)
            parts = [seconds(lambda: check(health_pb2.HealthCheckRequest(), timeout=10)) for _ in range(2)]
            parts += [seconds(lambda: commit(store)) for _ in range(2)]
            reference.append(sum(parts))
            began = time.perf_counter()
            lease = client.allocate(request, timeout=10).lease
            allocating.append(time.perf_counter() - began)
            client.release(lease.id, wait=True, timeout=10)
    client.close()
    results = [
        report("allocate", 1e3 * statistics.median(allocating), "ms", 1e3 * statistics.median(reference)),
        report("allocate_p99", 1e3 * _p99(allocating), "ms", 1e3 * _p99(reference)),
    ]
    return all(results)


def _p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


@contextmanager
def bare_store(folder: Path) -> Iterator[sqlite3.Connection]:
    """A store of one small row, with the daemon's durability and on its disk."""
    with contextlib.closing(sqlite3.connect(folder / "bare.db", isolation_level=None)) as store:
        store.execute("PRAGMA journal_mode=WAL")
        store.execute("PRAGMA synchronous=FULL")
        store.execute("CREATE TABLE row (id INTEGER PRIMARY KEY, text TEXT)")
        yield store


def commit(store: sqlite3.Connection) -> None:
    store.execute("BEGIN IMMEDIATE")
    store.execute("INSERT OR REPLACE INTO row VALUES (1, 'text')")
    store.execute("COMMIT")


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
        results = [memory(bench), calls(bench), leases(bench), cli_list(bench)]
    results += [allocation.report(each) for each in allocation.measure()]
    results.append(reassert.report(reassert.measure()))
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
