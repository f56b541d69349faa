# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from fmctl.core.domain import Domain, DomainState, refusal, unreadable
from fmctl.core.pci import Bdf

LIVE = """
<domain type='kvm' id='7'>
  <name>tenant</name>
  <uuid>6f0f3b54-8d0c-4d9e-9c1b-0f6d63746c01</uuid>
  <metadata>
    <other:thing xmlns:other='urn:other' fingerprint='theirs'/>
    <fmctl:other xmlns:fmctl='urn:fmctl:domain:1'/>
    <fmctl:tenant-vm xmlns:fmctl='urn:fmctl:domain:1' fingerprint='ours'/>
  </metadata>
  <devices>
    <disk type='nvme' device='disk'>
      <source type='pci' managed='no' namespace='1'>
        <address domain='0x0000' bus='0x05' slot='0x00' function='0x0'/>
      </source>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
    <interface type='hostdev' managed='no'>
      <source><address type='pci' domain='0x0001' bus='0x1b' slot='0x1f' function='0x7'/></source>
      <address type='pci' domain='0x0000' bus='0x06' slot='0x00' function='0x0'/>
    </interface>
    <hostdev mode='subsystem' type='pci' managed='no'>
      <driver name='vfio'/>
      <source><address domain='0x0000' bus='0xaf' slot='0x00' function='0x0'/></source>
      <alias name='hostdev0'/>
      <address type='pci' domain='0x0000' bus='0x07' slot='0x00' function='0x0'/>
    </hostdev>
    <hostdev mode='subsystem' type='pci' managed='no'>
      <source><address bus='0x1b' slot='0'/></source>
    </hostdev>
    <hostdev mode='subsystem' type='usb'><source><address bus='1' device='2'/></source></hostdev>
    <hostdev type='mdev'><source><address uuid='c2177883-f1bb-47f0-914d-32a22e3a8804'/></source></hostdev>
    <vsock model='virtio'>
      <cid auto='yes' address='1003'/>
      <address type='pci' domain='0x0000' bus='0x08' slot='0x00' function='0x0'/>
    </vsock>
  </devices>
</domain>"""


def test_a_live_document_tells_all_that_the_domain_has_of_the_host() -> None:
    assert Domain.from_xml(LIVE, DomainState.PAUSED) == Domain(
        uuid="6f0f3b54-8d0c-4d9e-9c1b-0f6d63746c01",
        name="tenant",
        state=DomainState.PAUSED,
        hostdevs=(Bdf(0, 5, 0, 0), Bdf(0, 0x1B, 0, 0), Bdf(0, 0xAF, 0, 0), Bdf(1, 0x1B, 0x1F, 7)),
        cid=1003,
        fingerprint="ours",
        instance=7,
    )


def test_a_domain_may_have_nothing_of_it() -> None:
    assert Domain.from_xml("<domain><name>bare</name></domain>") == Domain("", "bare", DomainState.RUNNING)


@pytest.mark.parametrize("vsock", ["<vsock model='virtio'/>", "<vsock><cid auto='yes'/></vsock>"])
def test_a_context_id_that_is_yet_to_be_chosen_is_none(vsock: str) -> None:
    assert Domain.from_xml(f"<domain><name>bare</name><devices>{vsock}</devices></domain>").cid is None


@pytest.mark.parametrize(
    ("xml", "why"),
    [
        ("", "not XML"),
        ("<domain", "not XML"),
        ("<network><name>a</name></network>", "'network'"),
        ("<domain/>", "no name"),
        ("<domain><name></name></domain>", "no name"),
        (LIVE.replace("0xaf", "af"), "'af'"),
        (LIVE.replace("1003", "many"), "'many'"),
    ],
)
def test_what_is_no_domain_s_document_is_refused(xml: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Domain.from_xml(xml)


@pytest.mark.parametrize(
    ("message", "fix"),
    [
        (
            "unsupported configuration: Emulator '/usr/bin/qemu-system-x86_64' does not support virt type 'kvm'",
            "kvm_intel",
        ),
        ("Could not access KVM kernel module: No such file or directory", "kvm_intel"),
        ("invalid argument: could not get preferred machine for /usr/bin/qemu type=kvm", "kvm_intel"),
        ("qemu-system-x86_64: failed to initialize kvm: Permission denied", "kvm_intel"),
        ("operation failed: domain 'a' already exists with uuid 6f0f", "virsh list --all"),
        ("operation failed: domain 'a' is already defined with uuid 6f0f", "virsh list --all"),
        ("Requested operation is not valid: domain is already active as 'a'", "virsh list --all"),
        ("unsupported configuration: host doesn't support passthrough of host PCI devices", "host prepare"),
        ("PCI device 0000:06:00.0 is in use by driver QEMU, domain b", "vfio status"),
        ("vfio 0000:06:00.0: failed to open /dev/vfio/12: Device or resource busy", "vfio status"),
        ("Unmanaged PCI device 0000:06:00.0 must be manually detached from the host", "vfio bind"),
        ("vfio 0000:06:00.0: group 12 is not viable\nPlease ensure all devices", "vfio bind"),
        ("vfio 0000:06:00.0: no iommu_group found: No such file or directory", "vfio bind"),
        ("vfio 0000:06:00.0: failed to open /dev/vfio/12: No such file or directory", "vfio bind"),
        ("failed to set guest cid: Address already in use", "service_vm.cid"),
        ("unsupported configuration: unable to open vhost-vsock device", "vhost_vsock"),
        ("Cannot access storage file '/x' (as uid:64055, gid:64055): Permission denied", "/var/lib/libvirt/images"),
        ("Could not open '/x': Permission denied", "/var/lib/libvirt/images"),
        ("qemu: could not open kernel file '/x': No such file or directory", "/var/lib/libvirt/images"),
        ("internal error: hugetlbfs filesystem is not mounted", "huge pages"),
        ("cannot set up guest memory 'pc.ram': Cannot allocate memory", "huge pages"),
        ("XML document failed to validate against schema: Unable to validate doc", "template"),
        ("(domain_definition):1: Couldn't find end of Start Tag", "template"),
        ("internal error: something else", "/var/log/libvirt/qemu/vm.log"),
    ],
)
def test_a_refusal_says_what_helps_against_it(message: str, fix: str) -> None:
    refused = refusal("vm", message)
    assert refused.what == "the domain vm is not started"
    assert refused.why == message.replace("\n", " ")
    assert fix in refused.fix


def test_a_document_that_cannot_be_read_is_the_template_s_fault() -> None:
    refused = unreadable(ValueError("it is not XML"))
    assert refused.why == "its document cannot be read: it is not XML"
    assert "template" in refused.fix
