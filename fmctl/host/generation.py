# SPDX-License-Identifier: Apache-2.0
"""How often Fabric Manager was started fresh on this host: the port `Generation`, as a number in a file."""

from __future__ import annotations

import os
from pathlib import Path

from fmctl.core.errors import FmctlError


class FileGeneration:
    """The number in `path`, which a power failure leaves either old or new.

    A second line names the fresh start that was last followed, where that is how the number came about.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def current(self) -> int:
        """The number; 0 where there is no file."""
        return self._read()[0]

    def advance(self) -> int:
        """Count one more."""
        return self._write(self.current() + 1, "")

    def follow(self, start: str) -> int:
        """Count one more for a start that is a new one; raises FmctlError where that cannot be written."""
        value, followed = self._read()
        return value if start == followed else self._write(value + 1, start)

    def _read(self) -> tuple[int, str]:
        """The number, and the start that was followed; empty for none."""
        try:
            text = self._path.read_text("ascii")
        except FileNotFoundError:
            return 0, ""
        except (OSError, ValueError) as error:
            raise self._trouble(str(error)) from error
        number, _, start = text.partition("\n")
        if not number.isdigit():
            raise self._trouble(f"{text[:40]!r} is no number")
        return int(number), start.strip()

    def _write(self, value: int, start: str) -> int:
        new = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with new.open("w", encoding="ascii") as file:
                file.write(f"{value}\n" + f"{start}\n" * bool(start))
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
            _sync(self._path.parent)
        except OSError as error:
            raise self._trouble(str(error)) from error
        return value

    def _trouble(self, why: str) -> FmctlError:
        return FmctlError(
            "how often Fabric Manager was started fresh cannot be told",
            why=f"{self._path}: {why}",
            fix="see that it can be written and holds a number; one that is too high does no harm",
        )


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
