# SPDX-License-Identifier: Apache-2.0
"""What Fabric Manager leaves behind for a restart: its board, and the GPUs and partitions that it supported.

Which partitions were active is not in it, as in the real one: whoever restarts Fabric Manager must tell it.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from fmctl.core.errors import FmctlError
from fmctl.core.platform import PartitionRow, Platform

_FORMAT = 1


class StateUnusable(FmctlError):
    """The saved state is missing, damaged, or of another board, so Fabric Manager cannot be restarted from it."""

    def __init__(self, source: str, why: str) -> None:
        super().__init__(
            f"the state in {source} cannot be used for a restart", why=why, fix="start without --restart instead"
        )


@dataclass(frozen=True)
class SavedState:
    """The state file's content, as a value that two starts can be compared by."""

    platform: str
    gpus: tuple[tuple[int, str], ...]
    """Physical id and uuid of each GPU."""
    partitions: tuple[PartitionRow, ...]

    @classmethod
    def of(cls, platform: Platform, missing_gpus: Collection[int] = ()) -> SavedState:
        """What a Fabric Manager on that board saves; missing GPUs count only where the board's table shrinks."""
        gone = set(missing_gpus) if platform.drops_failed_gpus else set()
        present = [gpu for gpu in platform.physical_ids if gpu not in gone]
        return cls(
            platform=platform.name,
            gpus=tuple((gpu, gpu_uuid(platform, gpu)) for gpu in present),
            partitions=tuple(row for row in platform.partitions if gone.isdisjoint(row.gpu_ids)),
        )

    @classmethod
    def from_json(cls, text: str, source: str) -> SavedState:
        """Read a state file's text; raises StateUnusable, which names `source`."""
        try:
            return _from_plain(json.loads(text))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise StateUnusable(source, f"it is damaged ({type(error).__name__}: {error})") from error

    def to_json(self) -> str:
        """The text that `from_json` reads."""
        return json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"

    def require_same(self, now: SavedState, source: str) -> None:
        """Raise StateUnusable unless the board is still what it was."""
        if self.platform != now.platform:
            raise StateUnusable(source, f"it is of {self.platform}, and this board is {now.platform}")
        if self.gpus != now.gpus:
            raise StateUnusable(source, "this board's GPUs are not the ones it names")
        if self.partitions != now.partitions:
            raise StateUnusable(source, "this board's partitions are not the ones it names")


def gpu_uuid(platform: Platform, gpu: int) -> str:
    """A made-up uuid, the same at each start; empty from NVLink 4 on, where Fabric Manager knows none."""
    if not platform.drops_failed_gpus:
        return ""
    return f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, f'{platform.name}/{gpu}')}"


def _from_plain(plain: dict[str, Any]) -> SavedState:
    if plain["format"] != _FORMAT:
        raise ValueError(f"format {plain['format']!r} is unknown")
    if not isinstance(plain["platform"], str):
        raise ValueError("platform is no text")
    return SavedState(
        platform=plain["platform"],
        gpus=tuple((int(gpu), str(name)) for gpu, name in plain["gpus"]),
        partitions=tuple(
            PartitionRow.parse([row["id"], row["gpu_ids"], row["nvlinks_per_gpu"]]) for row in plain["partitions"]
        ),
    )
