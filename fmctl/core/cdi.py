# SPDX-License-Identifier: Apache-2.0
"""A lease's GPUs for container runtimes: a specification of the Container Device Interface, and Kata's annotations.

The format is that of github.com/cncf-tags/container-device-interface, SPEC.md; docs/tenant-vm.md tells what Kata does
with it, and where that is written. `core.grant` says what a lease gives.
"""

from __future__ import annotations

from typing import Any

from fmctl.core.grant import Grant

VERSION = "0.5.0"
"""The first version in which a device's name may begin with a digit. Kata's runtime in Go reads none past 0.6.0."""
KIND = "fmctl.internal/lease"
"""Vendor and class. The top-level domain .internal is nobody's, so that the vendor can be no other's."""
ANNOTATION = "cdi.k8s.io/fmctl_"
"""How the key of an annotation begins that asks for a device; at most 63 characters may follow the slash."""
_CONTROL = "/dev/vfio/vfio"
"""What opens a VFIO container, in which groups are put."""


def device(grant: Grant) -> str:
    """The full name of the one device that stands for all GPUs of the lease."""
    return f"{KIND}={grant.lease_id}"


def specification(grant: Grant) -> dict[str, Any]:
    """The document by which a runtime finds that device; raises FmctlError where an IOMMU group is not known."""
    nodes = [{"path": path} for path in (_CONTROL, *grant.vfio_paths)]
    entry = {"name": grant.lease_id, "containerEdits": {"deviceNodes": nodes}}
    return {"cdiVersion": VERSION, "kind": KIND, "devices": [entry]}


def kata_annotations(grant: Grant) -> dict[str, str]:
    """What lets Kata give that device to the VM of a container or pod."""
    return {f"{ANNOTATION}{grant.lease_id}": device(grant)}
