# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from tests.bench import reassert


def test_a_round_is_measured_with_real_processes() -> None:
    (seconds,) = reassert.measure(1)
    assert 0 <= seconds < reassert.TIMEOUT


@pytest.mark.parametrize(("longest", "good"), [(1.0, True), (1.001, False)])
def test_a_result_over_the_limit_is_told(longest: float, *, good: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert reassert.report([0.1, longest, 0.2]) is good
    told = capsys.readouterr()
    figures = json.loads(told.out)
    assert figures == {"name": "fm_restart_reassert", "value": longest, "unit": "s", "median": 0.2, "limit": 1.0}
    assert ("over its limit" in told.err) is not good
