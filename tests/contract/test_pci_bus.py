# SPDX-License-Identifier: Apache-2.0
"""What both sides of the port `PciBus` show of the same host: pretended in memory, and read from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmctl import platforms
from fmctl.core.pci import Bdf
from fmctl.core.ports import PciBus
from fmctl.host.sysfs import Sysfs
from fmctl.sim.sysfs import SimulatedBus
from tests import sysfs_tree

NOWHERE = Bdf.parse("ffff:00:00.0")


@pytest.fixture(params=platforms.names())
def simulated(request: pytest.FixtureRequest) -> SimulatedBus:
    return SimulatedBus(platforms.load(request.param))


@pytest.fixture(params=["memory", "files"])
def bus(request: pytest.FixtureRequest, simulated: SimulatedBus, tmp_path: Path) -> PciBus:
    if request.param == "memory":
        return simulated
    sysfs_tree.write(simulated, tmp_path)
    return Sysfs(tmp_path)


def test_every_function_is_shown_as_it_is_by_address(bus: PciBus, simulated: SimulatedBus) -> None:
    shown = bus.functions()
    assert shown == tuple(entry.function for entry in simulated.everything())
    assert list(shown) == sorted(shown, key=lambda function: function.bdf)
    assert len(shown) > 20


def test_every_function_answers_as_it_would(bus: PciBus, simulated: SimulatedBus) -> None:
    for entry in simulated.everything():
        assert bus.state(entry.function.bdf) == entry.state
        assert bus.vpd(entry.function.bdf) == entry.vpd
        assert bus.config(entry.function.bdf) == entry.config


def test_a_function_that_is_not_there_is_no_error(bus: PciBus) -> None:
    assert bus.state(NOWHERE) is None
    assert bus.vpd(NOWHERE) == b""
    assert bus.config(NOWHERE) == b""
