# SPDX-License-Identifier: Apache-2.0
"""What tenants' VMs do: start through libvirt or by hand, stop and crash."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from fmctl.core.lease import Lease, LeaseState
from fmctl.sim.vfiodev import Effect
from tests.chaos.machine import ASKED, NUMBER, OFTEN, OWNER, SPOILT, Machine, Seen
from tests.chaos.world import AT_ONCE
from tests.control.leasing import uuid_of

VMS = tuple(f"vm{n}" for n in range(4))


class VmRules(Machine):
    """VMs, and the gate that they start through."""

    @rule(owner=OWNER, asked=st.sampled_from(ASKED), goes=OFTEN, which=NUMBER, spoils=st.sampled_from((None, *SPOILT)))
    def let_a_tenant_come_or_go(
        self, owner: str, asked: dict[str, Any], goes: bool, which: int, spoils: Effect | bytes | None
    ) -> None:
        """As far as nothing is in the way; one that goes may spoil a GPU."""
        self._mend(True)
        if not goes or not self.world.vms:
            self._come(owner, asked)
        if not goes or not self.world.vms:
            return
        name = self._vm(which)
        if spoils is not None and self.world.vms[name]:
            self.world.spoil(self.world.vms[name][0], spoils)
        self._go(name)
        self._try(self.world.take_turn)

    def _come(self, owner: str, asked: dict[str, Any]) -> None:
        """Get a lease for a VM, and start it."""
        name, key = self._next, (owner, f"r{len(self.requests)}")
        self.requests.append((key, {**asked, "vm_uuid": uuid_of(name)}))
        self._allocate("let a tenant come", *self.requests[-1], wait=True, lives=True)
        lease = self.world.store.by_request(*key)
        if lease is not None and lease.state is LeaseState.ACTIVE:
            self._try(lambda: self._start_by_libvirt(name, lease.gpus))

    def _go(self, name: str) -> None:
        """Stop a VM, and release its lease if it has one."""
        leases = self.world.controller.leases
        mine = next((lease.id for lease in self.world.leases if lease.vm_uuid == uuid_of(name)), "")
        self._end(name)
        with self._ending(mine):
            self._do("let a tenant go", lambda: leases.release(mine, actor="p", timeout=AT_ONCE))

    @rule(
        what=st.sampled_from(("start a VM", "start a VM by hand", "stop", "crash")),
        gpus=st.sampled_from((None, (1,), (1, 3), (2, 4), (5, 6, 7), (8,))),
        which=NUMBER,
    )
    def start_or_end_a_vm(self, what: str, gpus: tuple[int, ...] | None, which: int) -> None:
        """Start a VM with these GPUs or those of a lease, through libvirt or past its hook; stop one, or let it crash.

        Of a crash libvirt's hook tells nobody.
        """
        if what in ("stop", "crash"):
            if not self.world.vms:
                self._mend(True)
                self._come("a", {"count": 1})
            if not self.world.vms:
                return
            name = self._vm(which)
            had = self._end(name)
            Seen.came[f"a {what} of a VM"] += 1
            self._do("end a VM", lambda: what == "stop" and self.world.tell_of_the_end(name, had))
            return
        name = self._next
        if gpus is None and self.world.leases:
            lease = self._lease(which)
            name, gpus = self._name(lease), lease.gpus
        if what == "start a VM by hand":
            self._do(what, lambda: self._start(name, gpus or ()))
        else:
            self._do("start a VM", lambda: self._start_by_libvirt(name, gpus or ()))

    def _name(self, lease: Lease) -> str:
        """The name of a lease's VM, whose UUID it is told if it has none."""
        name = next((name for name in VMS if uuid_of(name) == lease.vm_uuid), self._next)
        if not lease.vm_uuid:
            self.judge.vm_changed(lease.id)
            leases, uuid = self.world.controller.leases, uuid_of(name)
            self._try(lambda: leases.update(lease.id, "", actor="p", timeout=AT_ONCE, vm_uuid=uuid))
        return name

    def _start_by_libvirt(self, name: str, gpus: tuple[int, ...]) -> None:
        """Start a VM if its hook lets it, and it does not run."""
        if name in self.world.vms:
            return
        why = self.world.may_start(name, gpus)
        Seen.came["a VM was not let start" if why else "a VM was let start"] += 1
        if not why:
            self.gpus.vm_was_let_start(name, gpus)
            self._start(name, gpus)

    def _start(self, name: str, gpus: tuple[int, ...]) -> None:
        self.world.start_vm(name, gpus)
        self.names += 1
        self.judge.vm_started(name)

    def _end(self, name: str) -> tuple[int, ...]:
        gpus = self.world.vms[name]
        self.world.stop_vm(name)
        self.judge.vm_stopped(name)
        return gpus

    @property
    def _next(self) -> str:
        return VMS[self.names % len(VMS)]

    def _vm(self, which: int) -> str:
        return sorted(self.world.vms)[which % len(self.world.vms)]
