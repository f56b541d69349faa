# SPDX-License-Identifier: Apache-2.0
"""`fmctl status` and `wait`."""

from __future__ import annotations

import datetime
from typing import Any

import click

from fmctl.cli import options, render
from fmctl.cli.options import Connection
from fmctl.cli.partitions import dialled
from fmctl.core.answers import DaemonStatus, FabricState
from fmctl.core.errors import AgentUnreachable, FabricNotReady

_POLL = 0.2


@click.command()
@options.output("text", "json", "yaml")
@options.connection
def status(connection: Connection, style: str) -> None:
    """Tell how the daemon, the agent and Fabric Manager are."""
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

    Or until it is in another state; exit status 5 when --timeout passes first.
    """
    import tenacity

    state = _state(wanted)
    with dialled(connection) as (client, timeout):

        def look() -> None:
            answer = client.status(timeout=timeout)
            if answer.fabric_state is not state:
                raise FabricNotReady(
                    f"Fabric Manager is {answer.fabric_state.value}, not {state.value}",
                    why=answer.fabric_message,
                    fix="wait longer with --timeout, or see `fmctl status`",
                )

        tenacity.retry(
            retry=tenacity.retry_if_exception_type((AgentUnreachable, FabricNotReady)),
            wait=tenacity.wait_fixed(_POLL),
            stop=tenacity.stop_after_delay(timeout),
            reraise=True,
        )(look)()


def _state(wanted: str) -> FabricState:
    word = "ready" if wanted == "ready" else wanted.removeprefix("state=")
    try:
        return FabricState(word)
    except ValueError:
        states = ", ".join(state.value for state in FabricState)
        raise click.BadParameter(f"{wanted!r} is neither ready nor state= with one of {states}.") from None


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
        },
        "fabric": {"state": answer.fabric_state.value, "message": answer.fabric_message},
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
        (
            "agent",
            f"{agent.version if agent.reachable else 'unreachable'}, at {agent.address}",
            _colour(agent.reachable),
        ),
        ("library", agent.library or "unknown", ""),
        ("fabric", answer.fabric_state.value, _colour(ready)),
        ("why", answer.fabric_message, ""),
    ]
    console = Console(highlight=False, soft_wrap=True)
    for key, value, colour in rows:
        if value:
            console.print(Text.assemble(f"{key:<10}", (value, colour)))


def _colour(good: object) -> str:
    return "green" if good else "yellow"
