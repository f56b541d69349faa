# SPDX-License-Identifier: Apache-2.0
"""Libvirt with fmctl's hook, in a mount namespace whose /etc/libvirt/hooks is the test's own.

`python -m tests.libvirt.hooked` starts each document that stands in a line of standard input, as JSON, and prints what
libvirt says of it; nothing where the domain started.
"""

from __future__ import annotations

import json
import sys

import libvirt

from tests.libvirt_support import private_libvirtd


def main() -> None:
    """Start each domain, and end it."""
    libvirt.registerErrorHandler(lambda ignored, error: None, None)
    with private_libvirtd() as daemon:
        connection = libvirt.open(daemon.uri)
        for line in sys.stdin:
            try:
                connection.createXML(json.loads(line), 0).destroy()
                print("", flush=True)  # noqa: T201
            except libvirt.libvirtError as error:
                print(" ".join(str(error).split()), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
