# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest

from fmctl.core.asking import Asking, Decision, HostDevice, Verdict
from fmctl.core.book import Book, Kind, Mark, MarkKind
from fmctl.core.hook import Board, Known, Rules, decide
from fmctl.core.inventory import Role
from fmctl.core.lease import Lease, LeaseState
from fmctl.core.pci import Bdf
from fmctl.core.rules import NonGpuDomains

VM = "11111111-2222-3333-4444-555555555555"
OTHER = "11111111-2222-3333-4444-666666666666"
SERVICE_VM = "6f0f3b54-8d0c-4d9e-9c1b-0f6d63746c01"
GPUS = {number: Bdf(0, 0x10 + number, 0, 0) for number in range(1, 9)}
SWITCH, MEMORY, OTHERS = Bdf(0, 0x40, 0, 0), Bdf(0, 0x41, 0, 0), Bdf(0, 0x50, 0, 0)
BOARD = Board(
    {**dict.fromkeys(GPUS.values(), Role.GPU), SWITCH: Role.NVSWITCH, MEMORY: Role.MEMORY_CONTROLLER},
    {bdf: number for number, bdf in GPUS.items()},
)
LEASE = Lease("lease", "a", "r", "", LeaseState.ACTIVE, (3,), (1, 3), vm_uuid=VM, generation=4)
ANY = Rules()


def hostdev(bdf: Bdf, managed: str = "no") -> str:
    place = f"domain='{bdf.domain:#06x}' bus='{bdf.bus:#04x}' slot='{bdf.device:#04x}' function='{bdf.function:#x}'"
    source = f"<source><address {place}/></source>"
    return f"<hostdev mode='subsystem' type='pci' managed='{managed}'><driver name='vfio'/>{source}</hostdev>"


def document(*devices: str, uuid: str = VM, more: str = "") -> str:
    return f"<domain type='kvm'><name>vm</name><uuid>{uuid}</uuid>{more}<devices>{''.join(devices)}</devices></domain>"


def domain(*bdfs: Bdf, uuid: str = VM, more: str = "") -> Asking:
    return Asking.from_xml(document(*map(hostdev, bdfs), uuid=uuid, more=more))


def known(*leases: Lease, active: tuple[int, ...] = (3,), ready: bool = True) -> Known:
    return Known(
        BOARD,
        Book(leases={lease.id: lease for lease in leases}),
        frozenset(active),
        4,
        frozenset(lease.id for lease in leases if ready),
        SERVICE_VM,
    )


def asked(asking: Asking, seen: Known, rules: Rules = ANY) -> Decision:
    return decide(asking, seen, rules)


def test_a_vm_starts_with_exactly_the_gpus_of_its_lease() -> None:
    for bdfs in ((GPUS[1], GPUS[3]), (GPUS[3], GPUS[1]), (GPUS[3], GPUS[1], OTHERS)):
        assert asked(domain(*bdfs), known(LEASE)) == Decision(Verdict.START, lease_id="lease", gpus=(1, 3))


def test_gpus_that_are_not_ready_are_prepared_first() -> None:
    found = asked(domain(GPUS[1], GPUS[3]), known(LEASE, ready=False))
    assert (found.verdict, found.lease_id) == (Verdict.PREPARE, "lease")


@pytest.mark.parametrize(
    ("gpus", "leases", "why"),
    [
        ((1, 3), (), "no active lease"),
        ((1,), (LEASE,), "lease lease is for this VM, with the GPUs 1, 3"),
        ((1, 3, 5), (LEASE,), "lease lease is for this VM, with the GPUs 1, 3"),
        ((5, 7), (LEASE,), "lease lease is for this VM"),
        ((1, 3), (replace(LEASE, vm_uuid=OTHER),), f"lease lease of a holds 1, 3, for the VM {OTHER}"),
        ((1, 3), (replace(LEASE, vm_uuid=""),), "for no VM in particular"),
        ((1, 3), (replace(LEASE, state=LeaseState.ACTIVATING),), "activating"),
        ((1, 3), (replace(LEASE, state=LeaseState.RELEASING),), "releasing"),
        ((1, 3), (replace(LEASE, spare=(3,), gpus=(1,)),), "with the GPUs 1"),
    ],
)
@pytest.mark.parametrize("rules", [ANY, Rules(NonGpuDomains.WARN)])
def test_any_other_set_of_gpus_is_refused(
    gpus: tuple[int, ...], leases: tuple[Lease, ...], why: str, rules: Rules
) -> None:
    found = asked(domain(*(GPUS[gpu] for gpu in gpus)), known(*leases), rules)
    assert found.verdict is Verdict.REFUSE
    assert why in found.why


def test_gpus_without_nvlink_now_are_refused() -> None:
    pair = domain(GPUS[1], GPUS[3])
    assert "partition 3" in asked(pair, known(LEASE, active=())).why
    stale = asked(pair, known(replace(LEASE, generation=3)))
    assert (stale.verdict, "activated again" in stale.why) == (Verdict.REFUSE, True)


@pytest.mark.parametrize("mark", [MarkKind.QUARANTINED, MarkKind.CLEANING])
def test_a_gpu_that_is_set_aside_is_refused(mark: MarkKind) -> None:
    seen = known(LEASE)
    book = replace(seen.book, marks={(Kind.GPU, "3", mark): Mark(mark, "", 0.0)})
    assert asked(domain(GPUS[1], GPUS[3]), replace(seen, book=book)).verdict is Verdict.REFUSE


def test_which_gpu_it_is_must_be_known() -> None:
    seen = replace(known(LEASE), board=replace(BOARD, gpus={GPUS[1]: 1}))
    assert "no verified GPU map tells" in asked(domain(GPUS[1], GPUS[3]), seen).why


def test_a_lease_is_made_at_the_start_where_a_setting_says_so_and_nobody_holds_the_gpus() -> None:
    rules = Rules(lease_on_start=True)
    found = asked(domain(GPUS[1], GPUS[3]), known(), rules)
    assert (found.verdict, found.lease_id, found.gpus) == (Verdict.PREPARE, "", (1, 3))
    for lease in (replace(LEASE, vm_uuid=""), replace(LEASE, gpus=(5,))):
        assert asked(domain(GPUS[1], GPUS[3]), known(lease), rules).verdict is Verdict.REFUSE


@pytest.mark.parametrize("bdf", [SWITCH, MEMORY])
def test_the_service_vm_s_functions_are_for_no_other_domain(bdf: Bdf) -> None:
    found = asked(domain(GPUS[1], GPUS[3], bdf), known(LEASE))
    assert (found.verdict, str(bdf) in found.why) == (Verdict.REFUSE, True)


def metadata(fingerprint: str) -> str:
    return f"<metadata><f:x xmlns:f='urn:fmctl:domain:1' fingerprint='{fingerprint}'/></metadata>"


def test_the_service_vm_starts_when_fmctl_starts_it_alone() -> None:
    own = domain(SWITCH, MEMORY, uuid=SERVICE_VM, more=metadata("print"))
    seen = known(LEASE)
    assert asked(own, seen).verdict is Verdict.REFUSE
    assert asked(own, replace(seen, starting="another")).verdict is Verdict.REFUSE
    assert asked(own, replace(seen, starting="print")).verdict is Verdict.START
    assert asked(domain(SWITCH, uuid=SERVICE_VM), replace(seen, starting=None)).verdict is Verdict.START
    assert asked(domain(GPUS[5], uuid=SERVICE_VM), replace(seen, starting=None)).verdict is Verdict.REFUSE
    dedicated = Rules(NonGpuDomains.REFUSE)
    assert asked(own, replace(seen, starting="print"), dedicated).verdict is Verdict.START


@pytest.mark.parametrize(
    ("rules", "verdict", "warns"),
    [
        (NonGpuDomains.ALLOW, Verdict.START, False),
        (NonGpuDomains.WARN, Verdict.START, True),
        (NonGpuDomains.REFUSE, Verdict.REFUSE, False),
    ],
)
def test_a_domain_without_gpus_starts_unless_the_host_is_dedicated(
    rules: NonGpuDomains, verdict: Verdict, *, warns: bool
) -> None:
    for asking in (domain(), domain(OTHERS)):
        found = asked(asking, known(LEASE), Rules(rules))
        assert (found.verdict, bool(found.warning)) == (verdict, warns)


@pytest.mark.parametrize(
    "device",
    [
        hostdev(GPUS[1], "yes"),
        "<interface type='hostdev' managed='yes'><source><address type='pci' domain='0x0000' bus='0x11' slot='0x00'"
        " function='0x0'/></source></interface>",
        "<disk type='nvme'><source type='pci' managed='yes' namespace='1'><address domain='0x0000' bus='0x11'"
        " slot='0x00' function='0x0'/></source></disk>",
    ],
)
def test_what_libvirt_would_manage_is_refused(device: str) -> None:
    asking = Asking.from_xml(document(device, hostdev(GPUS[3])))
    assert HostDevice(GPUS[1], managed=True) in asking.devices
    found = asked(asking, known(LEASE))
    assert (found.verdict, "managed='yes'" in found.why) == (Verdict.REFUSE, True)


def test_libvirt_may_manage_what_is_not_the_board_s() -> None:
    assert asked(Asking.from_xml(document(hostdev(OTHERS, "yes"))), known()).verdict is Verdict.START


@pytest.mark.parametrize(
    "option",
    [
        "<q:commandline><q:arg value='-device'/><q:arg value='vfio-pci,host=0000:11:00.0'/></q:commandline>",
        "<q:commandline><q:arg value='vfio-pci,host=11:0.0,id=x'/></q:commandline>",
        "<q:commandline><q:arg value='vfio-pci,sysfsdev=/sys/bus/pci/devices/0000:11:00.0'/></q:commandline>",
        '<q:commandline><q:arg value=\'{"driver":"vfio-pci","host":"0000:11:00.0"}\'/></q:commandline>',
        "<q:override><q:device alias='h'><q:frontend><q:property name='host' type='string' value='0000:11:00.0'/>"
        "</q:frontend></q:device></q:override>",
    ],
)
def test_an_address_behind_libvirt_s_back_is_seen(option: str) -> None:
    more = option.replace("<q:", "<qemu:").replace("</q:", "</qemu:")
    xml = document(more=more).replace("<domain ", "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' ", 1)
    asking = Asking.from_xml(xml)
    assert asking.devices == (HostDevice(GPUS[1]),)
    assert asked(asking, known()).verdict is Verdict.REFUSE


@pytest.mark.parametrize("text", ["10:20:30.4", "a1:b2:00.0.1", "52:54:00:11:00.1"])
def test_what_only_looks_like_an_address_is_none(text: str) -> None:
    xml = f"<domain xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><name>a</name><uuid>{VM}</uuid>"
    xml += f"<q:commandline><q:arg value='x={text}'/></q:commandline></domain>"
    assert Asking.from_xml(xml).devices == ()


@pytest.mark.parametrize(
    ("xml", "why"),
    [
        ("", "XML"),
        ("<domain><name>a</name></domain>", "no UUID"),
        ("<!DOCTYPE domain [<!ENTITY a 'b'>]>" + document(), "document type"),
        (document(hostdev(GPUS[1]).replace("0x11", "many")), "many"),
    ],
)
def test_what_is_no_document_is_refused(xml: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Asking.from_xml(xml)
