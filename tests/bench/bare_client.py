# SPDX-License-Identifier: Apache-2.0
"""The reference client: import grpc, make one health call, end."""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

if __name__ == "__main__":
    with grpc.insecure_channel(sys.argv[1]) as channel:
        health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]
            health_pb2.HealthCheckRequest(), timeout=10
        )
