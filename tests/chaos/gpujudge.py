# SPDX-License-Identifier: Apache-2.0
"""What must always hold of the GPUs themselves, judged by what truly is: at each commit, call, reset and step.

A GPU is `soiled` from the end of a lease that had it on, whatever the daemon notes of it, and is so until a cleaning
that truly was one is recorded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from fmctl.core.book import Entry, Kind, MarkKind
from fmctl.core.fmcode import Operation
from fmctl.core.lease import Lease, LeaseState
from fmctl.core.plan import ACTOR
from fmctl.core.rules import Firmware, Memory
from tests.chaos.world import LISTED, Host
from tests.control.leasing import uuid_of

ASIDE = (MarkKind.CLEANING, MarkKind.QUARANTINED)


class GpuJudge:
    """Follows one host from its beginning, beside the judge of its leases, who has heard of it before."""

    def __init__(self, world: Host) -> None:
        self.world = world
        self.to_unquarantine: int | None = None
        """The GPU that a person releases from quarantine just now."""
        self._soiled: set[int] = set()
        self._reset: set[int] = set()
        """Those that were reset since they were last soiled, or marked."""
        self._marks: set[tuple[int, MarkKind]] = set()
        self._last: dict[str, Lease] = {}
        self._used: set[str] = set()
        """The leases that were good once."""
        self._also = world.line.heard, world.store.committed
        world.line.heard, world.store.committed = self._heard, self._committed
        world.resets, world.was_reset, world.opens = self._resets, self._was_reset, self._opens

    # What the machine tells.

    def vm_was_let_start(self, name: str, gpus: Sequence[int]) -> None:
        """Libvirt's hook has let a VM start."""
        if self.world.controller.reconciler.is_observing or not gpus:
            return
        leases = [lease for lease in self.world.leases if lease.vm_uuid == uuid_of(name)]
        good = [lease for lease in leases if lease.state is LeaseState.ACTIVE and set(lease.gpus) == set(gpus)]
        assert good, "a VM that starts has a lease of its GPUs"
        assert not self._aside(gpus), "no VM starts with a GPU that is set aside"
        assert not self._soiled.intersection(gpus), "no VM starts with another's GPU that was not cleaned"

    # What is judged.

    def check(self) -> None:
        """What holds at any time."""
        assert not self.world.host.devices.ejected, "no VM loses a GPU while it runs"
        for kind in ASIDE:
            kept = {gpu for gpu, mark in self._marks if mark is kind}
            assert self.world.marked(kind) == kept, "a mark stays until an entry takes it away"
        self._map_is_no_lie()

    def settled(self) -> None:
        """What holds once nothing fails and nothing is left to do."""
        self.check()
        world = self.world
        if world.controller.reconciler.is_observing:
            return
        held = {gpu for lease in world.leases for gpu in lease.held}
        active = {gpu for partition in world.active or () for gpu in world.gpus_of(partition)}
        waiting = world.marked(MarkKind.CLEANING) - world.marked(MarkKind.QUARANTINED)
        assert waiting <= held | active | world.held, "a GPU that nobody has is cleaned, or quarantined"

    def _heard(self, operation: Operation, partition_id: int) -> None:
        """Fabric Manager is about to be asked for a change."""
        self._also[0](operation, partition_id)
        if operation is Operation.ACTIVATE:
            assert self._map_counts(self.world.gpus_of(partition_id)), "nothing is activated on a map that is not sure"

    def _committed(self, entries: Sequence[Entry]) -> None:
        """Entries were just written."""
        self._also[1](entries)
        quarantines = {e.subject for e in entries if e.mark is not None and e.mark.kind is MarkKind.QUARANTINED}
        for entry in entries:
            if entry.lease is not None:
                self._lease_committed(entry, entry.lease, self._last.get(entry.subject))
            elif entry.kind is Kind.GPU and entry.mark is not None:
                self._marks.add((int(entry.subject), entry.mark.kind))
                self._reset.discard(int(entry.subject))
            elif entry.kind is Kind.GPU and entry.unmark is not None:
                self._unmarked(entry, int(entry.subject), badly=entry.subject in quarantines)
        if self.to_unquarantine is not None and (self.to_unquarantine, MarkKind.QUARANTINED) not in self._marks:
            again = (self.to_unquarantine, MarkKind.CLEANING) in self._marks
            assert again or not self.world.rules.clean, "a GPU that a person releases is cleaned first"

    def _lease_committed(self, entry: Entry, lease: Lease, before: Lease | None) -> None:
        adopted = entry.what == "adopted"
        if adopted or lease.state is LeaseState.ACTIVE:
            self._used.add(lease.id)
        gets = set(lease.held) - set(before.held if before else ())
        if lease.state is LeaseState.ACTIVE and before and before.state is not LeaseState.ACTIVE:
            gets = set(lease.held)
        if not adopted and not lease.state.over:
            assert not self._aside(gets), "no lease is granted a GPU that is set aside"
            assert not self._soiled & gets, "no lease is granted another's GPU that was not cleaned"
        if (lease.state.over or entry.forget) and lease.id in self._used and self.world.rules.clean:
            self._soiled.update(lease.held)
            self._reset.difference_update(lease.held)
        if before is None and not adopted:
            assert self.world.map_counts, "nothing is granted while the map is not verified"
        self._last[lease.id] = lease

    def _unmarked(self, entry: Entry, gpu: int, *, badly: bool) -> None:
        """A GPU is set aside no longer for one reason."""
        assert entry.unmark is not None
        assert (gpu, entry.unmark) in self._marks
        self._marks.discard((gpu, entry.unmark))
        if entry.unmark is MarkKind.QUARANTINED:
            assert gpu == self.to_unquarantine and entry.actor != ACTOR, "a person releases from quarantine"
            assert entry.detail.strip(), "for a reason"
        elif entry.unmark is MarkKind.CLEANING and not badly:
            self._is_clean(gpu)
            self._soiled.discard(gpu)

    def _is_clean(self, gpu: int) -> None:
        """A cleaning is recorded to have ended well."""
        rules, world = self.world.cleans, self.world
        assert gpu in self._reset, "what is clean was reset since it was used"
        assert world.answers(gpu), "what is clean answers"
        assert gpu not in world.held, "what is clean nobody has open"
        if rules.memory is Memory.COMMAND:
            assert gpu in world.found_clean, "what is clean was found so"
        if rules.firmware is Firmware.ENFORCE:
            assert hashlib.sha256(world.firmware[gpu]).hexdigest() == LISTED, "what is clean has listed firmware"

    def _resets(self, gpu: int) -> None:
        """A GPU is about to be reset, to clean it."""
        world = self.world
        assert not world.controller.reconciler.is_observing, "nothing is reset on an observed host"
        assert gpu in world.marked(MarkKind.CLEANING) - world.marked(MarkKind.QUARANTINED), "only what is marked is"
        assert gpu not in world.held, "nothing is reset under who has it open"
        assert gpu not in world.store.book.held, "nothing is reset that a lease holds"
        assert gpu not in self._active(), "nothing is reset while its partition is active"
        assert gpu not in self._coming(), "nothing is reset while a call may yet activate its partition"
        self._reset.discard(gpu)

    def _was_reset(self, gpu: int) -> None:
        self._reset.add(gpu)

    def _opens(self, gpu: int) -> None:
        """A GPU is about to be asked which it is, which resets it."""
        world = self.world
        assert gpu not in world.held, "nothing is asked under who has it open"
        lease = world.store.book.held.get(gpu)
        assert lease is None or gpu not in self._active(), "no GPU is asked while its lease's partition is active"

    # What is there.

    def _active(self) -> set[int]:
        return {gpu for partition in self.world.active or () for gpu in self.world.gpus_of(partition)}

    def _coming(self) -> set[int]:
        """The GPUs of partitions that a call may yet activate."""
        running = self.world.line.running()
        landings = [
            landing
            for landing in self.world.line.landings
            if landing.fabric_manager is running and landing.operation is Operation.ACTIVATE
        ]
        return {gpu for landing in landings for gpu in self.world.gpus_of(landing.partition_id)}

    def _aside(self, gpus: Sequence[int] | set[int]) -> set[int]:
        return {gpu for gpu in gpus if any((gpu, kind) in self._marks for kind in ASIDE)}

    def _map_counts(self, gpus: Sequence[int]) -> bool:
        """Whether two who know, or a person, said in this boot and of this board where these GPUs are, and were right.

        Of a GPU that is dead nothing need be known.
        """
        record, machine = self.world.store.book.gpu_map, self.world.host.machine
        if record is None or (record.boot, record.board.bios) != (machine.boot, machine.bios):
            return False
        for gpu in filter(self.world.answers, gpus):
            said = {
                s.kind.origin: s.readings[bdf] for s in record.sources if (bdf := self.world.address[gpu]) in s.readings
            }
            if set(said.values()) != {gpu} or not (len(said) > 1 or record.accepted):
                return False
        return True

    def _map_is_no_lie(self) -> None:
        record = self.world.store.book.gpu_map
        if record is not None and record.board.bios == self.world.host.machine.bios:
            right = {bdf: gpu for gpu, bdf in self.world.address.items()}
            assert all(right[bdf] == gpu for bdf, gpu in record.verified.items()), "what was verified is true"
