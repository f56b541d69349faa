# SPDX-License-Identifier: Apache-2.0
"""What the control code needs from the world, each need a Protocol.

`guest`, `host` and `rpc` hold the real adapters, `sim` the pretended ones; one contract test runs against both.
Every call that leaves the process takes a timeout in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from fmctl.core.answers import AgentStatus
from fmctl.core.partition import PartitionList
from fmctl.core.pci import Bdf, FunctionState, PciFunction


class FabricManager(Protocol):
    """Fabric Manager, over one fresh connection a call.

    Every method raises FabricNotReady where nothing was changed, and a changing one OutcomeUnknown where something
    may have been: after any code but 0, a passed deadline or a lost connection.
    """

    def list_partitions(self, *, timeout: float) -> PartitionList:
        """The partitions that Fabric Manager supports, with their states."""

    def activate(self, partition_id: int, *, timeout: float) -> None:
        """Activate a partition."""

    def deactivate(self, partition_id: int, *, timeout: float) -> None:
        """Deactivate a partition."""

    def set_activated(self, partition_ids: Sequence[int], *, timeout: float) -> None:
        """Tell a Fabric Manager that was started with --restart which partitions are active; none is a valid list."""


class Agent(FabricManager, Protocol):
    """The agent in the Service VM, as the daemon sees it."""

    def status(self, *, timeout: float) -> AgentStatus:
        """The agent's own state and Fabric Manager's; raises AgentUnreachable, and nothing else."""


class Claims(Protocol):
    """Which owner asked for which partition. A claim is written before Fabric Manager is asked."""

    def owners(self) -> Mapping[int, str]:
        """Owner by partition id."""

    def put(self, partition_id: int, owner: str) -> None:
        """Record a claim, in place of any other on that partition."""

    def drop(self, partition_id: int) -> None:
        """Forget the claim on a partition, if there is one."""


class PciBus(Protocol):
    """The PCI functions of a host. A function may vanish between two calls."""

    def functions(self) -> tuple[PciFunction, ...]:
        """Every function, by address; asks none of them anything."""

    def state(self, bdf: Bdf) -> FunctionState | None:
        """What that function answers; None where it is gone."""

    def vpd(self, bdf: Bdf) -> bytes:
        """Its vital product data; empty where it has none or is gone."""
