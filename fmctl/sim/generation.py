# SPDX-License-Identifier: Apache-2.0
"""The port `Generation` in memory; `host.generation` is its other side."""

from __future__ import annotations


class MemoryGeneration:
    """A number that ends with its process."""

    def __init__(self) -> None:
        self._value = 0
        self._start = ""

    def current(self) -> int:
        """The number."""
        return self._value

    def advance(self) -> int:
        """Count one more."""
        self._value, self._start = self._value + 1, ""
        return self._value

    def follow(self, start: str) -> int:
        """Count one more for a start that is a new one."""
        if start != self._start:
            self._value, self._start = self._value + 1, start
        return self._value
