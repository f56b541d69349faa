# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest
import yaml

from fmctl.cli import leaserender
from fmctl.core.lease import GpuDevice, Lease, LeaseState
from fmctl.core.leased import Leased, LeaseList
from fmctl.core.pci import Bdf

ID = "3f0c1c9e-0000-4000-8000-00000000000{}"
LEASE = Lease(
    ID.format(1),
    "tenant-a",
    "job-1",
    "",
    LeaseState.ACTIVE,
    (3,),
    (1, 3),
    created=1_700_000_000.5,
    revision=4,
)
ODD = Lease(
    ID.format(2),
    "a tenant with quite a long name",
    "job-2",
    "",
    LeaseState.ACTIVATING,
    (1,),
    (5, 6, 7),
    (8,),
    created=1_700_000_000.0,
    expires=1_700_003_600.0,
    vm_uuid="11111111-2222-3333-4444-555555555555",
    labels={"job": "2", "a": "b"},
    reason="its partitions were not active",
    vm_gone=1_700_000_060.0,
    fm_version="580.95.05",
    required_guest_driver="580.95.05",
    revision=5,
)
DEVICES = (GpuDevice(1, Bdf.parse("0000:1b:00.0"), 12, 0), GpuDevice(3))
LEASED = Leased(LEASE, DEVICES, simulated=True)
LISTED = LeaseList((LEASED, Leased(ODD, (), interrupted=True)), 5, "a-store", simulated=True)

TABLE = """\
LEASE                                 STATE       GPUs  OWNER
-----                                 -----       ----  -----
3f0c1c9e-0000-4000-8000-000000000001  active      1,3   tenant-a
3f0c1c9e-0000-4000-8000-000000000002  activating  5-7   a tenant with quite a ..
"""
SHOWN = """\
lease       3f0c1c9e-0000-4000-8000-000000000001
state       active
owner       tenant-a
request id  job-1
partitions  3
created     2023-11-14T22:13:20+00:00
etag        4

GPU  ADDRESS       IOMMU GROUP  NUMA NODE  VFIO
---  -------       -----------  ---------  ----
1    0000:1b:00.0  12           0          /dev/vfio/12
3    -             -            -          -
"""
ODD_ROWS = """\
state       activating: its partitions were not active
owner       a tenant with quite a long name
request id  job-2
partitions  1
spare       8
VM          11111111-2222-3333-4444-555555555555, gone since 2023-11-14T22:14:20+00:00
NVLink      interrupted until its VM starts again
labels      a=b,job=2
created     2023-11-14T22:13:20+00:00
expires     2023-11-14T23:13:20+00:00
driver      580.95.05 in the guest
"""


def test_the_table_byte_for_byte() -> None:
    assert leaserender.leases(LISTED, "table") == TABLE


def test_the_table_without_headers() -> None:
    text = leaserender.leases(replace(LISTED, leases=(LEASED,)), "table", show_headers=False)
    assert text == f"{LEASE.id}  active  1,3  tenant-a\n"


def test_the_table_fits_eighty_columns_whatever_the_owner() -> None:
    """On a board of eight GPUs; on one of sixteen that are badly scattered as far as an owner needs a few columns."""
    lease = replace(LEASE, owner="x" * 128, gpus=(1, 3, 5, 7), state=LeaseState.ACTIVATING)
    lines = leaserender.leases(replace(LISTED, leases=(Leased(lease),)), "table").splitlines()
    assert len(lines[-1]) == 80 and lines[-1].endswith("xx..")
    exact = replace(lease, owner="y" * 21)
    assert leaserender.leases(replace(LISTED, leases=(Leased(exact),)), "table").endswith(f" {'y' * 21}\n")


def test_no_leases_are_a_table_of_headers() -> None:
    assert (
        leaserender.leases(LeaseList((), 0, "x"), "table") == "LEASE  STATE  GPUs  OWNER\n-----  -----  ----  -----\n"
    )


def test_wide_has_all() -> None:
    first, _, third, fourth = leaserender.leases(LISTED, "wide").splitlines()
    assert first.split()[4:] == ["SPARE", "PARTITIONS", "REQUEST", "VM", "EXPIRES", "LABELS"]
    assert third.split()[-7:] == ["tenant-a", "-", "3", "job-1", "-", "-", "-"]
    assert fourth.endswith(
        f"long name  8      1           job-2    {ODD.vm_uuid}  2023-11-14T23:13:20+00:00  a=b,job=2"
    )


def test_names() -> None:
    assert leaserender.leases(LISTED, "name") == f"lease/{LEASE.id}\nlease/{ODD.id}\n"
    assert leaserender.lease(LEASED, "name") == f"lease/{LEASE.id}\n"


def test_csv_is_complete() -> None:
    text = leaserender.leases(LISTED, "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["owner"] for row in rows] == ["tenant-a", "a tenant with quite a long name"]
    assert (rows[1]["gpus"], rows[1]["spare"], rows[1]["labels"]) == ("5-7", "8", "a=b,job=2")
    assert leaserender.leases(LISTED, "csv", show_headers=False) == text.partition("\n")[2]


@pytest.mark.parametrize(("style", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_documents(style: str, load: object) -> None:
    assert callable(load)
    document = load(leaserender.leases(LISTED, style))
    assert (document["revision"], document["store_id"], document["simulated"]) == (5, "a-store", True)
    one = document["leases"][0]
    assert one == {key: value for key, value in load(leaserender.lease(LEASED, style)).items() if key != "simulated"}
    assert one["gpus"][0] == {
        "physical_id": 1,
        "address": "0000:1b:00.0",
        "iommu_group": 12,
        "numa_node": 0,
        "vfio": "/dev/vfio/12",
    }
    assert one["gpus"][1]["address"] is None
    assert (one["state"], one["etag"], one["created"]) == ("active", "4", "2023-11-14T22:13:20+00:00")
    assert (one["expires"], one["ended"], one["vm_gone"], one["interrupted"]) == (None, None, None, False)
    other = document["leases"][1]
    assert (other["spare"], other["labels"], other["interrupted"]) == ([8], {"job": "2", "a": "b"}, True)


def test_one_lease_in_full() -> None:
    assert leaserender.lease(LEASED, "text") == SHOWN
    assert ODD_ROWS in leaserender.lease(Leased(ODD, (), interrupted=True), "text")


def test_one_lease_after_it_was_made() -> None:
    text = leaserender.lease(LEASED, "text", first=leaserender.sentence(LEASE))
    assert text.startswith(f"lease {LEASE.id} is active: GPUs 1,3\nrequest id  job-1\n\nGPU  ADDRESS")


def test_a_lease_that_is_over_has_no_gpus_to_give() -> None:
    over = Leased(replace(LEASE, state=LeaseState.RELEASED, ended=1_700_000_100.0), DEVICES)
    text = leaserender.lease(over, "text")
    assert "ended       2023-11-14T22:15:00+00:00\n" in text
    assert "ADDRESS" not in text


def test_what_would_be_granted_has_no_id() -> None:
    dry = Leased(replace(LEASE, id="", spare=(2, 4), created=0.0), DEVICES)
    assert leaserender.sentence(dry.lease) == "it would be granted: GPUs 1,3, and 2,4 held beside"
    plain = json.loads(leaserender.lease(dry, "json"))
    assert (plain["id"], plain["state"], plain["etag"], plain["created"]) == ("", None, "", None)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((), ""), ((1,), "1"), ((1, 2), "1,2"), ((3, 2, 1), "1-3"), ((1, 3, 4, 5, 7), "1,3-5,7"), (range(1, 17), "1-16")],
)
def test_ranges(numbers: tuple[int, ...], text: str) -> None:
    assert leaserender.ranges(numbers) == text
