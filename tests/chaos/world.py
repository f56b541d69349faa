# SPDX-License-Identifier: Apache-2.0
"""The host of the state machine: its GPU map can be lost, its GPUs are cleaned, and its VMs start through a gate.

It knows what no daemon does: which GPU truly is which, what each one's firmware is, and when one is reset or opened.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fmctl.control import discovery
from fmctl.control.gpumap import GpuMaps
from fmctl.control.hook import Hook, ServiceVmStart
from fmctl.control.mapreader import MapReader
from fmctl.control.parking import Parking
from fmctl.control.vfio import Vfio
from fmctl.core.asking import Verdict
from fmctl.core.book import Kind, MarkKind
from fmctl.core.clean import FirmwareList, Rules
from fmctl.core.errors import FmctlError, MapUnverified
from fmctl.core.gpumap import GpuMap
from fmctl.core.hook import Rules as HookRules
from fmctl.core.inventory import Inventory
from fmctl.core.mapsource import SourceKind
from fmctl.core.pci import Bdf, FunctionState
from fmctl.core.rules import Firmware, Memory
from fmctl.core.rules import Rules as LeaseRules
from fmctl.core.vfio import VFIO_PCI, WriteOverdue
from fmctl.sim.hookfiles import MemoryHookFiles
from fmctl.sim.sysfs import SimulatedFunction
from fmctl.sim.vfiodev import Effect
from tests.control.leasing import World, uuid_of
from tests.core.test_hook import document, hostdev

ROM, OTHER_ROM = b"\x55\xaa the operator's", b"\x55\xaa a tenant's"
LISTED = hashlib.sha256(ROM).hexdigest()
AT_ONCE = 0.0
"""Seconds that a call may really wait."""
LIBVIRTD = 321
MAP_FILE = "map.yaml"


def enforced(board: str) -> Rules:
    """Cleaning by which firmware must be on the list, and a command must find the memory clean."""
    model = World(board, started=False).platform.gpus.models[0]
    return Rules(
        memory=Memory.COMMAND,
        memory_command=("check",),
        firmware=Firmware.ENFORCE,
        firmware_list=FirmwareList({model.id: frozenset({LISTED})}),
    )


class Host(World):
    """A host whose GPUs are mapped, cleaned, and where it is `gated` parked.

    `resets` hears of each reset that is asked for, and `opens` of each GPU that is opened to be asked which it is,
    before it is done; `was_reset` hears of a reset that was.
    """

    def __init__(self, board: str, rules: LeaseRules, cleans: Rules | None, *, gated: bool) -> None:
        self.gated = gated
        self.resets: Callable[[int], object] = lambda gpu: None
        self.was_reset: Callable[[int], object] = lambda gpu: None
        self.opens: Callable[[int], object] = lambda gpu: None
        self._found: tuple[tuple[SimulatedFunction, ...], Inventory] | None = None
        self._told: dict[str, tuple[tuple[object, ...], GpuMap | None]] = {}
        super().__init__(board, rules, cleans=cleans)
        self.memory: Callable[[int, float], tuple[int, bytes] | None] = lambda gpu, timeout: (0, b"")
        self.found_clean: set[int] = set()
        """The GPUs of which the memory command has said yes since they were last reset."""
        self.command = self._look_at_memory
        self.alive: dict[Bdf, FunctionState] = {s.function.bdf: s.state for s in self.host.bus.everything()}
        self.said = {bdf: gpu for gpu, bdf in self.address.items()}
        self.firmware = dict.fromkeys(self.address, ROM)
        for gpu in self.address:
            self.flash(gpu, ROM)
        self._reset, self.host.devices.reset = self.host.devices.reset, self._reset_in_time  # type: ignore[method-assign]
        self._read, self.host.registers.read = self.host.registers.read, self._read_heard  # type: ignore[method-assign]
        self._gate()

    def _gate(self) -> None:
        """What of the daemon is about the GPUs themselves."""
        vfio = Vfio(self.host.bus, self.host.devices)
        store, reconciler = self.controller.store, self.controller.reconciler
        reader = MapReader(
            *(vfio, self.host.registers, self.controller.turn),
            admin_tools=self._admin_tools,
            active=lambda: self.maps.active(),
        )
        self.maps = GpuMaps(
            *(store, self._inventory, self.host.bus, reader),
            machine=lambda: self.host.machine,
            look=lambda: self.controller.fabric.look(AT_ONCE),
            listed=lambda: self.controller.fabric.seen,
            observed=lambda: reconciler.is_observing,
            now=self.clock,
        )
        self.parking = Parking(
            *(store, vfio, self.host.devices),
            inventory=self._inventory,
            gpu_map=self._verified_map,
            observed=lambda: reconciler.observed or ("it was not met" if reconciler.is_unmet else ""),
            clock=self.clock,
            now=self.clock,
        )
        self.hook = Hook(
            *(store, self.controller.fabric, self.controller.leases, self.parking, MemoryHookFiles(LIBVIRTD)),
            inventory=self._inventory,
            gpu_map=self._verified_map,
            generation=self.controller.generation,
            observed=lambda: reconciler.observed,
            service_vm=ServiceVmStart("", lambda: ""),
            rules=HookRules(),
            clock=self.clock,
        )
        self.hook.see()

    def restart_daemon(self) -> None:
        super().restart_daemon()
        self._gate()

    # The map.

    def _inventory(self) -> Inventory:
        """The board as it is now, which is not looked for again while nothing of it has changed."""
        there = self.host.bus.everything()
        if self._found is None or not _same(there, self._found[0]):
            self._found = there, discovery.discover(self.host.bus, [self.platform])
        return self._found[1]

    def _gpu_map(self, inventory: Inventory) -> GpuMap | None:
        return self._once("known", self.maps.known, inventory)

    def _verified_map(self, inventory: Inventory) -> GpuMap | None:
        return self._once("verified", self.maps.verified, inventory)

    def _once(self, what: str, tell: Callable[[Inventory], GpuMap | None], inventory: Inventory) -> GpuMap | None:
        """What the daemon makes of the map, which is not judged again while nothing of it has changed."""
        of = inventory, self.store.book.gpu_map, self.host.machine
        if what not in self._told or not _same(of, self._told[what][0]):
            self._told[what] = of, tell(inventory)
        return self._told[what][1]

    def _require_map(self) -> None:
        self.maps.require()

    def _admin_tools(self, bdf: Bdf) -> str:
        self.opens(self._number(bdf))
        return f"INFO GPU {bdf} pretended BAR0 0x0 module name SXM_{self.said[bdf]}\n"

    def _read_heard(self, function: Any, *arguments: Any, **named: Any) -> Any:
        self.opens(self._number(function.bdf))
        return self._read(function, *arguments, **named)

    def _number(self, bdf: Bdf) -> int:
        return next(gpu for gpu, address in self.address.items() if address == bdf)

    def say(self, gpu: int, number: int) -> None:
        """Let a GPU say when it is asked that it is the one of that number."""
        self.said[self.address[gpu]] = number
        self.host.registers.tie(self.address[gpu], number)

    def bring_map(self, *, swapped: bool = False) -> None:
        """Import a person's map, which has two GPUs `swapped` or is right."""
        bdfs = dict(self.address)
        if swapped:
            bdfs[1], bdfs[2] = bdfs[2], bdfs[1]
        text = "".join(f"{gpu}: '{bdf}'\n" for gpu, bdf in bdfs.items())
        self.maps.bring(text, MAP_FILE, SourceKind.FILE, actor="p")

    def discover(self) -> None:
        """Ask what can be asked which GPU is which."""
        self.maps.discover(actor="p", timeout=AT_ONCE)

    def accept_map(self) -> None:
        """Accept the map that is shown, as a person does who has compared it, and found it right."""
        status = self.maps.status()
        if all(gpu.address == self.address.get(gpu.physical_id or 0) for gpu in status.gpus):
            self.maps.accept(status.fingerprint, actor="p")

    @property
    def map_counts(self) -> bool:
        """Whether anything may be activated by the map."""
        try:
            self.maps.require()
        except MapUnverified:
            return False
        return True

    def mend_map(self) -> None:
        """Let everybody who can be asked tell the truth, and be asked, as far as the map is not verified.

        Raises what a list does.
        """
        for gpu in self.address:
            self.say(gpu, gpu)
        if not self.map_counts:
            self.bring_map()
            if not self.controller.reconciler.is_observing:
                self.discover()
            with contextlib.suppress(FmctlError):
                self.accept_map()

    # The GPUs.

    def take_turn(self) -> None:
        """Take the monitor's turn, and clean all that is due then; raises what a list does."""
        self.reconcile()
        self.clean()

    def flash(self, gpu: int, rom: bytes) -> None:
        """Let a GPU's firmware be that."""
        self.firmware[gpu] = rom
        self.host.bus.behave(self.address[gpu], rom=rom)

    def spoil(self, gpu: int, how: Effect | bytes) -> None:
        """Let the resets of a GPU do that from now on, or its firmware be that."""
        if isinstance(how, bytes):
            self.flash(gpu, how)
        else:
            self.host.devices.on_reset(self.address[gpu], how)

    def repair(self, gpu: int) -> None:
        """Let a GPU be as it was made."""
        bdf = self.address[gpu]
        self.host.devices.on_reset(bdf, Effect.WORKS)
        self.host.bus.behave(bdf, state=self.alive[bdf])
        self.flash(gpu, ROM)

    def answers(self, gpu: int) -> bool:
        """Whether a GPU's registers answer."""
        state = self.host.bus.state(self.address[gpu])
        return state is not None and state.answers

    def marked(self, kind: MarkKind) -> set[int]:
        """The GPUs that are marked so."""
        return {int(gpu) for gpu in self.store.book.marked(Kind.GPU, kind)}

    def _look_at_memory(self, argv: Sequence[str], timeout: float) -> tuple[int, bytes] | None:
        gpu = self._number(Bdf.parse(argv[1]))
        answer = self.memory(gpu, timeout)
        if answer is not None and answer[0] == 0:
            self.found_clean.add(gpu)
        return answer

    def _reset_in_time(self, bdf: Bdf, *, method: str = "", timeout: float) -> None:
        with self.fate.at("reset"):
            self.resets(self._number(bdf))
            self.found_clean.discard(self._number(bdf))
            try:
                self._reset(bdf, method=method, timeout=timeout)
            except WriteOverdue:
                self.wait(timeout)
                raise
            self.was_reset(self._number(bdf))

    # VMs.

    def may_start(self, name: str, gpus: Sequence[int]) -> str:
        """Why libvirt's hook does not let a VM start; empty where it does."""
        xml = self._document(name, gpus)
        decision = self.hook.check("prepare", xml, LIBVIRTD)
        if decision.verdict is Verdict.PREPARE:
            decision = self.hook.ready(xml, timeout=AT_ONCE)
        return "" if decision.verdict is Verdict.START else decision.why or decision.verdict.value

    def tell_of_the_end(self, name: str, gpus: Sequence[int]) -> object:
        """Let libvirt's hook tell that a VM has ended."""
        return self.hook.check("release", self._document(name, gpus), LIBVIRTD)

    def _document(self, name: str, gpus: Sequence[int]) -> str:
        return document(*(hostdev(self.address[gpu]) for gpu in gpus), uuid=uuid_of(name))

    def guard(self) -> None:
        """The turn of the gate, where there is one."""
        if self.gated:
            self.hook.look()
            self.parking.step()

    def reboot(self, *, moved: bool) -> None:
        """Boot the host again: all that ran is gone. With `moved` a new BIOS gave two GPUs each other's address."""
        for name in tuple(self.vms):
            self.stop_vm(name)
        self.lose_service_vm()
        machine = self.host.machine
        self.host.machine = replace(machine, boot=f"{machine.boot}'", bios=machine.bios + "'" * moved)
        if moved:
            self.address[1], self.address[2] = self.address[2], self.address[1]
        self.host.devices.give_up(self.host.devices.kept)
        for gpu, bdf in self.address.items():
            self.host.bus.behave(bdf, state=self.alive[bdf], rom=self.firmware[gpu])
            self.host.devices.override(bdf, "", timeout=AT_ONCE)
            self.host.bus.change(bdf, driver="" if self.gated else VFIO_PCI)
            self.say(gpu, gpu)
        self.restart_daemon()


def _same(one: Sequence[object], other: Sequence[object]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
