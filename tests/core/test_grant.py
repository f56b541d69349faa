# SPDX-License-Identifier: Apache-2.0
"""What a lease gives to a VM, and to container runtimes."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from fmctl.core import cdi, grant
from fmctl.core.errors import FmctlError, MapUnverified
from fmctl.core.lease import GpuDevice, Lease, LeaseState
from fmctl.core.leased import Leased
from fmctl.core.pci import Bdf
from tests.domains import GRANT

ID = GRANT.lease_id
LEASE = Lease(ID, "a", "r", "", LeaseState.ACTIVE, (1,), (1, 2, 3), (4,), vm_uuid="v")
DEVICES = tuple(GpuDevice(n, Bdf(0, 16 + n, 0, 0), 40 - n, 0) for n in (1, 2, 3))
LEASED = Leased(LEASE, DEVICES)


def test_a_grant_is_what_the_vm_gets_and_not_what_is_held_beside() -> None:
    spare = GpuDevice(4, Bdf(0, 20, 0, 0), 36, 0)
    assert grant.of(replace(LEASED, devices=(*DEVICES, spare))) == grant.Grant(ID, "a", (1,), DEVICES, "v")
    assert grant.of(LEASED).addresses == {n: Bdf(0, 16 + n, 0, 0) for n in (1, 2, 3)}


@pytest.mark.parametrize("state", [state for state in LeaseState if state is not LeaseState.ACTIVE])
def test_a_lease_that_is_not_active_gives_nothing(state: LeaseState) -> None:
    with pytest.raises(FmctlError) as refusal:
        grant.of(replace(LEASED, lease=replace(LEASE, state=state, reason="so it is")))
    assert refusal.value.why == f"it is {state.value}: so it is"
    waits = state in (LeaseState.PENDING, LeaseState.ACTIVATING)
    assert refusal.value.fix.startswith("wait until" if waits else "make another")


@pytest.mark.parametrize("devices", [(DEVICES[0], GpuDevice(2), DEVICES[2]), (DEVICES[0], DEVICES[2])])
def test_a_gpu_whose_address_is_not_known_is_refused(devices: tuple[GpuDevice, ...]) -> None:
    with pytest.raises(MapUnverified) as refusal:
        grant.of(Leased(LEASE, devices))
    assert refusal.value.why == "the daemon does not know the address of GPU 2"


def names_are_allowed(kind: str, name: str) -> bool:
    """CDI's rules of names (SPEC.md, "Kind" and "CDI Devices")."""
    vendor, _, rest = kind.partition("/")
    labels = all(re.fullmatch("[a-z]([a-z0-9-]{0,61}[a-z0-9])?", label) for label in vendor.split("."))
    return bool(
        labels
        and len(vendor) <= 253
        and re.fullmatch("[A-Za-z]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", rest)
        and re.fullmatch("[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?", name)
    )


def test_the_specification_names_one_device_with_every_group_once() -> None:
    made = cdi.specification(grant.of(LEASED))
    assert json.loads(json.dumps(made)) == made
    assert made == {
        "cdiVersion": "0.5.0",
        "kind": "fmctl.internal/lease",
        "devices": [
            {
                "name": ID,
                "containerEdits": {
                    "deviceNodes": [
                        {"path": "/dev/vfio/vfio"},
                        {"path": "/dev/vfio/37"},
                        {"path": "/dev/vfio/38"},
                        {"path": "/dev/vfio/39"},
                    ]
                },
            }
        ],
    }
    assert names_are_allowed(made["kind"], ID)


def test_gpus_of_one_group_are_opened_together() -> None:
    together = tuple(replace(gpu, iommu_group=7) for gpu in DEVICES)
    assert grant.of(replace(LEASED, devices=together)).vfio_paths == ("/dev/vfio/7",)


def test_a_group_that_is_not_known_is_refused() -> None:
    given = grant.of(replace(LEASED, devices=(DEVICES[0], replace(DEVICES[1], iommu_group=None), DEVICES[2])))
    with pytest.raises(FmctlError) as refusal:
        cdi.specification(given)
    assert refusal.value.what == f"the IOMMU group of GPU 2 of lease {ID} is not known"


def test_the_annotation_asks_for_that_device_by_a_key_that_kubernetes_takes() -> None:
    ((key, value),) = cdi.kata_annotations(grant.of(LEASED)).items()
    assert value == f"fmctl.internal/lease={ID}"
    prefix, _, name = key.partition("/")
    assert prefix == "cdi.k8s.io"
    assert re.fullmatch("[A-Za-z0-9][A-Za-z0-9_.-]{0,61}[A-Za-z0-9]", name)
