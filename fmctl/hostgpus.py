# SPDX-License-Identifier: Apache-2.0
"""The daemon's part that is about GPUs themselves, put together: the map, cleaning, parking and libvirt's hook.

`daemon` puts it beside the controller, which asks it which GPU is which; it asks the controller who has which.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fmctl import local
from fmctl.control.clean import Cleaner, Cleaning
from fmctl.control.controller import FabricController
from fmctl.control.exits import VmExits
from fmctl.control.fabric import Turn
from fmctl.control.gpumap import LOOK_TIMEOUT, GpuMaps
from fmctl.control.gpus import Gpus
from fmctl.control.hook import Hook, ServiceVmStart
from fmctl.control.mapkeeper import MapKeeper
from fmctl.control.mapreader import MapReader
from fmctl.control.parking import Parking
from fmctl.control.rounds import Rounds
from fmctl.control.servicevm import ServiceVm
from fmctl.control.watch import WatchedStore
from fmctl.core.answers import GateStatus
from fmctl.core.domain import End
from fmctl.core.hook import NOT_CALLED
from fmctl.core.hook import Rules as HookRules
from fmctl.core.ports import Hypervisor
from fmctl.core.settings import DaemonSettings
from fmctl.core.vfio import Step
from fmctl.host.registers import HostRegisters
from fmctl.local import Host
from fmctl.watchdog import Watchdog

log = logging.getLogger(__name__)

LONGEST_GUARD = 600.0
"""Seconds that a turn of the gate may take: each write to sysfs has 60 s, and a release its own."""


def log_step(step: Step) -> None:
    """Tell the log of a write to sysfs."""
    log.info("%s", step)


class Which:
    """Which GPU is which: the map, and what is read of the GPUs by it."""

    def __init__(
        self,
        settings: DaemonSettings,
        host: Host,
        hypervisor: Hypervisor | None,
        store: WatchedStore,
        turn: Turn,
        controller: Callable[[], FabricController],
    ) -> None:
        """`controller` is there once this asks for it."""
        reader = MapReader(
            host.vfio(tell=log_step),
            host.registers or HostRegisters(),
            turn,
            admin_tools=host.admin_tools(settings),
            active=lambda: self.maps.active(),
        )
        self.maps = GpuMaps(
            store,
            host.inventory,
            host.bus,
            reader,
            machine=host.machine,
            look=lambda: controller().fabric.look(LOOK_TIMEOUT),
            listed=lambda: controller().fabric.seen,
            file=functools.partial(host.map_file, settings),
            observed=lambda: controller().reconciler.is_observing,
        )
        keeper = MapKeeper(self.maps)
        self.rounds = Rounds("GPU map", keeper.look, interval=settings.poll_interval_s, patience=1.0)
        vfio = host.vfio(tell=log_step)
        self.gpus = Gpus(host.inventory, self.maps.known, vfio, hypervisor, verified=self.maps.verified)


@dataclass(frozen=True)
class Around:
    """What the care of GPUs needs of the daemon; `wake` lets the monitor look at once."""

    controller: FabricController
    hypervisor: Hypervisor | None
    service_vm: ServiceVm | None
    watchdog: Watchdog
    wake: Callable[[], object]


class Care:
    """Keeps GPUs clean, and from everybody but the VMs of their leases; as a context manager, while the block runs."""

    def __init__(self, settings: DaemonSettings, host: Host, which: Which, around: Around) -> None:
        self._settings = settings
        self._host = host
        self._which = which
        self._around = around
        controller = around.controller
        self._exits = VmExits(around.hypervisor, which.gpus.held)
        self._cleaner = Cleaner(
            controller,
            which.gpus,
            host.inventory,
            host.tools(),
            local.clean_rules(settings.clean),
            exits=self._exits,
            generation=controller.generation,
        )
        self.cleaning = Cleaning(self._cleaner, around.wake)
        self.parking = self._parked()
        self.hook = self._to_libvirt()
        self._rounds = Rounds(
            "gate",
            self._guard,
            interval=settings.poll_interval_s,
            beat=around.watchdog.loop("gate", longest=LONGEST_GUARD + settings.poll_interval_s),
        )
        self._following = Rounds("VMs", self._exits.look, interval=settings.poll_interval_s, patience=1.0)
        self._running = contextlib.ExitStack()

    def check(self) -> None:
        """Raise InvalidDocument where firmware is enforced that nothing can tell; see what libvirt was told before."""
        self._cleaner.check_sources()
        self.hook.see()

    def wake(self) -> None:
        """Let the gate look at once, and see which VMs have which GPUs."""
        self._rounds.wake()
        self._following.wake()

    def vm_ended(self, end: End) -> None:
        """Hear how a VM ended."""
        self._exits.heard(end)

    def status(self) -> GateStatus:
        """How the gate is."""
        load = self.hook.load
        return GateStatus(load, ": ".join(NOT_CALLED.get(load, ())), self.parking.alarms)

    def __enter__(self) -> Care:
        for part in (self._rounds, self._following, self.cleaning, self._which.rounds):
            self._running.enter_context(part)
        return self

    def __exit__(self, *error: object) -> None:
        self._running.close()

    def _observed(self) -> str:
        """Why no GPU is touched; a host that was never looked at may be in use without any VM that has one open."""
        reconciler = self._around.controller.reconciler
        return reconciler.observed or ("whether it was in use is not known yet" if reconciler.is_unmet else "")

    def _guard(self) -> None:
        """Keep VMs from GPUs that are not theirs; the turn of the gate."""
        self.hook.look()
        self.parking.step()

    def _parked(self) -> Parking:
        settings, host, keeps_service_vm = self._settings, self._host, self._around.service_vm is not None
        return Parking(
            self._around.controller.store,
            host.vfio(tell=log_step),
            host.devices,
            inventory=host.inventory,
            gpu_map=self._which.maps.verified,
            observed=self._observed,
            service_vm=str(settings.service_vm.uuid) if keeps_service_vm else "",
            takes_from_host=keeps_service_vm,
        )

    def _to_libvirt(self) -> Hook:
        """What answers libvirt's hook."""
        settings, host, controller = self._settings, self._host, self._around.controller
        keeper = self._around.service_vm
        return Hook(
            controller.store,
            controller.fabric,
            controller.leases,
            self.parking,
            host.hook_files(Path(settings.run_dir.path)),
            inventory=host.inventory,
            gpu_map=self._which.maps.verified,
            generation=controller.generation,
            observed=lambda: controller.reconciler.observed,
            service_vm=ServiceVmStart(
                str(settings.service_vm.uuid), (lambda: keeper.own.starting) if keeper else (lambda: None)
            ),
            rules=HookRules(settings.non_gpu_domains, settings.lease_on_start),
            wake=self.wake,
        )
