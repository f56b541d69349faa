# SPDX-License-Identifier: Apache-2.0
"""Leases under anything that can happen, in any order, against the simulated Fabric Manager through the daemon's code.

`judge` says after every step what must hold of leases, and `gpujudge` of the GPUs. `FMCTL_SEQUENCES` is how many
sequences are run, and `FMCTL_SEED` lets a run be repeated.
"""

from __future__ import annotations

import logging
import os
import time

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.chaos.failurerules import FailureRules
from tests.chaos.gpurules import GpuRules
from tests.chaos.leaserules import LeaseRules
from tests.chaos.machine import Seen
from tests.chaos.vmrules import VmRules

SEQUENCES = int(os.environ.get("FMCTL_SEQUENCES", "2000"))
SEED = int(os.environ.get("FMCTL_SEED", time.time_ns()))
STEPS = 48
"""The most steps of a sequence."""
MEAN_STEPS = 30
EACH_RULE = 500
"""How often each rule is fired at least in 2000 sequences."""


class LeaseMachine(LeaseRules, VmRules, GpuRules, FailureRules):
    """One world, its judges, and all that can happen to leases."""


def test_leases_hold_whatever_happens(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.process_time()
    how = settings(
        max_examples=SEQUENCES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    logging.disable(logging.CRITICAL)
    try:
        run_state_machine_as_test(seed(SEED)(LeaseMachine), settings=how)
    finally:
        logging.disable(logging.NOTSET)
    mean = Seen.steps / Seen.sequences
    with capsys.disabled():
        print(f"\n{Seen.sequences} sequences of {mean:.1f} steps in {time.process_time() - began:.0f} s, seed {SEED}")
        for name, count in (*Seen.fired.most_common(), *Seen.came.most_common()):
            print(f"{count:8} {name}")
    if SEQUENCES >= 2000:
        assert mean >= MEAN_STEPS
        assert [name for name, count in Seen.fired.items() if count < EACH_RULE] == []
