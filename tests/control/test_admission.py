# SPDX-License-Identifier: Apache-2.0
"""What is refused before a partition is chosen, by which refusal, and that nothing is changed then."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import pytest

from fmctl.core.answers import AgentStatus, FabricState
from fmctl.core.errors import BadRequest, HostCordoned, MapUnverified, PolicyDenied, VersionMismatch
from fmctl.core.partition import PartitionList
from fmctl.core.request import Request
from tests.control.leasing import TIMEOUT, Line, World, nothing_is_left, refuse


@dataclass
class Versioned(Line):
    """A line to an agent that tells Fabric Manager's version, of a library that does not say it is simulated."""

    fm_version: str = "580.95.05"

    def status(self, *, timeout: float) -> AgentStatus:
        return replace(super().status(timeout=timeout), fm_version=self.fm_version)

    def list_partitions(self, *, timeout: float) -> PartitionList:
        return replace(super().list_partitions(timeout=timeout), simulated=False)


def versioned(board: str = "hgx-h100-8") -> World:
    world = World(board)
    world.line = Versioned(world.agent, world.fate, world.clock, world.holder, lambda: world.nvfm.fabric)
    world.restart_daemon()
    world.controller.status(timeout=1)
    return world


def test_a_guest_s_driver_must_be_fabric_manager_s_version() -> None:
    world = versioned()
    assert refuse(world, "a", "r", count=2, guest_driver="570.1") is VersionMismatch
    assert nothing_is_left(world)
    lease = world.allocate("a", "r", count=2, guest_driver="580.95.05")
    assert (lease.fm_version, lease.required_guest_driver) == ("580.95.05", "580.95.05")
    assert world.controller.queries.host_info().required_guest_driver == "580.95.05"


def test_a_lease_names_the_driver_that_a_guest_must_have_though_none_was_told() -> None:
    assert versioned().allocate("a", "r", count=2).required_guest_driver == "580.95.05"
    assert World().allocate("a", "r", count=2, guest_driver="570.1").required_guest_driver == ""


def test_a_board_that_is_only_simulated_is_not_activated_for_real() -> None:
    world = versioned("hgx-a100-8")
    assert refuse(world, "a", "r", count=2) is PolicyDenied
    assert nothing_is_left(world)
    assert World("hgx-a100-8").allocate("a", "r", count=2)


def test_devices_that_forbid_new_work_are_told() -> None:
    world = World()
    world.gate.reason = "an NVSwitch is gone"
    with pytest.raises(HostCordoned, match="an NVSwitch is gone"):
        world.allocate("a", "r", count=2)
    with pytest.raises(HostCordoned, match="an NVSwitch is gone"):
        world.controller.leases.try_out(Request("a", "r", count=2), timeout=TIMEOUT)
    with pytest.raises(HostCordoned, match="an NVSwitch is gone"):
        world.activate("a", 3)
    assert nothing_is_left(world)


def test_addresses_need_a_verified_map() -> None:
    world = World()
    world.map_is_verified = False
    assert refuse(world, "a", "r", addresses=(world.address[1],)) is MapUnverified
    assert nothing_is_left(world)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"count": 1, "partition_id": 3},
        {"count": 0},
        {"count": 17},
        {"gpu_ids": (1, 1)},
        {"count": 1, "lifetime": 0.0},
        {"count": 1, "vm_uuid": "a"},
        {"count": 1, "labels": {"a": "x" * 300}},
    ],
    ids=str,
)
def test_a_request_that_is_none_is_refused_before_anything_is_asked(asked: dict[str, object]) -> None:
    world = World()
    world.line.cut = 1
    assert refuse(world, "a", "r", **asked) is BadRequest
    assert (world.line.cut, world.store.book.revision) == (1, 0)


def test_an_owner_and_a_request_id_are_wanted() -> None:
    world = World()
    assert refuse(world, "", "r", count=1) is BadRequest
    assert refuse(world, "a", "", count=1) is BadRequest


def test_a_look_at_the_board_that_hangs_keeps_nobody_from_the_status_and_is_taken_once() -> None:
    world = World()
    world.gate.reason, goes_on, looks = "why", threading.Event(), []
    refuse_new_work = world.gate.refuse_new_work

    def hang() -> None:
        looks.append(threading.current_thread())
        assert goes_on.wait(30)
        refuse_new_work()

    world.gate.refuse_new_work = hang  # type: ignore[method-assign]
    for _ in range(2):
        status = world.controller.status(timeout=0.05)
        assert (status.fabric_state, status.new_work.refused[:33]) == (
            FabricState.READY,
            "whether it can is not known: the ",
        )
    assert len(looks) == 1
    goes_on.set()
    looks[0].join(10)
    assert world.controller.status(timeout=10).new_work.refused == "why"
