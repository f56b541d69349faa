# SPDX-License-Identifier: Apache-2.0
"""What a scheduler asks for: GPUs for an owner, under a name of the request's own.

`core.allocate` chooses what serves it, and `control.leases` makes a `core.lease` of that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fmctl.core import owner as owners
from fmctl.core.allocate import Shape
from fmctl.core.errors import BadRequest
from fmctl.core.partition import MAX_GPUS
from fmctl.core.pci import Bdf

MAX_REQUEST_ID = 128
MAX_LABELS = 32
MAX_LABEL = 256
"""Characters of a label's key, and of its value."""
MAX_LIFETIME = 366 * 24 * 3600.0
"""Seconds."""
_UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@dataclass(frozen=True)
class Request:
    """One request: exactly one of `count` (1 to 16), `gpu_ids`, `addresses` and `partition_id` says what is wanted.

    `request_id` is unique for an owner: the same request under it again meets the same lease. `numa_node` is where the
    GPUs should be if there is a choice. `lifetime` is after how many seconds the lease expires if no VM ever started
    under it, and `guest_driver` the NVIDIA driver of the VM, where it is known.
    """

    owner: str
    request_id: str
    count: int | None = None
    gpu_ids: tuple[int, ...] = ()
    addresses: tuple[Bdf, ...] = ()
    partition_id: int | None = None
    shape: Shape = Shape.EXACT
    numa_node: int | None = None
    vm_uuid: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    lifetime: float | None = None
    guest_driver: str = ""

    def check(self) -> Request:
        """The request, if it is one; raises BadRequest."""
        owners.check(self.owner)
        problem = self._problem() or labels_problem(self.labels)
        if problem:
            raise BadRequest("the request is refused", why=problem, fix="correct the request")
        return self

    def canonical(self) -> str:
        """All that was asked for as one text, the same for two requests that ask for the same."""
        asked = {
            "count": self.count,
            "gpu_ids": sorted(self.gpu_ids),
            "addresses": sorted(map(str, self.addresses)),
            "partition_id": self.partition_id,
            "shape": self.shape.value,
            "numa_node": self.numa_node,
            "vm_uuid": self.vm_uuid,
            "labels": dict(self.labels),
            "lifetime": self.lifetime,
            "guest_driver": self.guest_driver,
        }
        return json.dumps(
            {key: value for key, value in asked.items() if value not in (None, "", [], {})}, sort_keys=True
        )

    @classmethod
    def from_canonical(cls, owner: str, request_id: str, text: str) -> Request:
        """The request whose canonical text that is."""
        asked = json.loads(text)
        asked["gpu_ids"] = tuple(asked.get("gpu_ids", ()))
        asked["addresses"] = tuple(map(Bdf.parse, asked.get("addresses", ())))
        asked["shape"] = Shape(asked.get("shape", Shape.EXACT))
        return cls(owner, request_id, **asked)

    def _problem(self) -> str:
        wanted = [self.count is not None, bool(self.gpu_ids), bool(self.addresses), self.partition_id is not None]
        if sum(wanted) != 1:
            return "it must name a count, GPUs by physical id, GPUs by address, or a partition, and one of them only"
        if self.count is not None and not 1 <= self.count <= MAX_GPUS:
            return f"a count of 1 to {MAX_GPUS} GPUs is wanted, not {self.count}"
        if not _is_text(self.request_id, MAX_REQUEST_ID):
            return f"its request id must have 1 to {MAX_REQUEST_ID} printable characters"
        if len(set(self.gpu_ids)) != len(self.gpu_ids) or len(set(self.addresses)) != len(self.addresses):
            return "it names a GPU twice"
        if self.shape is not Shape.EXACT and self.count is None:
            return f"the shape {self.shape.value} is for a count"
        if self.lifetime is not None and not 0 < self.lifetime <= MAX_LIFETIME:
            return f"its lifetime must be at most {MAX_LIFETIME:.0f} s"
        return vm_problem(self.vm_uuid)


def vm_problem(uuid: str) -> str:
    """What is wrong with a VM's UUID; empty where nothing is, or none is named."""
    return "" if not uuid or re.fullmatch(_UUID, uuid) else f"{uuid[:60]!r} is no UUID in lower case"


def labels_problem(labels: Mapping[str, str]) -> str:
    """What is wrong with labels; empty where nothing is."""
    if len(labels) > MAX_LABELS:
        return f"it has {len(labels)} labels, and {MAX_LABELS} are the most"
    for key, value in labels.items():
        if not _is_text(key, MAX_LABEL) or (value and not _is_text(value, MAX_LABEL)):
            return f"the label {key[:40]!r} must have printable characters, and {MAX_LABEL} at most"
    return ""


def _is_text(text: str, most: int) -> bool:
    return 0 < len(text) <= most and text.isprintable() and text == text.strip()
