# SPDX-License-Identifier: Apache-2.0
"""Where a tenant VM's GPUs, memory and processors are: near each other in the guest as they are on the host.

Where the GPUs are on several NUMA nodes of the host, each has a cell in the guest, with a host bridge of its own (an
expander) for its GPUs. `core.tenantvm` asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fmctl.core import domainparts
from fmctl.core.capacity import Capacity
from fmctl.core.domainparts import FIRST_SLOT, Port
from fmctl.core.errors import BadRequest
from fmctl.core.inventory import Device
from fmctl.core.settings import TenantVmSettings

FIRST_EXPANDER_BUS = 32
"""The number of the first expander's bus; those before it are for pcie.0 and what libvirt adds there."""

ByNode = Mapping["int | None", Sequence[Device]]
"""GPUs by the host's node that they are on; all are under None where that is not known of each."""


@dataclass(frozen=True)
class Cell:
    """A NUMA node of the guest, on the host's node `node` with its processors `cpus`; None and empty if not known."""

    id: int
    node: int | None
    cpus: str
    vcpus: range
    memory_gib: int


@dataclass(frozen=True)
class Expander:
    """A host bridge for the GPUs of one cell. `index` is the number of its bus for libvirt, `bus` for the guest."""

    index: int
    slot: int
    bus: int
    cell: int


def by_node(gpus: Iterable[Device], capacity: Capacity) -> ByNode:
    """The GPUs by node, and those of one node by address."""
    ordered = sorted(gpus, key=lambda gpu: gpu.function.bdf)
    nodes = {gpu.function.numa_node for gpu in ordered}
    if not nodes <= set(capacity.nodes):
        return {None: ordered}
    known = [node for node in sorted(capacity.nodes) if node in nodes]
    return {node: [gpu for gpu in ordered if gpu.function.numa_node == node] for node in known}


def cells(settings: TenantVmSettings, nodes: Sequence[int | None], capacity: Capacity) -> tuple[Cell, ...]:
    """A cell for each of the host's nodes, with an equal part of processors and memory; raises BadRequest."""
    for what, count in {"processors": settings.vcpus, "GiB of memory": settings.memory_gib}.items():
        if count % len(nodes):
            raise BadRequest(
                f"{count} {what} cannot be divided evenly",
                why=f"the GPUs are on {len(nodes)} NUMA nodes of this host",
                fix=f"ask for a multiple of {len(nodes)}",
            )
    share = settings.vcpus // len(nodes)
    return tuple(
        Cell(
            number,
            node,
            capacity.nodes[node].cpus if node is not None else "",
            range(number * share, (number + 1) * share),
            settings.memory_gib // len(nodes),
        )
        for number, node in enumerate(nodes)
    )


def bridges(gpus: ByNode) -> tuple[tuple[Expander, ...], tuple[Port, ...]]:
    """The host bridges, none where all GPUs are together, and a root port for each GPU."""
    addresses = [[gpu.function.bdf for gpu in together] for together in gpus.values()]
    if len(addresses) == 1:
        return (), domainparts.root_ports(addresses[0])
    expanders: list[Expander] = []
    ports: list[Port] = []
    bus, index = FIRST_EXPANDER_BUS, len(addresses) + 1
    for cell, together in enumerate(addresses):
        expanders.append(Expander(cell + 1, FIRST_SLOT + cell, bus, cell))
        ports += [Port(index + slot, cell + 1, slot, 0, bdf) for slot, bdf in enumerate(together)]
        bus += 1 + len(together)
        index += len(together)
    return tuple(expanders), tuple(ports)
