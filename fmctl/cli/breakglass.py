# SPDX-License-Identifier: Apache-2.0
"""`fmctl --agent ADDRESS`: what a person asks of the agent itself, where there is no daemon.

What the daemon would have checked, this checks as far as it can be told here: that the VM is the Service VM, and that
nobody has the GPUs open.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fmctl.cli import options, render
from fmctl.cli.config import read
from fmctl.core.address import Address, UnixAddress, VsockAddress
from fmctl.core.answers import AgentStatus, Changed, Listed
from fmctl.core.errors import AgentUnreachable, FmctlError
from fmctl.core.fmcode import Operation
from fmctl.core.settings import DaemonSettings

if TYPE_CHECKING:
    from fmctl.rpc.agent_client import AgentClient
    from fmctl.rpc.relay import Relay


def listed(agent: Address, timeout: float | None) -> Listed:
    """Every partition; whose they are the agent does not know."""
    with _dialled(agent, timeout) as (client, within):
        return Listed(client.list_partitions(timeout=within))


def status(agent: Address, timeout: float | None, style: str) -> str:
    """The agent, and Fabric Manager behind it, in one of the formats of `fmctl status`."""
    with _dialled(agent, timeout) as (client, within):
        seen = client.status(timeout=within)
    if style != "text":
        return render.document(_plain(seen), style)
    rows = [
        ("agent", f"{seen.version}, at {agent}" + (" (simulated)" if seen.simulated else "")),
        ("daemon", "connected to this agent" if seen.has_daemon else "not connected to this agent"),
        ("library", seen.library),
        ("FM", seen.fm_version),
        ("driver", seen.driver_version),
        ("versions", seen.versions_differ),
        ("fabric", seen.state.value),
        ("why", seen.message),
    ]
    return "".join(f"{label:<11}{value}\n" for label, value in rows if value)


def activate(
    agent: Address, timeout: float | None, partition_id: int | None, gpu_ids: Sequence[int], reason: str
) -> Changed:
    """Activate a partition by its id, or by exactly its GPUs."""
    with _dialled(agent, timeout) as (client, within):
        if partition_id is None:
            partition_id = client.list_partitions(timeout=within).with_gpus(gpu_ids).id
        return client.break_glass(Operation.ACTIVATE, partition_id, user=_user(), reason=reason, timeout=within)


def deactivate(agent: Address, timeout: float | None, partition_id: int, reason: str) -> Changed:
    """Deactivate a partition whose GPUs nobody has open on this host."""
    from fmctl import local

    with _dialled(agent, timeout) as (client, within):
        found = client.list_partitions(timeout=within)
        gpus = found.get(partition_id).gpu_ids
        if not found.simulated:
            local.refuse_open(read(DaemonSettings, None), gpus)
        return client.break_glass(Operation.DEACTIVATE, partition_id, user=_user(), reason=reason, timeout=within)


@contextlib.contextmanager
def _dialled(agent: Address, timeout: float | None) -> Iterator[tuple[AgentClient, float]]:
    """The agent, and the seconds that a call to it may take; over vsock through a relay of this process's."""
    from fmctl.rpc.agent_client import AgentClient

    where, dialled, relay = agent.where, agent, None
    with contextlib.ExitStack() as stack:
        if isinstance(where, VsockAddress):
            from fmctl.rpc import vsock

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fmctl-")))
            path = folder / "relay" / "agent.sock"
            relay = stack.enter_context(vsock.to_agent(path, where, _checking(where.cid)))
            dialled = Address(UnixAddress(str(path)))
        client = AgentClient(dialled, name=str(agent), failure=_failure(relay))
        stack.enter_context(contextlib.closing(client))
        yield client, timeout or options.DEFAULT_TIMEOUT


def _failure(relay: Relay | None) -> Callable[[], FmctlError | None]:
    return lambda: relay.last_failure if relay else None


def _checking(cid: int) -> Callable[[], None]:
    """A check that the Service VM has that context id; without libvirt's answer it says so, once, and goes on."""
    from fmctl import local

    settings, told = read(DaemonSettings, None), False

    def check() -> None:
        nonlocal told
        try:
            local.verify_service_vm(settings, cid)
        except AgentUnreachable:
            raise
        except FmctlError as error:
            if not told:
                click.echo(f"fmctl: that CID {cid} is the Service VM is not verified: {error}", err=True)
            told = True

    return check


def _user() -> str:
    """Who asks, as far as known: behind sudo, and on which host."""
    user, behind = options.calling_user(), os.environ.get("SUDO_USER", "")
    return f"{user}{f' ({behind} by sudo)' if behind and behind != user else ''} at {socket.gethostname()}"[:128]


def _plain(seen: AgentStatus) -> dict[str, Any]:
    return {
        "simulated": seen.simulated,
        "agent": {
            "version": seen.version,
            "library": seen.library,
            "digest": seen.digest,
            "fm_version": seen.fm_version,
            "driver_version": seen.driver_version,
            "versions_differ": seen.versions_differ,
            "has_daemon": seen.has_daemon,
        },
        "fabric": {"state": seen.state.value, "message": seen.message},
    }
