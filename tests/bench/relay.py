# SPDX-License-Identifier: Apache-2.0
"""What two relays in a row cost, over TCP in vsock's place, against a direct call in the same run.

`python -m tests.bench.relay` prints one JSON object a line, and fails where a ratio is over its limit.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.rpc.relaying import Client, ServiceVm, Tcp

LIMITS = {"relay_call": 4.0, "relay_message": 4.0}
"""The highest ratio of each."""
CALLS = 1_000
MESSAGES = 5
MESSAGE = bytes(64 << 20)


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def compare(name: str, rounds: int, message: bytes, direct: Client, relayed: Client) -> bool:
    """Say something by both ways, turn by turn; whether the ratio of the medians is within its limit."""
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(seconds(lambda: direct.say(message, timeout=60)))
        ours.append(seconds(lambda: relayed.say(message, timeout=60)))
    value, reference = (1e6 * statistics.median(times) for times in (ours, theirs))
    figures = {"value": round(value), "unit": "us", "reference": round(reference), "ratio": round(value / reference, 3)}
    print(json.dumps({"name": name, **figures}), flush=True)
    return value / reference <= LIMITS[name]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="fmctl-bench-") as name:
        folder, network = Path(name), Tcp()
        path = folder / "relay" / "agent.sock"
        with (
            ServiceVm(folder, network),
            network.host(path),
            Client(folder / "agent.sock") as direct,
            Client(path) as relayed,
        ):
            results = [
                compare("relay_call", CALLS, b"x", direct, relayed),
                compare("relay_message", MESSAGES, MESSAGE, direct, relayed),
            ]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
