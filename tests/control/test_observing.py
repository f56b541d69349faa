# SPDX-License-Identifier: Apache-2.0
"""A host that was in use before fmctl was is only looked at."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fmctl.core import plan
from fmctl.core.book import Kind, MarkKind
from fmctl.core.errors import (
    FabricNotReady,
    HostCordoned,
    PolicyDenied,
)
from fmctl.core.rules import Mode, Rules, Unowned
from tests.control.leasing import World


def observed(world: World) -> bool:
    return (Kind.HOST, "", MarkKind.OBSERVED) in world.store.book.marks


AUTO = Rules(Mode.AUTO, Unowned.DEACTIVATE)


def test_a_host_in_use_is_observed_until_a_person_accepts_it() -> None:
    world = World("hgx-h100-8", AUTO)
    world.nvfm.activate(3, timeout=1)
    world.settle()
    assert observed(world)
    changes: tuple[Callable[[], object], ...] = (
        lambda: world.allocate("a", "r", count=2),
        lambda: world.activate("a", 4),
        lambda: world.deactivate("a", 3),
    )
    for change in changes:
        with pytest.raises(HostCordoned, match="partition 3 is active"):
            change()
    world.restart_daemon()
    assert world.active == {3}
    with pytest.raises(FabricNotReady, match="is not known"):
        world.controller.active()
    world.reconcile()
    assert world.controller.active() == (3,)
    assert world.controller.reconciler.preview(timeout=1).steps == (plan.Deactivate("", 3),)
    world.controller.accept(actor="a person")
    world.settle()
    assert world.active == set()
    assert world.allocate("a", "r", count=2)


def test_a_host_whose_gpus_somebody_holds_is_observed() -> None:
    world = World("hgx-h100-8", AUTO)
    world.start_vm("vm", (1,))
    with pytest.raises(HostCordoned, match="holds the GPUs 1"):
        world.allocate("a", "r", count=2)
    assert observed(world)


def test_a_host_that_was_not_in_use_is_managed_whatever_comes_later() -> None:
    world = World("hgx-h100-8", AUTO)
    world.reconcile()
    world.nvfm.activate(3, timeout=1)
    world.restart_daemon()
    world.settle()
    assert (observed(world), world.active) == (False, set())


def test_a_host_that_was_cordoned_before_it_was_seen_is_observed_all_the_same() -> None:
    world = World("hgx-h100-8", AUTO, started=False)
    world.controller.cordon("not ready", actor="a person")
    world.controller.uncordon(actor="a person")
    world.restart_daemon()
    world.start_fresh()
    world.nvfm.activate(3, timeout=1)
    world.settle()
    assert (observed(world), world.active) == (True, {3})


def test_a_host_that_is_only_to_be_observed_is_never_changed() -> None:
    world = World("hgx-h100-8", Rules(Mode.OBSERVE, Unowned.DEACTIVATE))
    world.nvfm.activate(3, timeout=1)
    with pytest.raises(PolicyDenied, match="the setting mode"):
        world.controller.accept(actor="a person")
    world.settle()
    assert world.active == {3}
    with pytest.raises(HostCordoned, match="the setting mode"):
        world.allocate("a", "r", count=2)
