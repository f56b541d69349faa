# SPDX-License-Identifier: Apache-2.0
"""The scheduler of docs/api.md, run as it stands there."""

from __future__ import annotations

import contextlib
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from fmctl.core.lease import LeaseState
from fmctl.core.request import Request
from tests.rpc.leasing import TIMEOUT, Host
from tests.support import eventually

API = Path(__file__).parent.parent.parent / "docs" / "api.md"


@pytest.fixture
def example() -> dict[str, Any]:
    (block,) = re.findall(r"```python\n(.*?)```", API.read_text(), re.DOTALL)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(block, str(API), "exec"), names)  # noqa: S102
    return names


def test_a_lost_answer_is_settled_by_the_same_request(folder: Path, example: dict[str, Any]) -> None:
    with contextlib.closing(Host(folder, "hang@activate:1")) as host:
        leased = example["place"](host.client, "job-1", 2)
        assert (leased.lease.state, leased.lease.request_id) == (LeaseState.ACTIVE, "job-1")
        assert list(host.store.book.leases) == [leased.lease.id]
        assert example["place"](host.client, "job-2", 8) is None


def test_every_change_is_followed(folder: Path, example: dict[str, Any]) -> None:
    with contextlib.closing(Host(folder)) as host:
        _follow(host, example)


def _follow(host: Host, example: dict[str, Any]) -> None:
    seen: list[list[str]] = []

    def follow() -> None:
        with contextlib.suppress(ValueError):  # the channel is closed: the test is over
            example["follow"](host.client, lambda leases: seen.append([lease.owner for lease in leases.values()]))

    threading.Thread(target=follow, daemon=True).start()
    eventually(lambda: seen == [[]])
    leased = example["place"](host.client, "job-1", 2)
    host.client.allocate(Request("other", "x", count=1), timeout=TIMEOUT)
    eventually(lambda: seen[-1] == ["scheduler", "other"])
    host.client.release(leased.lease.id, wait=True, timeout=TIMEOUT)
    eventually(lambda: seen[-1] == ["other"])
