# SPDX-License-Identifier: Apache-2.0
"""The service of the GPU map over a real socket, with its client and its commands."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmctl.core.address import Address
from fmctl.core.errors import BadRequest, MapUnverified
from fmctl.core.mapsource import MapState, SourceKind
from fmctl.rpc.fmctl.v1.gpu_map_pb2_grpc import add_GpuMapServiceServicer_to_server
from fmctl.rpc.gpumap import MAX_TEXT, GpuMapServicer
from fmctl.rpc.gpumap_client import GpuMapClient
from fmctl.rpc.server import GPU_MAP_SERVICE, Listening, Server
from fmctl.sim.host import MapFault
from tests.control.test_gpumap import World
from tests.support import run

TIMEOUT = 10.0


@contextlib.contextmanager
def serving(world: World, folder: Path) -> Iterator[Address]:
    address = Address.parse(f"unix:{folder}/d.sock")

    def add(server):  # type: ignore[no-untyped-def]
        add_GpuMapServiceServicer_to_server(GpuMapServicer(world.maps, lambda: True), server)

    with Server(Listening(address), (GPU_MAP_SERVICE,), add, simulated=lambda: True):
        yield address


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def client(world: World, folder: Path) -> Iterator[GpuMapClient]:
    with serving(world, folder) as address, contextlib.closing(GpuMapClient(address)) as client:
        yield client


def test_everything_crosses_as_it_is(world: World, client: GpuMapClient) -> None:
    world.bring()
    world.host.bus.change(world.addresses[2], driver="nouveau")
    discovered = client.discover(actor="ann", timeout=TIMEOUT)
    assert discovered == client.show(timeout=TIMEOUT)
    status = world.maps.status()
    sources = tuple(dataclasses.replace(source, digest="") for source in status.sources)
    assert discovered == dataclasses.replace(status, sources=sources, simulated=True)
    assert discovered.gpus[1].unread == "its driver is nouveau" and len(discovered.sources) == 2
    assert [entry.actor for entry in world.store.entries(0, limit=9)] == ["a person", "ann"]


def test_a_map_is_imported_and_accepted(world: World, client: GpuMapClient) -> None:
    world.maps.refresh()
    status = client.bring(world.host.written_map(), "a map.yaml", None, actor="ann", timeout=TIMEOUT)
    assert status.state is MapState.VERIFIED
    assert {source.kind: source.detail for source in status.sources}[SourceKind.FILE] == "a map.yaml"
    other = World("hgx-b200-8")
    other.maps.refresh()
    status = other.maps.status()
    assert status.state is MapState.UNVERIFIED


def test_a_person_s_acceptance_crosses(folder: Path) -> None:
    world = World()
    world.maps.refresh()
    with serving(world, folder) as address, contextlib.closing(GpuMapClient(address)) as client:
        typed = client.show(timeout=TIMEOUT).fingerprint
        status = client.accept(typed, actor="ann", timeout=TIMEOUT)
    assert status.state is MapState.VERIFIED
    assert status.accepted and (status.accepted.by, status.accepted.time) == ("ann", 1000.0)


def test_refusals_cross_with_what_to_do(world: World, client: GpuMapClient) -> None:
    with pytest.raises(BadRequest, match="it names no GPU that this host has"):
        client.bring("1: 'ffff:00:00.0'\n", "map.yaml", SourceKind.FILE, actor="", timeout=TIMEOUT)
    with pytest.raises(BadRequest, match="has no line that begins a GPU"):
        client.bring("1: 'ffff:00:00.0'\n", "map.yaml", SourceKind.NVIDIA_SMI, actor="", timeout=TIMEOUT)
    with pytest.raises(BadRequest, match="characters"):
        client.bring("x" * (MAX_TEXT + 1), "map.yaml", None, actor="", timeout=TIMEOUT)
    with pytest.raises(MapUnverified) as refusal:
        client.accept("0000-0000-0000", actor="", timeout=TIMEOUT)
    assert "fmctl gpumap" in refusal.value.fix


def test_the_commands_show_discover_import_verify_and_accept(folder: Path) -> None:
    world = World("hgx-h100-8", MapFault.UNCONFIRMED)
    file = folder / "map.yaml"
    with serving(world, folder) as address:

        def fmctl(*arguments: str, status: int = 0) -> str:
            done = run("gpumap", *arguments, env={"FMCTL_ADDRESS": str(address)})
            assert done.returncode == status, done.stderr
            return done.stderr if status not in (0, 8) else done.stdout

        assert "nobody has said which GPU has which physical id" in fmctl("show")
        assert "unverified: nothing but registers tells which GPU is which" in fmctl("discover", status=8)
        assert "do: " in fmctl("verify", status=8)
        typed = json.loads(fmctl("show", "-o", "json"))["fingerprint"]
        assert "is not the fingerprint of this map" in fmctl("accept", "--fingerprint", "x", status=2)
        assert "accepted it" in fmctl("accept", "--fingerprint", typed)
        assert "verified" in fmctl("verify")
        file.write_text(fmctl("show", "-o", "map"))
        assert "verified: file and registers agree" in fmctl("import", str(file))
        lines = file.read_text().replace("1: ", "9: ").replace("2: ", "1: ").replace("9: ", "2: ")
        file.write_text(lines)
        shown = fmctl("import", "--format", "yaml", str(file), status=8)
        assert "contradictory: GPU 0000:17:00.0 is 1 by registers but 2 by file" in shown
        assert "registers (1), file (2)" in shown
        assert (
            "cannot be accepted"
            in run("gpumap", "accept", "--fingerprint", typed, env={"FMCTL_ADDRESS": str(address)}).stderr
        )
