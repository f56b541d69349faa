# SPDX-License-Identifier: Apache-2.0
"""The lock as it is kept, and what is refused in one."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmctl.core.errors import InvalidDocument
from imagebuild import RECIPE, cache, lock
from imagebuild.lock import Lock, Package, Wheel

SHA = "0" * 63 + "1"
LOCK = Lock(86400, (Package("root", "kmod", "30-1", "amd64", SHA),), (Wheel("click", "8.1", SHA),))


def test_a_lock_is_read_as_it_was_written(tmp_path: Path) -> None:
    lock.write(LOCK, tmp_path)
    assert lock.read(tmp_path) == LOCK


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("root kmod 30-1 amd64 " + SHA, id="no date"),
        pytest.param(f"epoch 1\nroot kmod 30-1 {SHA}", id="no architecture"),
        pytest.param("epoch 1\nroot kmod 30-1 amd64 123", id="no SHA-256"),
        pytest.param(f"epoch 1\nother kmod 30-1 amd64 {SHA}", id="no such group"),
        pytest.param("", id="empty"),
    ],
)
def test_what_is_no_lock_is_refused(text: str, tmp_path: Path) -> None:
    lock.write(LOCK, tmp_path)
    (tmp_path / "packages").write_text(text)
    with pytest.raises(InvalidDocument):
        lock.read(tmp_path)


def test_the_kept_lock_pins_everything_that_is_wanted() -> None:
    kept = lock.read(RECIPE / "lock")
    names = {(package.group, package.name) for package in kept.packages}
    wanted = [line.split() for line in (RECIPE / "packages").read_text().splitlines() if line and line[0] != "#"]
    for group, name in wanted:
        assert (group, name) in names or name == "linux-image-amd64"
    assert [p.name for p in kept.group(lock.ROOT) if p.name.startswith("linux-image-")]
    requirements = [line for line in (RECIPE / "requirements").read_text().splitlines() if line and line[0] != "#"]
    assert set(requirements) <= {wheel.name for wheel in kept.wheels}


def test_what_is_kept_is_not_fetched(tmp_path: Path) -> None:
    content = tmp_path / "content"
    content.write_text("deb")
    digest = cache.sha256(content)
    content.rename(tmp_path / digest)
    package = Package("root", "kmod", "30-1", "amd64", digest)
    assert cache.debs([package], tmp_path) == {package: tmp_path / digest}
