# SPDX-License-Identifier: Apache-2.0
"""Where something listens: `unix:PATH`, `HOST:PORT` or `vsock:CID:PORT`."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_UNIX_PATH = 107
"""Bytes that a unix socket's path can have on Linux (unix(7), less the closing zero)."""


@dataclass(frozen=True)
class UnixAddress:
    """A unix socket, by its absolute path."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True)
class TcpAddress:
    """A host, by name or address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether no other host can reach it; a name counts only if it is `localhost`."""
        import ipaddress  # here, since a unix socket needs none

        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


@dataclass(frozen=True)
class VsockAddress:
    """A VM's context id, and a port."""

    cid: int
    port: int

    def __str__(self) -> str:
        return f"vsock:{self.cid}:{self.port}"


@dataclass(frozen=True)
class Address:
    """One of the three, with the one way to read it."""

    where: UnixAddress | TcpAddress | VsockAddress

    @classmethod
    def parse(cls, value: object) -> Address:
        """Read `unix:PATH`, `HOST:PORT` or `vsock:CID:PORT`; raises ValueError."""
        if not isinstance(value, str):
            raise ValueError(f"an address such as unix:/run/x.sock or 127.0.0.1:6666 is wanted, not {value!r}")
        text = value.strip()
        if text.startswith("unix:"):
            return cls(_unix(text.removeprefix("unix:")))
        if text.startswith("vsock:"):
            return cls(_vsock(text))
        return cls(_tcp(text))

    def __str__(self) -> str:
        return str(self.where)


def _unix(path: str) -> UnixAddress:
    if not path.startswith("/"):
        raise ValueError(f"unix:{path} needs an absolute path")
    if "\0" in path:
        raise ValueError("a path cannot hold a zero byte")
    plain = re.sub("/(\\./|/)+", "/", path)
    if len(plain.encode()) > MAX_UNIX_PATH:
        raise ValueError(f"unix:{path} is longer than the {MAX_UNIX_PATH} bytes that Linux allows")
    return UnixAddress(plain)


def _vsock(text: str) -> VsockAddress:
    found = re.fullmatch(r"vsock:([0-9]{1,10}):([0-9]{1,10})", text)
    if not found or int(found[1]) >= 2**32 or int(found[2]) >= 2**32:
        raise ValueError(f"vsock:CID:PORT is wanted, not {text!r}")
    return VsockAddress(int(found[1]), int(found[2]))


def _tcp(text: str) -> TcpAddress:
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", text)
    if not found or not 1 <= int(found[3]) <= 65535:
        raise ValueError(f"unix:PATH or HOST:PORT is wanted, not {text!r}")
    if found[1]:
        import ipaddress

        ipaddress.IPv6Address(found[1])
    return TcpAddress(found[1] or found[2], int(found[3]))
