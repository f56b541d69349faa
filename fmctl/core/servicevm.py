# SPDX-License-Identifier: Apache-2.0
"""The Service VM's life: what state it is in, and what to do next. Pure; `control.servicevm` looks and acts.

Opening and closing an NVSwitch resets it, so every start, reboot and end of the Service VM interrupts the NVLinks of
every tenant. Nothing here ends a live Service VM while a VM holds two or more GPUs. Once the Service VM has died or
rebooted the links are lost already: then starting it, and Fabric Manager afresh in it, is the repair, done at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from fmctl.core.answers import FabricState, ServiceVmState
from fmctl.core.domain import Domain, DomainState
from fmctl.core.inventory import Role
from fmctl.core.pci import Bdf
from fmctl.core.settings import Restart
from fmctl.core.vfio import Usage

RECONNECT_FOR = 20.0
"""Seconds for which a connection that broke, or a Fabric Manager that answers badly, is only asked again."""
FABRIC_RESTART_FOR = 90.0
"""Seconds that a restart of Fabric Manager has to help: its window of 60 s (FM User Guide), and a margin."""
LIMIT_WINDOW = 3600.0
"""Seconds over which restarts of the Service VM are counted."""
END_FOR = 60.0
"""Seconds that a domain has to end where an upgrade replaces it."""
BACK_OFF = 5.0
"""Seconds before the second start in a row, doubled for each further one up to `MAX_BACK_OFF`."""
MAX_BACK_OFF = 300.0


class Action(str, Enum):
    """What to do next."""

    WAIT = "wait"
    START = "start the Service VM"
    START_FRESH = "start Fabric Manager fresh"
    START_RESTART = "start Fabric Manager to take up its state"
    RESTART_AGENT = "restart the agent"
    RESTART_VM = "restart the Service VM"


class Trouble(str, Enum):
    """Why the Service VM is not ready, and who is to blame."""

    DEAD = "it is not running"
    BOOTING = "its agent has not answered yet"
    SILENT = "its agent answers no more"
    NOT_STARTED = "Fabric Manager is not started yet"
    ENDED = "Fabric Manager ended"
    STARTING = "Fabric Manager is not ready yet"
    UNWELL = "Fabric Manager does not answer as it should"


@dataclass(frozen=True)
class Tenant:
    """A VM that holds GPUs of the board."""

    name: str
    gpus: tuple[Bdf, ...]

    @property
    def uses_nvlink(self) -> bool:
        """Whether it may have NVLink traffic: one GPU alone has no peer."""
        return len(self.gpus) > 1

    def __str__(self) -> str:
        return f"{self.name} with {len(self.gpus)} GPUs"


@dataclass(frozen=True)
class Seen:
    """One look at everything.

    `tenants` is None where nobody looked, or could tell; `fabric` is None while the agent is silent.
    `digest` tells which agent answered, and `mismatch` how Fabric Manager's version differs from the driver's, as its
    AgentStatus does.
    """

    domain: Domain | None
    fabric: FabricState | None
    tenants: tuple[Tenant, ...] | None = ()
    digest: str = ""
    mismatch: str = ""


@dataclass(frozen=True)
class Memory:
    """What earlier looks and actions left, in seconds of one clock."""

    wanted: bool = True
    """Whether the Service VM is to run."""
    trouble: Trouble | None = None
    since: float = 0.0
    """When `trouble` began."""
    tried: tuple[Action, ...] = ()
    """The remedies since Fabric Manager was last ready, or the Service VM last started."""
    tried_at: float = 0.0
    starts: tuple[float, ...] = ()
    """When the Service VM was started, of late."""
    answered: bool = False
    """Whether the agent has answered since the Service VM started."""


@dataclass(frozen=True)
class Rules:
    """The settings that decide."""

    restart: Restart = Restart.WHEN_IDLE
    start_timeout: float = 300.0
    restart_limit: int = 5


@dataclass(frozen=True)
class Decision:
    """The next action, the memory to keep if it is taken, and why the host takes no new work, where it does not.

    `trouble` is what the action is to end. A decision is blind where it hangs on tenants that are not known.
    """

    action: Action
    memory: Memory
    degraded: str = ""
    trouble: Trouble | None = None
    is_blind: bool = False


def tenants(domains: Sequence[Domain], gpus: Sequence[Bdf]) -> tuple[Tenant, ...]:
    """The domains that hold GPUs of the board; the Service VM never does."""
    found = ((domain.name, tuple(sorted(set(domain.hostdevs) & set(gpus)))) for domain in domains)
    return tuple(Tenant(name, held) for name, held in found if held)


def others(usages: Sequence[Usage]) -> tuple[Tenant, ...]:
    """The holders of GPUs that no domain has: a QEMU started by hand, or another manager's VM."""
    held: dict[str, list[Bdf]] = {}
    for usage in usages:
        if usage.role is Role.GPU and usage.is_held:
            held.setdefault(usage.held_by, []).append(usage.function.bdf)
    return tuple(Tenant(name, tuple(gpus)) for name, gpus in held.items())


def interrupted(tenants: Sequence[Tenant] | None) -> tuple[Tenant, ...] | None:
    """Those whose NVLinks a reset of the NVSwitches would interrupt; None where nobody can tell."""
    return None if tenants is None else tuple(tenant for tenant in tenants if tenant.uses_nvlink)


def state(seen: Seen, failure: str) -> ServiceVmState:
    """The state to show; `failure` is why the last start failed, where it did."""
    if seen.domain is None:
        return ServiceVmState.FAILED if failure else ServiceVmState.ABSENT
    if seen.domain.state is not DomainState.RUNNING:
        return ServiceVmState.FAILED
    if seen.fabric is None:
        return ServiceVmState.FAILED if failure else ServiceVmState.BOOTING
    return _BY_FABRIC[seen.fabric]


_BY_FABRIC = {
    FabricState.UNREACHABLE: ServiceVmState.AGENT_UP,
    FabricState.NOT_STARTED: ServiceVmState.AGENT_UP,
    FabricState.ENDED: ServiceVmState.AGENT_UP,
    FabricState.INITIALISING: ServiceVmState.INITIALISING,
    FabricState.AWAITING_ACTIVE_LIST: ServiceVmState.AWAITING_ACTIVE_LIST,
    FabricState.READY: ServiceVmState.READY,
    FabricState.FAILED: ServiceVmState.FAILED,
}


_LADDER = {
    Trouble.BOOTING: (Action.RESTART_VM,),
    Trouble.SILENT: (Action.RESTART_AGENT, Action.RESTART_VM),
    Trouble.NOT_STARTED: (Action.START_FRESH, Action.RESTART_VM),
    Trouble.ENDED: (Action.START_RESTART, Action.START_FRESH, Action.RESTART_VM),
    Trouble.STARTING: (Action.RESTART_VM,),
    Trouble.UNWELL: (Action.RESTART_AGENT, Action.START_RESTART, Action.RESTART_VM),
}
"""The remedies for each trouble, the gentlest first. The last one begins another life, so it is never used up."""

_CONCLUSIVE = frozenset({Trouble.NOT_STARTED, Trouble.ENDED})
"""Troubles that do not pass by themselves, so that waiting helps nobody."""


def decide(seen: Seen, memory: Memory, rules: Rules, now: float) -> Decision:
    """The next action."""
    trouble = _trouble(seen, memory)
    if not memory.wanted:
        return Decision(Action.WAIT, memory)
    if trouble is None:
        return Decision(Action.WAIT, replace(memory, trouble=None, tried=(), answered=True))
    memory = replace(memory, answered=memory.answered or seen.fabric is not None)
    if trouble is not memory.trouble:
        memory = replace(memory, trouble=trouble, since=now)
    if trouble is Trouble.DEAD:
        decision = _start(memory, rules, now)
    elif seen.domain is not None and not seen.domain.fingerprint:
        decision = Decision(Action.WAIT, memory, f"the domain {seen.domain.name} runs, and fmctl did not start it")
    elif seen.mismatch:
        decision = Decision(Action.WAIT, memory, f"{trouble.value}, and no remedy helps: {seen.mismatch}")
    else:
        decision = _remedy(trouble, seen, memory, rules, now)
    return replace(decision, trouble=trouble)


def _trouble(seen: Seen, memory: Memory) -> Trouble | None:
    if seen.domain is None:
        return Trouble.DEAD
    if seen.fabric is None or seen.domain.state is not DomainState.RUNNING:
        return Trouble.SILENT if memory.answered else Trouble.BOOTING
    return _TROUBLE_BY_FABRIC.get(seen.fabric)


_TROUBLE_BY_FABRIC = {
    FabricState.NOT_STARTED: Trouble.NOT_STARTED,
    FabricState.ENDED: Trouble.ENDED,
    FabricState.INITIALISING: Trouble.STARTING,
    FabricState.AWAITING_ACTIVE_LIST: Trouble.STARTING,
    FabricState.UNREACHABLE: Trouble.UNWELL,
    FabricState.FAILED: Trouble.UNWELL,
}


def _start(memory: Memory, rules: Rules, now: float) -> Decision:
    """Start what is dead: the first time at once, then ever later, and not more often than the limit allows."""
    recent = tuple(start for start in memory.starts if now - start < LIMIT_WINDOW)
    if len(recent) > rules.restart_limit:
        return Decision(
            Action.WAIT, memory, f"the Service VM was started {len(recent)} times within an hour and did not last"
        )
    if recent and now - recent[-1] < min(MAX_BACK_OFF, BACK_OFF * 2 ** (len(recent) - 1)):
        return Decision(Action.WAIT, memory)
    return Decision(Action.START, started(memory, now))


def started(memory: Memory, now: float) -> Memory:
    """The memory after a start of the Service VM."""
    recent = tuple(start for start in memory.starts if now - start < LIMIT_WINDOW)
    return Memory(starts=(*recent, now), since=now)


def _remedy(trouble: Trouble, seen: Seen, memory: Memory, rules: Rules, now: float) -> Decision:
    action = next(action for action in _LADDER[trouble] if action not in memory.tried)
    if now - max(memory.since, memory.tried_at if memory.tried else 0.0) < _patience(trouble, memory, rules):
        return Decision(Action.WAIT, memory)
    if _interrupts(action, trouble) and rules.restart is not Restart.ALWAYS:
        using = interrupted(seen.tenants)
        if using is None:
            return Decision(
                Action.WAIT,
                memory,
                f"{trouble.value}, and what {action.value} would interrupt is not known",
                is_blind=True,
            )
        if using:
            names = ", ".join(map(str, using))
            return Decision(Action.WAIT, memory, f"{trouble.value}, and to {action.value} would interrupt {names}")
    if action is Action.RESTART_VM:
        return _restart(trouble, memory, rules, now)
    return Decision(action, replace(memory, tried=(*memory.tried, action), tried_at=now))


def _restart(trouble: Trouble, memory: Memory, rules: Rules, now: float) -> Decision:
    decision = _start(memory, rules, now)
    if decision.action is Action.START:
        return replace(decision, action=Action.RESTART_VM)
    return replace(decision, degraded=decision.degraded or f"{trouble.value}, and its restart must wait")


def _patience(trouble: Trouble, memory: Memory, rules: Rules) -> float:
    """Seconds to wait, since the trouble began or the last remedy was tried, before the next one."""
    if memory.tried:
        last = memory.tried[-1]
        return RECONNECT_FOR if trouble is Trouble.ENDED else _SETTLING.get(last, rules.start_timeout)
    if trouble in _CONCLUSIVE:
        return 0.0
    return rules.start_timeout if trouble in (Trouble.BOOTING, Trouble.STARTING) else RECONNECT_FOR


_SETTLING = {Action.RESTART_AGENT: RECONNECT_FOR, Action.START_RESTART: FABRIC_RESTART_FOR}
"""Seconds that a remedy has to help; `start_timeout` where none stands here."""


def _interrupts(action: Action, trouble: Trouble) -> bool:
    """Whether it ends NVLink traffic; a Fabric Manager that never started in this boot has none to end."""
    return action is Action.RESTART_VM or (action is Action.START_FRESH and trouble is not Trouble.NOT_STARTED)
