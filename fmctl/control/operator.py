# SPDX-License-Identifier: Apache-2.0
"""What a person asks of the Service VM: start, stop, destroy and upgrade. `control.servicevm` keeps it running.

Each start and each end resets every NVSwitch, so whom that would interrupt is named, and only told to does it happen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from fmctl.control.domain import CALL_TIMEOUT
from fmctl.control.servicevm import ServiceVm
from fmctl.core import image as images
from fmctl.core import servicevm
from fmctl.core.answers import ServiceVmStatus
from fmctl.core.errors import AgentUnreachable, BadRequest, FabricNotReady, FmctlError, VmRunning
from fmctl.core.image import AGENT, Change, Image
from fmctl.core.ports import ImageStore
from fmctl.core.servicevm import Memory, Seen, Tenant

log = logging.getLogger(__name__)

Pause = Callable[[float], object]

AGENT_TIMEOUT = 150.0
"""Seconds that an agent has to take over, or to be given up in the guest: its start's 90 s there, and a margin."""
POLL_INTERVAL = 0.5
"""Seconds between two looks at what becomes of an upgrade."""


class Operator:
    """A person's commands, each taking the keeper's turn."""

    def __init__(self, keeper: ServiceVm) -> None:
        self._keeper = keeper

    def start(self, *, interrupt_tenants: bool, timeout: float) -> ServiceVmStatus:
        """Start it unless it runs; raises VmRunning where that resets NVSwitches that a running VM may use."""
        with self._keeper.turn(timeout):
            seen, inventory = self._keeper.look()
            if seen.domain is None:
                _refuse_interrupting("start", seen.tenants, interrupt_tenants=interrupt_tenants)
                self._keeper.start(inventory)
            return self._keeper.after()

    def stop(self, *, interrupt_tenants: bool, timeout: float) -> ServiceVmStatus:
        """Shut it down, and let it stay down; raises VmRunning where a running VM may use the NVSwitches."""
        return self._end("stop", self._keeper.own.shut_down, interrupt_tenants=interrupt_tenants, timeout=timeout)

    def destroy(self, *, interrupt_tenants: bool, timeout: float) -> ServiceVmStatus:
        """End it at once, and let it stay down; raises VmRunning where a running VM may use the NVSwitches."""
        return self._end("destroy", self._keeper.own.destroy, interrupt_tenants=interrupt_tenants, timeout=timeout)

    def upgrade(self, name: str, *, interrupt_tenants: bool, timeout: float) -> ServiceVmStatus:
        """Take another image, and return once it is ready.

        Where the agent alone differs it is replaced while the Service VM runs; else the Service VM is started anew.
        Raises ImageRefused, VmRunning, FmctlError where the image before is back, and FabricNotReady where `timeout`
        seconds passed first: the keeper then goes on by itself.
        """
        store = self._store()
        deadline = time.monotonic() + timeout
        with self._keeper.turn(timeout):
            image = store.vouched(name)
            seen, _ = self._keeper.look()
            change = _change(store, seen, image)
            if change is not Change.WHOLE:
                if change is Change.AGENT_ONLY:
                    self._replace_agent(store, image)
                store.choose(name)
                return self._keeper.after()
            _refuse_interrupting("upgrade", seen.tenants, interrupt_tenants=interrupt_tenants)
            self._try(store, name, seen)
        return self._outcome(store, name, deadline)

    def _store(self) -> ImageStore:
        store = self._keeper.images
        if store is None:
            raise BadRequest(
                "the Service VM is not upgraded",
                why="the settings name the files that it boots",
                fix="remove service_vm.kernel and service_vm.root_image from the settings, and choose an image",
            )
        return store

    def _try(self, store: ImageStore, name: str, seen: Seen) -> None:
        """Note the trial and end what runs; the keeper starts what is tried. With the turn."""
        store.set_trial(name)
        try:
            if seen.domain is not None:
                log.info("the Service VM is ended, to be started from the image %s", name)
                self._keeper.own.destroy(servicevm.END_FOR, self._keeper.pause)
        except FmctlError:
            store.set_trial(None)
            raise
        self._keeper.begin_trial()

    def _outcome(self, store: ImageStore, name: str, deadline: float) -> ServiceVmStatus:
        """The status once the image is kept; raises FmctlError where it is not, or is not yet."""
        while store.trial() == name:
            if time.monotonic() > deadline:
                raise FabricNotReady(
                    f"the image {name} is not ready yet",
                    why="the time for this call is over; the daemon goes on, and goes back by itself if need be",
                    fix="see `fmctl status`",
                )
            self._keeper.rest(POLL_INTERVAL)
        if store.current() != name:
            raise FmctlError(
                f"the image {name} is not taken",
                why=self._keeper.upgrade_failure or "another upgrade came between",
                fix="see `fmctl service-vm console` and the daemon's log",
            )
        with self._keeper.turn(2 * CALL_TIMEOUT):
            return self._keeper.after()

    def _replace_agent(self, store: ImageStore, image: Image) -> None:
        """Let the guest try the image's agent, and wait until it took over; raises FmctlError where it did not."""
        agent, digest = self._keeper.agent, image.manifest.files[AGENT]
        agent.replace(store.agent(image.name), digest, timeout=4 * CALL_TIMEOUT)
        log.info("the agent of image %s is tried", image.name)
        deadline = time.monotonic() + AGENT_TIMEOUT
        gone = False
        while time.monotonic() < deadline:
            self._keeper.pause(POLL_INTERVAL)
            try:
                found = agent.status(timeout=CALL_TIMEOUT).digest
            except AgentUnreachable:
                gone = True
                continue
            if found == digest:
                return
            if gone:
                break
        raise FmctlError(
            f"the agent of image {image.name} is not taken",
            why="it did not answer, and the one before is back" if gone else "the one before still runs",
            fix="see `fmctl service-vm console`",
        )

    def _end(
        self, verb: str, end: Callable[[float, Pause], None], *, interrupt_tenants: bool, timeout: float
    ) -> ServiceVmStatus:
        with self._keeper.turn(timeout):
            seen, inventory = self._keeper.look()
            if seen.domain is not None:
                _refuse_interrupting(verb, seen.tenants, interrupt_tenants=interrupt_tenants)
            self._keeper.remember(Memory(wanted=False))
            if seen.domain is not None:
                log.info("%s the Service VM on request", verb)
                end(timeout, self._keeper.pause)
            self._keeper.own.park(inventory)
            return self._keeper.after()


def _refuse_interrupting(verb: str, tenants: Sequence[Tenant] | None, *, interrupt_tenants: bool) -> None:
    if interrupt_tenants:
        return
    using = servicevm.interrupted(tenants)
    if using is None or using:
        raise VmRunning(
            f"the Service VM is not changed: to {verb} it resets every NVSwitch",
            why="who holds GPUs is not known" if using is None else f"that interrupts {', '.join(map(str, using))}",
            fix="stop those VMs first, or add --interrupt-tenants",
        )


def _change(store: ImageStore, seen: Seen, image: Image) -> Change:
    """What must be replaced to get from what runs to that image."""
    if seen.domain is None or not seen.domain.image:
        return Change.WHOLE
    try:
        running = store.read(seen.domain.image).manifest
    except FmctlError:
        return Change.WHOLE
    change = images.difference(running, image.manifest).change
    if change is Change.WHOLE or seen.fabric is None:
        return Change.WHOLE
    return Change.SAME if seen.digest == image.manifest.files[AGENT] else Change.AGENT_ONLY
