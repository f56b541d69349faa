# SPDX-License-Identifier: Apache-2.0
"""`fmctl tenant-vm render --lease`, over a daemon with a host in memory behind it."""

from __future__ import annotations

import json
import shlex

import pytest
import yaml

from fmctl.core import domaincheck, gpumap
from fmctl.core.domain import Domain
from fmctl.core.request import Request
from tests.cli.conftest import Fmctl
from tests.rpc.leasing import TIMEOUT, Host

VM = "11111111-2222-3333-4444-555555555555"
BOARD = ("--simulate", "hgx-h100-8")


def made(host: Host, gpus: tuple[int, ...], vm: str = "") -> str:
    request = Request("a team", f"r-{gpus}", gpu_ids=gpus, vm_uuid=vm)
    return host.client.allocate(request, timeout=TIMEOUT).lease.id


def addresses(host: Host, *gpus: int) -> list[str]:
    known = gpumap.in_order(host.inventory()).addresses
    return sorted(str(known[gpu]) for gpu in gpus)


def test_the_document_has_exactly_the_lease_s_gpus_and_its_vm_s_uuid(host: Host, fmctl: Fmctl) -> None:
    lease = made(host, (1, 3), VM)
    done = fmctl("tenant-vm", "render", "--lease", lease, *BOARD)
    assert (done.returncode, done.stderr) == (0, "")
    domain = Domain.from_xml(done.stdout)
    assert list(map(str, domain.hostdevs)) == addresses(host, 1, 3)
    assert (domain.uuid, domain.owner) == (VM, "a team")


def test_a_lease_for_any_vm_tells_how_to_bind_it_and_that_works(host: Host, fmctl: Fmctl) -> None:
    lease = made(host, (5,))
    done = fmctl("tenant-vm", "render", "--lease", f"lease/{lease}", *BOARD)
    uuid = Domain.from_xml(done.stdout).uuid
    hint = "fmctl: the lease names no VM; to bind it to this one: fmctl "
    assert done.stderr.startswith(hint)
    assert fmctl(*shlex.split(done.stderr.removeprefix(hint))).returncode == 0
    assert host.store.book.leases[lease].vm_uuid == uuid
    again = fmctl("tenant-vm", "render", "--lease", lease, *BOARD)
    assert (again.stdout, again.stderr) == (done.stdout, "")


def test_devices_alone_need_no_host(host: Host, fmctl: Fmctl) -> None:
    lease = made(host, (2, 4), VM)
    done = fmctl("tenant-vm", "render", "--lease", lease, "--devices-only", "--root", "/nowhere")
    assert (done.returncode, done.stderr) == (0, "")
    found = domaincheck.parse(f"<devices>{done.stdout}</devices>")
    buses = [address.get("bus") for address in found.iterfind("hostdev/source/address")]
    assert [f"0000:{int(bus or '', 0):02x}:00.0" for bus in buses] == addresses(host, 2, 4)


def test_devices_alone_of_a_partition_and_of_its_lease_are_the_same(host: Host, fmctl: Fmctl) -> None:
    lease = made(host, (6, 8), VM)
    of_lease = fmctl("tenant-vm", "render", "--lease", lease, "--devices-only")
    of_partition = fmctl("tenant-vm", "render", "--gpu-ids", "6,8", "--devices-only", *BOARD)
    assert of_partition.stdout == of_lease.stdout != ""


def test_container_runtimes_get_the_lease_s_groups_under_one_name(host: Host, fmctl: Fmctl) -> None:
    lease = made(host, (1, 3))
    functions = {str(device.function.bdf): device.function for device in host.inventory().devices}
    groups = {f"/dev/vfio/{functions[bdf].iommu_group}" for bdf in addresses(host, 1, 3)}
    (device,) = json.loads(fmctl("tenant-vm", "render", "--lease", lease, "-o", "cdi").stdout)["devices"]
    assert {node["path"] for node in device["containerEdits"]["deviceNodes"]} == {"/dev/vfio/vfio", *groups}
    (value,) = yaml.safe_load(fmctl("tenant-vm", "render", "--lease", lease, "-o", "kata").stdout).values()
    assert value == f"fmctl.internal/lease={device['name']}"


@pytest.mark.parametrize("style", [("-o", "xml"), ("--devices-only",), ("-o", "cdi"), ("-o", "kata")])
def test_a_lease_that_is_over_gives_nothing(host: Host, fmctl: Fmctl, style: tuple[str, ...]) -> None:
    lease = made(host, (1, 3))
    host.client.release(lease, timeout=TIMEOUT, wait=True)
    done = fmctl("tenant-vm", "render", "--lease", lease, *style, *BOARD)
    assert (done.returncode, done.stdout) == (1, "")
    assert "it is released" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--gpu-ids", "1", "--lease", VM),
        ("--gpu-ids", "1", "-o", "cdi"),
        ("--lease", VM, "-o", "kata", "--devices-only"),
    ],
)
def test_what_does_not_go_together_is_a_usage_error(fmctl: Fmctl, arguments: tuple[str, ...]) -> None:
    done = fmctl("tenant-vm", "render", *arguments)
    assert (done.returncode, done.stdout) == (2, "")


def test_an_unknown_lease_and_a_daemon_that_is_away_are_told_apart(host: Host, fmctl: Fmctl) -> None:
    assert fmctl("tenant-vm", "render", "--lease", VM).returncode == 3
    host.stop()
    assert fmctl("tenant-vm", "render", "--lease", VM, "--timeout", "5").returncode == 5
