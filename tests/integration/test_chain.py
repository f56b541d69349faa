# SPDX-License-Identifier: Apache-2.0
"""Fabric Manager, agent and daemon as programs of their own, each of which may be late, hang, or die."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2

from fmctl.rpc.fmctl.v1 import fabric_controller_pb2 as messages
from fmctl.rpc.fmctl.v1.fabric_controller_pb2_grpc import FabricControllerServiceStub
from tests.integration.conftest import Chain
from tests.support import eventually, health

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
FABRIC = "fmctl.v1.FabricManagerService"


def test_the_daemon_starts_first_says_what_is_missing_and_recovers_by_itself(chain: Chain) -> None:
    fmctl = chain.daemon()
    status = fmctl.status()
    assert (status["agent"]["reachable"], status["fabric"]["state"]) == (False, "unreachable")
    done = fmctl("list")
    assert (done.returncode, "the agent at" in done.stderr) == (5, True)

    chain.agent()
    eventually(lambda: fmctl.status()["agent"]["reachable"])
    done = fmctl("activate", "3")
    assert (done.returncode, "Fabric Manager does not answer" in done.stderr) == (5, True)

    chain.fabric_manager()
    fmctl.done("wait", "--for", "ready")
    fmctl.done("activate", "3")
    assert fmctl.status()["platform"] == "hgx-h100-8"


def test_a_slow_start_is_told_as_such(chain: Chain) -> None:
    chain.fabric_manager("--fault", "slow-start=3")
    chain.agent()
    fmctl = chain.daemon()
    fmctl.done("wait", "--for", "state=initialising")
    done = fmctl("activate", "3")
    assert (done.returncode, "-8 (NOT_CONFIGURED)" in done.stderr) == (5, True)
    fmctl.done("wait", "--for", "ready")
    fmctl.done("activate", "3")


@pytest.mark.parametrize("board", ["hgx-h100-8", "hgx-b200-8"])
def test_a_hung_activation_is_unknown_and_the_same_call_settles_it(chain: Chain, board: str) -> None:
    chain.fabric_manager("--fault", "hang@activate:1", board=board)
    chain.agent("--call-timeout", "1")
    fmctl = chain.daemon()
    fmctl.done("wait")
    done = fmctl("activate", "4")
    assert (done.returncode, "outcome of activate is unknown" in done.stderr) == (5, True)
    assert fmctl.active() == []
    assert "now active" in fmctl.done("activate", "4")


def test_an_activation_that_lands_after_its_deadline_is_found_by_the_same_call(chain: Chain) -> None:
    chain.fabric_manager("--latency-ms", "1500")
    chain.agent()
    fmctl = chain.daemon()
    fmctl.done("wait")
    eventually(lambda: "the outcome of activate is unknown" in fmctl("activate", "3", timeout=1).stderr)
    done = fmctl("activate", "3", "--owner", "somebody-else")
    assert done.returncode == 4
    fmctl.done("activate", "3")
    assert fmctl.active() == [3]


@pytest.mark.parametrize("fault", ["die-before@activate:1", "die-after@activate:1"])
def test_a_fabric_manager_that_dies_in_an_activation(chain: Chain, fault: str) -> None:
    chain.fabric_manager("--fault", fault)
    chain.agent()
    fmctl = chain.daemon()
    fmctl.done("wait")
    done = fmctl("activate", "3")
    assert (done.returncode, "outcome of activate is unknown" in done.stderr) == (5, True)
    chain.fabric_manager()
    assert "now active" in fmctl.done("activate", "3")


def test_owners_survive_the_daemon_s_death(chain: Chain) -> None:
    chain.fabric_manager()
    chain.agent()
    fmctl = chain.daemon()
    fmctl.done("wait")
    fmctl.done("activate", "3", "--owner", "a")
    fmctl.program.end(signal.SIGKILL)
    fmctl = chain.daemon()
    done = fmctl("activate", "3", "--owner", "b")
    assert (done.returncode, "owner 'a'" in done.stderr) == (4, True)
    assert "already active" in fmctl.done("activate", "3", "--owner", "a")


def test_an_agent_that_dies_in_an_activation_leaves_it_unknown(chain: Chain) -> None:
    chain.fabric_manager("--latency-ms", "1000")
    agent = chain.agent()
    fmctl = chain.daemon()
    fmctl.done("wait")
    failures = []
    activation = threading.Thread(target=lambda: failures.append(fmctl("activate", "3")))
    activation.start()
    eventually(lambda: "activating" in chain.journal)
    agent.end(signal.SIGKILL)
    activation.join(30)
    assert failures[0].returncode == 5
    chain.agent()
    eventually(lambda: fmctl("activate", "3").returncode == 0)
    assert fmctl.active() == [3]


def test_health_follows_fabric_manager(chain: Chain) -> None:
    fm = chain.fabric_manager()
    chain.agent()
    fmctl = chain.daemon("poll_interval_s: 0.2")
    with grpc.insecure_channel(fmctl.address) as channel:
        stub = health(channel)

        def state(service: str) -> object:
            return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status

        assert state("") == state("fmctl.v1.FabricControllerService") == SERVING
        watch: Iterator[health_pb2.HealthCheckResponse] = stub.Watch(
            health_pb2.HealthCheckRequest(service=FABRIC), timeout=30
        )
        seen = (answer.status for answer in watch)
        assert SERVING in seen
        fm.end(signal.SIGKILL)
        assert next(seen) == NOT_SERVING
        chain.fabric_manager()
        assert next(seen) == SERVING
        assert state("") == SERVING


def test_the_agent_has_its_own_health(chain: Chain) -> None:
    chain.agent()
    with grpc.insecure_channel(chain.at("agent")) as channel:
        stub = health(channel)
        for service, expected in (("", SERVING), (FABRIC, NOT_SERVING)):
            request = health_pb2.HealthCheckRequest(service=service)
            assert stub.Check(request, timeout=5).status == expected
        chain.fabric_manager()
        request = health_pb2.HealthCheckRequest(service=FABRIC)
        eventually(lambda: stub.Check(request, timeout=5).status == SERVING)


@pytest.mark.parametrize("program", ["daemon", "agent"])
def test_reflection_is_served_where_the_settings_say_so(chain: Chain, program: str) -> None:
    from google.protobuf.descriptor_pool import DescriptorPool
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    service = {"daemon": "fmctl.v1.FabricControllerService", "agent": "fmctl.v1.FabricManagerService"}[program]
    file = chain.folder / "agent.yaml"
    file.write_text("reflection: true\n")
    chain.agent("--config", str(file))
    chain.daemon("reflection: true")
    address = chain.at("fmctld" if program == "daemon" else "agent")
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) >= {service, "grpc.health.v1.Health"}
        assert DescriptorPool(database).FindServiceByName(service).methods


def test_reflection_is_off_by_default(chain: Chain) -> None:
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    fmctl = chain.daemon()
    with grpc.insecure_channel(fmctl.address) as channel, pytest.raises(grpc.RpcError) as refusal:
        list(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_call_under_way_ends_before_the_daemon_does(chain: Chain) -> None:
    chain.fabric_manager("--latency-ms", "1000")
    chain.agent()
    fmctl = chain.daemon()
    fmctl.done("wait")
    with grpc.insecure_channel(fmctl.address) as channel:
        request = messages.ActivatePartitionRequest(partition_id=3, owner="a")
        activation = FabricControllerServiceStub(channel).ActivatePartition.future(request, timeout=20)
        eventually(lambda: "activating" in chain.journal)
        assert fmctl.program.end(signal.SIGTERM) == 0
        assert activation.result(timeout=1).partition.owner == "a"


def test_a_caller_s_deadline_is_kept(chain: Chain) -> None:
    chain.fabric_manager("--fault", "hang@activate:1")
    chain.agent()
    fmctl = chain.daemon()
    fmctl.done("wait")
    with grpc.insecure_channel(fmctl.address) as channel:
        request = messages.ActivatePartitionRequest(partition_id=3, owner="a")
        with pytest.raises(grpc.RpcError) as refusal:
            FabricControllerServiceStub(channel).ActivatePartition(request, timeout=2)
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "within" in (refusal.value.details() or "")


def test_a_missing_library_is_told_by_status(chain: Chain) -> None:
    chain.agent("--library", "/no/such/libnvfm.so.1")
    fmctl = chain.daemon()
    assert "/no/such/libnvfm.so.1 cannot be used" in fmctl.status()["fabric"]["message"]
