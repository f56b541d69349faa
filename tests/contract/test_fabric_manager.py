# SPDX-License-Identifier: Apache-2.0
"""What every side of the port `FabricManager` does: in memory, through libnvfm, through the worker, and over gRPC."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fmctl import platforms
from fmctl.control.agent import LocalAgent
from fmctl.core.address import Address
from fmctl.core.errors import FabricNotReady, FmctlError, OutcomeUnknown
from fmctl.core.fmcode import FmCode
from fmctl.core.ports import FabricManager
from fmctl.guest.nvfm import Nvfm
from fmctl.guest.worker import Worker
from fmctl.rpc.agent_client import AgentClient
from fmctl.rpc.fmctl.v1.fabric_manager_pb2_grpc import add_FabricManagerServiceServicer_to_server
from fmctl.rpc.manager import FabricManagerServicer
from fmctl.rpc.server import MANAGER_SERVICE, Listening, Server
from fmctl.sim import shim
from fmctl.sim.fabric import Fabric
from fmctl.sim.faults import Faults
from fmctl.sim.fmservice import Unmanaged
from fmctl.sim.nvfm import MemoryNvfm
from tests.support import Program

Start = Callable[..., FabricManager]

T = 10.0
PAIR, QUAD = 3, 1


@pytest.fixture(params=["memory", "libnvfm", "worker", "grpc"])
def start(request: pytest.FixtureRequest, folder: Path) -> Iterator[Start]:
    """Starts a Fabric Manager with faults, and reaches it in one of the ways."""
    with contextlib.ExitStack() as cleanup:

        def started(*faults: str, board: str = "hgx-h100-8") -> FabricManager:
            if request.param == "memory":
                return MemoryNvfm(Fabric.started(platforms.load(board), now=0), Faults.parse(faults))
            address = f"unix:{folder}/fm.sock"
            arguments = [argument for fault in faults for argument in ("--fault", fault)]
            served = Program("sim", "fm", "--platform", board, "--listen", address, *arguments, log=folder / "fm.log")
            cleanup.enter_context(served).says("listens")
            library = str(shim.build() / "libnvfm.so.1")
            if request.param == "libnvfm":
                nvfm = Nvfm(Address.parse(address), library)
                cleanup.callback(nvfm.close)
                return nvfm
            worker = Worker(Address.parse(address), library)
            cleanup.callback(worker.close)
            return over_grpc(worker) if request.param == "grpc" else worker

        def over_grpc(worker: Worker) -> FabricManager:
            address = Address.parse(f"unix:{folder}/agent.sock")
            servicer = FabricManagerServicer(LocalAgent(worker, Unmanaged(), lambda: None, library="", call_timeout=T))
            server = Server(
                Listening(address),
                (MANAGER_SERVICE,),
                lambda grpc: add_FabricManagerServiceServicer_to_server(servicer, grpc),
            )
            cleanup.enter_context(server)
            return cleanup.enter_context(contextlib.closing(AgentClient(address)))

        yield started


@pytest.mark.parametrize("board", platforms.names())
def test_the_list_is_the_board_s_table(start: Start, board: str) -> None:
    platform = platforms.load(board)
    listed = start(board=board).list_partitions(timeout=T)
    assert platform.describes(listed)
    assert (listed.simulated, listed.max_partitions) == (True, len(platform.partitions))
    for partition, row in zip(listed.partitions, platform.partitions, strict=True):
        assert (partition.id, partition.gpu_ids, partition.active) == (row.id, row.gpu_ids, False)
        assert {gpu.nvlinks for gpu in partition.gpus} == {row.nvlinks_per_gpu}
        assert {gpu.nvlinks_max for gpu in partition.gpus} == {row.nvlinks_per_gpu}
        rate = platform.line_rate_mbps.value if platform.line_rate_mbps else 0
        assert {gpu.line_rate_mbps for gpu in partition.gpus} == {rate}
        assert all(bool(gpu.uuid) == (platform.nvlink_generation < 4) for gpu in partition.gpus)


def test_activation_and_deactivation_show_in_the_next_list(start: Start) -> None:
    fm = start()
    fm.activate(PAIR, timeout=T)
    assert fm.list_partitions(timeout=T).get(PAIR).active
    fm.deactivate(PAIR, timeout=T)
    assert not fm.list_partitions(timeout=T).get(PAIR).active


@pytest.mark.parametrize(("board", "active", "inactive"), [("hgx-h100-8", -7, -4), ("hgx-b200-8", -17, -18)])
def test_each_family_has_its_codes(start: Start, board: str, active: int, inactive: int) -> None:
    fm = start(board=board)
    fm.activate(4, timeout=T)
    with pytest.raises(OutcomeUnknown) as again:
        fm.activate(4, timeout=T)
    with pytest.raises(OutcomeUnknown) as not_active:
        fm.deactivate(5, timeout=T)
    assert (again.value.fm_code, not_active.value.fm_code) == (active, inactive)
    assert (again.value.partition_id, not_active.value.partition_id) == (4, 5)


def test_an_overlap_and_an_unknown_id_are_refused(start: Start) -> None:
    fm = start()
    fm.activate(PAIR, timeout=T)
    with pytest.raises(OutcomeUnknown) as overlap:
        fm.activate(QUAD, timeout=T)
    with pytest.raises(OutcomeUnknown) as unknown:
        fm.activate(99, timeout=T)
    assert (overlap.value.fm_code, unknown.value.fm_code) == (FmCode.IN_USE, FmCode.BADPARAM)
    assert not fm.list_partitions(timeout=T).get(QUAD).active


@pytest.mark.parametrize("code", [c for c in FmCode if c is not FmCode.SUCCESS], ids=lambda c: str(c.name))
def test_every_code_arrives_as_it_is(start: Start, code: FmCode) -> None:
    fm = start(f"code={int(code)}@activate:1", f"code={int(code)}@list:1")
    with pytest.raises(FmctlError) as changing:
        fm.activate(PAIR, timeout=T)
    with pytest.raises(FabricNotReady) as reading:
        fm.list_partitions(timeout=T)
    nothing_changed = code in (FmCode.NOT_CONFIGURED, FmCode.NOT_READY)
    assert type(changing.value) is (FabricNotReady if nothing_changed else OutcomeUnknown)
    assert (changing.value.fm_code, reading.value.fm_code) == (code, code)


@pytest.mark.parametrize("fault", ["close@activate:1", "die-before@activate:1", "die-after@activate:1"])
def test_a_lost_connection_leaves_a_change_unknown(start: Start, fault: str) -> None:
    fm = start(fault)
    with pytest.raises(OutcomeUnknown) as refusal:
        fm.activate(PAIR, timeout=T)
    assert refusal.value.fm_code == FmCode.CONNECTION_NOT_VALID


def test_a_dead_fabric_manager_changes_nothing(start: Start) -> None:
    fm = start("die-before@list:1")
    with pytest.raises(FabricNotReady):
        fm.list_partitions(timeout=T)
    with pytest.raises(FabricNotReady) as refusal:
        fm.activate(PAIR, timeout=T)
    assert refusal.value.fm_code == FmCode.CONNECTION_NOT_VALID


def test_telling_the_active_partitions_is_for_a_restart_alone(start: Start) -> None:
    with pytest.raises(OutcomeUnknown) as refusal:
        start().set_activated([PAIR], timeout=T)
    assert refusal.value.fm_code == FmCode.NOT_SUPPORTED
