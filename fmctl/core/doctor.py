# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a host, put together from what its parts say: a line each, and what to do. `cli.doctor` asks them.

What only a person can mend, and keeps tenants from their GPUs, has failed. What passes by itself, or concerns one GPU
or one lock of the gate, is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from fmctl.core import hook
from fmctl.core.answers import DaemonStatus, FabricState, HookLoad, ServiceVmState, ServiceVmStatus
from fmctl.core.book import MarkKind
from fmctl.core.errors import FmctlError
from fmctl.core.finding import Finding
from fmctl.core.mapsource import MapState
from fmctl.core.mapstatus import MapStatus
from fmctl.core.marked import MarkedGpu


class Level(str, Enum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Check:
    """What one part says; `name` stays the same between versions, and `fix` is empty where there is nothing to do."""

    name: str
    level: Level
    what: str
    fix: str = ""


def of_error(name: str, error: FmctlError) -> Check:
    """What could not be asked, or answered with an error."""
    return Check(name, Level.FAILED, str(error), error.fix)


def of_leases(count: int) -> Check:
    """That the store of leases can be read, which tells of so many."""
    return Check("store", Level.OK, f"it can be read, and has {count} lease{'s' * (count != 1)}")


def of_findings(board: str, findings: Sequence[Finding]) -> tuple[Check, ...]:
    """What makes passthrough of the board unsafe or impossible."""
    found = tuple(Check(each.name, Level.FAILED, f"{each.what}; {each.why}", each.fix) for each in findings)
    return found or (Check("passthrough", Level.OK, f"this host can pass {board} on to VMs"),)


def of_board(name: str, error: FmctlError, status: DaemonStatus | None) -> Check:
    """What it means that the board is not there; it need not be where the daemon's is elsewhere or pretended."""
    elsewhere = status is not None and (status.simulated or status.service_vm.state is ServiceVmState.UNMANAGED)
    return Check(name, Level.WARNING if elsewhere else Level.FAILED, str(error), error.fix)


def of_hook(load: HookLoad) -> tuple[Check, ...]:
    """Whether libvirt calls the hook. One that is installed is called once a VM starts, so it only may have failed."""
    if load is HookLoad.UNKNOWN:
        return ()
    level = {HookLoad.LOADED: Level.OK, HookLoad.NOT_LOADED: Level.WARNING}.get(load, Level.FAILED)
    why, fix = hook.NOT_CALLED.get(load, ("", ""))
    return (Check("hook", level, f"{load.value}; the gate is degraded, for {why}" if why else load.value, fix),)


def of_status(status: DaemonStatus, address: object) -> Iterator[Check]:
    """What the daemon says of itself and of all behind it, but the hook and new work."""
    pretended = ", and its board is simulated" if status.simulated else ""
    yield Check("daemon", Level.OK, f"{status.version} answers at {address}{pretended}")
    yield from _service_vm(status.service_vm)
    if not status.agent.reachable:
        yield Check("agent", Level.FAILED, status.fabric_message or "it is unreachable", _AGENT_FIX)
        return
    yield Check("agent", Level.OK, f"{status.agent.version} answers at {status.agent.address}")
    fabric = status.fabric_state
    level = Level.OK if fabric is FabricState.READY else Level.WARNING if fabric in _PASSING else Level.FAILED
    message = f": {status.fabric_message}" if status.fabric_message else ""
    yield Check("fabric-manager", level, f"{fabric.value}{message}", "" if level is Level.OK else _LOGS)
    if status.agent.versions_differ:
        yield Check("versions", Level.FAILED, status.agent.versions_differ, _VERSIONS_FIX)


def of_map(status: MapStatus) -> Check:
    """Whether anything may be activated by the GPU map."""
    verified = status.state is MapState.VERIFIED
    fix = "" if verified else f"see `fmctl gpumap show`: {status.fix}"
    return Check("gpu-map", Level.OK if verified else Level.FAILED, f"{status.state.value}: {status.why}", fix)


def of_gpus(gpus: Sequence[MarkedGpu]) -> Iterator[Check]:
    """Which GPUs could not be cleaned."""
    quarantined = [(each.gpu.physical_id, mark) for each in gpus for mark in each.marks if mark.kind is _SET_ASIDE]
    for number, mark in quarantined:
        fix = f"mend it, then `fmctl gpu unquarantine {number} --reason TEXT`"
        yield Check("quarantine", Level.WARNING, f"GPU {number} is quarantined: {mark.reason}", fix)
    if not quarantined:
        yield Check("quarantine", Level.OK, f"none of {len(gpus)} GPUs is quarantined")


def of_gate(status: DaemonStatus) -> Iterator[Check]:
    """What VMs have that they were not given, and whether anybody is given anything."""
    for alarm in status.gate.alarms:
        yield Check("alarm", Level.FAILED, alarm, "find out who started it, and end it")
    refused = status.new_work.refused
    if refused:
        yield Check("new-work", Level.FAILED, f"this host takes none: {refused}", status.new_work.fix)
    else:
        yield Check("new-work", Level.OK, "this host takes new work")


def _service_vm(seen: ServiceVmStatus) -> Iterator[Check]:
    if seen.state is ServiceVmState.UNMANAGED:
        return
    state, message = seen.state, f": {seen.message}" if seen.message else ""
    bad = state in (ServiceVmState.ABSENT, ServiceVmState.FAILED)
    level = Level.FAILED if bad else Level.OK if state is ServiceVmState.READY else Level.WARNING
    yield Check("service-vm", level, f"{state.value}{message}", _SERVICE_VM_FIXES.get(state, ""))
    if seen.upgrade:
        yield Check("upgrade", Level.WARNING, f"the last upgrade was not kept: {seen.upgrade}", _LOGS)


_SET_ASIDE = MarkKind.QUARANTINED
_LOGS = "see `fmctl service-vm log` and `journalctl -u fmctld`"
_PASSING = (FabricState.INITIALISING, FabricState.AWAITING_ACTIVE_LIST)
_AGENT_FIX = "see `fmctl service-vm console`, and that the Service VM and the agent in it run"
_VERSIONS_FIX = "`fmctl service-vm upgrade` to an image in which they are the same"
_SERVICE_VM_FIXES = {
    ServiceVmState.ABSENT: "`fmctl service-vm start`, once an image is chosen",
    ServiceVmState.STARTING: "wait, and see `fmctl service-vm console`",
    ServiceVmState.BOOTING: "wait, and see `fmctl service-vm console`",
    ServiceVmState.AGENT_UP: _LOGS,
    ServiceVmState.INITIALISING: "wait, and see `fmctl service-vm log`",
    ServiceVmState.AWAITING_ACTIVE_LIST: "it passes within a minute",
    ServiceVmState.FAILED: f"`fmctl host check`, `fmctl inventory`; {_LOGS}",
}
