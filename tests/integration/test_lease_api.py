# SPDX-License-Identifier: Apache-2.0
"""Leases with whole programs: what is leased outlives the daemon."""

from __future__ import annotations

import json
import signal

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from fmctl.rpc.server import LEASE_SERVICE
from tests.integration.conftest import Chain, StartDaemon
from tests.support import health


def test_a_lease_outlives_the_daemon(start_daemon: StartDaemon) -> None:
    fmctl = start_daemon()
    made = ("allocate", "--count", "2", "--owner", "a", "--request-id", "r", "-o", "json")
    lease = json.loads(fmctl.done(*made))
    assert (lease["state"], fmctl.active()) == ("active", lease["partitions"])
    assert all(gpu["address"] and gpu["vfio"] for gpu in lease["gpus"])
    position = json.loads(fmctl.done("lease", "list", "-o", "json"))
    fmctl.program.end(signal.SIGKILL)

    fmctl = start_daemon()
    assert json.loads(fmctl.done(*made))["id"] == lease["id"]
    now = json.loads(fmctl.done("lease", "list", "-o", "json"))
    assert now["store_id"] == position["store_id"]
    assert json.loads(fmctl.done("release", lease["id"], "--owner", "a", "-o", "json"))["state"] == "released"
    assert fmctl.active() == []
    assert json.loads(fmctl.done("reconcile", "-o", "json"))["steps"] == []


def test_the_service_of_leases_is_health_checked_and_reflected(chain: Chain) -> None:
    fmctl = chain.daemon("reflection: true")
    with grpc.insecure_channel(fmctl.address) as channel:
        request = health_pb2.HealthCheckRequest(service=LEASE_SERVICE)
        assert health(channel).Check(request, timeout=5).status == health_pb2.HealthCheckResponse.SERVING
        database = ProtoReflectionDescriptorDatabase(channel)
        assert LEASE_SERVICE in database.get_services()
        assert DescriptorPool(database).FindServiceByName(LEASE_SERVICE).methods_by_name["Watch"]
