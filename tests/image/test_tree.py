# SPDX-License-Identifier: Apache-2.0
"""Trees and their archives."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

from imagebuild.root import load_order
from imagebuild.tree import Tree, filtered

EPOCH = 86400


def test_an_archive_does_not_depend_on_what_the_files_were(tmp_path: Path) -> None:
    archives = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        (folder / "lib").mkdir(parents=True)
        names = ["a", "b", "lib/c"]
        for name in names if number == 1 else reversed(names):
            (folder / name).write_text(name)
            os.utime(folder / name, (number, number))
        (folder / "a").chmod(0o640 if number == 1 else 0o600)
        tree = Tree()
        tree.overlay(folder)
        tree.write_tar(tmp_path / "tar", EPOCH)
        archives.append((tmp_path / "tar").read_bytes())
    assert archives[0] == archives[1]
    with tarfile.open(fileobj=io.BytesIO(archives[0])) as archive:
        assert archive.getnames() == ["a", "b", "usr", "usr/lib", "usr/lib/c"]


def test_a_later_folder_lies_over_an_earlier_one(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name / "etc").mkdir(parents=True)
        (tmp_path / name / "etc" / "file").write_text(name)
    tree = Tree()
    assert tree.overlay(tmp_path / "first") == ["etc/file"]
    tree.overlay(tmp_path / "second")
    assert tree["etc/file"].content == tmp_path / "second" / "etc" / "file"


def test_links_of_the_root_stay_links(tmp_path: Path) -> None:
    (tmp_path / "usr" / "sbin").mkdir(parents=True)
    (tmp_path / "usr" / "sbin" / "x").touch()
    (tmp_path / "sbin").symlink_to("usr/sbin")
    tree = Tree()
    assert tree.overlay(tmp_path) == ["usr/sbin/x"]
    assert "sbin" not in tree


def test_the_ram_disk_is_one_that_cpio_reads(tmp_path: Path) -> None:
    tree = Tree()
    tree.file("bin/busybox", b"#!", 0o755)
    tree.symlink("bin/sh", "busybox")
    tree.folder("dev")
    tree.write_cpio(tmp_path / "cpio", EPOCH)
    with (tmp_path / "cpio").open("rb") as archive:
        done = subprocess.run(
            ["/usr/bin/cpio", "--extract", "--quiet"], stdin=archive, cwd=tmp_path, capture_output=True, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "bin" / "sh").read_bytes() == b"#!"
    assert (tmp_path / "bin" / "busybox").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "dev").is_dir()


def test_a_foreign_archive_loses_its_owners_dates_and_hard_links(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "tar", "w") as archive:
        info = tarfile.TarInfo("./z")
        info.size, info.mtime, info.uid, info.uname = 2, 7, 1000, "someone"
        archive.addfile(info, io.BytesIO(b"hi"))
        link = tarfile.TarInfo("./a")
        link.type, link.linkname = tarfile.LNKTYPE, "./z"
        archive.addfile(link)
        device = tarfile.TarInfo("./dev")
        device.type = tarfile.CHRTYPE
        archive.addfile(device)
    members = [(info, content.read() if content else b"") for info, content in filtered(tmp_path / "tar", EPOCH)]
    assert [(m.name, m.isfile(), m.uid, m.uname, m.mtime, data) for m, data in members] == [
        ("a", True, 0, "", EPOCH, b"hi"),
        ("z", True, 0, "", EPOCH, b"hi"),
    ]


def test_modules_load_after_those_they_need() -> None:
    index = (
        "kernel/drivers/virtio/virtio.ko:\n"
        "kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko\n"
        "kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko\n"
        "kernel/fs/squash-fs.ko:\n"
    )
    names = [Path(path).stem for path in load_order(index, ["squash_fs", "virtio_blk", "builtin"])]
    assert names == ["squash-fs", "virtio", "virtio_ring", "virtio_blk"]
