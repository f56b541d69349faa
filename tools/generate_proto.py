# SPDX-License-Identifier: Apache-2.0
"""Write the Python of the API's .proto files, beside them or into the folder that is given.

The generated modules import each other as `fmctl.v1`; here they live in the package `fmctl.rpc.fmctl.v1`, so those
imports are rewritten. A test runs this into an empty folder and compares.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "fmctl" / "rpc"
PACKAGE = Path("fmctl", "v1")
PACKAGE_FILE = """\
# SPDX-License-Identifier: Apache-2.0
\"\"\"Generated from the .proto files by tools/generate_proto.py.\"\"\"
"""


def generate(output: Path) -> None:
    """Write the modules and their stubs below `output`; exits where protoc refuses."""
    names = [str(path.relative_to(PROTOS)) for path in sorted((PROTOS / PACKAGE).glob("*.proto"))]
    services = [name for name in names if "service " in (PROTOS / name).read_text()]
    includes = [f"-I{PROTOS}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}"]
    run = [
        ["protoc", *includes, f"--python_out={output}", f"--mypy_out={output}", *names],
        ["protoc", *includes, f"--grpc_python_out={output}", f"--mypy_grpc_out={output}", *services],
    ]
    for arguments in run:
        if protoc.main(arguments) != 0:
            sys.exit("protoc failed")
    for folder in (output / PACKAGE.parent, output / PACKAGE):
        (folder / "__init__.py").write_text(PACKAGE_FILE)
    for path in (output / PACKAGE).glob("*_pb2*.py*"):
        path.write_text(re.sub(r"\bfmctl\.v1\b(?= import|\.\w+_pb2)", "fmctl.rpc.fmctl.v1", path.read_text()))


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTOS)
