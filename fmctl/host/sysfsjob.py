# SPDX-License-Identifier: Apache-2.0
"""Accesses to sysfs, as a script that runs in a process of its own: the kernel may never return from one.

`host.sysfsaccess` starts it, asks it for one access after the other, and abandons it past a deadline. It runs with
neither the environment nor the installed packages (-I -S), which starts in a few milliseconds, so it imports nothing of
ours. A request is a line of JSON; an answer is the kernel's error number, or 0, the length of what was read, and that.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
from collections.abc import Callable, Iterator

ANSWER = struct.Struct("!II")
"""With which an answer begins: the error number, and the bytes that follow."""
READ_LIMIT = 64
"""Bytes of a file that are read: the header of a configuration space, or more than a driver's name."""
ROM_CHUNK = 64 * 1024
"""Bytes that are read at once."""


def read(*paths: str) -> bytes:
    """The first bytes of each file, in hexadecimal, a line each."""
    lines = []
    for path in paths:
        with _opened(path, os.O_RDONLY) as file:
            lines.append(os.read(file, READ_LIMIT).hex())
    return "\n".join(lines).encode()


def write(path: str, offset: str, content: str) -> bytes:
    """Write the bytes, given in hexadecimal, by one call; never create a file."""
    with _opened(path, os.O_WRONLY) as file:
        os.pwrite(file, bytes.fromhex(content), int(offset))
    return b""


def rom(folder: str) -> bytes:
    """A function's expansion ROM.

    A function without a driver may not be enabled, and its ROM reads as nothing then; with one it cannot be enabled
    here. The kernel shows the ROM between two writes (Documentation/PCI/sysfs-pci.rst).
    """
    enabled = _switch(f"{folder}/enable", on=True)
    try:
        return _shown(f"{folder}/rom")
    finally:
        if enabled:
            _switch(f"{folder}/enable", on=False)


def _shown(path: str) -> bytes:
    with _opened(path, os.O_RDONLY) as reader, _opened(path, os.O_WRONLY) as writer:
        os.pwrite(writer, b"1\n", 0)
        try:
            content = b""
            while chunk := os.pread(reader, ROM_CHUNK, len(content)):
                content += chunk
            return content
        finally:
            os.pwrite(writer, b"0\n", 0)


def _switch(path: str, *, on: bool) -> bool:
    """Whether that could be written."""
    try:
        with _opened(path, os.O_WRONLY) as file:
            os.pwrite(file, b"1\n" if on else b"0\n", 0)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    file = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)


VERBS: dict[str, Callable[..., bytes]] = {"read": read, "write": write, "rom": rom}


def main() -> None:
    """Answer requests until there are no more."""
    for line in sys.stdin.buffer:
        verb, *arguments = json.loads(line)
        try:
            number, content = 0, VERBS[verb](*arguments)
        except OSError as error:
            number, content = error.errno or 0, b""
        answer = ANSWER.pack(number, len(content)) + content
        while answer:
            answer = answer[os.write(1, answer) :]


if __name__ == "__main__":
    main()
