# SPDX-License-Identifier: Apache-2.0
"""Reading what the kernel shows as files, where a file that is not there is an answer and no error.

`host.sysfs` and `host.kernel` say which files. There are thousands, looked at all the time: a path may be a plain
string, which costs a fraction of a Path.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_TEXT_LIMIT = 4096
"""Bytes of an attribute; the kernel gives each one page."""


def text(path: Path | str, limit: int = _TEXT_LIMIT) -> str:
    """An attribute without the blanks around it; empty where it cannot be read."""
    return content(path, limit).decode("ascii", "replace").strip()


def content(path: Path | str, limit: int, offset: int = 0) -> bytes:
    """At most `limit` bytes of a file; empty where it is missing, unreadable, or its function is gone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _up_to(descriptor, limit, offset)
        finally:
            os.close(descriptor)
    return b""


def names(folder: Path | str) -> tuple[str, ...]:
    """What lies in a folder, by name; nothing where it is missing."""
    try:
        return tuple(sorted(os.listdir(folder)))  # noqa: PTH208 (without a Path for each name)
    except OSError:
        return ()


def linked(path: Path | str) -> str:
    """The name of what a link leads to; empty where there is no link."""
    return target(path).rpartition("/")[2]


def target(path: Path | str) -> str:
    """What a link leads to; empty where there is no link."""
    try:
        return os.readlink(path)  # noqa: PTH115 (without a Path)
    except OSError:
        return ""


def _up_to(descriptor: int, limit: int, offset: int) -> bytes:
    found = b""
    while len(found) < limit:
        chunk = os.pread(descriptor, limit - len(found), offset + len(found))
        if not chunk:
            break
        found += chunk
    return found
