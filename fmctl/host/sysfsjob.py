# SPDX-License-Identifier: Apache-2.0
"""One access to sysfs, as a script that runs in a process of its own: the kernel may never return from it.

`host.sysfsaccess` starts it, and abandons it past a deadline. It runs with neither the environment nor the installed
packages (-I -S), which takes a few milliseconds, so it imports nothing of ours. Its exit status is 0, or ERRNO_BASE
plus the kernel's error number.
"""

from __future__ import annotations

import os
import sys

ERRNO_BASE = 100
"""Apart from the statuses with which an interpreter ends; the largest error number of Linux is 133."""
READ_LIMIT = 64
"""Bytes of a file that are read: the header of a configuration space, or more than a driver's name."""

ROM_CHUNK = 64 * 1024
"""Bytes that are read at once."""


def read(paths: list[str]) -> None:
    """Write the first bytes of each file to standard output, in hexadecimal, a line each."""
    for path in paths:
        content = os.read(os.open(path, os.O_RDONLY), READ_LIMIT)
        os.write(1, content.hex().encode() + b"\n")


def write(path: str, offset: str, content: str) -> None:
    """Write the bytes, given in hexadecimal, by one call; never create a file."""
    os.pwrite(os.open(path, os.O_WRONLY), bytes.fromhex(content), int(offset))


def rom(folder: str) -> None:
    """Write a function's expansion ROM to standard output.

    A function without a driver may not be enabled, and its ROM reads as nothing then; with one it cannot be enabled
    here. The kernel shows the ROM between two writes (Documentation/PCI/sysfs-pci.rst).
    """
    enabled = _switch(f"{folder}/enable", on=True)
    try:
        _shown(f"{folder}/rom")
    finally:
        if enabled:
            _switch(f"{folder}/enable", on=False)


def _shown(path: str) -> None:
    reader, writer = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY)
    os.pwrite(writer, b"1\n", 0)
    try:
        offset = 0
        while content := os.pread(reader, ROM_CHUNK, offset):
            offset += len(content)
            while content:
                content = content[os.write(1, content) :]
    finally:
        os.pwrite(writer, b"0\n", 0)


def _switch(path: str, *, on: bool) -> bool:
    """Whether that could be written."""
    try:
        os.pwrite(os.open(path, os.O_WRONLY), b"1\n" if on else b"0\n", 0)
    except OSError:
        return False
    return True


def main(verb: str, *arguments: str) -> int:
    """Do what the arguments say; the exit status."""
    try:
        if verb == "read":
            read(list(arguments))
        elif verb == "rom":
            rom(*arguments)
        else:
            write(*arguments)
    except OSError as error:
        return ERRNO_BASE + (error.errno or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
