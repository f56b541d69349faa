# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading

from fmctl.control.monitor import Monitor
from fmctl.core.answers import FabricState
from tests.support import eventually


def test_each_change_is_told_once_and_a_failing_look_ends_nothing() -> None:
    looks = iter(
        [
            (FabricState.UNREACHABLE, "no answer"),
            (FabricState.UNREACHABLE, "no answer"),
            None,
            (FabricState.READY, ""),
            (FabricState.READY, ""),
            (FabricState.FAILED, "oops"),
        ]
    )
    told: list[FabricState] = []
    done = threading.Event()

    def look() -> tuple[FabricState, str]:
        answer = next(looks, (FabricState.FAILED, "oops"))
        if answer is None:
            raise RuntimeError("a defect")
        return answer

    def changed(state: FabricState) -> None:
        told.append(state)
        if state is FabricState.FAILED:
            done.set()

    with Monitor(look, changed, interval=0.001):
        assert done.wait(10)
        eventually(lambda: next(looks, None) is None)
    assert told == [FabricState.UNREACHABLE, FabricState.READY, FabricState.FAILED]


def test_it_stops_at_once_however_long_its_interval() -> None:
    seen = threading.Event()
    with Monitor(lambda: (FabricState.READY, ""), lambda state: seen.set(), interval=3600):
        assert seen.wait(10)
    assert not [thread for thread in threading.enumerate() if thread.name == "monitor"]
