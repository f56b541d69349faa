# SPDX-License-Identifier: Apache-2.0
"""The agent's archive in memory: the port `AgentPackage`; `guest.package` is the one in files."""

from __future__ import annotations

import hashlib

from fmctl.core.errors import BadRequest


class MemoryPackage:
    """Remembers what was put, and whether it was confirmed."""

    def __init__(self, digest: str = "", *, trial: bool = False) -> None:
        """`trial` tells whether the agent runs on trial."""
        self.digest = digest
        self.trial = trial
        self.put_digest = ""

    def put(self, archive: bytes, digest: str) -> None:
        """Note the archive; raises BadRequest where its digest is another."""
        if hashlib.sha256(archive).hexdigest() != digest:
            raise BadRequest("the agent is not replaced", why="the digest is another", fix="send the archive again")
        self.put_digest = digest

    def confirm(self) -> None:
        """End the trial."""
        self.trial = False
