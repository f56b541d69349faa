# SPDX-License-Identifier: Apache-2.0
"""Images and keys as files: who may write them, how they come into the store, and what a crash leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fmctl.core import signature
from fmctl.core.errors import BadRequest, FmctlError, ImageRefused, InvalidDocument
from fmctl.core.signature import PublicKey, Trust
from fmctl.host import imagefiles, images, keyfiles
from fmctl.host.images import FolderImages
from tests import images as made
from tests.images import OTHER, PAIR, TRUST

FILES = ("agent.tar", "initrd", "manifest.json", "manifest.json.sig", "root.squashfs", "vmlinuz")
STRANGER = frozenset({54321})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    root.mkdir(mode=0o755)
    made.write(root / "a", made.files())
    return root


def refusal(root: Path, owners: frozenset[int] | None = None) -> str:
    with pytest.raises(ImageRefused) as caught:
        FolderImages(root, TRUST, owners=owners).vouched("a")
    assert caught.value.what == "the image a is refused"
    assert caught.value.fix
    return caught.value.why


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(("mode", "told"), [(0o664, "0664"), (0o646, "0646"), (0o666, "0666")])
def test_a_file_that_others_may_write_is_refused(root: Path, file: str, mode: int, told: str) -> None:
    (root / "a" / file).chmod(mode)
    assert refusal(root) == f"{file}: others than its owner may write it (its mode is {told})"


@pytest.mark.parametrize("which", [".", "a"])
@pytest.mark.parametrize(("mode", "told"), [(0o775, "0775"), (0o757, "0757"), (0o1777, "1777")])
def test_a_folder_that_others_may_write_is_refused(root: Path, which: str, mode: int, told: str) -> None:
    folder = root / which
    folder.chmod(mode)
    assert refusal(root) == f"{folder}: others than its owner may write it (its mode is {told})"


def test_what_belongs_to_somebody_else_is_refused(root: Path) -> None:
    user = os.geteuid()
    assert refusal(root, STRANGER) == (
        f"{root}: it belongs to user {user}, who is neither root nor the user that fmctl runs as"
    )


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@as_root
@pytest.mark.parametrize("name", ["a", *(f"a/{file}" for file in FILES)])
def test_each_file_and_folder_must_be_ours(root: Path, name: str) -> None:
    os.chown(root / name, 54321, -1)
    shown = root / name if name == "a" else name.removeprefix("a/")
    assert refusal(root) == (f"{shown}: it belongs to user 54321, who is neither root nor the user that fmctl runs as")


@as_root
def test_qemu_s_user_may_own_what_it_boots_and_nothing_else(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagefiles, "qemu_users", lambda: STRANGER)
    for file in ("agent.tar", "initrd", "root.squashfs", "vmlinuz"):
        os.chown(root / "a" / file, 54321, -1)
    FolderImages(root, TRUST).vouched("a")
    for name in ("a/manifest.json", "a/manifest.json.sig", "a", "."):
        os.chown(root / name, 54321, -1)
        assert "it belongs to user 54321" in refusal(root)
        os.chown(root / name, 0, -1)
    (root / "a" / "vmlinuz").write_bytes(b"other")
    assert refusal(root).startswith("vmlinuz: its SHA-256 is ")


@pytest.mark.parametrize("file", FILES)
def test_a_symbolic_link_is_refused_wherever_it_leads(root: Path, tmp_path: Path, file: str) -> None:
    (root / "a" / file).rename(tmp_path / file)
    (root / "a" / file).symlink_to(tmp_path / file)
    assert refusal(root) == f"{file}: it is a symbolic link, which may lead anywhere"


@pytest.mark.parametrize("file", FILES)
def test_what_is_no_regular_file_is_refused_and_not_waited_for(root: Path, file: str) -> None:
    (root / "a" / file).unlink()
    os.mkfifo(root / "a" / file, 0o644)
    assert refusal(root) == f"{file}: it is no regular file"


def test_a_folder_in_a_file_s_place_is_refused(root: Path) -> None:
    (root / "a" / "initrd").unlink()
    (root / "a" / "initrd").mkdir(0o755)
    assert refusal(root) == "initrd: it is no regular file"


def test_a_manifest_that_is_far_too_long_is_not_read(root: Path) -> None:
    os.truncate(root / "a" / "manifest.json", (4 << 20) + 1)
    assert refusal(root) == "manifest.json: it has more than 4194304 bytes"


def test_an_image_that_is_a_link_is_none(root: Path) -> None:
    (root / "b").symlink_to("a")
    (root / "file").touch()
    (root / ".hidden").mkdir()
    assert FolderImages(root, TRUST).names() == ("a",)


@pytest.mark.parametrize("link", ["current", "trial"])
@pytest.mark.parametrize("target", ["../a", "/etc", ".", ".adding-x", "current"])
def test_a_link_that_leads_out_of_the_store_is_refused(root: Path, link: str, target: str) -> None:
    (root / link).symlink_to(target)
    store = FolderImages(root, TRUST)
    with pytest.raises(ImageRefused) as caught:
        store_says(store, link)
    assert caught.value.why.startswith(f"{root / link}: it leads to ")


def store_says(store: FolderImages, link: str) -> str | None:
    return store.current() if link == "current" else store.trial()


def test_a_link_is_a_name_in_the_same_folder_and_may_outlive_its_image(root: Path) -> None:
    store = FolderImages(root, TRUST)
    store.choose("a")
    assert (root / "current").readlink() == Path("a")
    (root / "a").rename(root / "b")
    assert store.current() == "a"


def test_what_a_crash_left_of_a_change_is_no_hindrance(root: Path) -> None:
    (root / ".current.new").symlink_to("gone")
    store = FolderImages(root, TRUST)
    store.choose("a")
    assert store.current() == "a"
    assert not os.path.lexists(root / ".current.new")


def test_a_change_of_the_one_in_use_is_on_the_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Path] = []
    monkeypatch.setattr(images, "_sync", lambda folder: steps.append((folder / "current").readlink()))
    FolderImages(root, TRUST).choose("a")
    assert steps == [Path("a")]


def test_a_link_that_cannot_be_made_is_told(root: Path) -> None:
    (root / "current").mkdir()
    with pytest.raises(FmctlError) as caught:
        FolderImages(root, TRUST).choose("a")
    assert caught.value.what == f"{root / 'current'} cannot be written"
    with pytest.raises(FmctlError) as caught:
        FolderImages(root, TRUST).current()
    assert caught.value.what == f"{root / 'current'} cannot be read"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return made.write(tmp_path / "built", {**made.files("2"), "notes": b"mine"})


def test_an_image_is_added_with_what_is_vouched_for_alone(root: Path, source: Path) -> None:
    source.chmod(0o777)
    for file in source.iterdir():
        file.chmod(0o666)
    store = FolderImages(root, TRUST)
    mask = os.umask(0o077)
    try:
        added = store.add(source, "b")
    finally:
        os.umask(mask)
    assert (added.image.name, added.already) == ("b", False)
    assert sorted(file.name for file in (root / "b").iterdir()) == sorted(FILES)
    assert [file.stat().st_mode & 0o777 for file in (root / "b").iterdir()] == [0o644] * 6
    assert (root / "b").stat().st_mode & 0o777 == 0o755
    assert sorted(file.name for file in root.iterdir()) == ["a", "b"]


def test_the_store_is_made_with_the_first_image(tmp_path: Path, source: Path) -> None:
    store = FolderImages(tmp_path / "deep" / "images", TRUST)
    assert store.add(source, "b").image.name == "b"


def test_the_same_image_may_be_added_again(root: Path, source: Path) -> None:
    store = FolderImages(root, TRUST)
    first = store.add(source, "b")
    again = store.add(source, "b")
    assert (again.already, again.image) == (True, first.image)


def test_another_image_of_the_same_name_is_refused(root: Path, source: Path) -> None:
    with pytest.raises(FmctlError) as caught:
        FolderImages(root, TRUST).add(source, "a")
    assert caught.value.what == "there is another image a"
    assert FolderImages(root, TRUST).vouched("a").digest != FolderImages(source.parent, TRUST).read("built").digest


def test_the_same_image_takes_over_the_signature_of_another_key(root: Path, tmp_path: Path) -> None:
    source = made.write(tmp_path / "built", made.files(private=OTHER.private))
    other = FolderImages(root, Trust(lambda: (PublicKey("other", OTHER.public),)))
    with pytest.raises(ImageRefused):
        other.vouched("a")
    assert other.add(source, "a").image.signed_by == signature.fingerprint(OTHER.public)
    assert sorted(file.name for file in (root / "a").iterdir()) == sorted(FILES)


def test_a_signature_that_nobody_trusts_is_not_taken_over(root: Path, tmp_path: Path) -> None:
    source = made.write(tmp_path / "built", made.files(private=OTHER.private))
    with pytest.raises(ImageRefused):
        FolderImages(root, TRUST).add(source, "a")
    FolderImages(root, TRUST).vouched("a")


def test_a_signature_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "manifest.json.sig").mkdir()
    with pytest.raises(FmctlError) as caught:
        keyfiles.write_signature(tmp_path, b"x")
    assert caught.value.what == f"{tmp_path / 'manifest.json.sig'} cannot be written"


def test_a_damaged_image_in_the_store_is_told_when_it_is_added_again(root: Path, tmp_path: Path) -> None:
    source = made.write(tmp_path / "built", made.files())
    (root / "a" / "initrd").write_bytes(b"other")
    with pytest.raises(ImageRefused) as caught:
        FolderImages(root, TRUST).add(source, "a")
    assert caught.value.why.startswith("initrd: its SHA-256 is ")


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_added_that_is_not_what_it_says(root: Path, source: Path, file: str) -> None:
    (source / file).write_bytes(b"other")
    with pytest.raises(ImageRefused):
        FolderImages(root, TRUST).add(source, "b")
    assert [file.name for file in root.iterdir()] == ["a"]


def test_nothing_is_copied_that_somebody_else_signed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = made.write(tmp_path / "built", made.files(private=OTHER.private))
    monkeypatch.setattr(images, "_copy", lambda *arguments: pytest.fail("it was copied"))
    with pytest.raises(ImageRefused):
        FolderImages(root, TRUST).add(source, "b")
    assert [file.name for file in root.iterdir()] == ["a"]


def test_the_copy_is_judged_and_not_what_was_copied(root: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = images._copy

    def and_then_change(old: object, found: object, folder: Path) -> None:
        real(old, found, folder)  # type: ignore[arg-type]
        (folder / "initrd").write_bytes(b"other")

    monkeypatch.setattr(images, "_copy", and_then_change)
    with pytest.raises(ImageRefused) as caught:
        FolderImages(root, TRUST).add(source, "b")
    assert caught.value.why.startswith("initrd: its SHA-256 is ")
    assert [file.name for file in root.iterdir()] == ["a"]


def test_what_is_no_name_is_not_added(root: Path, source: Path) -> None:
    with pytest.raises(BadRequest):
        FolderImages(root, TRUST).add(source, "../b")


def test_what_a_crash_left_of_an_addition_goes_with_the_next_and_what_is_under_way_stays(
    root: Path, source: Path
) -> None:
    left = made.write(root / ".adding-left", {"initrd": b"half"})
    with FolderImages(root, TRUST)._new_folder() as busy:
        FolderImages(root, TRUST).add(source, "b")
        assert not left.exists()
        assert busy.exists()
    assert not busy.exists()


def test_what_is_removed_is_gone(root: Path) -> None:
    FolderImages(root, TRUST).remove("a")
    assert list(root.iterdir()) == []


def test_keys_are_written_once(tmp_path: Path) -> None:
    key = tmp_path / "image"
    assert keyfiles.write(key, PAIR) == tmp_path / "image.pub"
    assert key.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "image.pub").stat().st_mode & 0o777 == 0o644
    assert keyfiles.private(key) == PAIR.private
    for name in ("image", "image.pub"):
        with pytest.raises(FmctlError) as caught:
            keyfiles.write(key, OTHER)
        assert caught.value.what == f"{tmp_path / name} is there already"
        (tmp_path / name).unlink()
    assert not key.exists()


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"mine")
    with pytest.raises(FmctlError) as caught:
        keyfiles._create(tmp_path / "image", b"other", 0o600)
    assert caught.value.why == "File exists"
    assert (tmp_path / "image").read_bytes() == b"mine"


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_pinned_key_that_others_may_write_is_refused(root: Path, tmp_path: Path, mode: int) -> None:
    key = tmp_path / "image.pub"
    key.write_bytes(PAIR.public)
    key.chmod(mode)
    store = FolderImages(root, Trust(lambda: keyfiles.pinned([key], owners=imagefiles.own())))
    with pytest.raises(ImageRefused) as caught:
        store.vouched("a")
    assert caught.value.why == (
        f"manifest.json.sig: {key}: others than its owner may write it (its mode is {mode:04o})"
    )
    key.chmod(0o644)
    assert store.vouched("a").signed_by == signature.fingerprint(PAIR.public)


def test_a_pinned_key_of_a_stranger_s_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "image.pub"
    key.write_bytes(PAIR.public)
    key.chmod(0o644)
    with pytest.raises(ImageRefused) as caught:
        keyfiles.pinned([key], owners=STRANGER)
    assert caught.value.what == f"the public key {key} is refused"
    assert "it belongs to user" in caught.value.why
    assert keyfiles.named([key])[0].pem == PAIR.public


def test_a_pinned_key_that_is_missing_is_none_and_one_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    missing, link = tmp_path / "none.pub", tmp_path / "link.pub"
    assert keyfiles.pinned([missing], owners=imagefiles.own()) == ()
    with pytest.raises(ImageRefused) as caught:
        keyfiles.named([missing])
    assert caught.value.why == f"{missing}: No such file or directory"
    link.symlink_to(missing)
    with pytest.raises(ImageRefused) as caught:
        keyfiles.pinned([link], owners=imagefiles.own())
    assert caught.value.why == f"{link}: No such file or directory"


def test_a_private_key_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidDocument) as caught:
        keyfiles.private(tmp_path / "none")
    assert caught.value.what == f"{tmp_path / 'none'} cannot be read"


def test_a_signature_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / ".manifest.json.sig.new").write_bytes(b"left")
    for data in (b"1", b"2"):
        path = keyfiles.write_signature(tmp_path, data)
        assert path.read_bytes() == data
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json.sig"]
