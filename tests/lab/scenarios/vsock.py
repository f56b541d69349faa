# SPDX-License-Identifier: Apache-2.0
"""The relay over real vsock, where the kernel has its loopback."""

from __future__ import annotations

from tests.lab.host import Host
from tests.lab.machine import Variant
from tests.lab.scenario import scenario


@scenario(Variant.FOREIGN)
def the_relay_works_over_vsock_loopback(host: Host) -> None:
    host.sh("modprobe vsock_loopback")
    host.sh(
        "cd /lab/src && PYTHONPATH=/lab/src:/opt/fmctl PYTHONDONTWRITEBYTECODE=1"
        " /usr/lib/fmctl/current/bin/python3 -m pytest -q --assert=plain -p no:cacheprovider"
        " tests/lab/vsock_loopback.py",
        timeout=300,
    )
