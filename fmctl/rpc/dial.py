# SPDX-License-Identifier: Apache-2.0
"""What every client has in common: a channel, and calls over it.

A client answers in core values and fails in core errors. `rpc.client` is for the daemon, `rpc.lease_client` for leases,
`rpc.hook` for libvirt's hook, and `rpc.agent_client` for the agent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import grpc

from fmctl.core.address import Address, UnixAddress, VsockAddress
from fmctl.core.errors import BadRequest
from fmctl.rpc import errors, keepalive

_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    keepalive.CONNECT,
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
)


def target(address: Address) -> str:
    """gRPC's name for the address; raises BadRequest for vsock, which grpcio cannot dial."""
    if isinstance(address.where, VsockAddress):
        raise BadRequest(f"{address} cannot be dialled", why="grpcio knows no vsock", fix="use unix:PATH or HOST:PORT")
    return str(address)


class Client:
    """A channel, and calls over it that end in values or in core errors."""

    def __init__(self, address: Address, who: str, name: str = "", options: keepalive.Options = ()) -> None:
        """Dial when first needed; `who` and `name`, or else the address, tell of the other side in messages."""
        is_unix = isinstance(address.where, UnixAddress)
        authority = (("grpc.default_authority", "localhost"),) if is_unix else ()
        self._who = f"{who} at {name or address}"
        self.channel = grpc.insecure_channel(target(address), options=(*_OPTIONS, *options, *authority))

    def close(self) -> None:
        """Close the channel; calls under way fail."""
        self.channel.close()

    def call(self, method: Callable[..., Any], request: Any, timeout: float, *, changes: bool = False) -> Any:
        """One call; `changes` tells whether it may change something."""
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise errors.from_rpc_error(cast("grpc.Call", error), who=self._who, changes=changes) from None
