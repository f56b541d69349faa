# SPDX-License-Identifier: Apache-2.0
"""Claims in memory: the port `Claims` for tests and for what need not outlive its process."""

from __future__ import annotations

from collections.abc import Mapping


class MemoryClaims:
    """Claims that end with the process."""

    def __init__(self) -> None:
        self._owners: dict[int, str] = {}

    def owners(self) -> Mapping[int, str]:
        """Owner by partition id."""
        return dict(self._owners)

    def put(self, partition_id: int, owner: str) -> None:
        """Record a claim, in place of any other on that partition."""
        self._owners[partition_id] = owner

    def drop(self, partition_id: int) -> None:
        """Forget the claim on a partition, if there is one."""
        self._owners.pop(partition_id, None)
