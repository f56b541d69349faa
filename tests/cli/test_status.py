# SPDX-License-Identifier: Apache-2.0
"""What `fmctl status` tells of the gate and of new work, over a daemon in which the test sets them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fmctl.core.answers import GateStatus, HookLoad
from fmctl.core.gpumap import GpuMap
from fmctl.core.mapsource import MapState, Verdict
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


def test_why_nothing_is_granted_is_told_with_what_to_do(host: Host, fmctl: Fmctl) -> None:
    assert json.loads(fmctl("status", "-o", "json").stdout)["new_work"] == {"refused": "", "fix": "", "passing": False}
    assert not [line for line in fmctl("status").stdout.splitlines() if line.startswith(("new work", "do "))]

    verdict = Verdict(MapState.UNVERIFIED, GpuMap({}), "nobody has said it", "`fmctl gpumap discover`")
    host.controller.fabric.permit = verdict.check
    why, fix = "the GPU map is not verified: nobody has said it", "see `fmctl gpumap show`: `fmctl gpumap discover`"
    assert fmctl("status").stdout.endswith(f"new work   none: {why}\ndo         {fix}\n")
    assert json.loads(fmctl("status", "-o", "json").stdout)["new_work"] == {
        "refused": why,
        "fix": fix,
        "passing": False,
    }
    shown = fmctl("capacity").stdout
    assert "1     0\n2     0\n4     0\n8     0\n" in shown and shown.endswith(f"this host takes no new work: {why}\n")

    host.controller.cordon("a memory bank", actor="a person")
    told = json.loads(fmctl("status", "-o", "json").stdout)["new_work"]
    assert told == {"refused": "it is cordoned: a memory bank", "fix": "`fmctl host uncordon`", "passing": False}


def test_a_host_whose_gpus_are_still_asked_which_they_are_is_not_ready(host: Host, fmctl: Fmctl) -> None:
    verdict = Verdict(MapState.UNVERIFIED, GpuMap({}), "nothing was discovered", "wait for it", is_pending=True)
    host.controller.fabric.permit = verdict.check
    assert json.loads(fmctl("status", "-o", "json").stdout)["new_work"]["passing"] is True
    done = fmctl("wait", "--for", "ready", "--timeout", "0.5")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("fmctl: this host takes no new work yet\n  why: the GPU map is not verified")

    host.controller.fabric.permit = replace(verdict, is_pending=False).check
    assert fmctl("wait", "--for", "ready").returncode == 0
