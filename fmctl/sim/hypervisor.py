# SPDX-License-Identifier: Apache-2.0
"""Libvirt pretended in memory: the port `Hypervisor`, over the pretended processes of `sim.qemu`."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid as uuids
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

from fmctl.core.domain import Domain, DomainState, End, refusal, unreadable
from fmctl.core.errors import FmctlError, HypervisorUnreachable, OutcomeUnknown
from fmctl.core.pci import Bdf
from fmctl.sim.qemu import NO_HARDWARE, Guest, Hardware, IdleProcess, Process

log = logging.getLogger(__name__)

_END_TIMEOUT = 10.0
"""Seconds that a guest has to be left."""


class SimulatedHypervisor:
    """Domains of a pretended host, any of which can die, reboot or be paused, behind a libvirt that can be away."""

    def __init__(self, guest: Guest = nullcontext, hardware: Hardware = NO_HARDWARE) -> None:
        self.ignore_shutdown = False
        """Whether guests pay no heed to their power button."""
        self._guest = guest
        self._hardware = hardware
        self._state = threading.Condition()
        self._processes: dict[str, Process] = {}
        self._refusal = ""
        self._away = False
        self._hangs = False
        self._acts = False
        self._closed = False
        self._news = False
        self._starts = 0
        self._watchers: tuple[Callable[[], None], ...] = ()
        self._hearers: tuple[Callable[[End], None], ...] = ()
        self._hearing = 0

    def domains(self, *, timeout: float) -> tuple[Domain, ...]:
        """Every domain, by name."""
        with self._asked(timeout), self._state:
            return tuple(sorted((p.domain for p in self._processes.values()), key=lambda domain: domain.name))

    def create(self, xml: str, *, timeout: float) -> Domain:
        """Start a domain; raises DomainRefused as libvirt would, but checks no schema."""
        try:
            domain = Domain.from_xml(xml)
        except ValueError as error:
            raise unreadable(error) from error
        with self._asked(timeout, f"start {domain.name}"):
            return self._start(domain if domain.uuid else replace(domain, uuid=str(uuids.uuid4())), self._guest)

    def shutdown(self, uuid: str, *, timeout: float) -> None:
        """Press a domain's power button, which ends it soon unless it is paused or `ignore_shutdown` is set."""
        with self._asked(timeout, f"shut down the domain {uuid}"):
            process = self._processes.get(uuid)
            if process is not None and process.domain.state is DomainState.RUNNING and not self.ignore_shutdown:
                self._show(process, DomainState.SHUTTING_DOWN)
                process.shut_down = True
                process.end()

    def destroy(self, uuid: str, *, timeout: float) -> None:
        """End a domain; does nothing where there is none."""
        with self._asked(timeout, f"end the domain {uuid}"):
            process = self._processes.get(uuid)
            if process is not None and not _end(process, timeout):
                raise _silence(f"end the domain {uuid}", timeout)

    def watch(self, changed: Callable[[], None], ended: Callable[[End], None] = lambda end: None) -> None:
        """Call `changed` soon and then on all news, from a thread of its own; `ended` for each end that is heard of."""
        with self._state:
            first = not self._watchers
            self._hearing = self._hearing or 1
            self._watchers = (*self._watchers, changed)
            self._hearers = (*self._hearers, ended)
            self._tell()
        if first:
            threading.Thread(target=self._watch, name="simulated libvirt", daemon=True).start()

    @property
    def hearing(self) -> int:
        """Differs after every moment in which a domain may have ended unheard; 0 in such a moment."""
        return 0 if self._is_deaf else self._hearing

    @property
    def _is_deaf(self) -> bool:
        return self._away or self._hangs or self._closed

    def close(self) -> None:
        """Tell nobody of news any more, and refuse calls; domains go on."""
        with self._state:
            self._closed = True
            self._state.notify_all()

    def add_tenant(self, name: str, bdfs: Sequence[Bdf] = ()) -> Domain:
        """Start a domain that is none of ours, with these hostdevs; raises DomainRefused."""
        uuid = str(uuids.uuid5(uuids.NAMESPACE_OID, name))
        return self._start(Domain(uuid, name, DomainState.RUNNING, tuple(sorted(bdfs))), None)

    def kill(self, uuid: str) -> None:
        """Let a domain's process be gone, as after kill -9."""
        _end(self._processes[uuid], _END_TIMEOUT)

    def power_off(self) -> None:
        """Let every domain's process be gone."""
        for process in tuple(self._processes.values()):
            _end(process, _END_TIMEOUT)

    def reboot(self, uuid: str) -> None:
        """Let a domain's guest boot again, in the same process."""
        self._processes[uuid].reboot()

    def pause(self, uuid: str) -> None:
        """Let a domain's processors stand still; the guest is not told."""
        self._show(self._processes[uuid], DomainState.PAUSED)

    def resume(self, uuid: str) -> None:
        """Let a paused domain go on."""
        self._show(self._processes[uuid], DomainState.RUNNING)

    def refuse(self, message: str) -> None:
        """Let libvirt refuse every domain with that message; none with an empty one."""
        self._refusal = message

    def disconnect(self) -> None:
        """Let libvirt be away; domains go on."""
        self._reach(away=True, hangs=False, acts=False)

    def hang(self, *, acting: bool = False) -> None:
        """Let libvirt answer nothing; with `acting` it does as it is told all the same."""
        self._reach(away=False, hangs=True, acts=acting)

    def reconnect(self) -> None:
        """Let libvirt be there and answer."""
        self._reach(away=False, hangs=False, acts=False)

    def _reach(self, *, away: bool, hangs: bool, acts: bool) -> None:
        with self._state:
            self._away, self._hangs, self._acts = away, hangs, acts
            self._hearing += bool(self._watchers)
            self._tell()

    @contextlib.contextmanager
    def _asked(self, timeout: float, change: str = "") -> Iterator[None]:
        """Libvirt at work, if it is there; while it hangs, until it does no more or the time is over."""
        with self._state:
            if self._away or self._closed:
                raise _unreachable("it is away")
            silent = self._hangs and self._acts
            if not silent and not self._state.wait_for(lambda: not self._hangs, timeout):
                raise _silence(change, timeout)
        yield
        if silent:
            raise _silence(change, timeout)

    def _start(self, domain: Domain, guest: Guest | None) -> Domain:
        with self._state:
            message = self._refusal or _conflict(domain, [process.domain for process in self._processes.values()])
            if message:
                raise refusal(domain.name, message)
            self._starts += 1
            domain = replace(domain, instance=self._starts)
            if guest is None:
                process: Process = IdleProcess(domain, self._hardware, self._noted)
            else:
                process = Process(domain, guest, self._hardware, self._noted)
            self._processes[domain.uuid] = process
        try:
            process.start()
        except FmctlError as error:
            with self._state:
                del self._processes[domain.uuid]
                self._tell()
            raise refusal(domain.name, str(error)) from error
        with self._state:
            self._tell()
        return domain

    def _noted(self, process: Process) -> None:
        """Know of a process that has ended, or whose guest has rebooted."""
        domain = process.domain
        if process.ended and not self._is_deaf:
            for ended in self._hearers:
                ended(End(domain.uuid, domain.instance, process.shut_down))
        with self._state:
            if process.ended:
                self._processes.pop(domain.uuid, None)
            elif self._watchers and not self._away:
                process.domain = replace(process.domain, rebooted=time.time())
            self._tell()

    def _show(self, process: Process, state: DomainState) -> None:
        with self._state:
            process.domain = replace(process.domain, state=state)
            self._tell()

    def _tell(self) -> None:
        """Wake the thread that watches; with the lock."""
        self._news = True
        self._state.notify_all()

    def _watch(self) -> None:
        while not self._closed:
            with self._state:
                self._state.wait_for(lambda: self._news or self._closed)
                self._news = False
            for changed in self._watchers:
                try:
                    changed()
                except Exception:
                    log.exception("who heard of a change failed")


def _end(process: Process, timeout: float) -> bool:
    """End a process; whether it was gone within so many seconds."""
    process.shut_down = False
    process.end()
    return process.wait(timeout)


def _conflict(domain: Domain, others: Sequence[Domain]) -> str:
    """Why libvirt or QEMU would not start the domain beside the others; empty where they would."""
    for other in others:
        if domain.name == other.name:
            return f"operation failed: domain '{domain.name}' already exists with uuid {other.uuid}"
        if domain.uuid == other.uuid:
            return f"operation failed: domain '{other.name}' is already defined with uuid {other.uuid}"
        for bdf in set(domain.hostdevs) & set(other.hostdevs):
            return f"PCI device {bdf} is in use by driver QEMU, domain {other.name}"
        if domain.cid is not None and domain.cid == other.cid:
            return "failed to set guest cid: Address already in use"
    return ""


def _silence(change: str, timeout: float) -> FmctlError:
    why = f"no answer within {timeout:g} s"
    if not change:
        return _unreachable(why)
    return OutcomeUnknown(f"whether libvirt did {change} is not known", why=why, fix="list the domains again")


def _unreachable(why: str) -> HypervisorUnreachable:
    return HypervisorUnreachable("the simulated libvirt does not answer", why=why)
