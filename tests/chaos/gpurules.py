# SPDX-License-Identifier: Apache-2.0
"""What becomes of the GPUs themselves: cleaned, quarantined, repaired, and lost and found again on the map."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import rule

from fmctl.core.book import MarkKind
from fmctl.core.errors import FmctlError
from fmctl.sim.vfiodev import Effect
from tests.chaos.machine import NUMBER, OFTEN, SPOILT, Machine, Seen
from tests.chaos.world import AT_ONCE

GPU = st.integers(1, 8)
MEANWHILE = (
    *("nothing", "nothing", "it says no", "it is slow", "activate elsewhere", "a stranger comes and goes"),
    *("a VM starts", "FM starts fresh"),
)
"""What happens while the memory of a GPU is looked at."""
A_MOMENT = 0.001
"""Seconds that any look takes: without them two marks of one reason would be one and the same."""


class GpuRules(Machine):
    """Cleaning, what goes wrong in it, and the GPU map."""

    # Cleaning.

    @rule(which=NUMBER, meanwhile=st.sampled_from(MEANWHILE), spoilt=st.sampled_from((*[None] * 5, *SPOILT)))
    def clean(self, which: int, meanwhile: str, spoilt: Effect | bytes | None) -> None:
        """Take the monitor's turn, and clean a GPU that is due then, in which something may go wrong."""
        world = self.world
        if not world.marked(MarkKind.CLEANING):
            self._use_a_gpu()

        def memory(gpu: int, timeout: float) -> tuple[int, bytes] | None:
            world.wait(A_MOMENT)
            self._meanwhile(meanwhile, gpu)
            if meanwhile == "it is slow":
                world.wait(timeout)
                return None
            return int(meanwhile == "it says no"), b""

        def clean() -> None:
            world.reconcile()
            if due := world.cleaner.due():
                gpu = due[which % len(due)]
                if spoilt is not None:
                    world.spoil(gpu, spoilt)
                world.cleaner.clean(gpu)
                Seen.came["a cleaning"] += 1

        usually, world.memory = world.memory, memory
        self._do("clean", clean)
        world.memory = usually

    def _use_a_gpu(self) -> None:
        """Let somebody have a GPU for a moment."""
        key = ("a", f"r{len(self.requests)}")
        self.requests.append((key, {"count": 1}))
        self._allocate("let a tenant come", *self.requests[-1], wait=True, lives=True)
        lease = self.world.store.by_request(*key)
        if lease is not None:
            leases = self.world.controller.leases
            with self._ending(lease.id):
                self._try(lambda: leases.release(lease.id, actor="p", timeout=AT_ONCE))

    def _meanwhile(self, what: str, gpu: int) -> None:
        alone = next(p.id for p in self.world.platform.partitions if p.gpu_ids == (gpu,))
        if what in ("activate elsewhere", "a stranger comes and goes"):
            self._activate_elsewhere(alone)
        if what == "a stranger comes and goes":
            self.judge.to_deactivate = {alone}
            with contextlib.suppress(FmctlError):
                self.world.controller.leases.deactivate("p", alone, timeout=AT_ONCE)
            self.judge.to_deactivate = set()
        if what == "a VM starts":
            with contextlib.suppress(FmctlError):
                self.world.start_vm("vm4", (gpu,))
                self.judge.vm_started("vm4")
        elif what == "FM starts fresh":
            self.world.start_fresh()

    @rule(
        which=st.integers(0, 7),
        spoilt=st.sampled_from(SPOILT),
        releases=OFTEN,
        reason=st.sampled_from(("it was replaced", "it was replaced", "", " ")),
        repaired=OFTEN,
    )
    def spoil_or_release_a_gpu(
        self, which: int, spoilt: Effect | bytes, releases: bool, reason: str, repaired: bool
    ) -> None:
        """Let what a tenant did to a GPU show in its next cleaning, or let a person release one from quarantine."""
        there = sorted(self.world.marked(MarkKind.QUARANTINED))
        if releases and there:
            self._release_a_gpu(there[which % len(there)], reason, repaired=repaired)
        else:
            self._fired("spoil a GPU")
            self.world.spoil(1 + which, spoilt)

    # The map.

    @rule(what=st.sampled_from(("import a map", "let a GPU lie")), gpu=GPU, swapped=st.booleans())
    def confuse_the_map(self, what: str, gpu: int, swapped: bool) -> None:
        """Let a person import a map, in which two GPUs may be swapped, or a GPU tell that it is the first one."""
        if what == "import a map":
            self._do(what, lambda: self.world.bring_map(swapped=swapped))
        else:
            self._fired(what)
            self.world.say(gpu, 1)

    @rule(what=st.sampled_from(("discover", "keep the map", "accept the map", "mend the map")))
    def see_to_the_map(self, what: str) -> None:
        """Let the map be asked for anew, by a person or by its keeper, be accepted if it is right, or be put right."""
        world = self.world
        calls: dict[str, Callable[[], object]] = {
            "discover": world.discover,
            "keep the map": world.maps.refresh,
            "accept the map": world.accept_map,
            "mend the map": world.mend_map,
        }
        self._do(what, calls[what])
