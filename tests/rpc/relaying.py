# SPDX-License-Identifier: Apache-2.0
"""Two relays with a gRPC server behind them: over TCP, or over vsock where the machine has its loopback.

As a program it is the Service VM's half: a gRPC server at a unix socket, and the relay that leads to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, Protocol

import grpc

from fmctl.core.address import VsockAddress
from fmctl.rpc import keepalive
from fmctl.rpc.endpoints import dial_unix
from fmctl.rpc.relay import Relay
from fmctl.rpc.vsock import from_host, to_agent

VSOCK_PORT = 1_000_000 + os.getpid()
"""One that no other run of the tests has: vsock's ports are the whole machine's."""
LOCAL_CID = 1
"""vsock's loopback (VMADDR_CID_LOCAL), to itself as well as to others."""
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
EAGER = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.default_authority", "localhost"),
)


def nothing() -> None:
    """A check that always agrees."""


class Network(Protocol):
    """What lies between two relays, and their halves on it."""

    port: int

    def service_vm(self, agent: Path) -> Relay: ...

    def host(self, path: Path, check: Callable[[], None] = nothing) -> Relay: ...


class Tcp:
    """TCP on loopback in vsock's place; port 0 is replaced by the one that is listened at."""

    def __init__(self, port: int = 0) -> None:
        self.port = port

    def listen(self, cleanup: contextlib.ExitStack) -> socket.socket:
        listener = cleanup.enter_context(socket.create_server(("127.0.0.1", self.port)))
        self.port = listener.getsockname()[1]
        return listener

    async def dial(self, cleanup: contextlib.ExitStack) -> socket.socket:
        far = cleanup.enter_context(socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        await asyncio.get_running_loop().sock_connect(far, ("127.0.0.1", self.port))
        return far

    def __str__(self) -> str:
        return f"tcp:{self.port}"

    def service_vm(self, agent: Path) -> Relay:
        return Relay(f"the agent at unix:{agent}", self.listen, dial_unix(agent))

    def host(self, path: Path, check: Callable[[], None] = nothing) -> Relay:
        return to_agent(path, VsockAddress(1000, self.port), check, dial=self.dial)


class Vsock:
    """The machine's loopback."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __str__(self) -> str:
        return f"vsock:{self.port}"

    def service_vm(self, agent: Path) -> Relay:
        return from_host(self.port, (LOCAL_CID,), agent)

    def host(self, path: Path, check: Callable[[], None] = nothing) -> Relay:
        return to_agent(path, VsockAddress(LOCAL_CID, self.port), check)


class Echo:
    """A gRPC server whose calls answer what they were sent, or as many bytes as they were asked for."""

    def __init__(self, path: Path) -> None:
        self.entered = threading.Semaphore(0)
        self.leave = threading.Event()
        self._server = grpc.server(futures.ThreadPoolExecutor(256), options=(*UNLIMITED, *keepalive.server(0.2)))
        calls: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Say": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
            "Wait": grpc.unary_unary_rpc_method_handler(self._wait),
            "Pour": grpc.unary_stream_rpc_method_handler(self._pour),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Echo", calls),))
        self._server.add_insecure_port(f"unix:{path}")

    def _wait(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.entered.release()
        self.leave.wait(30)
        return request

    def _pour(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in range(int(request)):
            yield b"x" * 65_536

    def __enter__(self) -> Echo:
        self._server.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.leave.set()
        self._server.stop(0).wait()


class Client:
    """A channel to an `Echo`."""

    def __init__(self, path: Path, options: keepalive.Options = ()) -> None:
        every = (*UNLIMITED, *(options or keepalive.client()), *EAGER)
        self.channel = grpc.insecure_channel(f"unix:{path}", options=every)
        self.say: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary("/Echo/Say")
        self.wait: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary("/Echo/Wait")
        self.pour: grpc.UnaryStreamMultiCallable[bytes, bytes] = self.channel.unary_stream("/Echo/Pour")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.channel.close()


class ServiceVm:
    """The Service VM's half as a process of its own, which can be frozen and killed; `network` learns its port."""

    def __init__(self, folder: Path, network: Network) -> None:
        argv = [sys.executable, "-m", "tests.rpc.relaying", str(folder), str(network)]
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        network.port = int(self._process.stdout.readline())

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def __enter__(self) -> ServiceVm:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()


def main() -> None:
    folder, (kind, port) = Path(sys.argv[1]), sys.argv[2].split(":")
    network: Network = Vsock(int(port)) if kind == "vsock" else Tcp(int(port))
    agent = folder / "agent.sock"
    with Echo(agent), network.service_vm(agent):
        sys.stdout.write(f"{network.port}\n")
        sys.stdout.flush()
        signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    main()
