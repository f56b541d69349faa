# SPDX-License-Identifier: Apache-2.0
"""The daemon works with agents two minor versions older: each is played by what it was recorded to answer.

`tests.rpc.recording` makes the records. A call that an old agent does not know is UNIMPLEMENTED.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2
from grpc_status import rpc_status

from fmctl.control.controller import FabricController
from fmctl.control.logs import GuestLogs
from fmctl.core.address import Address
from fmctl.core.answers import FabricState, StartMode
from fmctl.core.errors import BadRequest, FabricNotReady, OutcomeUnknown, VersionMismatch
from fmctl.core.loglines import LogPosition
from fmctl.rpc.agent_client import AgentClient
from fmctl.rpc.server import MANAGER_SERVICE
from fmctl.sim.gate import MemoryGate
from fmctl.sim.store import MemoryStore
from tests.control.gpus import NO_GPUS
from tests.support import eventually

RECORDED = Path(__file__).parent / "recorded"
VERSIONS = sorted(path.name for path in RECORDED.iterdir())
T = 10.0

METHODS = {
    "ListFabricPartitions": "list",
    "ActivateFabricPartition": "activate",
    "DeactivateFabricPartition": "deactivate",
    "GetAgentStatus": "status-ready",
    "StartFabricManager": "start",
    "RestartAgent": "restart-agent",
}
"""The record that answers each call, where a test names no other."""
REFUSALS = {"list-refused", "activate-unknown", "start-bad"}


class OldAgent(grpc.GenericRpcHandler):
    """Answers with the bytes of that version, and knows no other call."""

    def __init__(self, version: str) -> None:
        self._folder = RECORDED / version
        self.records = dict(METHODS)
        self.asked: list[str] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        service, _, method = handler_call_details.method.lstrip("/").partition("/")
        self.asked.append(method)
        if service != MANAGER_SERVICE or method not in self.records:
            return None
        return grpc.unary_unary_rpc_method_handler(self._answer(self.records[method]))

    def _answer(self, record: str) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        recorded = (self._folder / f"{record}.bin").read_bytes()

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if record in REFUSALS:
                context.abort_with_status(rpc_status.to_status(status_pb2.Status.FromString(recorded)))
            return recorded

        return answer


@pytest.fixture(params=VERSIONS)
def old(request: pytest.FixtureRequest) -> OldAgent:
    return OldAgent(request.param)


@pytest.fixture
def client(old: OldAgent, folder: Path) -> Iterator[AgentClient]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((old,))
    server.add_insecure_port(f"unix:{folder}/agent.sock")
    server.start()
    with contextlib.closing(AgentClient(Address.parse(f"unix:{folder}/agent.sock"))) as client:
        yield client
    server.stop(0).wait()


def test_there_are_records_of_two_minor_versions_before_this_one() -> None:
    """Before the minor version is raised: record its agent, and drop what is then older than two."""
    from fmctl import __version__

    major, minor = map(int, __version__.split(".")[:2])
    assert [f"{major}.{number}" for number in range(max(1, minor - 2), max(2, minor))] == VERSIONS


def test_its_status_is_read_and_what_it_does_not_tell_is_empty(old: OldAgent, client: AgentClient) -> None:
    status = client.status(timeout=T)
    assert (status.state, status.message, status.library) == (FabricState.READY, "", "memory")
    assert status.version.startswith("0.")
    assert (status.digest, status.fm_version, status.driver_version, status.versions_differ) == ("", "", "", "")
    assert (status.fm_log, status.fm_config, status.nvlsm) == ((), {}, "")


@pytest.mark.parametrize(
    ("record", "state"), [("status-not-started", FabricState.NOT_STARTED), ("status-ended", FabricState.ENDED)]
)
def test_its_other_states_are_read(old: OldAgent, client: AgentClient, record: str, state: FabricState) -> None:
    old.records["GetAgentStatus"] = record
    status = client.status(timeout=T)
    assert status.state is state
    assert status.message


def test_its_partitions_are_read(client: AgentClient) -> None:
    listed = client.list_partitions(timeout=T)
    assert len(listed.partitions) == listed.max_partitions == 15
    assert [partition.id for partition in listed.partitions if partition.active] == [3]
    found = listed.find(3)
    assert found is not None
    assert [gpu.physical_id for gpu in found.gpus] == [1, 3]


def test_its_refusals_are_the_errors_that_they_were(old: OldAgent, client: AgentClient) -> None:
    old.records |= {
        "ListFabricPartitions": "list-refused",
        "ActivateFabricPartition": "activate-unknown",
        "StartFabricManager": "start-bad",
    }
    with pytest.raises(FabricNotReady) as refusal:
        client.list_partitions(timeout=T)
    assert (refusal.value.fm_code, bool(refusal.value.fix)) == (-9, True)
    with pytest.raises(OutcomeUnknown) as unknown:
        client.activate(3, timeout=T)
    assert (unknown.value.fm_code, unknown.value.partition_id) == (-7, 3)
    with pytest.raises(BadRequest, match="the mode is not set"):
        client.start_fabric_manager(StartMode.FRESH, (), timeout=T)


def test_every_call_that_it_knows_is_made_as_it_knows_it(client: AgentClient) -> None:
    client.start_fabric_manager(StartMode.RESTART, (3,), timeout=T)
    client.activate(3, timeout=T)
    client.deactivate(3, timeout=T)
    client.restart(timeout=T)


def test_the_controller_works_over_it(client: AgentClient) -> None:
    controller = FabricController(client, MemoryStore(), MemoryGate(), NO_GPUS)
    assert controller.refresh() == (FabricState.READY, "")
    assert controller.active() == (3,)
    status = controller.status(timeout=T)
    assert (status.agent.reachable, status.simulated) == (True, True)


def test_it_cannot_be_replaced_and_the_refusal_says_why(client: AgentClient) -> None:
    with pytest.raises(VersionMismatch, match="does not know this call"):
        client.replace(b"", "", timeout=T)


def test_it_tells_no_logs_and_that_is_said_once(
    old: OldAgent, client: AgentClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(VersionMismatch):
        next(client.logs(LogPosition()))
    with GuestLogs(client, first_pause=0.01, too_old_pause=0.01) as logs:
        eventually(lambda: old.asked.count("StreamLogs") > 3)
        assert logs.recent(10) == ()
    assert caplog.text.count("the agent is older") == 1
