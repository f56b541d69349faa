# SPDX-License-Identifier: Apache-2.0
"""Claims in one small file: the port `Claims`.

The file lies in /run, so it survives the daemon's death and ends with the host's boot, as active partitions do.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path

from fmctl.core.errors import FmctlError


class FileClaims:
    """Every change replaces the file whole, so that a reader after a crash finds the old claims or the new ones."""

    def __init__(self, path: Path) -> None:
        """Read the claims that an earlier daemon left; raises FmctlError where the file is damaged or unreadable."""
        self._path = path
        self._lock = threading.Lock()
        self._owners = _read(path)

    def owners(self) -> Mapping[int, str]:
        """Owner by partition id."""
        return self._owners

    def put(self, partition_id: int, owner: str) -> None:
        """Record a claim, in place of any other on that partition."""
        with self._lock:
            self._replace({**self._owners, partition_id: owner})

    def drop(self, partition_id: int) -> None:
        """Forget the claim on a partition, if there is one."""
        with self._lock:
            if partition_id in self._owners:
                self._replace({key: owner for key, owner in self._owners.items() if key != partition_id})

    def _replace(self, owners: dict[int, str]) -> None:
        temporary = self._path.with_name(f".{self._path.name}.new")
        try:
            temporary.write_text(json.dumps(owners), "utf-8")
            temporary.replace(self._path)
        except OSError as error:
            raise FmctlError(
                f"{self._path} cannot be written",
                why=error.strerror or str(error),
                fix="free space or mend its folder",
            ) from error
        self._owners = owners


def _read(path: Path) -> dict[int, str]:
    try:
        plain = json.loads(path.read_text("utf-8"))
        return {int(key): str(owner) for key, owner in plain.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise FmctlError(
            f"{path} cannot be read",
            why=str(error),
            fix=f"compare `fmctl list` with what your tenants hold, then remove {path}",
        ) from error
