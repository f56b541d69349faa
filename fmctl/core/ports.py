# SPDX-License-Identifier: Apache-2.0
"""What the control code needs from the world, each need a Protocol.

`guest`, `host` and `rpc` hold the real adapters, `sim` the pretended ones; one contract test runs against both.
Every call that leaves the process takes a timeout in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from fmctl.core.answers import AgentStatus, ProcessState, StartMode
from fmctl.core.domain import Domain
from fmctl.core.kernel import KernelFacts
from fmctl.core.partition import PartitionList
from fmctl.core.pci import CONFIG_SIZE, Bdf, FunctionState, PciFunction
from fmctl.core.vfio import Holder


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


class FabricProcess(Protocol):
    """Fabric Manager's own process, in the Service VM."""

    def state(self) -> ProcessState:
        """Whether it runs, or ran since the guest booted."""

    def start(self, *, restart: bool) -> None:
        """Start it, in the place of one that runs; with `restart` it takes up its state and waits for a list."""


class Agent(FabricManager, Protocol):
    """The agent in the Service VM, as the daemon sees it."""

    def status(self, *, timeout: float) -> AgentStatus:
        """The agent's own state and Fabric Manager's; raises AgentUnreachable, and nothing else."""


class KeptAgent(Agent, Protocol):
    """The agent, as who keeps the Service VM alive sees it."""

    def start_fabric_manager(self, mode: StartMode, active: Sequence[int], *, timeout: float) -> None:
        """Start Fabric Manager, in the place of one that runs; with RESTART `active` are its active partitions.

        Raises FabricNotReady or OutcomeUnknown as the other calls do, and FmctlError where the agent cannot start it.
        """

    def restart(self, *, timeout: float) -> None:
        """End the agent, which is then started again by who keeps it; Fabric Manager goes on."""


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

    def config(self, bdf: Bdf, offset: int = 0, size: int = CONFIG_SIZE) -> bytes:
        """At most `size` bytes of its configuration space, which ends at 4096 for a privileged reader and else at 64.

        Each four bytes are asked of the hardware, so ask for few. None where it is gone.
        """

    def vpd(self, bdf: Bdf) -> bytes:
        """Its vital product data; empty where it has none or is gone."""


class VfioDevices(Protocol):
    """The writes that decide which driver a PCI function has, and who holds an IOMMU group.

    Each write raises WriteFailed with the kernel's own reason, or WriteOverdue when it did not end in time: the kernel
    may then be at it still.
    """

    def override(self, bdf: Bdf, driver: str, *, timeout: float) -> None:
        """Let the kernel give the function this driver alone; with an empty name, any."""

    def unbind(self, bdf: Bdf, *, timeout: float) -> None:
        """Take the function from its driver. A running VM that holds it loses it at once."""

    def probe(self, bdf: Bdf, *, timeout: float) -> None:
        """Let the kernel look for a driver for the function, which has none."""

    def stop_bus_master(self, bdf: Bdf, *, timeout: float) -> None:
        """Forbid the function to read or write memory by itself."""

    def reset(self, bdf: Bdf, *, timeout: float) -> None:
        """Reset the function by the first of its reset methods."""

    def holders(self, group: int) -> tuple[Holder, ...] | None:
        """The processes that have the group open; None if nobody has, and empty if somebody has who is not known."""


class Kernel(Protocol):
    """What the host's kernel says of itself."""

    def facts(self) -> KernelFacts:
        """Its command line, modules and their parameters, and IOMMUs, as they are now."""


class Hypervisor(Protocol):
    """Libvirt. Every call raises HypervisorUnreachable where libvirt does not answer in time."""

    def domains(self, *, timeout: float) -> tuple[Domain, ...]:
        """Every domain that has a process, by name."""

    def create(self, xml: str, *, timeout: float) -> Domain:
        """Start a transient domain; raises DomainRefused where libvirt does not take it, or one has its name."""

    def shutdown(self, uuid: str, *, timeout: float) -> None:
        """Ask a domain to shut down; does nothing where there is none."""

    def destroy(self, uuid: str, *, timeout: float) -> None:
        """End a domain's process at once; does nothing where there is none."""

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed`, from a thread of its own, whenever domains or the connection to libvirt may have changed."""

    def close(self) -> None:
        """Let go of the connection; domains go on."""
