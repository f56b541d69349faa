# SPDX-License-Identifier: Apache-2.0
"""Layouts that come and go while tenants do, and things die: whatever happened, it settles as the layout has it."""

from __future__ import annotations

import contextlib
import random

import pytest

from fmctl.core import layouts
from fmctl.core.allocate import Shape
from fmctl.core.errors import FmctlError
from fmctl.core.layout import OWNER
from fmctl.core.lease import LeaseState
from fmctl.core.policy import Policy
from tests.control.leasing import BOARDS, MANAGE, TIMEOUT, World

LAYOUTS = ("8x1", "4x2", "2x4", "1x8", "4+2+1+1", "4+2", "none")
STEPS = 25


class Walk:
    """Tenants, an operator and bad luck, by chance."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311
        self.world = World(self.chance.choice(BOARDS), MANAGE, policy=Policy(max_gpus_per_host=6))
        self.acknowledged: set[str] = set()
        self.number = 0

    def step(self) -> None:
        if self.chance.random() < 0.2:
            what = self.chance.choice(["commit", "call"])
            self.world.fate.decide(what, self.chance.randint(1, 6), after=self.chance.random() < 0.5)
        act = self.chance.choice(
            [self.allocate, self.allocate, self.allocate, self.release, self.apply, self.look, self.look, self.mishap]
        )
        with contextlib.suppress(FmctlError):
            self.world.mortal(act)
        self.world.wait(self.chance.choice([0.0, 1.0, 100.0]))

    def allocate(self) -> None:
        self.number += 1
        lease = self.world.allocate(
            self.chance.choice("abc"),
            f"{self.number}",
            count=self.chance.choice([1, 1, 2, 2, 4]),
            shape=self.chance.choice(list(Shape)),
            wait=self.chance.random() < 0.8,
        )
        if lease.state is LeaseState.ACTIVE:
            self.acknowledged.add(lease.id)

    def release(self) -> None:
        mine = [lease for lease in self.world.leases if lease.owner != OWNER]
        if mine:
            lease = self.chance.choice(mine)
            self.acknowledged.discard(lease.id)
            self.world.release(lease.id, wait=self.chance.random() < 0.5)

    def apply(self) -> None:
        text, kept = self.chance.choice(LAYOUTS), self.chance.random() < 0.7
        self.world.controller.layouts.apply(text, keep_active=kept, actor="x", timeout=TIMEOUT)

    def look(self) -> None:
        self.world.reconcile()

    def mishap(self) -> None:
        world = self.world
        how = self.chance.choice([world.restart_daemon, world.restart_fabric_manager, world.start_fresh, self.lose])
        how()

    def lose(self) -> None:
        """Let an answer get lost, or the next two calls not get through."""
        if self.chance.random() < 0.5:
            self.world.line.lost = 1
        else:
            self.world.line.cut = 2

    def check(self) -> None:
        """What must be so once all has settled."""
        world = self.world
        world.settle()
        leases = world.leases
        assert {lease.state for lease in leases} <= {LeaseState.ACTIVE}
        assert sorted(p for lease in leases for p in lease.partitions) == sorted(world.active or ())
        held = [gpu for lease in leases for gpu in lease.held]
        assert len(held) == len(set(held))
        assert self.acknowledged <= {lease.id for lease in leases}
        tenants = {gpu for lease in leases if lease.owner != OWNER for gpu in lease.held}
        assert len(tenants) <= 6
        found = layouts.applied(world.store.book)
        kept = found.partitions if found and found.kept_active else ()
        own = sorted(p for lease in leases if lease.owner == OWNER for p in lease.partitions)
        assert own == [p for p in kept if tenants.isdisjoint(world.gpus_of(p))]


@pytest.mark.parametrize("seed", range(60))
def test_leases_partitions_and_the_layout_agree_once_all_has_settled(seed: int) -> None:
    walk = Walk(seed)
    for number in range(STEPS):
        walk.step()
        if number % 8 == 7:
            walk.check()
    walk.check()
