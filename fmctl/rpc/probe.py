# SPDX-License-Identifier: Apache-2.0
"""Asks a server of ours, over its own socket, whether it answers; for the watchdog of its own process."""

from __future__ import annotations

from typing import Any

from fmctl.core.address import Address
from fmctl.rpc.dial import Client

TIMEOUT = 5.0


class Probe(Client):
    """A channel to the server at that address."""

    def __init__(self, address: Address) -> None:
        super().__init__(address, "the server")

    def __call__(self) -> None:
        """Raise FmctlError unless it answers a health check in time."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        stub: Any = health_pb2_grpc.HealthStub(self.channel)  # its published types lack its methods
        self.call(stub.Check, health_pb2.HealthCheckRequest(), TIMEOUT)
