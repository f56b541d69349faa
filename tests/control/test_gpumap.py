# SPDX-License-Identifier: Apache-2.0
"""The GPU map of a pretended host: discovered, imported, accepted, kept over boots, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fmctl import platforms
from fmctl.control import discovery
from fmctl.control.fabric import Turn
from fmctl.control.gpumap import GpuMaps
from fmctl.control.mapreader import MapReader
from fmctl.control.vfio import Vfio
from fmctl.core.errors import BadRequest, FabricNotReady, InvalidDocument, MapUnverified
from fmctl.core.inventory import Inventory
from fmctl.core.mapsource import MapState, SourceKind
from fmctl.core.partition import PartitionList
from fmctl.core.pci import Bdf
from fmctl.core.vfio import PARKED, VFIO_PCI, Holder
from fmctl.sim.fabric import Fabric
from fmctl.sim.host import MapFault, SimulatedHost
from fmctl.sim.store import MemoryStore
from fmctl.sim.sysfs import gpu_addresses

BOARDS = ["hgx-h100-8", "hgx-a100-8", "hgx-a100-16", "hgx-b200-8"]
SAMPLES = Path(__file__).parents[1] / "core" / "samples"
VM = Holder(7, "qemu")
WAYS: dict[str, SourceKind] = {
    "hgx-h100-8": SourceKind.REGISTERS,
    "hgx-a100-8": SourceKind.FABRIC_MANAGER,
    "hgx-a100-16": SourceKind.FABRIC_MANAGER,
    "hgx-b200-8": SourceKind.ADMIN_TOOLS,
}


class World:
    """A pretended host with the daemon's GPU map, which another daemon may take over."""

    def __init__(self, board: str = "hgx-h100-8", fault: MapFault = MapFault.NONE) -> None:
        self.platform = platforms.load(board)
        self.host = SimulatedHost(self.platform, map_fault=fault)
        self.store = MemoryStore()
        self.file: tuple[str, str] | None = None
        self.listed: PartitionList | None = Fabric.started(self.platform, now=0).partitions(0)
        self.observed = False
        self.daemon()

    def daemon(self) -> None:
        """Let another daemon begin with what was kept."""
        vfio = Vfio(self.host.bus, self.host.devices)
        reader = MapReader(
            vfio,
            self.host.registers,
            Turn(5.0),
            admin_tools=self.host.admin_tools,
            active=lambda: self.maps.active(),
        )
        self.maps = GpuMaps(
            self.store,
            self.inventory,
            self.host.bus,
            reader,
            machine=lambda: self.host.machine,
            look=self.look,
            listed=lambda: self.listed,
            file=lambda: self.file,
            observed=lambda: self.observed,
            now=lambda: 1000.0,
        )

    def look(self) -> PartitionList:
        if self.listed is None:
            raise FabricNotReady("Fabric Manager does not list")
        return self.listed

    def inventory(self) -> Inventory:
        return discovery.discover(self.host.bus, [self.platform])

    @property
    def addresses(self) -> dict[int, Bdf]:
        return gpu_addresses(self.platform)

    def boot(self) -> None:
        self.host.machine = replace(self.host.machine, boot=f"{self.host.machine.boot}'")
        self.daemon()

    def bring(self, text: str | None = None) -> None:
        self.maps.bring(text or self.host.written_map(), "map.yaml", None, actor="a person")

    def discover(self) -> MapState:
        return self.maps.discover(actor="a person", timeout=5.0).state

    @property
    def state(self) -> MapState:
        return self.maps.status().state

    def refusal(self) -> MapUnverified:
        with pytest.raises(MapUnverified) as refusal:
            self.maps.require()
        assert refusal.value.fix and refusal.value.why
        return refusal.value

    def hold(self, physical_id: int) -> None:
        """Let a VM have a GPU."""
        bdf = self.addresses[physical_id]
        Vfio(self.host.bus, self.host.devices).bind(self.inventory(), [bdf])
        self.host.devices.hold(self.group(bdf), VM)

    def group(self, bdf: Bdf) -> int:
        return next(f.iommu_group or 0 for f in self.host.bus.functions() if f.bdf == bdf)

    def driver(self, bdf: Bdf) -> str:
        return next(f.driver for f in self.host.bus.functions() if f.bdf == bdf)


@pytest.mark.parametrize("board", BOARDS)
def test_the_map_of_every_board_is_discovered_and_with_a_person_s_map_verified(board: str) -> None:
    world = World(board)
    assert not world.maps.status().sources
    world.refusal()
    assert world.discover() is MapState.UNVERIFIED
    assert [source.kind for source in world.maps.status().sources] == [WAYS[board]]
    known = world.maps.known(world.inventory())
    assert known and known.addresses == world.addresses
    world.bring()
    world.maps.require()
    assert world.state is MapState.VERIFIED


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("fault", [f for f in MapFault if f is not MapFault.NONE])
def test_a_wrong_map_lets_nothing_be_activated_on_any_board(board: str, fault: MapFault) -> None:
    world = World(board, fault)
    text = world.host.written_map()
    if fault is MapFault.DUPLICATED and WAYS[board] is SourceKind.FABRIC_MANAGER:
        text = text.replace(f"2: '{world.addresses[2]}'\n", "")
        text = text.replace(f"1: '{world.addresses[1]}'", f"1: '{world.addresses[2]}'")
    world.file = ("map.yaml", text) if text else None
    world.maps.refresh()
    refusal = world.refusal()
    assert "fmctl gpumap" in refusal.fix


def test_what_the_daemon_does_by_itself_verifies_a_map_that_two_sources_tell() -> None:
    world = World()
    world.file = ("map.yaml", world.host.written_map())
    world.maps.refresh()
    world.maps.require()
    assert world.maps.status().why == "file and registers agree"
    assert [entry.what for entry in world.store.entries(0, limit=9)] == ["GPU map unverified", "GPU map verified"]
    world.maps.refresh()
    assert world.store.book.revision == 2


def test_gpus_are_parked_again_after_they_were_read() -> None:
    world = World()
    world.discover()
    assert {world.driver(bdf) for bdf in world.addresses.values()} == {""}
    exposures = {world.host.devices.exposure(bdf, timeout=1) for bdf in world.addresses.values()}
    assert {exposure.override for exposure in exposures if exposure} == {PARKED}
    assert set(world.host.devices.resets.values()) == {2}


def test_a_gpu_that_a_vm_has_is_never_opened_and_keeps_what_it_said_in_this_boot() -> None:
    world = World()
    world.bring()
    world.discover()
    bdf = world.addresses[3]
    world.hold(3)
    resets = world.host.devices.resets[bdf]
    assert world.discover() is MapState.VERIFIED
    assert world.host.devices.resets[bdf] == resets and not world.host.devices.ejected
    world.boot()
    assert world.discover() is MapState.UNVERIFIED
    assert "it is held by qemu" in world.maps.status().why or str(bdf) in world.maps.status().why
    assert world.host.devices.resets[bdf] == resets
    world.host.devices.let_go(world.group(bdf))
    assert world.discover() is MapState.VERIFIED


def test_a_gpu_that_can_be_asked_and_does_not_answer_keeps_nothing() -> None:
    world = World()
    world.bring()
    assert world.discover() is MapState.VERIFIED
    world.host.registers.values[world.addresses[3]][0] = 0
    assert world.discover() is MapState.UNVERIFIED
    assert f"nothing but file tells which GPU is at {world.addresses[3]}" in world.maps.status().why


def test_the_settings_file_does_not_count_by_itself_on_another_board() -> None:
    world = World()
    world.file = ("map.yaml", world.host.written_map())
    world.maps.refresh()
    world.maps.require()
    world.host.machine = replace(world.host.machine, bios="2.0")
    world.boot()
    world.maps.refresh()
    assert "nothing but registers tells" in world.refusal().why
    world.file = ("map.yaml", "# looked at again\n" + world.host.written_map())
    world.maps.refresh()
    world.maps.require()


def test_what_fabric_manager_lists_counts_as_soon_as_it_was_seen() -> None:
    world = World("hgx-a100-8")
    listed, world.listed = world.listed, None
    world.file = ("map.yaml", world.host.written_map())
    world.maps.refresh()
    assert "nothing but file tells" in world.refusal().why
    world.listed = listed
    world.maps.require()


def test_a_wrong_import_changes_nothing_about_who_holds_what() -> None:
    world = World()
    world.bring()
    world.discover()
    lines = world.host.written_map().replace("1: ", "9: ").replace("2: ", "1: ").replace("9: ", "2: ")
    world.bring(lines)
    world.refusal()
    known = world.maps.known(world.inventory())
    assert known and known.addresses == world.addresses
    assert world.maps.verified(world.inventory()) == known
    world.boot()
    world.maps.refresh()
    assert world.maps.known(world.inventory()) == known


def test_a_lost_gpu_keeps_its_address() -> None:
    world = World("hgx-b200-8")
    world.discover()
    world.maps.accept(world.maps.status().fingerprint, actor="ann")
    world.host.bus.kill(world.addresses[8])
    known = world.maps.known(world.inventory())
    assert known and known.addresses == world.addresses


def test_a_gpu_of_an_active_partition_is_not_opened() -> None:
    world = World()
    world.bring()
    world.discover()
    world.host.devices.resets.clear()
    assert world.listed
    world.listed = world.listed.with_active(3, active=True)
    world.discover()
    assert set(world.host.devices.resets) == set(world.addresses.values()) - {world.addresses[1], world.addresses[3]}
    world.store = MemoryStore()
    world.daemon()
    world.host.devices.resets.clear()
    world.discover()
    assert not world.host.devices.resets


def test_no_gpu_is_opened_while_fabric_manager_does_not_list() -> None:
    world = World()
    world.bring()
    listed, world.listed = world.listed, None
    for ask in (world.maps.refresh, world.discover):
        with pytest.raises(FabricNotReady):
            ask()
    assert not world.host.devices.resets
    world.listed = listed
    world.maps.refresh()
    world.maps.require()


def test_a_new_boot_forces_discovery_before_the_first_activation() -> None:
    world = World()
    world.bring()
    world.discover()
    world.daemon()
    world.maps.require()
    world.boot()
    assert "since this host booted" in world.refusal().why
    assert world.maps.known(world.inventory()) is not None
    world.maps.refresh()
    world.maps.require()


@pytest.mark.parametrize(
    "change",
    [
        lambda world: setattr(world.host, "machine", replace(world.host.machine, bios="2.0")),
        lambda world: world.host.bus.behave(world.addresses[5], serial=99),
        lambda world: world.host.bus.put_behind_switch(world.addresses[7]),
    ],
    ids=["bios", "gpu", "slot"],
)
def test_another_board_forces_discovery_and_makes_imports_count_no_more(change: Callable[[World], Any]) -> None:
    world = World()
    world.bring()
    world.discover()
    change(world)
    world.boot()
    world.refusal()
    assert world.maps.known(world.inventory()) is None
    world.maps.refresh()
    assert "nothing but registers tells" in world.refusal().why
    found = world.inventory()
    assert (world.maps.known(found) is None, world.maps.verified(found)) == (False, None)
    world.bring()
    world.maps.require()


def test_a_lost_gpu_takes_no_other_s_map_within_a_boot() -> None:
    world = World()
    world.bring()
    world.discover()
    world.host.bus.kill(world.addresses[8])
    world.maps.require()
    world.host.bus.remove(world.addresses[7])
    world.maps.require()


def test_a_person_accepts_by_typing_the_fingerprint() -> None:
    world = World("hgx-b200-8")
    world.discover()
    typed = world.maps.status().fingerprint
    assert f"--fingerprint {typed}" in world.refusal().fix
    with pytest.raises(BadRequest, match="is not the fingerprint of this map"):
        world.maps.accept("0000-0000-0000", actor="ann")
    assert world.maps.accept(typed, actor="ann").why == "ann accepted it"
    world.maps.require()
    world.boot()
    world.refusal()
    world.maps.refresh()
    world.maps.require()
    assert [entry.actor for entry in world.store.entries(0, limit=9)] == ["a person", "ann", "fmctl"]


def test_nobody_accepts_a_contradiction_or_half_a_map() -> None:
    for fault in (MapFault.SWAPPED, MapFault.DUPLICATED, MapFault.MISSING):
        world = World("hgx-h100-8", fault)
        world.discover()
        right = World().maps
        if fault is MapFault.SWAPPED:
            world.bring()
        typed = world.maps.status().fingerprint or right.status().board
        with pytest.raises(MapUnverified, match="cannot be accepted"):
            world.maps.accept(typed, actor="ann")


def test_an_import_of_another_host_is_refused() -> None:
    world = World()
    with pytest.raises(BadRequest, match="it names no GPU that this host has"):
        world.bring((SAMPLES / "h100-565.txt").read_text())
    with pytest.raises(InvalidDocument):
        world.bring("1: nowhere\n")
    assert world.store.book.gpu_map is None


def test_what_nvidia_smi_says_confirms_the_pins() -> None:
    world = World()
    world.discover()
    lines = "".join(f"GPU {bdf}\n    Module ID : {number}\n" for number, bdf in world.addresses.items())
    world.bring(f"==NVSMI LOG==\nDriver Version : 580.95.05\n{lines}")
    world.maps.require()
    details = {source.kind: source.detail for source in world.maps.status().sources}
    assert details[SourceKind.NVIDIA_SMI] == "map.yaml, driver 580.95.05"


def test_the_settings_file_is_imported_again_only_when_it_changes() -> None:
    world = World()
    world.file = ("map.yaml", world.host.written_map())
    world.maps.refresh()
    lines = world.host.written_map().splitlines(keepends=True)
    world.bring("".join(reversed(lines)))
    revision = world.store.book.revision
    world.maps.refresh()
    assert world.store.book.revision == revision
    world.file = ("map.yaml", "# looked at\n" + world.host.written_map())
    world.maps.refresh()
    assert world.store.book.revision == revision + 1


def test_an_observed_host_opens_no_gpu() -> None:
    world = World()
    world.observed = True
    world.maps.refresh()
    with pytest.raises(MapUnverified, match="only observed"):
        world.discover()
    assert not world.host.devices.resets


def test_a_gpu_that_a_host_driver_has_is_told_and_left() -> None:
    world = World()
    world.host.bus.change(world.addresses[2], driver="nouveau")
    world.discover()
    unread = {gpu.address: gpu.unread for gpu in world.maps.status().gpus if gpu.unread}
    assert unread == {world.addresses[2]: "its driver is nouveau"}
    assert world.driver(world.addresses[2]) == "nouveau"


def test_without_vfio_pci_a_parked_gpu_is_read_as_it_is() -> None:
    world = World()
    world.host.devices.drivers.discard(VFIO_PCI)
    world.bring()
    assert world.discover() is MapState.VERIFIED


def test_without_admin_tools_a_blackwell_board_says_what_to_do() -> None:
    world = World("hgx-b200-8")
    world.host.admin_tools = None  # type: ignore[assignment]
    world.daemon()
    world.discover()
    assert "set gpu_admin_tools" in world.refusal().fix
