# SPDX-License-Identifier: Apache-2.0
"""What stands in for `control.parking` where libvirt's hook is tested."""

from __future__ import annotations

import time

from fmctl.core.errors import FmctlError


class Readiness:
    """GPUs that are ready once they were prepared, unless that fails."""

    def __init__(self) -> None:
        self.prepared: set[str] = set()
        self.handed_over: list[str] = []
        self.taken_back: list[str] = []
        self.failure: FmctlError | None = None
        self.takes = 0.0

    @property
    def ready(self) -> frozenset[str]:
        return frozenset(self.prepared)

    def prepare(self, lease_id: str, *, timeout: float) -> None:
        if self.failure:
            raise self.failure
        time.sleep(self.takes)
        self.prepared.add(lease_id)

    def hand_over(self, lease_id: str) -> None:
        self.handed_over.append(lease_id)

    def take_back(self, lease_id: str) -> None:
        self.taken_back.append(lease_id)
