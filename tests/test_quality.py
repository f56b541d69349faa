# SPDX-License-Identifier: Apache-2.0
"""Linters, types, generated code and sizes, so that one command is the whole gate."""

from __future__ import annotations

import ast
import filecmp
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GENERATED = ROOT / "fmctl" / "rpc" / "fmctl" / "v1"
OURS = sorted(p for p in (ROOT / "fmctl").rglob("*.py") if "_pb2" not in p.name)


def check(*argv: str) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    check(sys.executable, "-m", "ruff", "check", "--no-cache", ".")


def test_ruff_would_format_nothing() -> None:
    check(sys.executable, "-m", "ruff", "format", "--no-cache", "--check", ".")


def test_mypy_finds_nothing() -> None:
    check(sys.executable, "-m", "mypy")


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        [sys.executable, "tools/generate_proto.py", str(tmp_path)],
        cwd=ROOT,
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    fresh = sorted(p.name for p in (tmp_path / "fmctl" / "v1").iterdir())
    kept = sorted(p.name for p in GENERATED.iterdir() if p.suffix in (".py", ".pyi"))
    assert fresh == kept
    _, different, missing = filecmp.cmpfiles(tmp_path / "fmctl" / "v1", GENERATED, fresh, shallow=False)
    assert (different, missing) == ([], [])


def test_dependencies_start_at_the_generator_s_versions() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    grpc_file = (GENERATED / "fabric_controller_pb2_grpc.py").read_text()
    generator = re.search(r"GRPC_GENERATED_VERSION = '([^']+)'", grpc_file)
    protobuf = re.search(r"Protobuf Python Version: (\S+)", (GENERATED / "partition_pb2.py").read_text())
    assert generator and protobuf
    for name in ("grpcio", "grpcio-health-checking", "grpcio-status"):
        assert f'"{name}>={generator[1]}"' in project
    assert f'"protobuf>={protobuf[1]},' in project


@pytest.mark.parametrize("path", OURS, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


@pytest.mark.parametrize("path", OURS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_its_licence_and_its_role(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(ast.parse(text))


SCRIPTS = ["demo", "install", "packages", "setup", "setup-image", "setup-lab", "setup-qemu", "uninstall", "wheels"]


@pytest.mark.parametrize("script", [*(f"tools/{name}" for name in SCRIPTS), ".ci/run", "systemd/libvirt-hook"])
def test_shellcheck_finds_nothing(script: str) -> None:
    shellcheck = shutil.which("shellcheck")
    assert shellcheck, "make venv installs shellcheck"
    check(shellcheck, script)
