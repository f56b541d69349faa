# SPDX-License-Identifier: Apache-2.0
"""How gRPC finds a peer that is gone without a word, such as a rebooted VM, and how long connecting may take.

A relay's unix socket always takes the connection, so neither shows otherwise.
"""

from __future__ import annotations

Options = tuple[tuple[str, int], ...]

INTERVAL = 20.0
"""Seconds between two pings, also while no call is under way."""
TIMEOUT = 10.0
"""Seconds that a peer has to answer one."""
CONNECT = ("grpc.min_reconnect_backoff_ms", 20_000)
"""The time for a connection, which holds two looks at libvirt and what the relay dials.

gRPC has no option of its own for it, and takes the least time of its back-off.
"""


def client(interval: float = INTERVAL, timeout: float = TIMEOUT) -> Options:
    """A channel's options.

    Some versions of gRPC look at the timeout of keepalive, others at that of any ping, a minute where it is not set.
    """
    return (
        CONNECT,
        ("grpc.keepalive_time_ms", int(1000 * interval)),
        ("grpc.keepalive_timeout_ms", int(1000 * timeout)),
        ("grpc.http2.ping_timeout_ms", int(1000 * timeout)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )


def server(interval: float = INTERVAL) -> Options:
    """A server's options, without which it hangs up on a client that pings more often than every 5 minutes."""
    return (
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(500 * interval)),
    )
