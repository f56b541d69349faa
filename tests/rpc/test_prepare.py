# SPDX-License-Identifier: Apache-2.0
"""Getting GPUs ready for a VM, by managers with libvirt and without, over gRPC and on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fmctl.core.errors import FabricNotReady, NoSuchLease, PartitionHeld, VmRunning
from fmctl.core.lease import Lease
from fmctl.core.request import Request
from fmctl.core.vfio import VFIO_PCI
from tests.rpc.leasing import TIMEOUT, Host
from tests.support import run


@pytest.fixture
def host(folder: Path) -> Iterator[Host]:
    host = Host(folder)
    yield host
    host.close()


def leased(host: Host) -> Lease:
    return host.client.allocate(Request("a", "r", gpu_ids=(1, 3)), timeout=TIMEOUT).lease


def drivers(host: Host) -> list[str]:
    """Of the GPUs, by address."""
    return [device.function.driver for device in host.inventory().devices if device.role.value == "gpu"]


def test_a_manager_without_libvirt_prepares_and_hands_over(host: Host) -> None:
    lease = leased(host)
    host.parking.step()
    assert drivers(host) == [""] * 8
    found = host.client.prepare(lease.id, timeout=TIMEOUT, owner="a")
    assert (found.lease.id, len(found.devices)) == (lease.id, 2)
    assert [driver for driver in drivers(host) if driver] == [VFIO_PCI] * 2
    assert len(host.machine.devices.kept) == 2
    assert host.client.hand_over(lease.id, timeout=TIMEOUT).lease.id == lease.id
    assert host.machine.devices.kept == frozenset()
    host.vm(1, 3)
    with pytest.raises(VmRunning):
        host.client.prepare(lease.id, timeout=TIMEOUT)


def test_what_cannot_be_made_ready_is_refused(host: Host) -> None:
    lease = leased(host)
    with pytest.raises(FabricNotReady, match="not ready"):
        host.client.hand_over(lease.id, timeout=TIMEOUT)
    with pytest.raises(PartitionHeld):
        host.client.prepare(lease.id, timeout=TIMEOUT, owner="b")
    with pytest.raises(NoSuchLease):
        host.client.prepare("11111111-2222-3333-4444-555555555555", timeout=TIMEOUT)


def test_the_command_does_either(host: Host) -> None:
    lease = leased(host)
    env = {"FMCTL_ADDRESS": str(host.address)}
    done = run("lease", "prepare", lease.id, "--owner", "a", env=env)
    assert (done.returncode, "/dev/vfio/" in done.stdout) == (0, True), done.stderr
    assert len(host.machine.devices.kept) == 2
    assert run("lease", "prepare", lease.id, "--owner", "b", env=env).returncode == 4
    assert run("lease", "prepare", lease.id, "--owner", "a", "--hand-over", env=env).returncode == 0
    assert host.machine.devices.kept == frozenset()
