# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest

from fmctl.core import doctor
from fmctl.core.answers import (
    AgentInfo,
    DaemonStatus,
    FabricState,
    GateStatus,
    HookLoad,
    NewWork,
    ServiceVmState,
    ServiceVmStatus,
)
from fmctl.core.book import Mark, MarkKind
from fmctl.core.doctor import Check, Level
from fmctl.core.errors import FmctlError
from fmctl.core.finding import Finding
from fmctl.core.mapsource import MapState
from fmctl.core.mapstatus import MapStatus
from fmctl.core.marked import HostGpu, MarkedGpu

WELL = DaemonStatus(
    "1.2",
    0.0,
    AgentInfo("vsock:3:1", reachable=True, version="1.1"),
    FabricState.READY,
    service_vm=ServiceVmStatus(ServiceVmState.READY),
)
NO_BOARD = FmctlError("there is no board", fix="buy one")


def levels(status: DaemonStatus) -> dict[str, Level]:
    """What is not well in what the daemon says."""
    checks = (*doctor.of_status(status, "unix:/d"), *doctor.of_hook(status.gate.hook), *doctor.of_gate(status))
    assert all(check.fix for check in checks if check.level is Level.FAILED)
    return {check.name: check.level for check in checks if check.level is not Level.OK}


def test_where_all_is_well_nothing_is_to_be_done() -> None:
    checks = (*doctor.of_status(WELL, "unix:/d"), *doctor.of_gate(WELL))
    assert {check.level for check in checks} == {Level.OK}
    assert not [check.fix for check in checks if check.fix]
    assert [c.name for c in checks] == ["daemon", "service-vm", "agent", "fabric-manager", "new-work"]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"agent": AgentInfo("vsock:3:1"), "fabric_state": FabricState.UNREACHABLE}, {"agent": Level.FAILED}),
        ({"fabric_state": FabricState.INITIALISING}, {"fabric-manager": Level.WARNING}),
        ({"fabric_state": FabricState.AWAITING_ACTIVE_LIST}, {"fabric-manager": Level.WARNING}),
        ({"fabric_state": FabricState.NOT_STARTED}, {"fabric-manager": Level.FAILED}),
        ({"fabric_state": FabricState.FAILED}, {"fabric-manager": Level.FAILED}),
        ({"agent": replace(WELL.agent, versions_differ="580 and 570")}, {"versions": Level.FAILED}),
        ({"service_vm": ServiceVmStatus()}, {}),
        ({"service_vm": ServiceVmStatus(ServiceVmState.FAILED)}, {"service-vm": Level.FAILED}),
        ({"service_vm": ServiceVmStatus(ServiceVmState.ABSENT)}, {"service-vm": Level.FAILED}),
        ({"service_vm": ServiceVmStatus(ServiceVmState.BOOTING)}, {"service-vm": Level.WARNING}),
        ({"service_vm": ServiceVmStatus(ServiceVmState.READY, upgrade="bad")}, {"upgrade": Level.WARNING}),
        ({"gate": GateStatus(HookLoad.NOT_LOADED, "x")}, {"hook": Level.WARNING}),
        ({"gate": GateStatus(HookLoad.NOT_INSTALLED, "x")}, {"hook": Level.FAILED}),
        ({"gate": GateStatus(HookLoad.LOADED)}, {}),
        ({"gate": GateStatus(alarms=("GPU 1 is held by qemu",))}, {"alarm": Level.FAILED}),
        ({"new_work": NewWork("it is cordoned", "uncordon it")}, {"new-work": Level.FAILED}),
    ],
)
def test_what_is_not_well_is_told_by_how_bad_it_is(changes: dict[str, object], found: dict[str, Level]) -> None:
    assert levels(replace(WELL, **changes)) == found  # type: ignore[arg-type]


def test_a_hook_that_is_not_called_degrades_the_gate() -> None:
    (check,) = doctor.of_hook(HookLoad.NOT_LOADED)
    assert check.what == "not loaded; the gate is degraded, for libvirt has not called fmctl's hook since it started"
    assert check.fix == "`systemctl restart libvirtd`"
    assert doctor.of_hook(HookLoad.UNKNOWN) == ()


def test_findings_are_told_as_they_are() -> None:
    found = Finding("iommu-off", "the IOMMU is off", "nothing holds a device back", "switch it on")
    assert doctor.of_findings("b", [found]) == (
        Check("iommu-off", Level.FAILED, "the IOMMU is off; nothing holds a device back", "switch it on"),
    )
    assert [check.level for check in doctor.of_findings("b", ())] == [Level.OK]


@pytest.mark.parametrize(
    ("status", "level"),
    [
        (None, Level.FAILED),
        (WELL, Level.FAILED),
        (replace(WELL, simulated=True), Level.WARNING),
        (replace(WELL, service_vm=ServiceVmStatus()), Level.WARNING),
    ],
)
def test_a_board_must_be_there_unless_it_is_elsewhere_or_pretended(status: DaemonStatus | None, level: Level) -> None:
    assert doctor.of_board("board", NO_BOARD, status) == Check("board", level, "there is no board", "buy one")


@pytest.mark.parametrize(
    ("state", "level"),
    [
        (MapState.VERIFIED, Level.OK),
        (MapState.UNVERIFIED, Level.FAILED),
        (MapState.CONTRADICTORY, Level.FAILED),
    ],
)
def test_a_map_that_does_not_count_has_failed(state: MapState, level: Level) -> None:
    check = doctor.of_map(MapStatus(state, "why", "do it" if level is Level.FAILED else "", "", "", ()))
    assert (check.level, check.what) == (level, f"{state.value}: why")
    assert check.fix == ("" if level is Level.OK else "see `fmctl gpumap show`: do it")


def test_quarantined_gpus_are_named_with_their_reasons() -> None:
    def gpu(number: int, *kinds: MarkKind) -> MarkedGpu:
        return MarkedGpu(HostGpu(number), marks=tuple(Mark(kind, "no reset", 0.0) for kind in kinds))

    well = [gpu(1), gpu(2, MarkKind.CLEANING, MarkKind.CORDONED)]
    assert [check.level for check in doctor.of_gpus(well)] == [Level.OK]
    (check,) = doctor.of_gpus([*well, gpu(3, MarkKind.QUARANTINED)])
    assert (check.level, check.what) == (Level.WARNING, "GPU 3 is quarantined: no reset")
    assert "`fmctl gpu unquarantine 3 --reason TEXT`" in check.fix
