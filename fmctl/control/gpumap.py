# SPDX-License-Identifier: Apache-2.0
"""The GPU map of this host: what its sources said, kept in the book with the board that it is of.

`core.mapsource` judges, `control.mapreader` asks the GPUs. A map counts for one board, and what can be asked is asked
anew after each boot of the host; nothing is activated before.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from fmctl.control.discovery import NoBoard
from fmctl.control.mapreader import Findings, MapReader
from fmctl.core import fingerprint, mapsource, nvidiasmi
from fmctl.core import gpumap as maps
from fmctl.core.book import of_map
from fmctl.core.errors import BadRequest, FmctlError, MapUnverified
from fmctl.core.fingerprint import Fingerprint, Machine
from fmctl.core.gpumap import GpuMap
from fmctl.core.inventory import Device, Inventory
from fmctl.core.mapsource import Acceptance, MapRecord, MapState, Source, SourceKind, Verdict
from fmctl.core.mapstatus import MappedGpu, MapStatus
from fmctl.core.partition import PartitionList
from fmctl.core.pci import Bdf
from fmctl.core.plan import ACTOR
from fmctl.core.platform import ModuleIdMethod
from fmctl.core.ports import PciBus, Store

log = logging.getLogger(__name__)

TURN_TIMEOUT = 120.0
"""Seconds that the turn for one GPU is waited for."""
LOOK_TIMEOUT = 5.0
"""Seconds that Fabric Manager has to list its partitions before a GPU is asked."""


class GpuMaps:
    """Every method may be called from any thread."""

    def __init__(
        self,
        store: Store,
        inventory: Callable[[], Inventory],
        bus: PciBus,
        reader: MapReader,
        *,
        machine: Callable[[], Machine],
        look: Callable[[], PartitionList],
        listed: Callable[[], PartitionList | None] = lambda: None,
        file: Callable[[], tuple[str, str] | None] = lambda: None,
        observed: Callable[[], bool] = lambda: False,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`look` lists Fabric Manager's partitions, with the turn, and `listed` is that list as last seen.

        `file` is the name and text of the file that the settings name. `inventory` raises NoBoard; while `observed`
        says so no GPU is opened.
        """
        self._store = store
        self._inventory = inventory
        self._bus = bus
        self._reader = reader
        self._machine = machine
        self._look = look
        self._listed = listed
        self._file = file
        self._observed = observed
        self._now = now
        self._lock = threading.Lock()
        self._serials: dict[object, str] = {}
        self._tried: tuple[str, str] | None = None
        self._file_seen = ""

    def verified(self, found: Inventory) -> GpuMap | None:
        """The last map of this board that was verified, which a wrong import since does not change; None without one.

        By it alone a GPU is given to a VM, or cleaned after one.
        """
        record = self._record(found)
        return record.counted if record else None

    def known(self, found: Inventory) -> GpuMap | None:
        """The verified map, or else what is known; None where nothing is. What runs is told by it."""
        record = self._record(found)
        if record is None:
            return None
        gpu_map = record.counted or mapsource.judge(record, found).map
        return gpu_map if gpu_map.addresses else None

    def active(self) -> set[Bdf]:
        """The GPUs of active partitions; all of the board where some are active and it is not known which they are.

        With the turn; raises what a list does. What was listed before may not be so any more.
        """
        active = {gpu for p in self._look().partitions if p.active for gpu in p.gpu_ids}
        if not active:
            return set()
        found = self._inventory()
        gpu_map = self.known(found)
        if gpu_map is None or not active <= set(gpu_map.addresses):
            return {device.function.bdf for device in fingerprint.present(found)}
        return {gpu_map.addresses[gpu] for gpu in active}

    def require(self) -> None:
        """Raise MapUnverified where nothing may be activated; does nothing where this host has no board."""
        try:
            found = self._inventory()
        except NoBoard:
            return
        self._take_listed(found)
        self._verdict(found).check()

    def status(self) -> MapStatus:
        """How the map stands; raises NoBoard."""
        found = self._inventory()
        board, verdict = self._board(found), self._verdict(found)
        record = self._kept(board, self._machine().boot)
        ids = {bdf: number for number, bdf in verdict.map.addresses.items()}
        unread = record.unread if record else {}
        return MapStatus(
            verdict.state,
            verdict.why,
            verdict.fix,
            verdict.fingerprint,
            fingerprint.digest(board.plain()),
            tuple(MappedGpu(gpu.bdf, ids.get(gpu.bdf), unread.get(gpu.bdf, "")) for gpu in board.gpus),
            record.sources if record else (),
            record.accepted if record else None,
        )

    def refresh(self) -> None:
        """Import the settings' file where it is new, and discover once on each board and in each boot."""
        found = self._inventory()
        self._import_file(found)
        board, boot = self._board(found), self._machine().boot
        record = self._kept(board, boot)
        if self._observed():
            return
        if self._is_pending(board, boot) and (
            record is None or record.boot != boot or self._is_incomplete(record, found)
        ):
            self._discover(found, ACTOR, TURN_TIMEOUT)
            self._tried = (boot, fingerprint.digest(board.plain()))
        self._take_listed(found)

    def discover(self, *, actor: str, timeout: float) -> MapStatus:
        """Ask every source that can be asked; a GPU in use is left alone, and keeps what it said in this boot.

        Raises NoBoard, MapUnverified where this host is only observed, and what a list does.
        """
        if self._observed():
            raise MapUnverified(
                "nothing is discovered on this host",
                why="it is only observed, and a GPU that is opened is reset",
                fix="`fmctl reconcile --accept` first, or import a map",
            )
        self._discover(self._inventory(), actor, timeout)
        return self.status()

    def bring(self, text: str, name: str, kind: SourceKind | None, *, actor: str) -> MapStatus:
        """Take a map from a file's text, of that kind or of the one that it looks like.

        Raises InvalidDocument, and BadRequest where it names no GPU of this host.
        """
        found = self._inventory()
        self._import(found, text, name, kind, actor)
        return self.status()

    def accept(self, typed: str, *, actor: str) -> MapStatus:
        """Let a person's word verify the map whose fingerprint was typed; raises MapUnverified or BadRequest."""
        found = self._inventory()
        verdict = self._verdict(found)
        if verdict.state is MapState.VERIFIED:
            return self.status()
        if verdict.state is MapState.CONTRADICTORY or not verdict.fingerprint:
            raise MapUnverified("the GPU map cannot be accepted", why=verdict.why, fix=verdict.fix)
        if typed != verdict.fingerprint:
            raise BadRequest(
                "the GPU map is not accepted",
                why=f"{typed!r} is not the fingerprint of this map on this board",
                fix="compare `fmctl gpumap show` with the chassis, and type the fingerprint that it shows",
            )
        self._commit(found, lambda kept: replace(kept, accepted=Acceptance(actor, self._now(), typed)), actor)
        return self.status()

    def _verdict(self, found: Inventory) -> Verdict:
        board, boot = self._board(found), self._machine().boot
        record = self._kept(board, boot)
        if record is None:
            return replace(mapsource.blank(found), is_pending=self._is_pending(board, boot))
        verdict = mapsource.judge(record, found)
        if record.boot != boot and verdict.state is not MapState.CONTRADICTORY:
            why = "nothing was discovered since this host booted, or its board was changed"
            fix = "wait for it, or `fmctl gpumap discover`"
            return replace(
                verdict,
                state=MapState.UNVERIFIED,
                why=why,
                fix=fix,
                fingerprint="",
                is_pending=self._is_pending(board, boot),
            )
        return verdict

    def _is_pending(self, board: Fingerprint, boot: str) -> bool:
        """Whether GPUs are still to be asked on this board and in this boot."""
        return not self._observed() and self._tried != (boot, fingerprint.digest(board.plain()))

    def _record(self, found: Inventory) -> MapRecord | None:
        """The record, if it is of the board that is there now."""
        return self._kept(self._board(found), self._machine().boot)

    def _kept(self, board: Fingerprint, boot: str) -> MapRecord | None:
        """The record, if it is of this board."""
        record = self._store.book.gpu_map
        if record is None or not record.board.has_become(board, same_boot=record.boot == boot):
            return None
        return record

    def _discover(self, found: Inventory, actor: str, timeout: float) -> None:
        findings = self._reader.read(found, timeout=timeout)
        self._commit(found, lambda kept: self._with_listed(self._with_findings(kept, findings), found), actor)

    def _with_findings(self, kept: MapRecord, findings: Findings) -> MapRecord:
        """What GPUs in use said in this boot stays as they said it."""
        kept = replace(kept, boot=self._machine().boot)
        if findings.kind is None:
            return kept
        before = kept.of(findings.kind)
        stays = {bdf: n for bdf, n in (before.readings if before else {}).items() if bdf in findings.in_use}
        unread = {bdf: why for bdf, why in findings.unread.items() if bdf not in stays}
        source = Source(findings.kind, {**stays, **findings.readings}, self._now(), kept.boot)
        return replace(kept.with_source(source), unread=unread)

    def _with_listed(self, kept: MapRecord, found: Inventory) -> MapRecord:
        """Where the board's Fabric Manager tells addresses, with those."""
        listed = self._listed()
        if found.platform.module_ids.method.value is not ModuleIdMethod.FABRIC_MANAGER or listed is None:
            return kept
        readings: dict[Bdf, int] = {}
        for gpu in (gpu for partition in listed.partitions for gpu in partition.gpus):
            bdf = _address(gpu.pci_bus_id)
            if bdf is not None:
                readings[bdf] = gpu.physical_id
        if not readings:
            return kept
        return kept.with_source(Source(SourceKind.FABRIC_MANAGER, readings, self._now(), self._machine().boot))

    def _take_listed(self, found: Inventory) -> None:
        """Note what Fabric Manager's list tells, where the board's does and it was not noted in this boot."""
        record = self._store.book.gpu_map
        wants = found.platform.module_ids.method.value is ModuleIdMethod.FABRIC_MANAGER
        if wants and record is not None and record.of(SourceKind.FABRIC_MANAGER) is None and self._listed() is not None:
            self._commit(found, lambda kept: self._with_listed(kept, found), ACTOR)

    def _is_incomplete(self, record: MapRecord, found: Inventory) -> bool:
        return any(device.function.bdf in record.unread for device in fingerprint.present(found))

    def _import_file(self, found: Inventory) -> None:
        try:
            named = self._file()
        except FmctlError as error:
            log.warning("the GPU map of the settings is not imported: %s", error)
            return
        if named is None or _digest(named[1]) == self._file_seen:
            return
        name, text = named
        record = self._store.book.gpu_map
        before = record.of(SourceKind.FILE) if record else None
        try:
            if before is None or before.digest != _digest(text):
                self._import(found, text, name, SourceKind.FILE, ACTOR)
        except BadRequest as error:
            log.warning("the GPU map of the settings is not imported: %s", error)
        self._file_seen = _digest(text)

    def _import(self, found: Inventory, text: str, name: str, kind: SourceKind | None, actor: str) -> None:
        kind = kind or (SourceKind.NVIDIA_SMI if nvidiasmi.is_output(text) else SourceKind.FILE)
        if kind is SourceKind.NVIDIA_SMI:
            listing = nvidiasmi.parse(text, name)
            readings, detail = dict(listing.module_ids), f"{name}, driver {listing.driver or 'unknown'}"
        elif kind is SourceKind.FILE:
            readings, detail = {bdf: number for number, bdf in maps.parse(text, name).addresses.items()}, name
        else:
            raise BadRequest(f"{kind.value} is not imported", why="it is asked", fix="`fmctl gpumap discover`")
        gpus = {device.function.bdf for device in fingerprint.present(found)}
        if not gpus & set(readings):
            raise BadRequest(
                f"{name} is refused",
                why="it names no GPU that this host has",
                fix="compare it with `fmctl inventory`; it may be of another host",
            )
        source = Source(kind, readings, self._now(), self._machine().boot, detail, _digest(text))
        self._commit(found, lambda kept: kept.with_source(source), actor)

    def _commit(self, found: Inventory, change: Callable[[MapRecord], MapRecord], actor: str) -> None:
        """Keep the record as it is after the change, and tell the journal what it comes to."""
        board, boot = self._board(found), self._machine().boot
        with self._lock:
            before = self._store.book.gpu_map
            record = change(self._begun(board, boot))
            if record == before:
                return
            verdict = mapsource.judge(record, found)
            if verdict.state is MapState.VERIFIED and record.boot == boot:
                counted = verdict.map.addresses
                lost = {bdf: number for bdf, number in record.verified.items() if number not in counted}
                record = replace(record, verified={**lost, **{bdf: number for number, bdf in counted.items()}})
            what = f"GPU map {verdict.state.value}"
            self._store.commit((of_map(record, what, actor=actor, detail=verdict.why),), at=self._now())
        log.info("the GPU map is %s: %s", verdict.state.value, verdict.why)

    def _begun(self, board: Fingerprint, boot: str) -> MapRecord:
        """The record to go on from. On another board an import counts no more, and in another boot only imports do."""
        before = self._store.book.gpu_map
        if before is None:
            return MapRecord(board, "")
        imports = tuple(source for source in before.sources if source.kind.is_import)
        if self._kept(board, boot) is None:
            return MapRecord(board, "", tuple(replace(source, readings={}) for source in imports))
        if before.boot != boot:
            return replace(before, board=board, boot="", sources=imports, unread={})
        return before

    def _board(self, found: Inventory) -> Fingerprint:
        return fingerprint.take(found, self._machine(), self._serial)

    def _serial(self, device: Device) -> str:
        """Its serial number, which is read once as long as the kernel shows the same function."""
        key = device.function.bdf, device.function.id, device.function.ports
        if key not in self._serials:
            found = fingerprint.serial_number(lambda offset, size: self._bus.config(device.function.bdf, offset, size))
            if not found:
                return ""
            self._serials[key] = found
        return self._serials[key]


def _address(text: str) -> Bdf | None:
    """A PCI address of Fabric Manager's list, which has zeros where it knows none."""
    try:
        bdf = Bdf.parse(text)
    except ValueError:
        return None
    return bdf if bdf != Bdf(0, 0, 0, 0) else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
