# SPDX-License-Identifier: Apache-2.0
"""The reference server: grpcio's own threaded server and health service at a unix socket, and nothing else."""

from __future__ import annotations

import sys
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2_grpc

if __name__ == "__main__":
    server = grpc.server(futures.ThreadPoolExecutor(16))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    server.add_insecure_port(sys.argv[1])
    server.start()
    server.wait_for_termination()
