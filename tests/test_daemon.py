# SPDX-License-Identifier: Apache-2.0
"""Where the daemon follows VMs by libvirt: where it must, where it is told to, and where this host has one."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from fmctl import daemon
from fmctl.core.address import Address
from fmctl.core.settings import DaemonSettings, ServiceVmSettings

MANAGED = DaemonSettings()
UNMANAGED = DaemonSettings(agent=Address.parse("127.0.0.1:7000"), service_vm=ServiceVmSettings(managed=False))


def follows(settings: DaemonSettings, run: Path) -> bool:
    found = daemon._libvirt(settings, run)
    if found is not None:
        found.close()
    return found is not None


@pytest.fixture
def run(folder: Path) -> Path:
    """A host's /run/libvirt, without a libvirt that serves there."""
    (folder / "libvirt").mkdir()
    (folder / "libvirt" / "libvirt-sock").write_text("no socket")
    return folder / "libvirt"


@pytest.mark.parametrize("name", daemon.LIBVIRT_SOCKETS)
def test_an_unmanaged_service_vm_leaves_libvirt_to_be_followed_where_the_host_has_one(run: Path, name: str) -> None:
    pytest.importorskip("libvirt")
    assert not follows(UNMANAGED, run)
    (run / "libvirt-sock").unlink()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(run / name))
        assert follows(UNMANAGED, run)


def test_libvirt_is_followed_where_a_setting_names_it_and_where_the_service_vm_is_managed(run: Path) -> None:
    pytest.importorskip("libvirt")
    assert follows(replace(UNMANAGED, libvirt_uri="qemu:///system"), run)
    assert follows(MANAGED, run)
