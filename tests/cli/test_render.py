# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import io
import json

import pytest
import yaml

from fmctl import platforms
from fmctl.cli import render
from fmctl.core.answers import Changed, Listed
from fmctl.core.partition import Gpu, Partition, PartitionList

H100_TABLE = """\
PARTITION ID  STATUS    GPUs  NVLINKS  GPU PHYSICAL IDs
------------  ------    ----  -------  ----------------
0             Inactive  8     144      1,2,3,4,5,6,7,8
1             Inactive  4     72       1,2,3,4
2             Inactive  4     72       5,6,7,8
3             Inactive  2     36       1,3
4             Inactive  2     36       2,4
5             Inactive  2     36       5,7
6             Inactive  2     36       6,8
7             Active    1     0        1
8             Inactive  1     0        2
9             Inactive  1     0        3
10            Inactive  1     0        4
11            Inactive  1     0        5
12            Inactive  1     0        6
13            Inactive  1     0        7
14            Inactive  1     0        8
"""


def listed(*active: int, board: str = "hgx-h100-8") -> Listed:
    platform = platforms.load(board)
    rate = platform.line_rate_mbps.value if platform.line_rate_mbps else 0
    rows = tuple(
        Partition(
            row.id,
            tuple(
                Gpu(gpu, row.nvlinks_per_gpu, row.nvlinks_per_gpu, rate, "", "00000000:00:00.0") for gpu in row.gpu_ids
            ),
            row.id in active,
        )
        for row in platform.partitions
    )
    return Listed(PartitionList(rows, len(rows), simulated=True), dict.fromkeys(active, "tenant-a"))


def test_the_table_byte_for_byte() -> None:
    assert render.partitions(listed(7), "table") == H100_TABLE


def test_the_table_without_headers() -> None:
    lines = render.partitions(listed(7), "table", show_headers=False).splitlines()
    assert lines[0] == "0   Inactive  8  144  1,2,3,4,5,6,7,8"
    assert lines[7] == "7   Active    1  0    1"


def test_a_board_of_sixteen_gpus_lines_up() -> None:
    lines = render.partitions(listed(board="hgx-a100-16"), "table").splitlines()
    assert lines[1] == "------------  ------    ----  -------  ----------------"
    assert lines[2] == "0             Inactive  16    192      1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16"


def test_wide_adds_the_line_rate_and_the_owner() -> None:
    lines = render.partitions(listed(3), "wide").splitlines()
    assert lines[0].endswith("GPU PHYSICAL IDs  LINE RATE MB/s  PCI BUS IDs  OWNER")
    assert lines[5] == "3             Active    2     36       1,3               26562           -            tenant-a"


def test_names() -> None:
    assert render.partitions(listed(board="hgx-b200-8"), "name").splitlines()[:2] == ["partition/1", "partition/2"]


@pytest.mark.parametrize("style", ["json", "yaml"])
def test_documents(style: str) -> None:
    text = render.partitions(listed(3), style)
    document = json.loads(text) if style == "json" else yaml.safe_load(text)
    assert document["simulated"] is True
    assert [p["id"] for p in document["partitions"]] == list(range(15))
    assert document["partitions"][3] == {
        "id": 3,
        "status": "active",
        "gpus": [1, 3],
        "nvlinks": 36,
        "owner": "tenant-a",
    }
    assert document["partitions"][4]["status"] == "inactive"


def test_csv_reads_back() -> None:
    rows = list(csv.DictReader(io.StringIO(render.partitions(listed(3), "csv"))))
    assert rows[3] == {
        "id": "3",
        "status": "active",
        "gpus": "2",
        "nvlinks": "36",
        "gpu_physical_ids": "1,3",
        "owner": "tenant-a",
    }
    assert len(render.partitions(listed(), "csv", show_headers=False).splitlines()) == 15


FMPM_START = """\
{
   "maxNumPartitions" : 15,
   "numPartitions" : 15,
   "partitionInfo" : [
      {
         "gpuInfo" : [
            {
               "maxNumNvLinks" : 18,
               "numNvLinksAvailable" : 18,
               "nvlinkLineRateMBps" : 26562,
               "pciBusId" : "00000000:00:00.0",
               "physicalId" : 1,
               "uuid" : ""
            },
"""


def test_fmpm_looks_as_nvidia_s_client_prints_it() -> None:
    text = render.partitions(listed(7), "fmpm")
    assert text.startswith(FMPM_START)
    document = json.loads(text)
    assert document["version"] == 16909068
    assert [p["partitionId"] for p in document["partitionInfo"] if p["isActive"] == 1] == [7]
    assert document["partitionInfo"][7]["gpuInfo"][0]["maxNumNvLinks"] == 0


PAIR = Partition(3, (Gpu(1, 18), Gpu(3, 18)), active=True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (Changed(PAIR, "a"), "partition 3 is now active: GPUs 1,3\n"),
        (Changed(PAIR, "a", already=True), "partition 3 is already active: GPUs 1,3\n"),
        (Changed(PAIR.with_active(active=False)), "partition 3 is now inactive: GPUs 1,3\n"),
    ],
)
def test_a_change_in_words(change: Changed, text: str) -> None:
    assert render.changed(change, "text") == text


def test_a_change_as_a_document() -> None:
    assert json.loads(render.changed(Changed(PAIR, "a", already=True, simulated=True), "json")) == {
        "id": 3,
        "status": "active",
        "gpus": [1, 3],
        "nvlinks": 36,
        "owner": "a",
        "already": True,
        "simulated": True,
    }
    assert render.changed(Changed(PAIR), "name") == "partition/3\n"
