# SPDX-License-Identifier: Apache-2.0
"""What the control code needs from the world, each need a Protocol.

`guest`, `host` and `rpc` hold the real adapters, `sim` the pretended ones; one contract test runs against both.
Every call that leaves the process takes a timeout in seconds. The types of arguments are imported for a type checker
alone, since the agent has a use for few of them and starts on a slow processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from fmctl.core.answers import AgentStatus, FabricFacts, HookLoad, ProcessState, ServiceVmStatus, StartMode
    from fmctl.core.book import Book, Entry
    from fmctl.core.domain import Domain, End
    from fmctl.core.image import Image
    from fmctl.core.kernel import KernelFacts
    from fmctl.core.lease import Lease
    from fmctl.core.loglines import LogPosition, LogStream
    from fmctl.core.partition import PartitionList
    from fmctl.core.pci import Bdf, FunctionState, PciFunction
    from fmctl.core.straps import Probe
    from fmctl.core.vfio import Exposure, Holder


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
        """Start it, in the place of one that runs; with `restart` it takes up its state and waits for a list.

        Raises VersionMismatch where its version is not the driver's, and FmctlError where it cannot be started.
        """

    def facts(self) -> FabricFacts:
        """What is known of it; never waits."""


class AgentPackage(Protocol):
    """The archive that the agent runs from, and the one that may take its place."""

    @property
    def digest(self) -> str:
        """Its SHA-256; empty where the agent was installed otherwise."""

    def put(self, archive: bytes, digest: str) -> None:
        """Let the agent's next start try this archive; raises BadRequest where it is not what it should be."""

    def confirm(self) -> None:
        """Let later starts take the archive that this agent runs from, if that is on trial."""


class AuditTrail(Protocol):
    """The lines that the agent writes of what is changed past the daemon, for as long as the guest runs."""

    def lines(self) -> tuple[str, ...]:
        """Every line, oldest first."""

    def append(self, line: str) -> None:
        """Write a line behind all others; raises FmctlError where it cannot be written."""


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

    def replace(self, archive: bytes, digest: str, *, timeout: float) -> None:
        """Let another agent be tried in the place of this one, from a tar with that SHA-256; Fabric Manager goes on.

        It is kept once its status was asked for, else this one comes back. Raises BadRequest for an archive that is
        not what it should be, and VersionMismatch where the agent is too old to be replaced.
        """

    def logs(self, after: LogPosition) -> LogStream:
        """The lines of Fabric Manager's log and of the kernel's NVSwitch errors that came after that position.

        Raises VersionMismatch where the agent is too old to tell them; so may the stream.
        """


class Store(Protocol):
    """The book of this host, its leases that are over, and every entry so far, for good.

    One process has the store at a time. A method raises StoreUnusable where the store cannot be read or written: a
    change then had no effect, and what was there before is there still.
    """

    @property
    def book(self) -> Book:
        """The book after the last commit; never waits."""

    def commit(self, entries: Sequence[Entry], *, at: float) -> tuple[Entry, ...]:
        """Make these entries durable together, at that time in seconds since the epoch, and then part of the book.

        The entries, and their leases, with their revisions; once this returns they survive the death of the process
        and of the host. Raises RequestIdReused, and changes nothing, where a lease has an owner and a request id that
        another lease has.
        """

    def lease(self, lease_id: str) -> Lease:
        """A lease, also one that is over; raises NoSuchLease."""

    def by_request(self, owner: str, request_id: str) -> Lease | None:
        """The lease that stands for a request, also one that is over."""

    def leases(self, *, owner: str = "", over: bool = False, after: str = "", limit: int = 0) -> tuple[Lease, ...]:
        """Leases, first committed first: those of one owner if it is named, and with `over` those that are over, too.

        `after` is the id of the last lease of the page before, and `limit` how many there may be, 0 for all. Raises
        NoSuchLease where the lease `after` is gone, so that the list must begin again.
        """

    def entries(self, after: int, *, limit: int) -> tuple[Entry, ...]:
        """The entries with higher revisions, in their order, at most so many; raises Compacted.

        An entry tells the lease as it was then.
        """

    def compact(self, *, leases_before: float, entries_before: float) -> None:
        """Forget leases that ended before that time, and the first entries as far as all were made before that.

        The last entry stays.
        """


class PciBus(Protocol):
    """The PCI functions of a host. A function may vanish between two calls."""

    def functions(self) -> tuple[PciFunction, ...]:
        """Every function, by address; asks none of them anything."""

    def function(self, bdf: Bdf) -> PciFunction | None:
        """That function; None where it is gone. Asks it nothing."""

    def state(self, bdf: Bdf) -> FunctionState | None:
        """What that function answers; None where it is gone."""

    def config(self, bdf: Bdf, offset: int = 0, size: int = ...) -> bytes:
        """At most `size` bytes of its configuration space, which ends at 4096 for a privileged reader and else at 64.

        Every four bytes are a question to the hardware, so ask for few. Empty where it is gone.
        """

    def vpd(self, bdf: Bdf) -> bytes:
        """Its vital product data; empty where it has none or is gone."""


class VfioDevices(Protocol):
    """The writes that decide which driver a PCI function has, and who holds an IOMMU group.

    Each write raises WriteFailed with the kernel's own reason, or WriteOverdue when it did not end in time: the kernel
    may then be at it still. That a write succeeded does not say that it had the effect.
    """

    def exposure(self, bdf: Bdf, *, timeout: float) -> Exposure | None:
        """What the function is open to; None where it is gone, or the kernel does not tell in time.

        The kernel tells the override under the lock that an unbind or a reset holds, so `PciBus` never asks for it.
        """

    def override(self, bdf: Bdf, driver: str, *, timeout: float) -> None:
        """Let the kernel give the function this driver alone; with an empty name, any."""

    def unbind(self, bdf: Bdf, *, timeout: float) -> None:
        """Take the function from its driver. A running VM that holds it loses it at once."""

    def probe(self, bdf: Bdf, *, timeout: float) -> None:
        """Let the kernel look for a driver for the function, which has none; that it finds none is no error."""

    def stop_bus_master(self, bdf: Bdf, *, timeout: float) -> None:
        """Forbid the function to read or write memory by itself; one that reads as all ones is left alone."""

    def reset(self, bdf: Bdf, *, method: str = "", timeout: float) -> None:
        """Reset the function by that method, or else by the first that the kernel has for it; also while it is in use.

        The kernel goes back to its own order of methods afterwards, since vfio-pci resets by it, too.
        """

    def holders(self, group: int) -> tuple[Holder, ...] | None:
        """The processes that have the group open; None if nobody has, and empty if somebody has who cannot be seen.

        A group that is kept is nobody's. Raises FmctlError without the privileges to tell.
        """

    @property
    def kept(self) -> frozenset[int]:
        """The groups that are kept."""

    def keep(self, group: int) -> None:
        """Open the group, so that nobody else can, also while this daemon is started again; does nothing to devices.

        Raises VmRunning where somebody has it, and FmctlError where there is nothing to open.
        """

    def give_up(self, groups: Collection[int]) -> None:
        """Keep these groups no longer: once this returns, somebody else can open them. Those not kept stay so."""


class DescriptorStore(Protocol):
    """Who holds open files for this process while it is started again; a lost message costs no more than that."""

    def store(self, name: str, descriptor: int) -> None:
        """Hold another descriptor of an open file, under that name."""

    def discard(self, names: Collection[str]) -> None:
        """Close what is held under these names; it is once this returns, or a second has passed."""


class Registers(Protocol):
    """The registers of GPUs, in their first memory region."""

    def read(self, function: PciFunction, probe: Probe, *, timeout: float) -> tuple[int, ...]:
        """The values at the probe's offsets, once the registers that it waits for have settled, in `timeout` seconds
        after the kernel let the GPU be opened, which has a deadline of its own.

        A GPU that vfio-pci has is reset by this, and nobody else can open it meanwhile; one without a driver is read
        as it is. Raises Unreadable, and VmRunning where somebody has its group open.
        """


class FirmwareReader(Protocol):
    """What a PCI function can show of its firmware."""

    def rom(self, bdf: Bdf, *, timeout: float) -> bytes:
        """Its expansion ROM; empty where it has none, or none that the kernel can read.

        Nobody may have the function in use. Raises WriteOverdue where the kernel does not answer in time.
        """


class Kernel(Protocol):
    """What the host's kernel says of itself."""

    def facts(self) -> KernelFacts:
        """Its command line, modules and their parameters, and IOMMUs, as they are now."""


class Hypervisor(Protocol):
    """Libvirt.

    A call raises HypervisorUnreachable where libvirt cannot be asked, or does not answer a question in time.
    A change that libvirt was asked for and did not answer in time raises OutcomeUnknown: it may be made still.
    """

    def domains(self, *, timeout: float) -> tuple[Domain, ...]:
        """Every domain that has a process, by name; of reboots only those since somebody watches are known."""

    def create(self, xml: str, *, timeout: float) -> Domain:
        """Start a transient domain; raises DomainRefused where libvirt does not take it, or one has its name."""

    def shutdown(self, uuid: str, *, timeout: float) -> None:
        """Ask a domain to shut down; does nothing where there is none."""

    def destroy(self, uuid: str, *, timeout: float) -> None:
        """End a domain's process; does nothing where there is none.

        Where QEMU does not heed SIGTERM, this takes ten seconds and more.
        """

    def watch(self, changed: Callable[[], None], ended: Callable[[End], None] = lambda end: None) -> None:
        """Call `changed` soon, and then whenever domains or the connection to libvirt may have changed.

        It is called from a thread of its own, and `ended` from any, at once, for each domain's end that is heard of.
        From now on a lost connection is replaced without a call.
        """

    @property
    def hearing(self) -> int:
        """Differs after every moment in which a domain may have ended unheard; 0 in such a moment."""

    def close(self) -> None:
        """Let go of the connection; domains go on, and later calls raise HypervisorUnreachable."""


class Generation(Protocol):
    """How often Fabric Manager was started fresh on this host, which ends every NVLink; it survives the host's boot.

    Raises FmctlError where that cannot be read or written.
    """

    def current(self) -> int:
        """The number; 0 before the first time."""

    def advance(self) -> int:
        """Count one more, for good once this returns; the new number."""

    def follow(self, start: str) -> int:
        """The number, with one more counted unless that fresh start is the one that was last followed."""


class Gate(Protocol):
    """Whether this host takes new work, which hangs on its Service VM and on its devices."""

    def refuse_new_work(self) -> None:
        """Raise HostCordoned where it takes none, and say why."""

    def status(self) -> ServiceVmStatus:
        """The Service VM, as it was last seen; never waits."""


class HookFiles(Protocol):
    """What this host keeps of libvirt's hook: whether it is called, and what it must know while no daemon runs."""

    def load(self) -> HookLoad:
        """Whether libvirt calls the hook: it does where the libvirt that called it last still runs."""

    def called(self, pid: int) -> None:
        """Note that the process `pid` called the hook; one that is not libvirt's counts for nothing."""

    def keep(self, managed: Collection[Bdf]) -> None:
        """Tell the hook which functions are the board's, from now on and while no daemon runs; never raises."""


class ImageStore(Protocol):
    """The images that the Service VM can boot, two or more side by side, and which of them it does.

    Raises FmctlError where the store cannot be read or written.
    """

    def names(self) -> tuple[str, ...]:
        """Every image's name, in order; nothing is read of them."""

    def read(self, name: str) -> Image:
        """An image as its manifest says it is, without any check of the files; raises NoSuchImage or ImageRefused."""

    def vouched(self, name: str) -> Image:
        """An image after every check, made anew: signature, pinned keys, manifest, and every file's SHA-256 and rights.

        Raises NoSuchImage, or ImageRefused that says which of them is wrong and why.
        """

    def agent(self, name: str) -> bytes:
        """The archive of an image's agent, whose SHA-256 is what the manifest says; raises as `vouched` does."""

    def added(self, name: str) -> float:
        """When an image came into the store, in seconds since 1970; raises NoSuchImage."""

    def current(self) -> str | None:
        """The name of the image in use; None where none was chosen. The image itself may be gone."""

    def choose(self, name: str) -> None:
        """Make an image the one in use: at once, and for good once this returns; raises NoSuchImage."""

    def trial(self) -> str | None:
        """The name of the image that is tried; None where none is."""

    def set_trial(self, name: str | None) -> None:
        """Note which image is tried, or that none is, as lastingly as `choose`; raises NoSuchImage."""

    def remove(self, name: str) -> None:
        """Remove an image; raises NoSuchImage, and FmctlError for the one in use and the one that is tried."""
