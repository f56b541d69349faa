# SPDX-License-Identifier: Apache-2.0
"""Keeps the Service VM running: looks at it, lets `core.servicevm` decide, and acts, one step at a time.

Its domain is transient: it exists only from a start after all checks until it ends, and nothing else can start it.
`control.gate` tells `control.fabric` what follows for new work.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from fmctl.control.vfio import Vfio
from fmctl.core import servicevm
from fmctl.core.answers import FabricState, ServiceVmState, ServiceVmStatus, StartMode
from fmctl.core.domain import Domain
from fmctl.core.domain_xml import Rendered
from fmctl.core.errors import (
    AgentUnreachable,
    FabricNotReady,
    FmctlError,
    HostCordoned,
    HypervisorUnreachable,
    OutcomeUnknown,
    VmRunning,
)
from fmctl.core.inventory import Fault, Inventory, Role
from fmctl.core.pci import Bdf
from fmctl.core.ports import Hypervisor, KeptAgent
from fmctl.core.servicevm import Action, Decision, Memory, Rules, Seen, Tenant, Trouble
from fmctl.core.settings import ServiceVmSettings

log = logging.getLogger(__name__)

CALL_TIMEOUT = 5.0
"""Seconds that libvirt or the agent have to answer a question."""
END_TIMEOUT = 45.0
"""Seconds that libvirt has to end the domain: it waits ten for QEMU, and two for each hostdev."""
CREATE_TIMEOUT = 60.0
"""Seconds that libvirt has to start the domain: QEMU pins all of its memory, and the kernel resets every NVSwitch."""
FM_TIMEOUT = 75.0
"""Seconds that a start of Fabric Manager may take: its window of 60 s, and a margin."""
UNSETTLED_INTERVAL = 0.3
"""Seconds between two looks while the Service VM is not ready."""


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
    render: Callable[[Inventory], Rendered]
    """The domain that would be started now; raises FmctlError."""
    active: Callable[[], Sequence[int]]
    """The partitions that a restarted Fabric Manager is to take for active."""


class ServiceVm:
    """The Service VM's keeper. As a context manager it works for as long as the block."""

    def __init__(
        self,
        world: World,
        settings: ServiceVmSettings,
        rules: Rules,
        *,
        interval: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """It looks every `interval` seconds, more often while not ready, and whenever libvirt tells of a change."""
        self._world = world
        self._settings = settings
        self._rules = rules
        self._interval = interval
        self._clock = clock
        self._turn = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="service VM", daemon=True)
        self._memory = Memory()
        self._failure = ""
        self._board: Inventory | None = None
        self._parked = False
        self._status = self._told(ServiceVmState.ABSENT, "not looked at yet")

    def status(self) -> ServiceVmStatus:
        """What the last look showed; never waits."""
        return self._status

    @property
    def board(self) -> Inventory | None:
        """The board, as it was last seen; None where it was not."""
        return self._board

    def verify_cid(self) -> None:
        """Raise AgentUnreachable unless our own running domain has our context id for vsock."""
        domain = self._own(self._world.hypervisor.domains(timeout=CALL_TIMEOUT))
        if domain is None or domain.cid != self._settings.cid:
            raise AgentUnreachable(
                "the Service VM is not called",
                why="its domain does not run" if domain is None else f"its domain has the context id {domain.cid}",
                fix="see `fmctl status`",
            )

    def step(self) -> None:
        """Look, decide, and act once."""
        with self._turn:
            try:
                seen, inventory = self._look(thorough=False)
            except HypervisorUnreachable as error:
                self._status = replace(self._status, message=str(error))
                return
            decision = servicevm.decide(seen, self._memory, self._rules, self._clock())
            self._show(seen, inventory, decision)
            self._act(decision, inventory)

    def start(self, *, interrupt_tenants: bool, timeout: float) -> ServiceVmStatus:
        """Start it unless it runs; raises VmRunning where that resets NVSwitches that a running VM may use."""
        with self._taking_turn(timeout):
            seen, inventory = self._look()
            if seen.domain is None:
                self._refuse_interrupting("start", seen.tenants, interrupt_tenants=interrupt_tenants)
                self._memory = servicevm.started(Memory(), self._clock())
                self._start(inventory)
            return self._after()

    def stop(self, *, interrupt_tenants: bool, timeout: float) -> ServiceVmStatus:
        """Shut it down, and let it stay down; raises VmRunning where a running VM may use the NVSwitches."""
        return self._end("stop", self._world.hypervisor.shutdown, interrupt_tenants=interrupt_tenants, timeout=timeout)

    def destroy(self, *, interrupt_tenants: bool, timeout: float) -> ServiceVmStatus:
        """End it at once, and let it stay down; raises VmRunning where a running VM may use the NVSwitches."""
        end = self._world.hypervisor.destroy
        return self._end("destroy", end, interrupt_tenants=interrupt_tenants, timeout=timeout)

    def _end(self, verb: str, end: Callable[..., None], *, interrupt_tenants: bool, timeout: float) -> ServiceVmStatus:
        with self._taking_turn(timeout):
            seen, inventory = self._look()
            if seen.domain is not None:
                self._refuse_interrupting(verb, seen.tenants, interrupt_tenants=interrupt_tenants)
            self._memory = Memory(wanted=False)
            if seen.domain is not None:
                log.info("%s the Service VM on request", verb)
                self._end_domain(end, timeout)
            self._park_switches(inventory)
            return self._after()

    @property
    def _uuid(self) -> str:
        return str(self._settings.uuid)

    def _own(self, domains: Sequence[Domain]) -> Domain | None:
        return next((domain for domain in domains if domain.uuid == self._uuid), None)

    def _look(self, *, thorough: bool = True) -> tuple[Seen, Inventory | None]:
        """One look at libvirt, the agent and the board; raises HypervisorUnreachable.

        Who holds GPUs is looked for if it is `thorough`, or if Fabric Manager is not ready.
        """
        domains = self._world.hypervisor.domains(timeout=CALL_TIMEOUT)
        seen = Seen(self._own(domains), None)
        if seen.domain is not None:
            with contextlib.suppress(AgentUnreachable):
                seen = replace(seen, fabric=self._world.agent.status(timeout=CALL_TIMEOUT).state)
        try:
            self._board = inventory = self._world.inventory()
            if thorough or seen.fabric is not FabricState.READY:
                seen = replace(seen, tenants=self._tenants(domains, inventory))
            return seen, inventory
        except FmctlError as error:
            self._board = None
            log.warning("who holds the GPUs cannot be told: %s", error)
            return replace(seen, tenants=None), None

    def _tenants(self, domains: Sequence[Domain], inventory: Inventory) -> tuple[Tenant, ...]:
        """Libvirt's domains, and other processes, that hold GPUs; raises FmctlError where that cannot be told."""
        domains_with = servicevm.tenants(domains, _gpus(inventory))
        return (*domains_with, *servicevm.others(self._world.vfio.usages(inventory), domains_with))

    def _show(self, seen: Seen, inventory: Inventory | None, decision: Decision) -> None:
        state = servicevm.state(seen, self._failure)
        message = "" if decision.trouble is None else self._failure or decision.trouble.value
        if not decision.memory.wanted and seen.domain is None:
            message = "it was stopped on request"
        changed = inventory is not None and seen.domain is not None and self._differs(seen.domain, inventory)
        degraded = decision.degraded or self._unsafe(inventory)
        self._tell(self._told(state, message, changed=changed, degraded=degraded))

    def _unsafe(self, inventory: Inventory | None) -> str:
        """Why passthrough is not safe on this host; empty where it is, or where there is no board to judge."""
        try:
            if inventory is not None:
                self._world.check(inventory)
        except HostCordoned as error:
            return str(error)
        return ""

    def _differs(self, domain: Domain, inventory: Inventory) -> bool:
        try:
            return domain.fingerprint != self._world.render(inventory).fingerprint
        except FmctlError:
            return True

    def _told(
        self, state: ServiceVmState, message: str = "", *, changed: bool = False, degraded: str = ""
    ) -> ServiceVmStatus:
        settings = self._settings
        return ServiceVmStatus(
            state,
            message,
            str(settings.name),
            self._uuid,
            settings.cid,
            changed,
            degraded,
            str(settings.console_log),
        )

    def _tell(self, status: ServiceVmStatus) -> None:
        before, self._status = self._status, status
        if (before.state, before.degraded) != (status.state, status.degraded):
            why = status.degraded or status.message
            log.info("the Service VM is %s%s", status.state.value, f": {why}" if why else "")

    def _act(self, decision: Decision, inventory: Inventory | None) -> None:
        """Take the action. One that changed nothing is tried again, but for what an agent that is lost cannot hear."""
        before, self._memory = self._memory, decision.memory
        if decision.action is Action.WAIT:
            if decision.trouble is None:
                self._failure = ""
            elif decision.trouble is Trouble.DEAD:
                self._park_switches(inventory)
            return
        log.info("to do: %s, since %s", decision.action.value, decision.trouble.value if decision.trouble else "")
        try:
            self._do(decision.action, inventory)
            self._failure = ""
        except FmctlError as error:
            if isinstance(error, _UNCHANGED) and decision.action is not Action.RESTART_AGENT:
                self._memory = before
            self._failure = str(error)
            log.error("to %s failed: %s", decision.action.value, error)

    def _do(self, action: Action, inventory: Inventory | None) -> None:
        agent = self._world.agent
        if action is Action.START_FRESH:
            agent.start_fabric_manager(StartMode.FRESH, (), timeout=FM_TIMEOUT)
        elif action is Action.START_RESTART:
            agent.start_fabric_manager(StartMode.RESTART, self._world.active(), timeout=FM_TIMEOUT)
        elif action is Action.RESTART_AGENT:
            agent.restart(timeout=CALL_TIMEOUT)
        else:
            if action is Action.RESTART_VM:
                self._end_domain(self._world.hypervisor.destroy, self._settings.stop_timeout_s)
            self._start(inventory)

    def _start(self, inventory: Inventory | None) -> None:
        """Start the domain after all checks; raises FmctlError with nothing started."""
        inventory = inventory or self._world.inventory()
        self._tell(replace(self._status, state=ServiceVmState.STARTING, message=""))
        try:
            _refuse_faulty(inventory)
            self._world.check(inventory)
            rendered = self._world.render(inventory)
            self._world.vfio.park_unheld(inventory, _gpus(inventory))
            self._parked = False
            self._world.vfio.bind(inventory, _switches(inventory))
            self._world.hypervisor.create(rendered.xml, timeout=CREATE_TIMEOUT)
        except FmctlError as error:
            self._failure = str(error)
            self._tell(self._told(ServiceVmState.FAILED, str(error)))
            raise
        self._failure = ""
        log.info("the Service VM is started with %d devices", len(_switches(inventory)))

    def _park_switches(self, inventory: Inventory | None) -> None:
        """Take the driver from what the Service VM had, once, so that nothing else can open it; never raises."""
        if inventory is None or self._parked:
            return
        try:
            self._parked = not self._world.vfio.park_unheld(inventory, _switches(inventory))
        except FmctlError as error:
            log.warning("what the Service VM had is not parked: %s", error)

    def _end_domain(self, end: Callable[..., None], timeout: float) -> None:
        """Let libvirt end it, and wait until it has; raises FmctlError. The list of domains says what came of it."""
        with contextlib.suppress(OutcomeUnknown):
            end(self._uuid, timeout=min(END_TIMEOUT, timeout))
        deadline = time.monotonic() + timeout
        while self._own(self._world.hypervisor.domains(timeout=CALL_TIMEOUT)) is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise FmctlError(
                    "the Service VM does not end",
                    why=f"it still runs after {timeout:g} s",
                    fix="see `fmctl service-vm console`, or use `fmctl service-vm destroy`",
                )
            self._wake.wait(min(left, UNSETTLED_INTERVAL))
            self._wake.clear()

    def _refuse_interrupting(self, verb: str, tenants: Sequence[Tenant] | None, *, interrupt_tenants: bool) -> None:
        if interrupt_tenants:
            return
        using = servicevm.interrupted(tenants)
        if using is None or using:
            raise VmRunning(
                f"the Service VM is not changed: to {verb} it resets every NVSwitch",
                why="who holds GPUs is not known" if using is None else f"that interrupts {', '.join(map(str, using))}",
                fix="stop those VMs first, or add --interrupt-tenants",
            )

    def _after(self) -> ServiceVmStatus:
        """The status after a command, which the next look may change."""
        seen, inventory = self._look()
        self._show(seen, inventory, Decision(Action.WAIT, self._memory))
        self._wake.set()
        return self._status

    @contextlib.contextmanager
    def _taking_turn(self, timeout: float) -> Iterator[None]:
        if not self._turn.acquire(timeout=max(0.0, timeout / 2)):
            raise FabricNotReady(
                "the Service VM is being changed", why="another change is under way", fix="try again shortly"
            )
        try:
            yield
        finally:
            self._turn.release()

    def _run(self) -> None:
        while not self._stopping:
            try:
                self.step()
            except Exception:
                log.exception("the look at the Service VM failed")
            settled = self._status.state is ServiceVmState.READY
            self._wake.wait(self._interval if settled else min(self._interval, UNSETTLED_INTERVAL))
            self._wake.clear()

    def __enter__(self) -> ServiceVm:
        self._world.hypervisor.watch(self._wake.set)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=10.0)


_UNCHANGED = (AgentUnreachable, FabricNotReady)
"""The errors after which nothing was changed."""


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
