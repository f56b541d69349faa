# SPDX-License-Identifier: Apache-2.0
"""The gate of the kernel: a GPU that no VM may open has no driver, so that there is nothing to open.

The GPUs of a lease are made ready for its VM by `prepare`: bound to vfio-pci, and their groups kept open here, until
`hand_over`. `core.parking` decides what else is to be parked, and what is open without right; `control.hook` is the
second lock, and `control.vfio` takes the steps.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from fmctl.control.discovery import NoBoard
from fmctl.control.vfio import Vfio
from fmctl.core import clean, gpumap, parking
from fmctl.core.book import Entry, Kind
from fmctl.core.errors import FabricNotReady, FmctlError, HostCordoned, NoSuchLease, PartitionHeld
from fmctl.core.gpumap import GpuMap
from fmctl.core.inventory import Inventory, Role
from fmctl.core.lease import Lease, LeaseState
from fmctl.core.pci import Bdf
from fmctl.core.plan import ACTOR
from fmctl.core.ports import Store, VfioDevices
from fmctl.core.vfio import Usage

log = logging.getLogger(__name__)

TAKE_WITHIN = 120.0
"""Seconds that a VM has to open the GPUs that it was handed over, before they are parked again."""
HAND_OVER_WITHIN = 2.0
"""Seconds that a hand-over may wait for another change: libvirt waits for it."""


@dataclass(frozen=True)
class _Seen:
    """The board: its functions, and the address of each GPU by physical id."""

    inventory: Inventory
    addresses: Mapping[int, Bdf]

    def groups(self, lease: Lease) -> frozenset[int]:
        """The IOMMU groups of a lease's GPUs; raises MapUnverified or FmctlError where they are not known."""
        found = {device.function.bdf: device.function.iommu_group for device in self.inventory.devices}
        return frozenset(_group(found.get(bdf), bdf) for bdf in self.devices(lease))

    def devices(self, lease: Lease) -> tuple[Bdf, ...]:
        """The addresses of a lease's GPUs; raises MapUnverified."""
        if not set(lease.gpus) <= self.addresses.keys():
            raise gpumap.not_verified()
        return tuple(self.addresses[gpu] for gpu in lease.gpus)


class Parking:
    """The GPUs of the board, parked, kept, or in the hands of VMs. Every method may be called from any thread."""

    def __init__(
        self,
        store: Store,
        vfio: Vfio,
        devices: VfioDevices,
        *,
        inventory: Callable[[], Inventory],
        gpu_map: Callable[[Inventory], GpuMap | None],
        observed: Callable[[], str],
        service_vm: str = "",
        takes_from_host: bool = True,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`gpu_map` is the verified one; `service_vm` is the UUID of fmctl's own.

        `observed` tells why nothing is changed on this host.

        Unless it `takes_from_host`, GPUs that a driver of the host has are left to it.
        """
        self._store = store
        self._vfio = vfio
        self._devices = devices
        self._inventory = inventory
        self._map = gpu_map
        self._observed = observed
        self._service_vm = service_vm
        self._takes_from_host = takes_from_host
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._seen: _Seen | None = None
        self._handed: dict[str, float] = {}
        self._parked: set[Bdf] = set()
        self._alarms: tuple[parking.Alarm, ...] = ()

    @property
    def ready(self) -> frozenset[str]:
        """The leases whose GPUs are kept for their VMs, or were handed over to them and not taken yet."""
        return frozenset(lease.id for lease in self._active() if lease.id in self._handed or self._is_kept(lease))

    @property
    def alarms(self) -> tuple[str, ...]:
        """What is open without right, as it was last seen."""
        return tuple(alarm.text for alarm in self._alarms)

    def prepare(self, lease_id: str, *, timeout: float, owner: str = "") -> Lease:
        """Bind the GPUs of an ACTIVE lease to vfio-pci, and keep their groups open until they are handed over.

        With `owner` it must be that owner's. Raises NoSuchLease, which is also where one of its GPUs is set aside,
        PartitionHeld, HostCordoned, MapUnverified, VmRunning where somebody has one of them open, and FmctlError where
        the kernel refuses: what was kept is let go then.
        """
        with self._change(timeout):
            lease = self._lease(lease_id, owner)
            seen = self._look()
            groups = seen.groups(lease)
            new = groups - self._devices.kept
            if new:
                self._store.commit(_entries(lease, "to be bound"), at=self._now())
            try:
                self._vfio.bind(seen.inventory, seen.devices(lease))
                for group in sorted(new):
                    self._devices.keep(group)
            except FmctlError:
                self._devices.give_up(new)
                raise
            finally:
                self._parked.difference_update(seen.devices(lease))
            self._handed.pop(lease_id, None)
            if new:
                self._record(lease, "bound")
            return lease

    def hand_over(self, lease_id: str, *, owner: str = "", timeout: float = HAND_OVER_WITHIN) -> Lease:
        """Let whoever comes open the GPUs of a lease: its VM, which must do so within `TAKE_WITHIN` seconds.

        Raises as `prepare` does, and FabricNotReady where they are not ready.
        """
        with self._change(timeout):
            lease = self._lease(lease_id, owner)
            if lease_id not in self._handed and not self._is_kept(lease):
                raise FabricNotReady(
                    f"the GPUs of lease {lease_id} are not ready", why="they are parked", fix="fmctl lease prepare"
                )
            if lease_id not in self._handed:
                self._record(lease, "handed over")
            self._handed[lease_id] = self._clock() + TAKE_WITHIN
            self._devices.give_up(self._groups(lease))
            return lease

    def take_back(self, lease_id: str) -> None:
        """Wait no longer for who was to open the GPUs of a lease: its VM has ended; never raises."""
        if self._handed.pop(lease_id, None) is not None:
            log.info("the VM of lease %s ended before it was seen to have its GPUs", lease_id)

    def step(self) -> None:
        """Look at who has what open, raise alarms, and park what nobody may have; never raises."""
        if self._observed():
            self._alarms = ()
            return
        try:
            with self._change(HAND_OVER_WITHIN):
                seen = self._look()
                self._let_go(seen)
            usages = self._vfio.usages(seen.inventory, [device.function.bdf for device in seen.inventory.devices])
        except NoBoard:
            return
        except FmctlError as error:
            log.warning("GPUs are not parked: %s", error)
            return
        self._note(seen, usages)
        self._raise_alarms(seen, usages)
        self._park(seen, usages)

    def park(self, inventory: Inventory) -> None:
        """Park every GPU that nobody has open or may open now; raises as `Vfio.park` does."""
        gpus = [device.function.bdf for device in inventory.devices if device.role is Role.GPU]
        usages = self._vfio.usages(inventory, gpus)
        with self._change(HAND_OVER_WITHIN):
            self._vfio.park_unheld(inventory, self._to_park(usages))

    def _active(self) -> list[Lease]:
        return [lease for lease in self._store.book.leases.values() if lease.state is LeaseState.ACTIVE]

    def _lease(self, lease_id: str, owner: str) -> Lease:
        if observed := self._observed():
            raise HostCordoned(
                "no GPU is bound", why=f"this host is only observed: {observed}", fix="see `fmctl reconcile`"
            )
        lease = self._store.book.leases.get(lease_id) or self._store.lease(lease_id)
        if owner and lease.owner != owner:
            raise PartitionHeld(
                f"lease {lease_id} is held", why=f"it is of owner {lease.owner!r}", fix="name that owner"
            )
        if lease.state is not LeaseState.ACTIVE:
            raise NoSuchLease(
                f"the GPUs of lease {lease_id} are not bound", why=f"it is {lease.state.value}", fix="allocate another"
            )
        if aside := clean.aside(self._store.book, lease.gpus):
            raise NoSuchLease(
                f"the GPUs of lease {lease_id} are not bound",
                why=f"GPU {', '.join(map(str, aside))} is set aside",
                fix="see `fmctl gpu list`; release it, and allocate another",
            )
        return lease

    def _look(self) -> _Seen:
        inventory = self._inventory()
        gpu_map = self._map(inventory)
        self._seen = _Seen(inventory, gpu_map.addresses if gpu_map else {})
        return self._seen

    def _groups(self, lease: Lease) -> frozenset[int]:
        """The groups of a lease's GPUs as far as they are known."""
        with contextlib.suppress(FmctlError):
            return self._seen.groups(lease) if self._seen else frozenset()
        return frozenset()

    def _is_kept(self, lease: Lease) -> bool:
        groups = self._groups(lease)
        return bool(groups) and groups <= self._devices.kept

    def _spared(self) -> frozenset[int]:
        """The groups that are kept, or handed over and not taken yet."""
        leases = self._store.book.leases
        handed = [self._groups(leases[lease_id]) for lease_id in tuple(self._handed) if lease_id in leases]
        return self._devices.kept.union(*handed)

    def _let_go(self, seen: _Seen) -> None:
        """Keep nothing that is no active lease's any more; with the lock."""
        active = {lease.id: lease for lease in self._active()}
        wanted = frozenset[int]().union(*(self._groups(lease) for lease in active.values()))
        self._devices.give_up(self._devices.kept - wanted)
        for lease_id in set(self._handed) - active.keys():
            del self._handed[lease_id]

    def _note(self, seen: _Seen, usages: tuple[Usage, ...]) -> None:
        """See which of the leases that were handed over their VMs have taken, and which none has in time."""
        held = {usage.function.iommu_group: usage for usage in usages if usage.is_held}
        for lease in self._active():
            until = self._handed.get(lease.id)
            if until is None:
                continue
            groups = self._groups(lease)
            if groups <= held.keys():
                self._record(lease, "taken", "; ".join(sorted({held[group].held_by for group in groups})))
            elif self._clock() >= until:
                self._record(lease, "not taken", f"no VM had opened all of them after {TAKE_WITHIN:g} s")
            else:
                continue
            self._handed.pop(lease.id, None)

    def _raise_alarms(self, seen: _Seen, usages: tuple[Usage, ...]) -> None:
        gpus = {bdf: gpu for gpu, bdf in seen.addresses.items()}
        found = parking.alarms(usages, gpus, self._store.book, self._service_vm)
        for alarm in found:
            if alarm not in self._alarms:
                log.error("ALARM: %s", alarm.text)
                told = Entry(Kind.GPU, "" if alarm.gpu is None else str(alarm.gpu), "alarm", ACTOR, alarm.text)
                self._commit(told, *self._soiled(alarm))
        self._alarms = found

    def _soiled(self, alarm: parking.Alarm) -> tuple[Entry, ...]:
        """Let a GPU that no lease holds be cleaned once it is left; one that a lease holds is when that ends."""
        book = self._store.book
        if alarm.gpu is None or alarm.gpu in book.held or clean.aside(book, (alarm.gpu,)):
            return ()
        return clean.marked((alarm.gpu,), alarm.text, self._now())

    def _park(self, seen: _Seen, usages: tuple[Usage, ...]) -> None:
        """Park one after the other, so that no hand-over waits for all; what was decided may have passed by then."""
        had = {usage.function.bdf: usage.function.driver for usage in usages}
        self._parked -= {bdf for bdf, driver in had.items() if driver}
        gpus = {bdf: gpu for gpu, bdf in seen.addresses.items()}
        for bdf in self._to_park(usages, self._parked):
            try:
                with self._change(HAND_OVER_WITHIN):
                    alone = [usage for usage in usages if usage.function.bdf == bdf]
                    if not self._to_park(alone) or self._vfio.park_unheld(seen.inventory, [bdf]):
                        continue
                    self._parked.add(bdf)
            except FmctlError as error:
                log.warning("the GPU at %s is not parked: %s", bdf, error)
                continue
            if had[bdf]:
                self._commit(Entry(Kind.GPU, str(gpus.get(bdf, "")), "parked", ACTOR, f"{bdf}, from {had[bdf]}"))

    def _to_park(self, usages: Iterable[Usage], parked: Collection[Bdf] = ()) -> tuple[Bdf, ...]:
        return parking.to_park(usages, self._spared(), parked, from_host=self._takes_from_host)

    def _record(self, lease: Lease, what: str, detail: str = "") -> None:
        entries = _entries(lease, what, detail)
        log.info("the GPUs %s are %s %s", ", ".join(map(str, lease.gpus)), what, entries[0].detail)
        self._commit(*entries)

    def _commit(self, *entries: Entry) -> None:
        """Write what happened; what keeps VMs from GPUs must not wait for the store."""
        try:
            self._store.commit(entries, at=self._now())
        except FmctlError as error:
            log.warning("%s is not recorded: %s", ", ".join(entry.what for entry in entries), error)

    @contextlib.contextmanager
    def _change(self, timeout: float) -> Iterator[None]:
        if not self._lock.acquire(timeout=max(0.0, timeout)):
            raise FabricNotReady("GPUs are being bound or parked", why="it takes longer", fix="try again shortly")
        try:
            yield
        finally:
            self._lock.release()


def _entries(lease: Lease, what: str, detail: str = "") -> tuple[Entry, ...]:
    """What happened to the GPUs of a lease."""
    about = f"for lease {lease.id}" + (f": {detail}" if detail else "")
    return tuple(Entry(Kind.GPU, str(gpu), what, ACTOR, about) for gpu in lease.gpus)


def _group(group: int | None, bdf: Bdf) -> int:
    if group is None:
        raise FmctlError(f"the GPU at {bdf} cannot be bound", why="it is gone, or the IOMMU is off")
    return group
