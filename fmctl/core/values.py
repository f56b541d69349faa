# SPDX-License-Identifier: Apache-2.0
"""Values that settings are made of, each read from a text and refused where it is not what it should be."""

from __future__ import annotations

import dataclasses
import re
from enum import Enum
from pathlib import PurePosixPath


@dataclasses.dataclass(frozen=True)
class AbsolutePath:
    """A path that does not depend on where a process was started."""

    path: PurePosixPath

    @classmethod
    def parse(cls, value: object) -> AbsolutePath:
        """Read a path; raises ValueError."""
        if not isinstance(value, str) or not value.startswith("/"):
            raise ValueError(f"an absolute path is wanted, not {value!r}")
        if not value.isprintable() or ".." in PurePosixPath(value).parts:
            raise ValueError(f"a path of printable characters and without .. is wanted, not {value!r}")
        return cls(PurePosixPath(value))

    def __str__(self) -> str:
        return str(self.path)


@dataclasses.dataclass(frozen=True)
class DomainName:
    """The name of a libvirt domain, which also names files."""

    name: str

    @classmethod
    def parse(cls, value: object) -> DomainName:
        """Read a name; raises ValueError."""
        if not isinstance(value, str) or not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,62}", value):
            raise ValueError(f"a name of at most 63 letters, digits, dots, dashes and underscores, not {value!r}")
        return cls(value)

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class Uuid:
    """A UUID in lower case."""

    text: str

    @classmethod
    def parse(cls, value: object) -> Uuid:
        """Read a UUID; raises ValueError."""
        if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", value):
            raise ValueError(f"a UUID in lower case is wanted, not {value!r}")
        return cls(value)

    def __str__(self) -> str:
        return self.text


class LogLevel(str, Enum):
    """How much is written to standard error."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
