# SPDX-License-Identifier: Apache-2.0
"""`fmctl image` and `fmctl service-vm check`, as processes where exit statuses matter."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from fmctl.cli.image import _used, image
from fmctl.core import signature
from fmctl.host.images import FolderImages
from tests import images
from tests.images import FINGERPRINT, OTHER, PAIR, TRUST, VERSIONS
from tests.support import run


@pytest.fixture
def pinned(tmp_path: Path) -> Path:
    key = tmp_path / "image.pub"
    key.write_bytes(PAIR.public)
    key.chmod(0o644)
    return key


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir(mode=0o755)
    return folder


@pytest.fixture
def settings(tmp_path: Path, pinned: Path, store: Path) -> Path:
    file = tmp_path / "fmctld.yaml"
    file.write_text(f"image_dir: {store}\nimage_keys: [{pinned}]\n")
    return file


@pytest.fixture
def built(tmp_path: Path) -> Path:
    return images.write(tmp_path / "built", images.files(private=None))


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(image, [str(argument) for argument in arguments])


def printed(*arguments: str | Path) -> str:
    result = call(*arguments)
    assert (result.exit_code, result.stderr) == (0, ""), result.exception
    return result.stdout


def put(store: Path, name: str, mark: str, age: float = 0) -> None:
    images.write(store / name, images.files(mark))
    os.utime(store / name / "manifest.json", (1_000_000 - age, 1_000_000 - age))


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa-p256"])
def test_a_new_key_signs_an_image_that_is_added_and_verified(
    tmp_path: Path, built: Path, settings: Path, store: Path, pinned: Path, kind: str
) -> None:
    key = tmp_path / "signer"
    told = printed("keygen", "--output", key, "--type", kind)
    public = tmp_path / "signer.pub"
    fingerprint = signature.fingerprint(public.read_bytes())
    assert told == (
        f"{key} signs images; keep it off the hosts that boot them\n{public} is what hosts pin: {fingerprint}\n"
    )
    assert key.stat().st_mode & 0o777 == 0o600
    pinned.write_bytes(public.read_bytes())
    signed = built / "manifest.json.sig"
    assert printed("sign", built, "--key", key) == f"{signed} was made by the key {fingerprint}\n"
    assert printed("add", built, "--name", "one", "--config", settings) == (
        f"the image one is now in the store: {store / 'one'}\n"
    )
    assert printed("add", built, "--name", "one", "--config", settings) == (
        f"the image one is already in the store: {store / 'one'}\n"
    )
    told = printed("verify", "one", "--config", settings)
    assert f"  manifest.json.sig: made by the key {fingerprint}\n" in told
    assert told.endswith("  owners: nobody but root and the users of fmctl and QEMU can write the files\n")


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    key = tmp_path / "signer"
    printed("keygen", "--output", key)
    before = key.read_bytes()
    done = run("image", "keygen", "--output", str(key))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"fmctl: {key} is there already\n  why: a key is never overwritten\n  do:  name another file\n"
    )
    assert key.read_bytes() == before


def test_what_is_not_as_its_manifest_says_is_not_signed(tmp_path: Path, built: Path) -> None:
    printed("keygen", "--output", tmp_path / "signer")
    (built / "initrd").write_bytes(b"other")
    done = run("image", "sign", str(built), "--key", str(tmp_path / "signer"))
    assert done.returncode == 1
    assert "why: initrd: its SHA-256 is " in done.stderr
    assert not (built / "manifest.json.sig").exists()


def test_files_that_are_missing_are_told(tmp_path: Path, built: Path, settings: Path) -> None:
    missing = str(tmp_path / "none")
    done = run("image", "sign", str(built), "--key", missing)
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, f"fmctl: {missing} cannot be read")
    done = run("image", "verify", str(built), "--key", missing)
    assert (done.returncode, "No such file or directory" in done.stderr) == (1, True)
    for command in (("verify", missing), ("add", missing)):
        done = run("image", *command, "--config", str(settings))
        assert done.returncode == 1
        assert "  why: manifest.json: No such file or directory\n" in done.stderr


def test_a_public_key_does_not_sign(built: Path, pinned: Path) -> None:
    done = run("image", "sign", str(built), "--key", str(pinned))
    assert done.returncode == 2
    assert "fmctl: the private key cannot be used\n" in done.stderr


def test_verify_prints_what_was_checked(tmp_path: Path, settings: Path) -> None:
    folder = images.write(tmp_path / "signed", {**images.files(), "notes": b"mine"})
    manifest = json.loads((folder / "manifest.json").read_bytes())
    result = call("verify", folder, "--config", settings)
    assert result.exit_code == 0
    assert result.stdout == (
        f"the image {folder} is what its manifest says\n"
        f"  manifest.json: its SHA-256 is {FolderImages(tmp_path, TRUST).read('signed').digest}\n"
        f"  manifest.json.sig: made by the key {FINGERPRINT}\n"
        + "".join(f"  {file}: its SHA-256 is {sha}\n" for file, sha in sorted(manifest["files"].items()))
    )
    assert result.stderr == "fmctl: nobody vouches for notes, and nothing uses it\n"


def test_verify_tells_why_an_image_is_refused(store: Path, settings: Path) -> None:
    put(store, "a", "1")
    (store / "a" / "root.squashfs").write_bytes(b"other")
    done = run("image", "verify", "a", "--config", str(settings))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("fmctl: the image a is refused\n  why: root.squashfs: its SHA-256 is ")
    assert "  do:  remove its folder, and add the image again with `fmctl image add`\n" in done.stderr


def test_verify_takes_other_keys_instead_of_the_pinned_ones(tmp_path: Path, settings: Path) -> None:
    folder = images.write(tmp_path / "signed", images.files(private=OTHER.private))
    other = tmp_path / "other.pub"
    other.write_bytes(OTHER.public)
    assert run("image", "verify", str(folder), "--config", str(settings)).returncode == 1
    assert f"made by the key {signature.fingerprint(OTHER.public)}" in printed("verify", folder, "--key", other)
    settings.write_text("require_signature: false\n")
    done = run("image", "verify", str(folder), "--config", str(settings), "--key", str(settings))
    assert done.returncode == 1


def test_an_unsigned_image_is_told_as_such_where_it_is_allowed(built: Path, settings: Path) -> None:
    settings.write_text("require_signature: false\n")
    assert "  manifest.json.sig: not asked for, and by no pinned key\n" in printed(
        "verify", built, "--config", settings
    )


def test_a_host_without_a_pinned_key_refuses(store: Path, settings: Path, pinned: Path) -> None:
    put(store, "a", "1")
    pinned.unlink()
    done = run("image", "verify", "a", "--config", str(settings))
    assert done.returncode == 1
    assert "why: manifest.json.sig: no public key is pinned on this host" in done.stderr


def test_an_unsigned_image_is_not_added(built: Path, settings: Path, store: Path) -> None:
    done = run("image", "add", str(built), "--config", str(settings))
    assert done.returncode == 1
    assert "why: manifest.json.sig: there is no signature\n" in done.stderr
    assert list(store.iterdir()) == []


def test_the_folder_names_the_image_and_its_name_may_not_do(tmp_path: Path, settings: Path, store: Path) -> None:
    folder = images.write(tmp_path / "580.95.05-1", images.files())
    assert printed("add", folder, "--config", settings).startswith("the image 580.95.05-1 is now in the store")
    folder.rename(tmp_path / "current")
    done = run("image", "add", str(tmp_path / "current"), "--config", str(settings))
    assert done.returncode == 2
    assert "fmctl: 'current' is no name of an image\n" in done.stderr


def test_list_prints_a_table(store: Path, settings: Path) -> None:
    put(store, "a", "1")
    images.write(store / "b", images.files(versions=VERSIONS, simulated=True))
    chosen = FolderImages(store, TRUST)
    chosen.choose("a")
    chosen.set_trial("b")
    assert printed("list", "--config", settings) == (
        "NAME  DRIVER     FM         AGENT  KERNEL          SIMULATED  SIZE     USE\n"
        "----  ------     --         -----  ------          ---------  ----     ---\n"
        "a     580.95.05  580.95.05  0.1.0  6.1.0-40-amd64  no         0.0 MiB  current\n"
        "b     -          -          0.1.0  6.1.0-40-amd64  yes        0.0 MiB  trial\n"
    )
    assert printed("list", "--no-headers", "--config", settings).startswith("a  580.95.05")
    assert printed("list", "-o", "name", "--config", settings) == "a\nb\n"
    documents = json.loads(printed("list", "-o", "json", "--config", settings))
    assert yaml.safe_load(printed("list", "-o", "yaml", "--config", settings)) == documents
    first, second = documents["images"]
    assert (first["name"], first["current"], first["trial"], first["size"]) == ("a", True, False, 43)
    assert (second["simulated"], second["current"], second["trial"]) == (True, False, True)


def test_list_of_an_empty_store(settings: Path) -> None:
    assert printed("list", "--config", settings).startswith("NAME  DRIVER")
    assert printed("list", "--no-headers", "--config", settings) == ""
    assert printed("list", "-o", "name", "--config", settings) == ""


def test_list_tells_of_an_image_that_cannot_be_read_after_the_others(store: Path, settings: Path) -> None:
    put(store, "a", "1")
    (store / "b").mkdir()
    done = run("image", "list", "--no-headers", "--config", str(settings))
    assert (done.returncode, done.stdout[:1]) == (1, "a")
    assert "fmctl: the image b is refused\n  why: manifest.json: No such file or directory\n" in done.stderr


def test_show_prints_the_manifest(store: Path, settings: Path) -> None:
    put(store, "a", "1")
    document = json.loads(printed("show", "a", "-o", "json", "--config", settings))
    assert document["packages"] == {"systemd": "252.39-1~deb12u1"}
    assert document["kernel_arguments"] == "console=ttyS0 panic=-1 quiet"
    assert document["digest"] == FolderImages(store, TRUST).read("a").digest
    assert yaml.safe_load(printed("show", "a", "--config", settings)) == document


def test_show_of_an_unknown_image_names_those_there_are(store: Path, settings: Path) -> None:
    put(store, "a", "1")
    done = run("image", "show", "c", "--config", str(settings))
    assert done.returncode == 2
    assert done.stderr == ("fmctl: there is no image 'c'\n  why: the store has a\n  do:  choose one of these\n")


def test_prune_keeps_the_newest_and_what_is_used(store: Path, settings: Path) -> None:
    for age, name in enumerate("edcba"):
        put(store, name, name, age=age)
    chosen = FolderImages(store, TRUST)
    chosen.choose("a")
    chosen.set_trial("b")
    would = printed("prune", "--dry-run", "--config", settings)
    assert would == "the image c would go\n"
    assert chosen.names() == ("a", "b", "c", "d", "e")
    assert printed("prune", "--config", settings) == "the image c is gone\n"
    assert chosen.names() == ("a", "b", "d", "e")
    assert printed("prune", "--config", settings) == "nothing to remove\n"
    assert printed("prune", "--keep", "0", "--config", settings) == "the image e is gone\nthe image d is gone\n"
    assert chosen.names() == ("a", "b")


def test_what_runs_is_used(store: Path) -> None:
    put(store, "a", "1")
    assert "a" in _used(FolderImages(store, TRUST), running="a")


@pytest.mark.parametrize("command", ["keygen", "sign", "verify", "add", "list", "show", "prune"])
def test_help_fits_eighty_columns(command: str) -> None:
    for text in (printed(command, "--help"), printed("--help")):
        assert max(map(len, text.splitlines())) <= 80
        assert "..." not in text.replace("[OPTIONS]...", "").replace("[ARGS]...", "")


def checked(settings: Path, *arguments: str) -> tuple[int, str, str]:
    done = run("service-vm", "check", "--config", str(settings), *arguments)
    return done.returncode, done.stdout, done.stderr


def test_check_compares_the_image_in_use_with_board_and_guest(store: Path, settings: Path) -> None:
    put(store, "a", "1")
    FolderImages(store, TRUST).choose("a")
    code, out, err = checked(settings, "--platform", "hgx-h100-8", "--guest-driver", "580.95.05")
    assert (code, err) == (0, "")
    assert out.startswith(
        "fits: hgx-h100-8 needs driver branch 525 or later, and the image's driver is 580.95.05\n"
        "  why: FM User Guide 2.3, which says it of H100 (confirmed)\n"
    )
    assert "fits: a tenant VM's driver must be 580.95.05, and it is 580.95.05\n" in out
    assert out.endswith("nothing found: the versions go together\n")


def test_check_tells_what_does_not_fit(store: Path, settings: Path) -> None:
    put(store, "a", "1")
    where = ("--image", "a", "--platform", "hgx-b200-8")
    code, out, _ = checked(settings, *where, "--guest-driver", "570.1.1")
    assert code == 1
    assert "guest-driver-differs: a tenant VM's driver must be 580.95.05, and it is 570.1.1\n" in out
    assert "nvlsm-missing: " in out
    assert "nothing found" not in out
    code, out, _ = checked(settings, *where, "-o", "json")
    document = json.loads(out)
    assert code == 1
    assert [finding["name"] for finding in document["findings"]] == ["nvlsm-missing"]
    assert {line["fits"] for line in document["compared"]} == {True, False}


def test_check_knows_nothing_of_a_simulated_image_and_says_so(store: Path, settings: Path, tmp_path: Path) -> None:
    folder = images.write(tmp_path / "sim", images.files(simulated=True))
    code, out, _ = checked(settings, "--image", str(folder), "--platform", "hgx-h100-8", "--guest-driver", "580.95.05")
    assert code == 1
    assert out.startswith(f"image-simulated: the image {folder} has a pretended Fabric Manager, so its versions are ")
    assert "fits" not in out


def test_check_without_an_image_says_what_to_name(settings: Path) -> None:
    code, out, err = checked(settings, "--platform", "hgx-h100-8")
    assert (code, out) == (2, "")
    assert err == ("fmctl: no image is in use\n  why: none was chosen in the store yet\n  do:  name one with --image\n")


def test_check_takes_the_board_of_the_host_or_of_the_settings(store: Path, settings: Path) -> None:
    put(store, "a", "1")
    settings.write_text(f"{settings.read_text()}platform: hgx-h100-8\n")
    assert checked(settings, "--image", "a")[0] == 0
    assert checked(settings, "--image", "a", "--simulate", "hgx-b200-8")[0] == 1
    shutil.rmtree(store / "a")
    assert checked(settings, "--image", "a")[0] == 2
