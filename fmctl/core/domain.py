# SPDX-License-Identifier: Apache-2.0
"""Libvirt domains, as far as fmctl needs to know them. `host.hypervisor` reads them, `core.domain_xml` makes ours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from xml.etree import ElementTree

from fmctl.core.errors import FmctlError
from fmctl.core.pci import Bdf

NAMESPACE = "urn:fmctl:domain:1"
"""The XML namespace of fmctl's own element in a domain's metadata: attributes `fingerprint`, `image` and `owner`."""


class DomainRefused(FmctlError):
    """Libvirt does not start a domain. Nothing was started."""


class DomainState(str, Enum):
    """What libvirt says of a domain that has a process."""

    RUNNING = "running"
    PAUSED = "paused"
    SHUTTING_DOWN = "shutting down"
    CRASHED = "crashed"


@dataclass(frozen=True)
class Domain:
    """A domain that has a process.

    `hostdevs` are the host's PCI functions that it was given, by address, `cid` its context id for vsock, `fingerprint`
    what fmctl wrote into the domain's metadata, empty in a domain that fmctl did not make, and `image` which image it
    boots, empty where the settings name its files. `instance` is libvirt's number of this life of it: another start has
    another one. `owner` is who the tenant is, where the domain's metadata names it in fmctl's namespace. `rebooted` is
    when its guest was last seen to boot again in the same life, in seconds since the epoch; None where nobody saw it.
    """

    uuid: str
    name: str
    state: DomainState
    hostdevs: tuple[Bdf, ...] = ()
    cid: int | None = None
    fingerprint: str = ""
    image: str = ""
    instance: int = 0
    owner: str = ""
    rebooted: float | None = None

    @classmethod
    def from_xml(cls, xml: str, state: DomainState = DomainState.RUNNING) -> Domain:
        """Read a domain's document (libvirt.org/formatdomain.html); raises ValueError.

        A running domain's document tells the context id that libvirt chose, too.
        """
        root = _root(xml)
        cid = root.find("devices/vsock/cid[@address]")
        marks = root.findall(f"metadata/{{{NAMESPACE}}}*")
        return cls(
            uuid=root.findtext("uuid", ""),
            name=_name(root),
            state=state,
            hostdevs=tuple(sorted(_hostdevs(root))),
            cid=None if cid is None else int(cid.get("address", ""), 0),
            fingerprint=_first(marks, "fingerprint"),
            image=_first(marks, "image"),
            instance=int(root.get("id", "0")),
            owner=_first(marks, "owner"),
        )


@dataclass(frozen=True)
class End:
    """A domain's process has ended; `instance` is 0 where libvirt does not say which life of the domain that was.

    `shut_down` tells that its guest switched itself off. Libvirt says "shutdown" of a QEMU that was sent SIGTERM, too,
    which is no such end.
    """

    uuid: str
    instance: int
    shut_down: bool


def _first(elements: Sequence[ElementTree.Element], name: str) -> str:
    return next((text for element in elements if (text := element.get(name))), "")


def _root(xml: str) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314 (libvirt wrote it, or is about to read it)
    except ElementTree.ParseError as error:
        raise ValueError(f"it is not XML: {error}") from error
    if root.tag != "domain":
        raise ValueError(f"a domain is wanted, not {root.tag!r}")
    return root


def _name(root: ElementTree.Element) -> str:
    name = root.findtext("name", "")
    if not name:
        raise ValueError("the domain has no name")
    return name


def _hostdevs(root: ElementTree.Element) -> Iterator[Bdf]:
    """The PCI addresses that devices have for a source: hostdevs, network cards and drives that use VFIO.

    A source of another kind may have an address too, but none with a slot.
    """
    for address in root.iterfind("devices//source/address[@slot]"):
        domain, bus, slot, function = (int(address.get(key, "0"), 0) for key in ("domain", "bus", "slot", "function"))
        yield Bdf(domain, bus, slot, function)


def refusal(name: str, message: str) -> DomainRefused:
    """What to say where libvirt refuses the domain with that message, and what helps against the common reasons."""
    why = " ".join(message.split())
    fix = next((fix for sign, fix in _FIXES if re.search(sign, why)), f"see /var/log/libvirt/qemu/{name}.log")
    return DomainRefused(f"the domain {name} is not started", why=why, fix=fix)


def unreadable(error: ValueError) -> DomainRefused:
    """What to say where a document is refused before libvirt sees it."""
    return DomainRefused("the domain is not started", why=f"its document cannot be read: {error}", fix=_CORRECT_IT)


_CORRECT_IT = "correct the domain's template"

_FIXES = (
    (
        "already exists with uuid|already defined with uuid|already active",
        "end or undefine the other domain of that name or UUID; `virsh list --all` shows it",
    ),
    (
        "KVM kernel module|initialize kvm|virt type 'kvm'|type=kvm",
        "switch virtualisation on in the firmware, load kvm_intel or kvm_amd, and let libvirt's user open /dev/kvm",
    ),
    (
        "support passthrough of host PCI devices",
        "switch the IOMMU on and load vfio-pci; `fmctl host prepare --dry-run` shows how",
    ),
    (
        "is in use by driver|vfio.*Device or resource busy",
        "end the VM that holds the device; `fmctl vfio status` names it",
    ),
    (
        "must be manually detached|is not viable|no iommu_group found|vfio.*(No such file|Permission denied)",
        "bind the device and its whole IOMMU group to vfio-pci; `fmctl vfio bind` does so",
    ),
    ("guest cid: Address already in use", "choose another context id, by service_vm.cid for the Service VM"),
    ("vhost-vsock", "load the module vhost_vsock"),
    (
        "Cannot access (storage|backing) file|[Cc]ould not (open|load)|Permission denied",
        "put the file where libvirt's user may read it, such as /var/lib/libvirt/images",
    ),
    ("hugetlbfs|hugepage|Cannot allocate memory", "reserve enough memory or huge pages for the domain"),
    ("validate against schema|domain_definition", _CORRECT_IT),
)
"""What helps where libvirt's message, QEMU's own included, has such a text; the first that fits counts."""
