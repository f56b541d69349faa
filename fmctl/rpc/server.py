# SPDX-License-Identifier: Apache-2.0
"""What both servers have in common: where they listen, health, reflection, errors, and an orderly end.

`rpc.manager` holds the agent's service, and `rpc.services` puts the daemon's together.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fmctl.core.address import Address, TcpAddress, UnixAddress
from fmctl.core.answers import FabricState
from fmctl.core.errors import BadRequest, FmctlError
from fmctl.rpc import errors, keepalive
from fmctl.rpc.dial import target
from fmctl.rpc.unixsocket import SocketPlace

log = logging.getLogger(__name__)

STREAMS = 32
"""Streams without an end of their own that are served at once."""
THREADS = 16 + STREAMS
"""Calls that are served at once, since each takes a thread, started when it is needed first."""
DEFAULT_TIMEOUT = 60.0
"""Seconds that a call may take whose caller set no deadline."""

MANAGER_SERVICE = "fmctl.v1.FabricManagerService"
CONTROLLER_SERVICE = "fmctl.v1.FabricControllerService"
SERVICE_VM_SERVICE = "fmctl.v1.ServiceVmService"
LEASE_SERVICE = "fmctl.v1.LeaseService"
GPU_SERVICE = "fmctl.v1.GpuService"
LAYOUT_SERVICE = "fmctl.v1.LayoutService"
GPU_MAP_SERVICE = "fmctl.v1.GpuMapService"
HOOK_SERVICE = "fmctl.v1.HookService"
DAEMON_SERVICES = (
    *(CONTROLLER_SERVICE, SERVICE_VM_SERVICE, LEASE_SERVICE, GPU_SERVICE, LAYOUT_SERVICE, GPU_MAP_SERVICE),
    HOOK_SERVICE,
)
"""What the daemon serves; `rpc.services` registers them."""

Add = Callable[[grpc.Server], Callable[[], None] | None]
"""Registers services; what it returns ends those of their calls that have no end of their own, before a stop."""


@dataclass(frozen=True)
class Listening:
    """Where and how to serve. A TCP address is refused unless `insecure_tcp` is set, and then only on loopback."""

    address: Address
    group: str = ""
    insecure_tcp: bool = False
    reflection: bool = False


class Server:
    """A gRPC server with the standard health service. As a context manager it serves for as long as the block.

    Health: the empty name and the services' own tell whether the API serves, `MANAGER_SERVICE` whether Fabric Manager
    is ready, on the agent and on the daemon alike.
    """

    def __init__(
        self,
        listening: Listening,
        services: Sequence[str],
        add: Add,
        *,
        simulated: Callable[[], bool] = lambda: False,
    ) -> None:
        """`services` are the names of those that `add` registers."""
        self._listening = listening
        self._services = services
        self._grpc = grpc.server(
            futures.ThreadPoolExecutor(THREADS, thread_name_prefix="rpc"),
            interceptors=[_Errors(simulated)],
            options=(("grpc.so_reuseport", 0), *keepalive.server()),
        )
        self._end_streams = add(self._grpc)
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        if listening.reflection:
            _add_reflection(self._grpc, services)
        self._place: SocketPlace | None = None

    def fabric_changed(self, state: FabricState) -> None:
        """Tell the health service whether Fabric Manager is ready."""
        self._set_health(MANAGER_SERVICE, serving=state is FabricState.READY)

    def _set_health(self, service: str, *, serving: bool) -> None:
        states = health_pb2.HealthCheckResponse
        self._health.set(service, states.SERVING if serving else states.NOT_SERVING)

    def start(self) -> None:
        """Bind and serve; raises FmctlError where the address cannot be served at."""
        where = self._listening.address.where
        if isinstance(where, UnixAddress):
            self._place = SocketPlace(Path(where.path), self._listening.group)
            self._place.take()
        else:
            _refuse_tcp(self._listening)
        try:
            self._bind()
        except FmctlError:
            self.stop(grace=0)
            raise
        self._grpc.start()
        for service in ("", *self._services):
            self._set_health(service, serving=True)
        self._set_health(MANAGER_SERVICE, serving=False)

    def stop(self, grace: float = 5.0) -> None:
        """Take no new calls, let those under way end within `grace` seconds, then give the address free."""
        self._health.enter_graceful_shutdown()
        if self._end_streams is not None:
            self._end_streams()
        self._grpc.stop(grace).wait()
        if self._place is not None:
            self._place.release()

    def _bind(self) -> None:
        address = self._listening.address
        try:
            self._grpc.add_insecure_port(target(address))
        except RuntimeError as error:
            raise FmctlError(f"{address} cannot be served at", why=str(error), fix="listen elsewhere") from error
        if self._place is not None:
            self._place.open_to_group()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def time_left(context: grpc.ServicerContext) -> float:
    """Seconds to answer in: what the caller left, less a margin for the way back."""
    remaining = context.time_remaining()
    if remaining is None or remaining > DEFAULT_TIMEOUT * 60:
        return DEFAULT_TIMEOUT
    return remaining - min(0.5, 0.1 * remaining)


def _refuse_tcp(listening: Listening) -> None:
    where = listening.address.where
    if not isinstance(where, TcpAddress):
        raise BadRequest(f"{where} cannot be served at", why="grpcio knows no vsock", fix="listen at unix:PATH")
    if not listening.insecure_tcp:
        raise BadRequest(
            f"{where} is not served at",
            why="TCP has no authentication yet, so any local user could call",
            fix="listen at unix:PATH, or add --insecure-tcp to accept that",
        )
    if not where.is_loopback:
        raise BadRequest(
            f"{where} is not served at",
            why="it is not a loopback address, and TCP has no authentication yet",
            fix="listen at 127.0.0.1 or at unix:PATH",
        )
    log.warning("%s takes calls from every user of this machine: --insecure-tcp has no authentication", where)


def _add_reflection(server: grpc.Server, services: Sequence[str]) -> None:
    try:
        from grpc_reflection.v1alpha import reflection
    except ImportError:
        raise BadRequest(
            "reflection cannot be served", why="grpcio-reflection is not installed", fix="install fmctl[reflection]"
        ) from None
    reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), server)


class _Errors(grpc.ServerInterceptor):
    """Turns core errors into statuses, and anything unforeseen into INTERNAL with the trace in the log alone."""

    def __init__(self, simulated: Callable[[], bool]) -> None:
        self._simulated = simulated
        self._guarded: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        if method in self._guarded:
            return self._guarded[method]
        handler = continuation(handler_call_details)
        if handler is None:
            return handler
        if handler.unary_unary is not None:
            self._guarded[method] = self._guard(handler, handler.unary_unary, method)
        elif handler.unary_stream is not None and method.startswith("/fmctl."):
            self._guarded[method] = self._guard_stream(handler, handler.unary_stream, method)
        else:
            return handler
        return self._guarded[method]

    def _guard(
        self, handler: grpc.RpcMethodHandler[Any, Any], serve: Callable[..., Any], method: str
    ) -> grpc.RpcMethodHandler[Any, Any]:
        def guarded(request: Any, context: grpc.ServicerContext) -> Any:
            with self._guarding(context, method):
                return serve(request, context)

        return grpc.unary_unary_rpc_method_handler(guarded, handler.request_deserializer, handler.response_serializer)

    def _guard_stream(
        self, handler: grpc.RpcMethodHandler[Any, Any], serve: Callable[..., Any], method: str
    ) -> grpc.RpcMethodHandler[Any, Any]:
        def guarded(request: Any, context: grpc.ServicerContext) -> Any:
            with self._guarding(context, method):
                yield from serve(request, context)

        return grpc.unary_stream_rpc_method_handler(guarded, handler.request_deserializer, handler.response_serializer)

    @contextlib.contextmanager
    def _guarding(self, context: grpc.ServicerContext, method: str) -> Iterator[None]:
        try:
            yield
        except FmctlError as error:
            self._abort(context, error)
        except Exception as error:
            log.exception("%s failed", method)
            self._abort(context, FmctlError("fmctl failed", why=type(error).__name__, fix="look at its log"))

    def _abort(self, context: grpc.ServicerContext, error: FmctlError) -> None:
        from grpc_status import rpc_status

        context.abort_with_status(rpc_status.to_status(errors.to_status(error, simulated=self._simulated())))
