# SPDX-License-Identifier: Apache-2.0
"""What `fmctl status` tells of the gate, over a daemon whose gate the test sets."""

from __future__ import annotations

import json

import pytest

from fmctl.core.answers import GateStatus, HookLoad
from tests.cli.conftest import Fmctl
from tests.rpc.leasing import Host


@pytest.mark.parametrize(
    ("gate", "shown", "hidden"),
    [
        (GateStatus(), (), ("hook", "gate", "alarm")),
        (GateStatus(HookLoad.LOADED), ("hook       loaded",), ("gate", "alarm")),
        (
            GateStatus(HookLoad.NOT_LOADED, "restart libvirtd", ("gpu 0000:17:00.0 is held", "another")),
            (
                "hook       not loaded",
                "gate       degraded: restart libvirtd",
                "alarm      gpu 0000:17:00.0 is held",
                "alarm      another",
            ),
            (),
        ),
        (GateStatus(alarms=("one",)), ("alarm      one",), ("hook",)),
    ],
)
def test_the_gate_is_told(
    host: Host, fmctl: Fmctl, gate: GateStatus, shown: tuple[str, ...], hidden: tuple[str, ...]
) -> None:
    host.controller._lock = lambda: gate
    lines = fmctl("status").stdout.splitlines()
    assert set(shown) <= set(lines)
    assert not [line for line in lines if line.split()[0] in hidden]
    plain = json.loads(fmctl("status", "-o", "json").stdout)["gate"]
    assert plain == {"hook": gate.hook.value, "degraded": gate.degraded, "alarms": list(gate.alarms)}
