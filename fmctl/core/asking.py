# SPDX-License-Identifier: Apache-2.0
"""A domain that asks libvirt's hook whether it may start, and the answer; `core.hook` decides.

The hook is a process of its own for every domain that starts, so what it needs stands here, and imports little.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from xml.etree.ElementTree import Element

from fmctl.core.domain import Domain
from fmctl.core.domaincheck import QEMU, parse
from fmctl.core.pci import Bdf

DECIDES = ("prepare", "start", "migrate", "restore")
"""The operations after which a VM starts unless the hook fails. Where it fails after others, libvirt goes on, or ends a
VM that runs (`reconnect`): these only tell."""
MAX_DOCUMENT = 1024 * 1024
"""Bytes of a domain's document."""
NVIDIA = 0x10DE
"""The vendor whose functions count as managed while nobody can tell which are."""


class Verdict(str, Enum):
    """Whether a domain may start; PREPARE where its GPUs must be made ready for it first, which takes longer."""

    START = "start"
    REFUSE = "refuse"
    PREPARE = "prepare"


@dataclass(frozen=True)
class HostDevice:
    """A PCI function of the host that a domain names; `managed` is where libvirt would take it from its driver."""

    bdf: Bdf
    managed: bool = False


@dataclass(frozen=True)
class Asking:
    """A domain that is about to start, as its document has it."""

    domain: Domain
    devices: tuple[HostDevice, ...]

    @classmethod
    def from_xml(cls, xml: str) -> Asking:
        """Read a document as a hook gets it; raises ValueError. A document type is refused."""
        root = parse(xml)
        domain = Domain.from_xml(xml)
        if not domain.uuid:
            raise ValueError("the domain has no UUID")
        return cls(domain, (*_devices(root), *_behind_libvirt(root)))


@dataclass(frozen=True)
class Decision:
    """What is answered; `lease_id` names the lease that a VM starts under, and is empty where one is to be made first.

    `gpus` are the physical ids of the domain's GPUs. `warning` is for the log, also of a domain that may start.
    """

    verdict: Verdict
    why: str = ""
    fix: str = ""
    warning: str = ""
    lease_id: str = ""
    gpus: tuple[int, ...] = ()


def _devices(root: Element) -> Iterator[HostDevice]:
    """The PCI addresses that devices have for a source: hostdevs, network cards and drives that use VFIO.

    `managed` is an attribute of the device, or, of a drive, of its source.
    """
    for device in root.iterfind("devices/*"):
        for source in device.iter("source"):
            managed = "yes" in (device.get("managed"), source.get("managed"))
            for address in source.iterfind("address[@slot]"):
                parts = (int(address.get(key, "0"), 0) for key in ("domain", "bus", "slot", "function"))
                yield HostDevice(Bdf(*parts), managed)


def _behind_libvirt(root: Element) -> Iterator[HostDevice]:
    """The PCI addresses in options that a document passes to QEMU itself."""
    for element in root.iter():
        if element.tag.startswith(f"{{{QEMU}}}"):
            for found in _ADDRESS.finditer(element.get("value", "")):
                yield HostDevice(Bdf(*(int(part or "0", 16) for part in found.groups())))


_ADDRESS = re.compile(
    r"(?<![0-9a-f.:])(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([01]?[0-9a-f])\.([0-7])(?![0-9a-f.:])", re.IGNORECASE
)
"""An address as QEMU reads it, which may leave out the domain and zeros."""
