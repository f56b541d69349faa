# SPDX-License-Identifier: Apache-2.0
"""What goes into the root beside Debian's packages: our files, wheels, a simulated Fabric Manager, extras."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

from fmctl.core.errors import BadRequest
from fmctl.sim import shim
from fmctl.sim.nvfabricmanager import VERSION, VERSION_VARIABLE
from imagebuild import CHECKOUT, RECIPE
from imagebuild.tree import Tree

DEPENDENCIES = "opt/fmctl"
_LEFT_OUT = (".pyi", ".proto", ".pyx", ".pxd", ".typed")
_UNIT = CHECKOUT / "systemd" / "fmctl-agent.service"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_SIMULATED = f"""\
#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A simulated Fabric Manager in the place of NVIDIA's. As there, its version is told at once.
[ "$*" != -v ] || exec echo "Fabric Manager version is : ${{{VERSION_VARIABLE}:-{VERSION}}}"
exec python3 -m fmctl sim nv-fabricmanager --platform /etc/fmctl/platform.yaml "$@"
"""


def ours(wheels: Iterable[Path]) -> Tree:
    """What every image has."""
    made = Tree()
    made.overlay(RECIPE / "root")
    made.file(f"usr/lib/systemd/system/{_UNIT.name}", _UNIT)
    made.file("etc/fmctl/agent.yaml", RECIPE / "agent.yaml")
    made.symlink("etc/os-release", "../usr/lib/os-release")
    for wheel in wheels:
        _unpack(wheel, made)
    return made


def _unpack(wheel: Path, made: Tree) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not name.endswith(("/", *_LEFT_OUT)) and not name.split("/")[0].endswith((".dist-info", ".data")):
                made.file(f"{DEPENDENCIES}/{name}", archive.read(name))


def simulated(platform: Path, made: Tree) -> None:
    """Add a Fabric Manager that is simulated, of the board in that file; raises FmctlError."""
    made.file("etc/fmctl/platform.yaml", platform)
    made.file("usr/bin/nv-fabricmanager", _SIMULATED.encode(), 0o755)
    made.file(f"{_LIBRARIES}/{shim.SONAME}", (shim.build() / shim.SONAME).read_bytes(), 0o755)


def platform_file(platform: str) -> Path:
    """The file of a board that is given by name or by file; raises BadRequest."""
    known = CHECKOUT / "fmctl" / "platforms"
    for path in (known / f"{platform}.yaml", Path(platform)):
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in known.glob("*.yaml")))
    raise BadRequest(f"there is no platform {platform}", why="it is neither a name nor a file", fix=f"one of {names}")


def add_extra(folders: Iterable[Path], made: Tree) -> list[str]:
    """Add these folders' files, and return their paths."""
    return sorted({f"/{path}" for folder in folders for path in made.overlay(folder)})
