# SPDX-License-Identifier: Apache-2.0
"""A function that is reset is asked nothing, and answers as before."""

from __future__ import annotations

import pytest

from fmctl import platforms
from fmctl.control.sparing import SparingBus
from fmctl.core.pci import Bdf
from fmctl.core.vfio import WriteFailed, WriteOverdue
from fmctl.sim.sysfs import SimulatedBus

GPU, OTHER = Bdf.parse("0000:17:00.0"), Bdf.parse("0000:34:00.0")


class Asked(SimulatedBus):
    """A host that never answers who asks the function in `stuck`."""

    stuck: Bdf | None = None

    def state(self, bdf: Bdf):  # type: ignore[no-untyped-def]
        assert bdf != self.stuck
        return super().state(bdf)

    def config(self, bdf: Bdf, offset: int = 0, size: int = 4096) -> bytes:
        assert bdf != self.stuck
        return super().config(bdf, offset, size)

    def vpd(self, bdf: Bdf) -> bytes:
        assert bdf != self.stuck
        return super().vpd(bdf)


@pytest.fixture
def host() -> Asked:
    return Asked(platforms.load("hgx-h100-8"))


def test_a_function_answers_as_before_while_it_is_spared_and_others_as_they_are(host: Asked) -> None:
    bus = SparingBus(host)
    state, config = bus.state(GPU), bus.config(GPU)
    with bus.sparing(GPU):
        host.stuck = GPU
        host.kill(OTHER)
        assert (bus.state(GPU), bus.config(GPU), bus.vpd(GPU)) == (state, config, b"")
        assert bus.config(GPU, 4, 2) == config[4:6]
        assert bus.config(OTHER, 0, 2) == b"\xff\xff"
        assert bus.functions() == host.functions()
        host.stuck = None
    host.kill(GPU)
    assert bus.config(GPU, 0, 2) == b"\xff\xff"


def test_a_write_that_failed_ends_it_and_one_that_did_not_end_does_not(host: Asked) -> None:
    bus = SparingBus(host)
    for failure in (WriteFailed("no"), WriteOverdue("never")):
        with pytest.raises(type(failure)), bus.sparing(GPU):
            raise failure
        host.stuck = GPU if isinstance(failure, WriteOverdue) else None
        assert bus.config(GPU, 0, 2) == b"\xde\x10"
    with bus.sparing(GPU):
        assert bus.state(GPU) is not None
        host.stuck = None
    host.kill(GPU)
    assert bus.config(GPU, 0, 2) == b"\xff\xff"
