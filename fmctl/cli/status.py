# SPDX-License-Identifier: Apache-2.0
"""`fmctl status` and `wait`."""

from __future__ import annotations

import datetime
from typing import Any

import click

from fmctl.cli import options, render
from fmctl.cli.options import Connection
from fmctl.cli.partitions import dialled
from fmctl.core.answers import (
    AgentInfo,
    DaemonStatus,
    FabricState,
    GateStatus,
    HookLoad,
    ServiceVmState,
    ServiceVmStatus,
)
from fmctl.core.errors import AgentUnreachable, FabricNotReady

_POLL = 0.2
_LOOK = 5.0
"""Seconds that one look of `fmctl wait` may take, so that a daemon that hangs does not use up its time."""


@click.command()
@options.output("text", "json", "yaml")
@options.connection
def status(connection: Connection, style: str) -> None:
    """Tell how the daemon is, and all behind it."""
    if connection.agent:
        from fmctl.cli import breakglass

        click.echo(breakglass.status(connection.agent, connection.timeout, style), nl=False)
        return
    with dialled(connection) as (client, timeout):
        answer = client.status(timeout=timeout)
    if style == "text":
        _show(answer)
    else:
        click.echo(render.document(_plain(answer), style), nl=False)


@click.command()
@click.option(
    "--for",
    "wanted",
    metavar="CONDITION",
    default="ready",
    show_default=True,
    help="ready, or state=STATE with a state that `fmctl status` shows.",
)
@options.connection
def wait(connection: Connection, wanted: str) -> None:
    """Wait until Fabric Manager is ready.

    Or until it, or the Service VM, is in another state; exit status 5 when --timeout passes first.
    """
    import tenacity

    state = _state(wanted)
    with dialled(connection) as (client, timeout):

        def look() -> None:
            _refuse_unlike(client.status(timeout=min(timeout, _LOOK)), state)

        tenacity.retry(
            retry=tenacity.retry_if_exception_type((AgentUnreachable, FabricNotReady)),
            wait=tenacity.wait_fixed(_POLL),
            stop=tenacity.stop_after_delay(timeout),
            reraise=True,
        )(look)()


def _is(answer: DaemonStatus, state: str) -> bool:
    """Whether Fabric Manager or the Service VM is in that state; ready are both, where the Service VM is ours."""
    states = (answer.fabric_state.value, answer.service_vm.state.value)
    if state == "ready" and answer.service_vm.state is not ServiceVmState.UNMANAGED:
        return states == (state, state)
    return state in states


def _refuse_unlike(answer: DaemonStatus, state: str) -> None:
    """Raise FabricNotReady unless it is so; not ready is also a host on which GPUs are still asked which they are."""
    if not _is(answer, state):
        raise FabricNotReady(
            f"{_who(answer)}, not {state}",
            why=answer.service_vm.message or answer.fabric_message,
            fix="wait longer with --timeout, or see `fmctl status`",
        )
    if state == "ready" and answer.new_work.passing:
        raise FabricNotReady("this host takes no new work yet", why=answer.new_work.refused, fix=answer.new_work.fix)


def _who(answer: DaemonStatus) -> str:
    if answer.service_vm.state is ServiceVmState.UNMANAGED:
        return f"Fabric Manager is {answer.fabric_state.value}"
    return f"the Service VM is {answer.service_vm.state.value}"


def _state(wanted: str) -> str:
    word = "ready" if wanted == "ready" else wanted.removeprefix("state=")
    states = dict.fromkeys([*(state.value for state in FabricState), *(state.value for state in ServiceVmState)])
    if word not in states:
        raise click.BadParameter(f"{wanted!r} is neither ready nor state= with one of {', '.join(states)}.")
    return word


def _plain(answer: DaemonStatus) -> dict[str, Any]:
    return {
        "version": answer.version,
        "started": _time(answer),
        "platform": answer.platform,
        "simulated": answer.simulated,
        "agent": {
            "address": answer.agent.address,
            "reachable": answer.agent.reachable,
            "version": answer.agent.version,
            "library": answer.agent.library,
            "digest": answer.agent.digest,
            "fm_version": answer.agent.fm_version,
            "driver_version": answer.agent.driver_version,
            "versions_differ": answer.agent.versions_differ,
        },
        "fabric": {
            "state": answer.fabric_state.value,
            "message": answer.fabric_message,
            "generation": answer.service_vm.fabric_generation,
        },
        "service_vm": service_vm_plain(answer.service_vm),
        "gate": {
            "hook": answer.gate.hook.value,
            "degraded": answer.gate.degraded,
            "alarms": list(answer.gate.alarms),
        },
        "new_work": vars(answer.new_work),
    }


def service_vm_plain(seen: ServiceVmStatus) -> dict[str, Any]:
    """The Service VM as plain data."""
    return {
        "state": seen.state.value,
        "message": seen.message,
        "name": seen.name,
        "uuid": seen.uuid,
        "cid": seen.cid,
        "changed": seen.changed,
        "degraded": seen.degraded,
        "console_log": seen.console_log,
        "image": seen.image,
        "next_image": seen.next_image,
        "upgrade": seen.upgrade,
    }


def _time(answer: DaemonStatus) -> str:
    started = datetime.datetime.fromtimestamp(answer.started, datetime.timezone.utc)
    return started.isoformat(timespec="seconds")


def _show(answer: DaemonStatus) -> None:
    from rich.console import Console
    from rich.text import Text

    agent, ready = answer.agent, answer.fabric_state is FabricState.READY
    rows = [
        ("daemon", f"{answer.version}, since {_time(answer)}", ""),
        ("platform", (answer.platform or "unknown") + (" (simulated)" if answer.simulated else ""), ""),
        *_service_vm_rows(answer.service_vm),
        (
            "agent",
            f"{agent.version if agent.reachable else 'unreachable'}, at {agent.address}",
            _colour(agent.reachable),
        ),
        ("library", agent.library or "unknown", ""),
        ("versions", _versions(agent), "yellow" if agent.versions_differ else ""),
        ("fabric", answer.fabric_state.value, _colour(ready)),
        ("why", answer.fabric_message, ""),
        *_gate_rows(answer.gate),
        ("new work", f"none: {answer.new_work.refused}" if answer.new_work.refused else "", "red"),
        ("do", answer.new_work.fix, ""),
    ]
    console = Console(highlight=False, soft_wrap=True)
    for key, value, colour in rows:
        if value:
            console.print(Text.assemble(f"{key:<11}", (value, colour)))


def _gate_rows(gate: GateStatus) -> list[tuple[str, str, str]]:
    hook = "" if gate.hook is HookLoad.UNKNOWN else gate.hook.value
    return [
        ("hook", hook, _colour(gate.hook is HookLoad.LOADED)),
        ("gate", f"degraded: {gate.degraded}" if gate.degraded else "", "yellow"),
        *(("alarm", alarm, "red") for alarm in gate.alarms),
    ]


def _service_vm_rows(seen: ServiceVmStatus) -> list[tuple[str, str, str]]:
    if seen.state is ServiceVmState.UNMANAGED:
        return []
    changed = ", and its next start takes another domain" if seen.changed else ""
    return [
        ("service VM", f"{seen.state.value}, domain {seen.name}{changed}", _colour(seen.state is ServiceVmState.READY)),
        ("why", seen.message, ""),
        ("image", _image(seen), ""),
        ("upgrade", seen.upgrade, "yellow"),
    ]


def _image(seen: ServiceVmStatus) -> str:
    if not seen.next_image or seen.image in ("", seen.next_image):
        return seen.image or seen.next_image
    return f"{seen.image}, and its next start takes {seen.next_image}"


def _versions(agent: AgentInfo) -> str:
    known = (("Fabric Manager", agent.fm_version), ("driver", agent.driver_version))
    return agent.versions_differ or ", ".join(f"{name} {version}" for name, version in known if version)


def _colour(good: object) -> str:
    return "green" if good else "yellow"
