# SPDX-License-Identifier: Apache-2.0
"""Raises the fabric generation on a host whose Service VM is someone else's, as the agent tells of fresh starts.

Where fmctl keeps the Service VM it starts Fabric Manager itself, and `control.servicevm` raises the number.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from fmctl.core.errors import AgentUnreachable, FmctlError
from fmctl.core.ports import Agent, Generation

log = logging.getLogger(__name__)

STATUS_TIMEOUT = 5.0
"""Seconds that the agent has to answer."""


class FabricStarts:
    """The fabric generation, as far as fresh starts were seen."""

    def __init__(
        self, agent: Agent, generation: Generation, record: Callable[[str], object] = lambda detail: None
    ) -> None:
        """`record` hears of each new generation. Raises FmctlError where the number cannot be read."""
        self._agent = agent
        self._generation = generation
        self._record = record
        self._current = generation.current()

    @property
    def current(self) -> int:
        """The number; never waits."""
        return self._current

    def look(self) -> None:
        """Ask the agent once, and count a fresh start that is a new one; never raises.

        Nothing is counted while the agent does not answer, or does not know.
        """
        try:
            start = self._agent.status(timeout=STATUS_TIMEOUT).fabric_start
            if not start:
                return
            before, self._current = self._current, self._generation.follow(start)
        except AgentUnreachable:
            return
        except FmctlError as error:
            log.error("whether Fabric Manager was started fresh is not noted: %s", error)
            return
        if self._current != before:
            log.info("fabric generation %d begins: Fabric Manager was started fresh", self._current)
            self._record(f"fabric generation {self._current}")
