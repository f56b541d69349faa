# SPDX-License-Identifier: Apache-2.0
"""What a rendered domain document must be, whoever wrote its template: each difference in words.

`core.domain_xml` and `core.tenantvm` say what is wanted. The elements are those of libvirt.org/formatdomain.html.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from fmctl.core.domain import NAMESPACE, Domain
from fmctl.core.pci import Bdf

QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
"""The XML namespace by which a document passes options to QEMU itself."""
NO_MMAP = "vfio-pci.x-no-mmap=true"
"""The one option about host devices that QEMU itself is passed."""
KEEP_OWNER = {"model": "dac", "relabel": "no"}
"""The label of a read-only disk whose file libvirt is not to give to QEMU's user; it leaves sVirt alone."""
_HOSTDEV = {"mode": "subsystem", "type": "pci", "managed": "no"}


@dataclass(frozen=True)
class Wanted:
    """What is wanted of any domain; `network` is empty for one without a network card."""

    kind: str
    name: str
    uuid: str
    network: str
    devices: tuple[Bdf, ...]


@dataclass(frozen=True)
class ServiceVmWanted:
    """What is wanted of the Service VM beside; `disks` are the files of its first disks, in their order."""

    cid: int
    console_log: str
    disks: tuple[str, ...] = ()
    image: str = ""


def parse(xml: str) -> Element:
    """The document's root; raises ValueError. A document type is refused, for it can give any text another meaning."""
    if "<!DOCTYPE" in xml:
        raise ValueError("it has a document type")
    try:
        return ElementTree.fromstring(xml)  # noqa: S314 (without a document type no entity can be defined)
    except ElementTree.ParseError as error:
        raise ValueError(f"it is not XML: {error}") from error


def differences(xml: str, fingerprint: str, wanted: Wanted) -> Iterator[str]:
    """In what a document differs from what any domain must be; raises ValueError where it cannot be read."""
    root = parse(xml)
    domain = Domain.from_xml(xml)
    yield from _differ("its type", [root.get("type", "")], [wanted.kind])
    yield from _differ("its name", _texts(root, "name"), [wanted.name])
    yield from _differ("its UUID", _texts(root, "uuid"), [wanted.uuid])
    yield from _differ(
        "the fingerprint in its metadata",
        _attributes(root, f"metadata/{{{NAMESPACE}}}*", "fingerprint"),
        [fingerprint],
    )
    yield from _differ("its PCI functions of the host", domain.hostdevs, sorted(wanted.devices))
    yield from _host_devices(root)
    yield from _differ(
        "the networks of its network cards",
        [_source(card, "network") or f"a {card.get('type')}" for card in root.iterfind("devices/interface")],
        [wanted.network] if wanted.network else [],
    )
    kept = [label for disk in root.iterfind("devices/disk[readonly]") for label in disk.iterfind("source/seclabel")]
    owners = [label for label in kept if label.attrib == KEEP_OWNER]
    labels = [label for label in root.iter("seclabel") if label not in owners]
    if any(label.get("type") == "none" or label.get("relabel") == "no" for label in labels):
        yield "a seclabel switches sVirt off"


def device_differences(xml: str, devices: Iterable[Bdf]) -> Iterator[str]:
    """In what bare elements differ from hostdevs of exactly these functions; raises ValueError."""
    whole = f"<domain><name>-</name><devices>{xml}</devices></domain>"
    root = parse(whole)
    yield from _differ("its PCI functions of the host", Domain.from_xml(whole).hostdevs, sorted(devices))
    if any(element.tag != "hostdev" for element in root.iterfind("devices/*")) or len(root.findall("*")) != 2:
        yield "it has something beside hostdevs"
    yield from _managed(root)


def service_vm_differences(xml: str, wanted: ServiceVmWanted) -> Iterator[str]:
    """In what a document differs from what the Service VM must be beside; raises ValueError where it cannot be read."""
    root = parse(xml)
    cids = root.findall("devices/vsock/cid")
    shown = ["chosen by libvirt" if cid.get("auto") == "yes" else cid.get("address", "") for cid in cids]
    yield from _differ("its context id", shown, [str(wanted.cid)])
    yield from _differ(
        "the file of its serial console",
        [_source(serial, "path") for serial in root.iterfind("devices/serial[@type='file']")],
        [wanted.console_log],
    )
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        yield from _differ(event, _texts(root, event), ["destroy"])
    if root.find("memoryBacking/locked") is None:
        yield "its memory is not locked"
    disks = root.findall("devices/disk")
    if any(disk.find("readonly") is None for disk in disks):
        yield "one of its disks is not read-only"
    files = [_source(disk, "file") for disk in disks]
    yield from _differ("its first disks", files[: len(wanted.disks)], wanted.disks)
    images = _attributes(root, f"metadata/{{{NAMESPACE}}}*", "image")
    yield from _differ("the image in its metadata", filter(None, images), filter(None, [wanted.image]))


def _host_devices(root: Element) -> Iterator[str]:
    """Each host device must be bound by fmctl alone and have a root port to itself; no other way may lead to one."""
    devices = root.findall("devices/hostdev")
    yield from _managed(root)
    ports = {_number(port, "index") for port in root.iterfind("devices/controller[@model='pcie-root-port']")}
    occupants = Counter(_number(place, "bus") for place in root.iterfind("devices/*/address[@type='pci']"))
    buses = [_number(place, "bus") for device in devices for place in device.findall("address[@type='pci']")]
    if len(buses) != len(devices) or any(bus not in ports or occupants[bus] > 1 for bus in buses):
        yield "a host device has no pcie-root-port to itself"
    arguments = _attributes(root, f"{{{QEMU}}}commandline/{{{QEMU}}}arg", "value")
    properties = {element.get("name") for element in root.iter(f"{{{QEMU}}}property")}
    if any("vfio" in text and text != NO_MMAP for text in arguments) or properties & {"host", "sysfsdev"}:
        yield "its options for QEMU name a host device"


def _managed(root: Element) -> Iterator[str]:
    devices = root.findall("devices/hostdev")
    if any(device.get(key) != value for device in devices for key, value in _HOSTDEV.items()):
        yield "a host device is not a hostdev with mode='subsystem' type='pci' managed='no'"


def _differ(what: str, found: Iterable[object], wanted: Iterable[object]) -> Iterator[str]:
    seen, should = list(map(str, found)), list(map(str, wanted))
    if seen != should:
        yield f"{what}: {', '.join(seen) or 'none'}, where {', '.join(should) or 'none'} is wanted"


def _texts(root: Element, tag: str) -> list[str]:
    return [element.text or "" for element in root.iterfind(tag)]


def _attributes(root: Element, path: str, name: str) -> list[str]:
    return [element.get(name, "") for element in root.iterfind(path)]


def _source(device: Element, key: str) -> str:
    source = device.find("source")
    return "" if source is None else source.get(key, "")


def _number(element: Element, key: str) -> int:
    text = element.get(key, "0")
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError(f"{element.tag} {key} is no number: {text}") from None
