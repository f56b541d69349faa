# SPDX-License-Identifier: Apache-2.0
"""Cleans the GPUs that the book marks so: takes the steps of `core.clean`, and records what they come to.

A cleaning takes seconds or minutes, so it runs without the turn; only its outcome is committed under it. `Cleaning`
runs one for each GPU in a thread. What ends it early, the death of the daemon included, leaves the mark, and it begins
anew.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from fmctl import process
from fmctl.control.controller import FabricController
from fmctl.control.discovery import NoBoard
from fmctl.control.exits import VmExits
from fmctl.control.fabric import Budget
from fmctl.control.gpus import Gpus
from fmctl.core import clean
from fmctl.core.book import Entry, Kind, Mark, MarkKind
from fmctl.core.clean import HEADER, Found, Rules, Step, Verdict
from fmctl.core.errors import FmctlError, MapUnverified
from fmctl.core.inventory import Device, Inventory, Role
from fmctl.core.pci import Bdf, PciId
from fmctl.core.ports import FirmwareReader, PciBus, VfioDevices
from fmctl.core.rules import Firmware, Memory
from fmctl.core.vfio import WriteFailed, WriteOverdue
from fmctl.process import CommandFailed

log = logging.getLogger(__name__)

TURN_TIMEOUT = 120.0
"""Seconds within which an outcome is committed, the wait for the turn included."""
LOOK_TIMEOUT = 5.0
"""The same for a look at what is due, which comes again."""
PAUSE = 10.0
"""Seconds before a cleaning that came to nothing begins again."""
ROM_TIMEOUT = 30.0
"""Seconds that the kernel has to read a ROM, which is a megabyte at most."""
_SHOWN = 200
"""Characters of a command's output that are recorded."""


class NotNow(FmctlError):
    """A GPU cannot be cleaned as things are; it stays marked, and is tried again."""


@dataclass(frozen=True)
class Tools:
    """What a cleaning acts through.

    While a function is reset nobody else may ask it anything, which `sparing` sees to (`control.sparing`). `run` runs a
    command as `process.attempt` does.
    """

    bus: PciBus
    devices: VfioDevices
    firmware: FirmwareReader
    sparing: Callable[[Bdf], AbstractContextManager[None]]
    run: Callable[[Sequence[str], float], tuple[int, bytes] | None] = lambda argv, timeout: process.attempt(
        argv, timeout=timeout
    )


class Cleaner:
    """Cleans one GPU after the other, or several at once from as many threads."""

    def __init__(
        self,
        controller: FabricController,
        gpus: Gpus,
        inventory: Callable[[], Inventory],
        tools: Tools,
        rules: Rules,
        *,
        exits: VmExits,
        generation: Callable[[], int] = lambda: 0,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`controller` has the book, Fabric Manager and the turn; `inventory` raises NoBoard.

        `exits` tells how the VMs of a GPU ended, `generation` the fabric generation, and `now` the seconds since the
        epoch.
        """
        self._generation = generation
        self._met = 0
        self._store = controller.store
        self._fabric = controller.fabric
        self._turn = controller.turn
        self._reconciler = controller.reconciler
        self._gpus = gpus
        self._inventory = inventory
        self._tools = tools
        self._rules = rules
        self._exits = exits
        self._now = now
        self._again: dict[int, float] = {}
        self._why: dict[int, str] = {}
        self._reconciler.delayed = self.delayed

    def delayed(self) -> tuple[str, ...]:
        """Why GPUs that are to be cleaned cannot be, as far as that was tried."""
        marked = self._store.book.marked(Kind.GPU, MarkKind.CLEANING)
        return tuple(why for gpu, why in sorted(self._why.items()) if str(gpu) in marked)

    def due(self) -> tuple[int, ...]:
        """The GPUs to be cleaned now, by physical id; to be asked while Fabric Manager is ready.

        None while Fabric Manager does not list, and none of which it may have a partition active. Raises FabricNotReady
        where a change takes long.
        """
        if self._reconciler.is_observing:
            return ()
        self._meet_fresh_start()
        marked = clean.waiting(self._store.book)
        if not marked:
            return ()
        with self._turn.within(LOOK_TIMEOUT) as budget:
            return tuple(
                gpu
                for gpu in sorted(marked)
                if self._now() >= self._again.get(gpu, 0.0) and self._is_inactive(gpu, budget)
            )

    def _meet_fresh_start(self) -> None:
        """Mark the free GPUs once after each fresh start of Fabric Manager, on boards that need it."""
        generation = self._generation()
        if generation <= self._met:
            return
        if self._inventory().platform.reset.after_fm_first_start.value:
            with self._turn.within(LOOK_TIMEOUT) as budget:
                gpus = {gpu for p in self._fabric.look(budget.look()).partitions for gpu in p.gpu_ids}
                if entries := clean.started_fresh(self._store.book, gpus, generation, self._now()):
                    self._commit(entries)
        self._met = generation

    def clean(self, gpu: int) -> None:
        """Clean a GPU that is marked, and let it be free or quarantined; never raises FmctlError."""
        mark = self._mark(gpu)
        if mark is None:
            return
        try:
            bdf = self._address(gpu)
            found = self._run(gpu, bdf)
            if clean.next_step(self._rules, found) is Verdict.CLEAN:
                self._settle(gpu, mark, bdf, clean.cleaned(gpu, found))
            else:
                self._settle(gpu, mark, bdf, clean.quarantined(gpu, found, self._now()))
            self._why.pop(gpu, None)
        except FmctlError as error:
            self._again[gpu], self._why[gpu] = self._now() + PAUSE, str(error)
            log.warning("GPU %d is cleaned later: %s", gpu, error)

    def check_sources(self) -> None:
        """Raise InvalidDocument where firmware is enforced, and no source works on this host.

        Nothing is asked of a GPU that somebody holds.
        """
        if self._rules.firmware is not Firmware.ENFORCE:
            return
        held = self._gpus.open()
        evidence: dict[PciId, bool | None] = {}
        for device in self._board():
            if device.role is Role.GPU:
                before = evidence.get(device.function.id)
                asked = (
                    True if self._rules.firmware_command else None if held or held is None else self._has_rom(device)
                )
                evidence[device.function.id] = before or asked
        clean.refuse_unproven(self._rules, evidence)

    # One cleaning.

    def _run(self, gpu: int, bdf: Bdf | None) -> Found:
        devices, found = self._inventory().devices, Found()
        device = next((d for d in devices if d.function.bdf == bdf and d.role is Role.GPU), None)
        if device is None:
            return found.failed("its PCI function is gone")
        while isinstance(step := clean.next_step(self._rules, found), Step):
            log.info("GPU %d at %s: %s", gpu, bdf, step.value)
            found = self._take(step, gpu, device, found)
        if step is Verdict.CLEAN:
            self._exits.cleaned(device.function.bdf)
        return found

    def _take(self, step: Step, gpu: int, device: Device, found: Found) -> Found:
        if step is Step.RESET:
            return self._reset(gpu, device, found)
        if step is Step.MEMORY:
            return self._memory(device, found)
        if step is Step.FIRMWARE:
            return self._firmware(device, found)
        problem = clean.unsound(device.function, self._tools.bus.config(device.function.bdf, 0, HEADER))
        return found.failed(problem) if problem else found.well(step)

    def _reset(self, gpu: int, device: Device, found: Found) -> Found:
        bdf, rules = device.function.bdf, self._inventory().platform.reset
        state = self._tools.bus.state(bdf)
        offered = state.reset_methods if state else ()
        methods = clean.methods(rules, self._exits.of(bdf), offered)
        if not methods:
            return found.failed(f"no reset method that helps is there; the kernel offers {' '.join(offered) or 'none'}")
        refusals = []
        for method in methods:
            self._refuse_in_use(gpu)
            timeout = self._rules.deadline(rules)
            try:
                with self._tools.sparing(bdf):
                    self._tools.devices.reset(bdf, method=method.value, timeout=timeout)
                return found.well(Step.RESET, f"reset by {method.value}")
            except WriteOverdue as error:
                return found.failed(f"its reset by {method.value} did not end within {timeout:g} s: {error}")
            except WriteFailed as error:
                refusals.append(f"its reset by {method.value} failed: {error}")
        return found.failed("; ".join(refusals))

    def _memory(self, device: Device, found: Found) -> Found:
        if self._rules.memory is Memory.RESET_ONLY:
            return found.well(Step.MEMORY, "that nothing is left in its memory is not proven: it was only reset")
        command, timeout = self._rules.memory_command, self._rules.memory_timeout
        output, problem = self._ask(command, device, timeout)
        if problem:
            return found.failed(f"its memory was not found clean: {problem}")
        said = f": {_shown(output)}" if output.strip() else ""
        return found.well(Step.MEMORY, f"its memory was found clean by {command[0]}{said}")

    def _firmware(self, device: Device, found: Found) -> Found:
        command = self._rules.firmware_command
        if command:
            output, problem = self._ask(command, device, self._rules.firmware_timeout)
            digest = "" if problem else clean.digest_of(output)
            source = command[0] if digest else problem or f"{command[0]} printed no SHA-256"
        else:
            try:
                rom = self._tools.firmware.rom(device.function.bdf, timeout=ROM_TIMEOUT)
            except WriteOverdue as error:
                return found.failed(f"its ROM could not be read in time: {error}")
            digest = hashlib.sha256(rom).hexdigest() if rom else ""
            source = "its ROM" if rom else "it has no ROM that can be read"
        return clean.judge_firmware(self._rules, found, device.function.id, digest, source)

    def _ask(self, command: Sequence[str], device: Device, timeout: float) -> tuple[bytes, str]:
        """What a command of the operator's printed, and why it said no; empty where it said yes."""
        argv = [*command, str(device.function.bdf), str(device.function.id)]
        try:
            done = self._tools.run(argv, timeout)
        except CommandFailed as error:
            return b"", str(error)
        if done is None:
            return b"", f"{command[0]} did not end within {timeout:g} s"
        status, output = done
        said = f", and said: {_shown(output)}" if output.strip() else ""
        return output, f"{command[0]} ended with status {status}{said}" if status else ""

    # What is there.

    def _address(self, gpu: int) -> Bdf | None:
        """Where the GPU is, None where it is gone: a verified map names every one that is there.

        Raises NotNow where no map is verified, since another GPU would be reset, and NoBoard.
        """
        try:
            return self._gpus.addresses().get(gpu)
        except MapUnverified:
            raise NotNow(
                f"GPU {gpu} is not cleaned",
                why="no verified GPU map tells which PCI function it is",
                fix="see `fmctl gpumap show`",
            ) from None

    def _refuse_in_use(self, gpu: int) -> None:
        """Raise NotNow where somebody has the GPU open, or nobody can tell: a reset would hit their VM.

        What was found of a GPU that somebody has opened since counts no more, either.
        """
        held = self._gpus.open()
        if held is None:
            raise NotNow(f"GPU {gpu} is not cleaned", why="who has it open cannot be told")
        if gpu in held:
            raise NotNow(f"GPU {gpu} is not cleaned", why=f"{held[gpu]} has it open", fix="stop that VM first")

    def _board(self) -> tuple[Device, ...]:
        try:
            return self._inventory().devices
        except NoBoard:
            return ()

    def _has_rom(self, device: Device) -> bool:
        try:
            return bool(self._tools.firmware.rom(device.function.bdf, timeout=ROM_TIMEOUT))
        except WriteOverdue:
            return False

    def _mark(self, gpu: int) -> Mark | None:
        return clean.waiting(self._store.book).get(gpu)

    def _is_inactive(self, gpu: int, budget: Budget) -> bool:
        """Whether Fabric Manager shows that no partition of the GPU is active, nor can become so. With the turn."""
        try:
            listed = self._fabric.known(budget.look())
        except FmctlError:
            return False
        busy = [p for p in listed.partitions if p.active or p.id in self._fabric.unsettled]
        return not any(gpu in partition.gpu_ids for partition in busy)

    def _settle(self, gpu: int, mark: Mark, bdf: Bdf | None, entries: Sequence[Entry]) -> None:
        """Commit the outcome of a cleaning, unless what it began from has changed: then it begins anew."""
        with self._turn.within(TURN_TIMEOUT) as budget:
            if self._mark(gpu) != mark:
                raise NotNow(f"GPU {gpu} is not free", why="it was marked anew while it was cleaned")
            if self._address(gpu) != bdf:
                raise NotNow(f"GPU {gpu} is not free", why=f"it is not at {bdf} any more, where one was cleaned")
            if not self._is_inactive(gpu, budget):
                raise NotNow(f"GPU {gpu} is not free", why="a partition of it may have become active meanwhile")
            self._refuse_in_use(gpu)
            self._commit(entries)

    def _commit(self, entries: Sequence[Entry]) -> None:
        for entry in self._store.commit(entries, at=self._now()):
            log.info("GPU %s: %s (%s)", entry.subject, entry.what, entry.detail)


class Cleaning:
    """A thread for each GPU that is cleaned. As a context manager it begins no more on leaving; what runs is left."""

    def __init__(self, cleaner: Cleaner, wake: Callable[[], object] = lambda: None) -> None:
        """`wake` is called after each cleaning, since leases may wait for it."""
        self._cleaner = cleaner
        self._wake = wake
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._stopping = False

    def look(self) -> None:
        """Begin the cleanings that are due, and return at once; where that cannot be told now, the next look does."""
        try:
            due = self._cleaner.due()
        except FmctlError as error:
            log.warning("which GPUs are to be cleaned cannot be told: %s", error)
            return
        for gpu in due:
            with self._lock:
                if self._stopping or gpu in self._running:
                    continue
                self._running.add(gpu)
            threading.Thread(target=self._clean, args=(gpu,), name=f"cleaning GPU {gpu}", daemon=True).start()

    def _clean(self, gpu: int) -> None:
        try:
            self._cleaner.clean(gpu)
        except Exception:
            log.exception("cleaning GPU %d failed", gpu)
        finally:
            with self._lock:
                self._running.discard(gpu)
            self._wake()

    def __enter__(self) -> Cleaning:
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._stopping = True


def _shown(output: bytes) -> str:
    """The first line of what a command printed, for the journal."""
    line = output.decode("utf-8", "replace").strip().splitlines()[0]
    return "".join(character if character.isprintable() else "?" for character in line)[:_SHOWN]
