# SPDX-License-Identifier: Apache-2.0
"""start-agent, run by a real shell on folders of the test's: which agent it starts, and when it goes back."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from imagebuild import RECIPE
from imagebuild.tree import Tree

SCRIPT = RECIPE / "root" / "usr" / "lib" / "fmctl" / "start-agent"
PYTHON = '#!/bin/sh\necho "$FMCTL_AGENT_DIGEST" "$PYTHONPATH" "$@"\n'


def archive(path: Path, text: str) -> str:
    tree = Tree()
    tree.file("fmctl/__init__.py", text.encode())
    tree.write_tar(path, 0)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Guest:
    """The Service VM, as far as the launcher sees it."""

    folder: Path
    first: str

    @property
    def agents(self) -> Path:
        return self.folder / "agents"

    def start(self) -> str:
        """Start the agent once; the digest of the one that runs."""
        places = {"DISK": "disk", "DIR": "agents", "DEPENDENCIES": "opt", "CONFIG": "agent.yaml", "PYTHON": "python"}
        environment = {f"FMCTL_AGENT_{name}": str(self.folder / path) for name, path in places.items()}
        done = subprocess.run(
            ["/bin/sh", str(SCRIPT)],
            env={"PATH": os.environ["PATH"], **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        digest, path, *arguments = done.stdout.split()
        assert path == f"{self.agents / digest}:{self.folder / 'opt'}"
        assert arguments == ["-S", "-m", "fmctl", "agent", "--config", str(self.folder / "agent.yaml")]
        assert (self.agents / digest / "fmctl" / "__init__.py").is_file()
        return digest

    def put_on_trial(self, text: str) -> str:
        """What the agent does with a new one that it is given."""
        tar = self.folder / "new.tar"
        digest = archive(tar, text)
        (self.agents / digest).mkdir()
        subprocess.run(["/bin/tar", "-xf", str(tar), "-C", str(self.agents / digest)], check=True)
        (self.agents / "trial").write_text(f"{digest}\n")
        return digest


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return Guest(tmp_path, archive(tmp_path / "disk", "first"))


def test_the_first_start_takes_the_disk_s_agent(guest: Guest) -> None:
    assert guest.start() == guest.first
    assert (guest.agents / "current").read_text() == f"{guest.first}\n"


def test_the_disk_is_unpacked_once_a_boot(guest: Guest) -> None:
    guest.start()
    (guest.folder / "disk").unlink()
    assert guest.start() == guest.first


def test_what_a_broken_start_left_is_made_anew(guest: Guest) -> None:
    half = guest.agents / f"{guest.first}.new"
    half.mkdir(parents=True)
    (half / "rubbish").touch()
    assert guest.start() == guest.first
    assert not (guest.agents / guest.first / "rubbish").exists()


def test_an_agent_on_trial_is_started_once(guest: Guest) -> None:
    guest.start()
    trial = guest.put_on_trial("second")
    assert guest.start() == trial
    assert (guest.agents / trial / ".started").exists()
    assert guest.start() == guest.first
    assert not (guest.agents / "trial").exists()
    assert not (guest.agents / trial).exists()
    assert guest.start() == guest.first


def test_a_confirmed_agent_stays(guest: Guest) -> None:
    guest.start()
    trial = guest.put_on_trial("second")
    guest.start()
    (guest.agents / "current").write_text(trial)
    (guest.agents / "trial").unlink()
    assert [guest.start(), guest.start()] == [trial, trial]


def test_an_agent_that_died_while_it_was_confirmed_stays(guest: Guest) -> None:
    guest.start()
    trial = guest.put_on_trial("second")
    guest.start()
    (guest.agents / "current").write_text(f"{trial}\n")
    assert [guest.start(), guest.start()] == [trial, trial]
    assert not (guest.agents / "trial").exists()


@pytest.mark.parametrize("text", ["", "..", "/", "abc", "../agents\n"])
def test_a_trial_that_is_nothing_is_dropped(guest: Guest, text: str) -> None:
    guest.start()
    (guest.agents / "trial").write_text(text)
    assert guest.start() == guest.first
    assert not (guest.agents / "trial").exists()
    assert (guest.agents / "current").exists()
