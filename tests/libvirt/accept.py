# SPDX-License-Identifier: Apache-2.0
"""Gives domain documents to libvirt's own QEMU driver, which needs no libvirtd: qemu:///embed, in this process.

A process of its own, since one process can open the driver for one folder only: `python -m tests.libvirt.accept
FOLDER FILE...` prints, as JSON, QEMU's options for each file, or what libvirt has against it.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import threading
from pathlib import Path
from typing import Any

import libvirt

_QEMU_CONF = """
user = "root"
group = "root"
"""
"""The driver's own user: as another one it asks QEMU for its capabilities again and again where /dev/kvm is root's."""


def main() -> None:
    folder, *files = map(Path, sys.argv[1:])
    (folder / "etc").mkdir(parents=True)
    (folder / "etc" / "qemu.conf").write_text(_QEMU_CONF)
    libvirt.registerErrorHandler(lambda *_: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_serve_events, daemon=True).start()
    connection = libvirt.open(f"qemu:///embed?root={folder}")
    json.dump({file.name: _judged(connection, file.read_text()) for file in files}, sys.stdout)
    sys.stdout.flush()


def _serve_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _judged(connection: Any, xml: str) -> dict[str, Any]:
    """The document defined with validation, then what libvirt makes of it as QEMU's options.

    For the options alone libvirt wants the NUMA nodes to be there, so all are taken for the first; it wants no host
    device to be there, nor any file.
    """
    try:
        domain = connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        defined = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        here = re.sub("nodeset='[0-9]+'", "nodeset='0'", defined)
        options = shlex.split(connection.domainXMLToNative("qemu-argv", here))
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
    except libvirt.libvirtError as error:
        return {"error": str(error)}
    return {"options": options}


if __name__ == "__main__":
    main()
