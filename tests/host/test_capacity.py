# SPDX-License-Identifier: Apache-2.0
"""A host's NUMA nodes and huge pages, read from files."""

from __future__ import annotations

from pathlib import Path

from fmctl.core.capacity import Capacity, Node
from fmctl.host import capacity

NODES = Path("sys/devices/system/node")
CPUINFO = "processor\t: 0\naddress sizes\t: 46 bits physical, 48 bits virtual\n\n"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_each_node_has_its_processors_and_pages(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            f"{NODES}/node0/cpulist": "0-3,8-11\n",
            f"{NODES}/node0/hugepages/hugepages-2048kB/free_hugepages": "7\n",
            f"{NODES}/node0/hugepages/hugepages-1048576kB/free_hugepages": "0\n",
            f"{NODES}/node10/cpulist": "\n",
            f"{NODES}/node2/cpulist": "4-7\n",
            f"{NODES}/online": "0,2,10\n",
            f"{NODES}/nodes/cpulist": "0\n",
            "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "9\n",
            "proc/cpuinfo": CPUINFO * 200,
        },
    )
    found = capacity.read(tmp_path)
    assert found == Capacity(
        {0: Node(0, "0-3,8-11", {2048: 7, 1048576: 0}), 2: Node(2, "4-7"), 10: Node(10, "")}, {2048: 9}, 46
    )
    assert list(found.nodes) == [0, 2, 10]


def test_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    assert capacity.read(tmp_path) == Capacity()


def test_what_cannot_be_read_counts_as_nothing(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "many\n",
            "sys/kernel/mm/hugepages/hugepages-big/free_hugepages": "9\n",
            "sys/kernel/mm/hugepages/hugepages-16kB/nr_hugepages": "9\n",
            "proc/cpuinfo": "processor\t: 0\n",
        },
    )
    assert capacity.read(tmp_path) == Capacity()


def test_this_machine_tells_of_itself() -> None:
    found = capacity.read()
    assert found.address_bits and 30 < found.address_bits < 65
