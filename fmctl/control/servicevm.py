# SPDX-License-Identifier: Apache-2.0
"""Keeps the Service VM running: looks at it, lets `core.servicevm` decide, and acts, one step at a time.

`control.domain` starts and ends its domain, `control.operator` does what a person asks in between, and `control.gate`
tells `control.fabric` what follows for new work.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from fmctl.control.domain import CALL_TIMEOUT, CHOOSE, OwnDomain, World
from fmctl.core import servicevm, upgrade
from fmctl.core.answers import ServiceVmState, ServiceVmStatus, StartMode
from fmctl.core.errors import AgentUnreachable, FabricNotReady, FmctlError, HostCordoned
from fmctl.core.inventory import Inventory
from fmctl.core.ports import ImageStore, KeptAgent
from fmctl.core.servicevm import Action, Decision, Memory, Rules, Seen, Trouble
from fmctl.core.settings import ServiceVmSettings
from fmctl.core.upgrade import Trial, Verdict

log = logging.getLogger(__name__)

FM_TIMEOUT = 75.0
"""Seconds that a start of Fabric Manager may take: its window of 60 s, and a margin."""
LONGEST_TURN = 600.0
"""Seconds that a turn may take: the waits for libvirt, the agent and sysfs that may follow one another."""
UNSETTLED_INTERVAL = 0.3
"""Seconds between two looks while the Service VM is not ready."""
REST = 3.0
"""So many times as long as a look took, the next one is left for; a slow host has a guest to boot meanwhile."""


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
        beat: Callable[[], object] = lambda: None,
        observed: Callable[[], str] = lambda: "",
        record: Callable[[str, str], object] = lambda what, detail: None,
    ) -> None:
        """It looks every `interval` seconds, more often while not ready, and whenever libvirt tells of a change.

        `beat` is called once a turn of its loop, which takes at most `LONGEST_TURN` seconds. `observed` tells why
        nothing is changed on this host, where nothing is, and `record` hears what happens and what is about to be done.
        """
        self.own = OwnDomain(world, settings)
        self._world = world
        self._settings = settings
        self._rules = rules
        self._interval = interval
        self._clock = clock
        self._beat = beat
        self._observed = observed
        self._record = record
        self._turn = threading.Lock()
        self._wake = threading.Event()
        self._shown = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="service VM", daemon=True)
        self._memory = Memory()
        self._failure = ""
        self._passing = False
        self._trial: Trial | None = None
        self._upgrade = ""
        self._comparison, self._compared_at = (False, ""), -math.inf
        self._board: Inventory | None = None
        self._status = self._told(ServiceVmState.ABSENT, "not looked at yet")

    def status(self) -> ServiceVmStatus:
        """What the last look showed; never waits."""
        return self._status

    @property
    def images(self) -> ImageStore | None:
        """What it can boot; None where the settings name that."""
        return self._world.images

    @property
    def upgrade_failure(self) -> str:
        """Why the last upgrade was not kept; empty where it was."""
        return self._upgrade

    @property
    def agent(self) -> KeptAgent:
        """The agent in it."""
        return self._world.agent

    @property
    def board(self) -> Inventory | None:
        """The board, as it was last seen; None where it was not."""
        return self._board

    def step(self) -> None:
        """Look, decide, and act once."""
        with self._turn:
            try:
                seen, inventory = self.look(thorough=False)
                if why := self._observed():
                    self._show(seen, inventory, Decision(Action.WAIT, self._memory, f"it is only observed: {why}"))
                    return
                if self._settle_trial(seen) or self._wait_for_image(seen, inventory):
                    return
                decision = servicevm.decide(seen, self._memory, self._rules, self._clock())
                if decision.is_blind:
                    seen, inventory = self.look()
                    decision = servicevm.decide(seen, self._memory, self._rules, self._clock())
            except FmctlError as error:
                self._status = replace(self._status, message=str(error))
                return
            self._show(seen, inventory, decision)
            self._act(decision, inventory)

    @contextlib.contextmanager
    def turn(self, timeout: float) -> Iterator[None]:
        """Keep every step and every other command out for the block; raises FabricNotReady past half the time.

        Raises HostCordoned where nothing is changed on this host.
        """
        if why := self._observed():
            raise HostCordoned(
                "the Service VM is not changed", why=f"this host is only observed: {why}", fix="see `fmctl reconcile`"
            )
        if not self._turn.acquire(timeout=max(0.0, timeout / 2)):
            raise FabricNotReady(
                "the Service VM is being changed", why="another change is under way", fix="try again shortly"
            )
        try:
            yield
        finally:
            self._turn.release()

    def look(self, *, thorough: bool = True) -> tuple[Seen, Inventory | None]:
        """One look at libvirt, the agent and the board; raises HypervisorUnreachable.

        Who holds GPUs is looked for only if it is `thorough`: a guest that boots needs the processor.
        """
        domains = self.own.domains()
        seen = Seen(self.own.among(domains), None)
        if seen.domain is not None:
            with contextlib.suppress(AgentUnreachable):
                answer = self._world.agent.status(timeout=CALL_TIMEOUT)
                seen = replace(seen, fabric=answer.state, digest=answer.digest, mismatch=answer.versions_differ)
        try:
            self._board = inventory = self._world.inventory()
            return replace(seen, tenants=self.own.tenants(domains, inventory) if thorough else None), inventory
        except FmctlError as error:
            self._board = None
            log.warning("who holds the GPUs cannot be told: %s", error)
            return replace(seen, tenants=None), None

    def remember(self, memory: Memory) -> None:
        """Go on from that memory; with the turn."""
        self._memory = memory

    def start(self, inventory: Inventory | None) -> None:
        """Start the domain on request, and keep it running from now on; raises FmctlError. With the turn."""
        self._memory = servicevm.started(Memory(), self._clock())
        self._start(inventory)

    def begin_trial(self) -> None:
        """Start what the store says is being tried, once the domain is gone; with the turn."""
        self._memory, self._trial = Memory(), None
        self._failure = self._upgrade = ""

    def after(self) -> ServiceVmStatus:
        """The status after a command, which the next look may change; with the turn."""
        seen, inventory = self.look()
        self._show(seen, inventory, Decision(Action.WAIT, self._memory))
        self._wake.set()
        return self._status

    def rest(self, timeout: float) -> None:
        """Wait until the next look was shown, or so many seconds; without the turn."""
        self._shown.wait(timeout)
        self._shown.clear()

    def wake(self) -> None:
        """Let it look at once."""
        self._wake.set()

    def pause(self, timeout: float) -> None:
        """Wait so many seconds, or until somebody tells of a change."""
        self._wake.wait(timeout)
        self._wake.clear()

    def _settle_trial(self, seen: Seen) -> bool:
        """Keep the image that is being tried, or go back; whether it went back. Raises FmctlError."""
        images, now = self._world.images, self._clock()
        self._trial = upgrade.noted(self._trial, images.trial() if images else None, seen, now)
        if images is None or self._trial is None:
            return False
        failure = "" if self._passing else self._failure
        verdict, why = upgrade.judge(self._trial, seen, failure, now, self._settings.start_timeout_s)
        if verdict is Verdict.KEEP:
            images.choose(self._trial.image)
            images.set_trial(None)
            log.info("the image %s is ready, and is the one in use from now on", self._trial.image)
        elif verdict is Verdict.GO_BACK:
            self._go_back(images, self._trial.image, seen, why)
        if verdict is not Verdict.GO_ON:
            self._trial = None
        return verdict is Verdict.GO_BACK

    def _go_back(self, images: ImageStore, tried: str, seen: Seen, why: str) -> None:
        """End what is tried, and let the next look start the image in use."""
        if seen.domain is not None and seen.domain.image == tried:
            self.own.destroy(self._settings.stop_timeout_s, self.pause)
        self._upgrade = f"the image {tried} was tried and not kept: {why}"
        images.set_trial(None)
        self._memory, self._failure = Memory(), ""
        log.error("%s; going back to %s", self._upgrade, images.current() or "none")

    def _wait_for_image(self, seen: Seen, inventory: Inventory | None) -> bool:
        """Whether there is nothing to start: that is no start that failed. Raises FmctlError."""
        if seen.domain is not None or not self.own.has_nothing_to_boot:
            return False
        self._tell(self._told(ServiceVmState.ABSENT, f"no image is chosen: {CHOOSE}"))
        self.own.park(inventory)
        return True

    def _show(self, seen: Seen, inventory: Inventory | None, decision: Decision) -> None:
        state = servicevm.state(seen, self._failure)
        message = "" if decision.trouble is None else self._failure or decision.trouble.value
        if not decision.memory.wanted and seen.domain is None:
            message = "it was stopped on request"
        changed, unsafe = self._compared(seen, inventory, settled=state is ServiceVmState.READY)
        degraded = decision.degraded or unsafe
        if self._trial is not None and not degraded:
            degraded = f"the image {self._trial.image} is being tried"
        image = seen.domain.image if seen.domain else ""
        self._tell(replace(self._told(state, message, changed=changed, degraded=degraded), image=image))

    def _compared(self, seen: Seen, inventory: Inventory | None, *, settled: bool) -> tuple[bool, str]:
        """Whether the next start takes another domain, and why passthrough is not safe.

        What takes long is asked anew while settled, and else only once an interval.
        """
        now = self._clock()
        if settled or now - self._compared_at >= self._interval:
            changed = inventory is not None and seen.domain is not None and self.own.differs(seen.domain, inventory)
            self._comparison, self._compared_at = (changed, self.own.unsafe(inventory)), now
        changed, unsafe = self._comparison
        return changed and seen.domain is not None, unsafe

    def _told(
        self, state: ServiceVmState, message: str = "", *, changed: bool = False, degraded: str = ""
    ) -> ServiceVmStatus:
        settings = self._settings
        return ServiceVmStatus(
            state=state,
            message=message,
            name=str(settings.name),
            uuid=self.own.uuid,
            cid=settings.cid,
            changed=changed,
            degraded=degraded,
            console_log=str(settings.console_log),
            next_image=self._next_image(),
            upgrade=self._upgrade,
            fabric_generation=self._world.generation.current(),
        )

    def _next_image(self) -> str:
        images = self._world.images
        return (images.trial() or images.current() or "") if images else ""

    def _tell(self, status: ServiceVmStatus) -> None:
        before, self._status = self._status, status
        self._shown.set()
        if (before.state, before.degraded) != (status.state, status.degraded):
            why = status.degraded or status.message
            log.info("the Service VM is %s%s", status.state.value, f": {why}" if why else "")
            self._record(status.state.value, why)

    def _act(self, decision: Decision, inventory: Inventory | None) -> None:
        """Take the action. One that changed nothing is tried again, but for what an agent that is lost cannot hear."""
        before, self._memory = self._memory, decision.memory
        if decision.action is Action.WAIT:
            if decision.trouble is None:
                self._failure = ""
            if decision.trouble is Trouble.DEAD or not decision.memory.wanted:
                self.own.park(inventory)
            return
        why = decision.trouble.value if decision.trouble else ""
        log.info("to do: %s, since %s", decision.action.value, why)
        self._record(f"to do: {decision.action.value}", why)
        try:
            self._do(decision.action, inventory)
            self._failure = ""
        except FmctlError as error:
            if isinstance(error, _UNCHANGED) and decision.action is not Action.RESTART_AGENT:
                self._memory = before
            self._failure, self._passing = str(error), isinstance(error, _UNCHANGED)
            log.error("to %s failed: %s", decision.action.value, error)

    def _do(self, action: Action, inventory: Inventory | None) -> None:
        agent = self._world.agent
        if action is Action.START_FRESH:
            log.info("fabric generation %d begins", self._world.generation.advance())
            agent.start_fabric_manager(StartMode.FRESH, (), timeout=FM_TIMEOUT)
        elif action is Action.START_RESTART:
            agent.start_fabric_manager(StartMode.RESTART, self._world.active(), timeout=FM_TIMEOUT)
        elif action is Action.RESTART_AGENT:
            agent.restart(timeout=CALL_TIMEOUT)
        else:
            if action is Action.RESTART_VM:
                self.own.destroy(self._settings.stop_timeout_s, self.pause)
            self._start(inventory)

    def _start(self, inventory: Inventory | None) -> None:
        self._tell(replace(self._status, state=ServiceVmState.STARTING, message=""))
        try:
            self.own.start(inventory or self._world.inventory())
        except FmctlError as error:
            self._failure, self._passing = str(error), isinstance(error, _UNCHANGED)
            self._tell(self._told(ServiceVmState.FAILED, str(error)))
            raise
        self._failure = ""

    def _run(self) -> None:
        while not self._stopping:
            self._beat()
            began = time.monotonic()
            try:
                self.step()
            except Exception:
                log.exception("the look at the Service VM failed")
            settled = self._status.state is ServiceVmState.READY
            soon = max(UNSETTLED_INTERVAL, REST * (time.monotonic() - began))
            self.pause(self._interval if settled else min(self._interval, soon))

    def __enter__(self) -> ServiceVm:
        self._world.hypervisor.watch(self.wake)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=10.0)


_UNCHANGED = (AgentUnreachable, FabricNotReady)
"""The errors after which nothing was changed."""
