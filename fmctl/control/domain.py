# SPDX-License-Identifier: Apache-2.0
"""The Service VM's own domain: what stands before its start, its start, and its end. `control.servicevm` says when.

It is transient: it exists only from a start after all checks until it ends, and nothing else can start it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fmctl.control.vfio import Vfio
from fmctl.core import servicevm
from fmctl.core.domain import Domain
from fmctl.core.domain_xml import Rendered
from fmctl.core.errors import AgentUnreachable, FmctlError, HostCordoned, HypervisorUnreachable, OutcomeUnknown
from fmctl.core.image import Image
from fmctl.core.inventory import Fault, Inventory, Role
from fmctl.core.pci import Bdf
from fmctl.core.ports import Generation, Hypervisor, ImageStore, KeptAgent
from fmctl.core.servicevm import Tenant
from fmctl.core.settings import ServiceVmSettings

log = logging.getLogger(__name__)

CALL_TIMEOUT = 5.0
"""Seconds that the agent has to answer a question."""
LIST_TIMEOUT = 15.0
"""Seconds that libvirt has to list its domains: it may wait for one that it changes just then."""
END_TIMEOUT = 45.0
"""Seconds that libvirt has to end the domain: it waits ten for QEMU, and two for each hostdev."""
CREATE_TIMEOUT = 60.0
"""Seconds that libvirt has to start the domain: QEMU pins all of its memory, and the kernel resets every NVSwitch."""
ASK_AGAIN = 5.0
"""Seconds after which a domain that goes on is told again to end."""
CHOOSE = "`fmctl image add FOLDER`, then `fmctl service-vm upgrade IMAGE`"
"""What to do where no image is chosen."""
POLL_INTERVAL = 0.3
"""Seconds between two looks at a domain that is to end."""


@dataclass(frozen=True)
class World:
    """What the Service VM is kept running with."""

    hypervisor: Hypervisor
    agent: KeptAgent
    vfio: Vfio
    inventory: Callable[[], Inventory]
    """The board as it is now; raises FmctlError."""
    check: Callable[[Inventory], None]
    """Raises HostCordoned where passthrough is not safe on this host."""
    render: Callable[[Inventory, Image | None], Rendered]
    """The domain that would be started now, from that image or from the files that the settings name.

    Raises FmctlError.
    """
    active: Callable[[], Sequence[int]]
    """The partitions that a restarted Fabric Manager is to take for active."""
    generation: Generation
    images: ImageStore | None = None
    """None where the settings name the files that it boots."""
    park: Callable[[Inventory], object] | None = None
    """Parks the GPUs that no VM may open; raises as `Vfio.park_unheld`, which does so without it."""


class OwnDomain:
    """The Service VM's domain on this host."""

    def __init__(self, world: World, settings: ServiceVmSettings) -> None:
        self._world = world
        self._settings = settings
        self._parked = False
        self._starting = ""

    @property
    def starting(self) -> str:
        """The fingerprint of the document with which it was started last; empty where it was not, since this process
        began."""
        return self._starting

    @property
    def uuid(self) -> str:
        """Its UUID, running or not."""
        return str(self._settings.uuid)

    def domains(self) -> tuple[Domain, ...]:
        """Every domain of the host; raises HypervisorUnreachable."""
        return self._world.hypervisor.domains(timeout=LIST_TIMEOUT)

    def among(self, domains: Sequence[Domain]) -> Domain | None:
        """Our own of these; None where it does not run."""
        return next((domain for domain in domains if domain.uuid == self.uuid), None)

    def verify_cid(self) -> None:
        """Raise AgentUnreachable unless our own running domain has our context id for vsock."""
        domain = self.among(self.domains())
        if domain is None or domain.cid != self._settings.cid:
            raise AgentUnreachable(
                "the Service VM is not called",
                why="its domain does not run" if domain is None else f"its domain has the context id {domain.cid}",
                fix="see `fmctl status`",
            )

    def tenants(self, domains: Sequence[Domain], inventory: Inventory) -> tuple[Tenant, ...]:
        """Libvirt's domains, and other processes, that hold GPUs; raises FmctlError where that cannot be told."""
        gpus = _gpus(inventory)
        domains_with = servicevm.tenants(domains, gpus)
        left = set(gpus).difference(*(tenant.gpus for tenant in domains_with))
        return (*domains_with, *servicevm.others(self._world.vfio.usages(inventory, left)))

    def unsafe(self, inventory: Inventory | None) -> str:
        """Why passthrough is not safe on this host; empty where it is, or where there is no board to judge."""
        try:
            if inventory is not None:
                self._world.check(inventory)
        except HostCordoned as error:
            return str(error)
        return ""

    def boots(self) -> Image | None:
        """The image of its next start, unchecked; None where the settings name the files. Raises FmctlError."""
        images = self._world.images
        return None if images is None else images.read(_chosen(images))

    @property
    def has_nothing_to_boot(self) -> bool:
        """Whether no image is chosen, where images are what it boots; raises FmctlError."""
        images = self._world.images
        return images is not None and images.trial() is None and images.current() is None

    def differs(self, domain: Domain, inventory: Inventory) -> bool:
        """Whether its next start takes another domain than this one."""
        try:
            return domain.fingerprint != self._world.render(inventory, self.boots()).fingerprint
        except FmctlError:
            return True

    def start(self, inventory: Inventory) -> None:
        """Start it after all checks; raises FmctlError with nothing started, and OutcomeUnknown as libvirt does."""
        _refuse_faulty(inventory)
        self._world.check(inventory)
        images = self._world.images
        image = None if images is None else images.vouched(_chosen(images))
        rendered = self._world.render(inventory, image)
        if self._world.park is not None:
            self._world.park(inventory)
        else:
            self._world.vfio.park_unheld(inventory, _gpus(inventory))
        self._parked = False
        self._world.vfio.bind(inventory, _switches(inventory))
        self._starting = rendered.fingerprint
        self._world.hypervisor.create(rendered.xml, timeout=CREATE_TIMEOUT)
        what = f"image {image.name}" if image else "what the settings name"
        log.info("the Service VM is started from %s with %d devices", what, len(_switches(inventory)))

    def park(self, inventory: Inventory | None) -> None:
        """Take the driver from what it had, so that nothing else can open it; never raises. What is held is left."""
        if inventory is None:
            return
        drivers = [device.function.driver for device in inventory.devices if device.role is not Role.GPU]
        if self._parked and not any(drivers):
            return
        try:
            self._parked = not self._world.vfio.park_unheld(inventory, _switches(inventory))
        except FmctlError as error:
            log.warning("what the Service VM had is not parked: %s", error)

    def shut_down(self, timeout: float, pause: Callable[[float], object]) -> None:
        """Press its power button, and wait until it has ended; raises FmctlError."""
        self._end(self._world.hypervisor.shutdown, timeout, pause)

    def destroy(self, timeout: float, pause: Callable[[float], object]) -> None:
        """End its process, and wait until it has ended; raises FmctlError."""
        self._end(self._world.hypervisor.destroy, timeout, pause)

    def _end(self, end: Callable[..., None], timeout: float, pause: Callable[[float], object]) -> None:
        """Let libvirt end it; the list of domains says what came of that. `pause` waits so many seconds, or less.

        It is asked again now and then: a guest that boots does not see its power button yet.
        """
        deadline, asked = time.monotonic() + timeout, -math.inf
        while True:
            left = deadline - time.monotonic()
            if time.monotonic() - asked >= ASK_AGAIN:
                with contextlib.suppress(OutcomeUnknown):
                    end(self.uuid, timeout=max(0.1, min(END_TIMEOUT, left)))
                asked = time.monotonic()
            try:
                if self.among(self.domains()) is None:
                    return
            except HypervisorUnreachable:
                if left <= 0:
                    raise
            if left <= 0:
                raise FmctlError(
                    "the Service VM does not end",
                    why=f"it still runs after {timeout:g} s",
                    fix="see `fmctl service-vm console`, or use `fmctl service-vm destroy`",
                )
            pause(min(left, POLL_INTERVAL))


def _chosen(images: ImageStore) -> str:
    """The image to boot: the one that is tried, else the one in use; raises FmctlError."""
    name = images.trial() or images.current()
    if name is None:
        raise FmctlError("the Service VM has nothing to boot", why="no image is chosen", fix=CHOOSE)
    return name


def _gpus(inventory: Inventory) -> tuple[Bdf, ...]:
    return tuple(device.function.bdf for device in inventory.devices if device.role is Role.GPU)


def _switches(inventory: Inventory) -> tuple[Bdf, ...]:
    """What the Service VM gets: everything of the board but its GPUs."""
    return tuple(device.function.bdf for device in inventory.devices if device.role is not Role.GPU)


def _refuse_faulty(inventory: Inventory) -> None:
    """Raise FmctlError where an NVSwitch is missing or dead: Fabric Manager would not come up as it should."""
    wrong = [p.text for p in inventory.problems if p.fault in (Fault.MISSING, Fault.DEAD) and p.role is not Role.GPU]
    if wrong:
        raise FmctlError("the Service VM is not started", why="; ".join(wrong), fix="see `fmctl inventory`")
