# SPDX-License-Identifier: Apache-2.0
"""gRPC between the daemon and the agent in the Service VM, over vsock, which grpcio cannot dial.

Both speak gRPC on a unix socket of their own, and a relay on each side carries the bytes: `to_agent` on the host,
`from_host` in the Service VM. Nothing listens on vsock on the host.

What Linux does (net/vmw_vsock/af_vsock.c, drivers/vhost/vsock.c):

- A port below 1024 is bound only by a process with CAP_NET_BIND_SERVICE in the initial user namespace, which a
  container keeps where it has none of its own. A CID alone is any process of the host.
- vhost takes from a VM only packets with the VM's own CID, and nothing from one VM to another.
- Connecting ends with ECONNRESET where nobody listens, ENODEV where no VM has the CID, and after 2 s with ETIMEDOUT
  where the VM does not answer.
- When QEMU ends, its VM's connections are reset. When a VM reboots under the same QEMU the host hears nothing until
  it sends, which the new kernel answers with a reset. So only traffic finds a VM that rebooted or hangs, and gRPC's
  keepalive is what makes some.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import socket
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from fmctl.core.address import VsockAddress
from fmctl.core.errors import AgentUnreachable
from fmctl.rpc.endpoints import LAST_RESERVED_PORT, dial_unix, dial_vsock, listen_privately, listen_vsock
from fmctl.rpc.exchange import within
from fmctl.rpc.relay import Dial, Relay

CHECK_TIMEOUT = 4.0
"""Seconds that one check of the domain may take."""


def to_agent(path: Path, agent: VsockAddress, check: Callable[[], None], *, dial: Dial | None = None) -> Relay:
    """The host's side: from a unix socket at `path`, for this user alone, to the agent.

    `check` raises FmctlError unless the running domain of ours has the agent's CID; it is asked before and after each
    connecting, in a thread, and may block. `dial` takes vsock's place where there is none.
    """
    return Relay(
        f"the agent at {agent}",
        functools.partial(listen_privately, path),
        checked(check, dial or dial_vsock(agent)),
    )


def from_host(port: int, allowed_peers: Collection[int], agent: Path) -> Relay:
    """The Service VM's side: from a vsock port to the agent's unix socket, for the allowed CIDs alone."""
    return Relay(
        f"the agent at unix:{agent}",
        functools.partial(listen_vsock, port),
        dial_unix(agent),
        refusal=functools.partial(refusal, allowed_peers),
    )


def refusal(allowed: Collection[int], peer: tuple[int, int]) -> str:
    """Why a peer, by its CID and port, may not call; empty where it may."""
    cid, port = peer
    if cid not in allowed:
        return f"CID {cid} is none of allowed_peers"
    if port > LAST_RESERVED_PORT:
        return f"CID {cid} called from a port above {LAST_RESERVED_PORT}, as any of its processes can"
    return ""


def checked(check: Callable[[], None], dial: Dial, *, timeout: float = CHECK_TIMEOUT) -> Dial:
    """Asks `check` before and after dialling.

    It runs in a thread, which is abandoned after `timeout` seconds; no other starts before that one has ended.
    """
    free = asyncio.Lock()

    async def ask() -> None:
        try:
            await within(timeout, _in_thread(check, free))
        except TimeoutError:
            raise AgentUnreachable(
                "the agent was not dialled",
                why=f"whether its domain runs could not be told within {timeout:g} s",
                fix="see that libvirtd answers",
            ) from None

    async def dial_checked(cleanup: contextlib.ExitStack) -> socket.socket:
        await ask()
        far = await dial(cleanup)
        await ask()
        return far

    return dial_checked


async def _in_thread(function: Callable[[], None], free: asyncio.Lock) -> None:
    """Run what may block for ever, once `free` is; the lock is held until it returns, also where nobody waits."""
    await free.acquire()
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def end(error: Exception | None) -> None:
        free.release()
        if ended.cancelled():
            return
        if error:
            ended.set_exception(error)
        else:
            ended.set_result(None)

    def run() -> None:
        failure = None
        try:
            function()
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the relay has stopped, and its loop with it
            loop.call_soon_threadsafe(end, failure)

    try:
        threading.Thread(target=run, name="relay-check", daemon=True).start()
    except RuntimeError as error:
        end(OSError(errno.EAGAIN, str(error)))
    await ended
