# SPDX-License-Identifier: Apache-2.0
"""A host that takes new work until told otherwise: the port `Gate`. `control.gate` is the real one."""

from __future__ import annotations

from fmctl.core.answers import ServiceVmStatus
from fmctl.core.errors import HostCordoned


class MemoryGate:
    """Refuses new work while `reason` is set."""

    reason = ""

    def refuse_new_work(self) -> None:
        """Raise HostCordoned where the host takes none."""
        if self.reason:
            raise HostCordoned("this host takes no new work", why=self.reason)

    def status(self) -> ServiceVmStatus:
        """A Service VM that is someone else's."""
        return ServiceVmStatus(degraded=self.reason)
