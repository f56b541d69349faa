# SPDX-License-Identifier: Apache-2.0
"""Libvirt domains, as far as fmctl needs to know them. `host.hypervisor` reads them, `core.domain_xml` makes ours."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fmctl.core.errors import FmctlError
from fmctl.core.pci import Bdf


class DomainRefused(FmctlError):
    """Libvirt does not start a domain."""


class DomainState(str, Enum):
    """What libvirt says of a domain that has a process."""

    RUNNING = "running"
    PAUSED = "paused"
    SHUTTING_DOWN = "shutting down"
    CRASHED = "crashed"


@dataclass(frozen=True)
class Domain:
    """A domain that has a process.

    `hostdevs` are the PCI functions that it was given, `cid` its context id for vsock, `fingerprint` what fmctl wrote
    into the domain's metadata, empty in a domain that fmctl did not make.
    """

    uuid: str
    name: str
    state: DomainState
    hostdevs: tuple[Bdf, ...] = ()
    cid: int | None = None
    fingerprint: str = ""
