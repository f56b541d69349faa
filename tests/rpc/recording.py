# SPDX-License-Identifier: Apache-2.0
"""Records what this code's agent answers, byte for byte: `python -m tests.rpc.recording FOLDER`.

Run once for each minor version, with the code of that version; `test_older_agents` replays what lies in `recorded`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import grpc

from fmctl import platforms
from fmctl.control.agent import LocalAgent
from fmctl.core.address import Address
from fmctl.rpc.fmctl.v1 import fabric_manager_pb2 as messages
from fmctl.rpc.fmctl.v1.fabric_manager_pb2_grpc import add_FabricManagerServiceServicer_to_server
from fmctl.rpc.manager import FabricManagerServicer
from fmctl.rpc.server import MANAGER_SERVICE, Listening, Server
from fmctl.sim.fmservice import MemoryProcess
from fmctl.sim.nvfm import MemoryNvfm

DETAILS = "grpc-status-details-bin"


class Recorder:
    """An agent with everything in memory, and the bytes of its answers."""

    def __init__(self, channel: grpc.Channel, folder: Path) -> None:
        self._channel = channel
        self._folder = folder

    def ask(self, name: str, method: str, request: Any) -> None:
        """Note the answer, or the status of a refusal, as NAME.bin."""
        call: Any = self._channel.unary_unary(f"/{MANAGER_SERVICE}/{method}")
        try:
            answer = call(request.SerializeToString(), timeout=10)
        except grpc.RpcError as error:
            failed: Any = error
            (answer,) = (value for key, value in failed.trailing_metadata() if key == DETAILS)
        (self._folder / f"{name}.bin").write_bytes(answer)


def record(folder: Path) -> None:
    """Play one life of Fabric Manager, and write what its agent says to it."""
    nvfm = MemoryNvfm(None)
    process = MemoryProcess(nvfm, platforms.load("hgx-h100-8"))
    agent = LocalAgent(nvfm, process, lambda: None, library="memory", call_timeout=30)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        address = Address.parse(f"unix:{place}/agent.sock")
        server = Server(
            Listening(address),
            (MANAGER_SERVICE,),
            lambda grpc: add_FabricManagerServiceServicer_to_server(FabricManagerServicer(agent), grpc),
        )
        with server, grpc.insecure_channel(str(address)) as channel:
            _play(Recorder(channel, folder), process)


def _play(recorder: Recorder, process: MemoryProcess) -> None:
    status, listing = messages.GetAgentStatusRequest(), messages.ListFabricPartitionsRequest()
    fresh = messages.StartFabricManagerRequest(mode=messages.START_MODE_FRESH)
    recorder.ask("status-not-started", "GetAgentStatus", status)
    recorder.ask("list-refused", "ListFabricPartitions", listing)
    recorder.ask("start", "StartFabricManager", fresh)
    recorder.ask("activate", "ActivateFabricPartition", messages.ActivateFabricPartitionRequest(partition_id=3))
    recorder.ask("status-ready", "GetAgentStatus", status)
    recorder.ask("list", "ListFabricPartitions", listing)
    recorder.ask("activate-unknown", "ActivateFabricPartition", messages.ActivateFabricPartitionRequest(partition_id=3))
    recorder.ask("deactivate", "DeactivateFabricPartition", messages.DeactivateFabricPartitionRequest(partition_id=3))
    recorder.ask("start-bad", "StartFabricManager", messages.StartFabricManagerRequest())
    process.die()
    recorder.ask("status-ended", "GetAgentStatus", status)
    recorder.ask("restart-agent", "RestartAgent", messages.RestartAgentRequest())


if __name__ == "__main__":
    record(Path(sys.argv[1]))
