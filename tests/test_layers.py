# SPDX-License-Identifier: Apache-2.0
"""Imports go down only, and each outside world has one door. docs/architecture.md tells why."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fmctl"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if not p.stem.endswith(("_pb2", "_pb2_grpc")))

MAY_IMPORT = {
    "core": set(),
    "process": {"core"},
    "files": {"core"},
    "notify": set(),
    "watchdog": {"notify"},
    "platforms": {"core", "files"},
    "templates": {"core", "files"},
    "versions": {"core"},
    "control": {"core", "process"},
    "host": {"core", "process"},
    "guest": {"core", "process"},
    "sim": {"core", "process"},
    "rpc": {"control", "core"},
    "agent": {
        *("control", "core", "guest", "host", "notify", "platforms", "process", "rpc", "sim", "templates", "watchdog"),
    },
    "hostgpus": {"control", "core", "host", "local", "watchdog"},
    "daemon": {
        *(
            "control",
            "core",
            "guest",
            "host",
            "hostgpus",
            "local",
            "notify",
            "platforms",
            "process",
            "rpc",
            "sim",
            "watchdog",
        ),
    },
    "local": {"control", "core", "files", "host", "platforms", "process", "sim", "templates"},
    "cli": {"core", "files", "platforms", "rpc", "versions"},
    "__main__": {"cli"},
    "__init__": set(),
}
LAZILY = {"cli": {"agent", "daemon", "local", "sim", "process"}}
"""What a layer may import inside a function alone, or for its types."""

DOORS = {
    "cryptography": {"core/signature.py"},
    "ctypes": {"guest/nvfm.py"},
    "subprocess": {"process.py"},
    "libvirt": {"host/hypervisor.py"},
    "multiprocessing": set(),
}


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports, and whether it does so inside a function, or for its types alone."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) or _is_for_types(function)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            if module == "fmctl":
                yield from ((f"fmctl.{alias.name}", id(node) in inside) for alias in node.names)
            else:
                yield module, id(node) in inside


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    own = layer(path)
    for name, lazily in imports(path):
        if not name.startswith("fmctl.") or name == "fmctl.__version__":
            continue
        other = name.split(".")[1]
        allowed = MAY_IMPORT[own] | {own} | (LAZILY.get(own, set()) if lazily else set())
        assert other in allowed, f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_each_outside_world_has_one_door(path: Path) -> None:
    place = str(path.relative_to(PACKAGE))
    for name, _ in imports(path):
        doors = DOORS.get(name.split(".")[0])
        assert doors is None or place in doors, f"{place} imports {name}"


@pytest.mark.parametrize("path", [p for p in MODULES if layer(p) not in ("rpc", "cli")], ids=str)
def test_grpc_stays_in_rpc(path: Path) -> None:
    assert not [name for name, _ in imports(path) if name.split(".")[0] in ("grpc", "google", "grpc_health")]


@pytest.mark.parametrize("path", [p for p in MODULES if layer(p) == "core"], ids=str)
def test_core_has_no_io(path: Path) -> None:
    forbidden = {"os", "socket", "time", "threading", "asyncio", "sqlite3", "logging", "shutil", "tempfile"}
    assert not forbidden & {name.split(".")[0] for name, _ in imports(path)}
