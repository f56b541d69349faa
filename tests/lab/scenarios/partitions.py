# SPDX-License-Identifier: Apache-2.0
"""Partitions, over vsock."""

from __future__ import annotations

from tests.lab import steps
from tests.lab.host import Host, want
from tests.lab.machine import Variant
from tests.lab.scenario import scenario


@scenario(Variant.GROUPS)
def partitions_are_listed_activated_and_deactivated(host: Host) -> None:
    steps.inactive(host)
    want(len(host.ask("list")["partitions"]) == 7, "the list is not the platform's table")
    host.fmctl("activate", "1")
    want(steps.active(host) == [1], f"active are {steps.active(host)}")
    refused = host.fmctl("activate", "0", status=4)
    want("partition" in refused, refused)
    host.fmctl("deactivate", "1")
    want(steps.active(host) == [], f"active are {steps.active(host)}")
