# SPDX-License-Identifier: Apache-2.0
"""The archives that the agent may run from, in a folder of the guest's boot: the port `AgentPackage`.

What starts the agent reads the two files here. `current` names the archive to run, by its SHA-256. `trial` names one
to be tried once: unless the agent confirms it, the next start takes `current` again. `guest.archive` unpacks them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from fmctl.core.errors import FmctlError
from fmctl.guest import wholefile

log = logging.getLogger(__name__)


class Package:
    """The folder `where`, and the archive in it that this agent runs from."""

    def __init__(self, where: Path, digest: str, confirmed: Callable[[], None] = lambda: None) -> None:
        """`digest` is empty where the agent was installed otherwise; it can be replaced then, too.

        `confirmed` is called when the trial of this agent ends well.
        """
        self._where = where
        self.digest = digest
        self._confirmed = confirmed

    @property
    def on_trial(self) -> bool:
        """Whether the next start takes another archive unless this one is confirmed."""
        return bool(self.digest) and self._named("trial") == self.digest

    def put(self, archive: bytes, digest: str) -> None:
        """Unpack the archive beside the others, and name it for the next start; what is none of theirs goes."""
        from fmctl.guest import archive as archives  # an agent starts by a tenth faster without what this needs

        archives.check(archive, digest)
        try:
            self._where.mkdir(parents=True, exist_ok=True)
            if digest == self.digest:
                self.confirm()
            if digest == self._named("current"):
                (self._where / "trial").unlink(missing_ok=True)
            else:
                archives.unpack(archive, self._where / digest)
                self._name("trial", digest)
            archives.prune(self._where, {digest, self.digest, self._named("current")})
        except OSError as error:
            raise FmctlError(
                "the agent is not replaced", why=f"{error.filename}: {error.strerror}", fix="see the guest's memory"
            ) from error
        log.info("the next start tries the agent %s", digest)

    def confirm(self) -> None:
        """Let later starts take what this agent runs from, if it is on trial."""
        if not self.on_trial:
            return
        try:
            self._name("current", self.digest)
            (self._where / "trial").unlink(missing_ok=True)
        except OSError as error:
            log.error("the trial of this agent cannot be ended: %s", error)
            return
        log.info("the trial of this agent is over: the daemon reached it")
        self._confirmed()

    def _named(self, name: str) -> str:
        try:
            return (self._where / name).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def _name(self, name: str, digest: str) -> None:
        wholefile.replace(self._where / name, f"{digest}\n")
