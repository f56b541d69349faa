# SPDX-License-Identifier: Apache-2.0
"""Manifests: what is read, what is refused and why, and what differs between two."""

from __future__ import annotations

import dataclasses
import json
from pathlib import PurePosixPath
from typing import Any

import pytest

from fmctl.core import image
from fmctl.core.errors import BadRequest, ImageRefused, PolicyDenied
from fmctl.core.image import Change, Image, Manifest
from tests.images import NVIDIA, VERSIONS, contents, plain, text

PLAIN = plain(contents())
SHA = "0" * 64


def manifest(mark: str = "1", **changes: Any) -> Manifest:
    return Manifest.from_json(text(plain(contents(mark), **changes)))


def why(data: str | bytes) -> str:
    with pytest.raises(ImageRefused) as caught:
        Manifest.from_json(data)
    assert caught.value.what == "manifest.json is refused"
    assert caught.value.fix
    return caught.value.why


def test_a_manifest_is_read() -> None:
    found = manifest()
    assert found.files == PLAIN["files"]
    assert (found.driver, found.fabric_manager, found.nvlsm, found.agent) == ("580.95.05", "580.95.05", "", "0.1.0")
    assert found.kernel_arguments == "console=ttyS0 panic=-1 quiet"
    assert found.packages == {"systemd": "252.39-1~deb12u1"}
    assert not found.simulated
    assert Manifest.from_json(text(PLAIN).decode()) == found


def test_what_its_builder_put_in_beside_is_told() -> None:
    assert manifest().extra == ()
    assert manifest(extra=["/usr/lib/lab/a b"]).extra == ("/usr/lib/lab/a b",)


def test_an_image_without_nvidia_s_software_has_no_such_versions() -> None:
    found = manifest(versions=VERSIONS, simulated=True)
    assert (found.driver, found.fabric_manager, found.nvlsm, found.simulated) == ("", "", "", True)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, "its format is 2, and this fmctl reads format 1"),
        ({"format": True}, "its format is True, and this fmctl reads format 1"),
        ({"format": "1"}, "its format is '1', and this fmctl reads format 1"),
        ({"signature": "x"}, "signature: there is no such key in format 1"),
        ({"files": []}, "files: an object is wanted"),
        ({"files": {**PLAIN["files"], "a/b": SHA}}, "files: 'a/b' is no name of a file in an image"),
        ({"files": {**PLAIN["files"], "../b": SHA}}, "files: '../b' is no name of a file in an image"),
        ({"files": {**PLAIN["files"], "..": SHA}}, "files: '..' is no name of a file in an image"),
        ({"files": {**PLAIN["files"], ".b": SHA}}, "files: '.b' is no name of a file in an image"),
        ({"files": {**PLAIN["files"], "": SHA}}, "files: '' is no name of a file in an image"),
        ({"files": {**PLAIN["files"], "b\n": SHA}}, "files: 'b\\n' is no name of a file in an image"),
        (
            {"files": {**PLAIN["files"], "manifest.json": SHA}},
            "files: 'manifest.json' is no name of a file in an image",
        ),
        (
            {"files": {**PLAIN["files"], "manifest.json.sig": SHA}},
            "files: 'manifest.json.sig' is no name of a file in an image",
        ),
        (
            {"files": {**PLAIN["files"], "initrd": "abc"}},
            "files.initrd: 64 hex digits in lower case are wanted, not 'abc'",
        ),
        (
            {"files": {**PLAIN["files"], "initrd": SHA + "\n"}},
            f"files.initrd: 64 hex digits in lower case are wanted, not '{SHA}\\n'",
        ),
        (
            {"files": {**PLAIN["files"], "initrd": "A" * 64}},
            f"files.initrd: 64 hex digits in lower case are wanted, not '{'A' * 64}'",
        ),
        ({"files": {**PLAIN["files"], "initrd": 3}}, "files.initrd: 64 hex digits in lower case are wanted, not 3"),
        ({"kernel_arguments": 3}, "kernel_arguments: printable ASCII is wanted, not 3"),
        ({"kernel_arguments": "a\nb"}, "kernel_arguments: printable ASCII is wanted, not 'a\\nb'"),
        ({"kernel_arguments": "ä"}, "kernel_arguments: printable ASCII is wanted, not 'ä'"),
        ({"extra": "/a"}, "extra: a list of absolute paths is wanted, not '/a'"),
        ({"extra": ["/a", "b"]}, "extra: a list of absolute paths is wanted, not ['/a', 'b']"),
        ({"extra": ["/a\n"]}, "extra: a list of absolute paths is wanted, not ['/a\\n']"),
        ({"simulated": 1}, "simulated: true or false is wanted, not 1"),
        ({"packages": 1}, "packages: an object is wanted"),
        ({"packages": {"a": 1}}, "packages.a: a version of printable ASCII without blanks is wanted, not 1"),
        ({"packages": {"a b": "1"}}, "packages.a b: a version of printable ASCII without blanks is wanted, not '1'"),
        ({"versions": {**VERSIONS, "agent": ""}}, "versions.agent: a version of printable ASCII without blanks is "),
        ({"versions": {**VERSIONS, "fabricmanager": "1"}}, "versions.fabricmanager: there is no such key in format 1"),
    ],
)
def test_what_is_wrong_is_refused_by_its_key(changes: dict[str, Any], reason: str) -> None:
    assert why(text({**PLAIN, **changes})).startswith(reason)


@pytest.mark.parametrize("key", sorted(PLAIN))
def test_a_key_that_is_missing_is_told(key: str) -> None:
    assert why(text({name: value for name, value in PLAIN.items() if name != key})) == f"{key}: it is missing"


@pytest.mark.parametrize("file", ["agent.tar", "initrd", "root.squashfs", "vmlinuz"])
def test_each_of_the_four_files_must_be_named(file: str) -> None:
    rest = {name: sha for name, sha in PLAIN["files"].items() if name != file}
    assert why(text({**PLAIN, "files": rest})) == f"files.{file}: it is missing"


@pytest.mark.parametrize("version", sorted(VERSIONS))
def test_a_version_that_is_missing_is_told(version: str) -> None:
    rest = {name: value for name, value in VERSIONS.items() if name != version}
    assert why(text({**PLAIN, "versions": rest})) == f"versions.{version}: it is missing"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is not valid JSON: "),
        (b"{", "it is not valid JSON: "),
        (b"[" * 100_000, "it is not valid JSON: "),
        (b"[]", "an object is wanted"),
        (b'{"format": NaN}', "it is not valid JSON: NaN is no JSON"),
        (b'{"format": 1, "format": 1}', "it is not valid JSON: the key 'format' stands twice"),
        (b'{"files": {"a": 1, "a": 2}}', "it is not valid JSON: the key 'a' stands twice"),
        (b"\xff\xfe", "it is not UTF-8 text"),
    ],
)
def test_what_is_no_json_is_refused(data: bytes, reason: str) -> None:
    assert why(data).startswith(reason)


def test_a_refusal_is_of_this_image_for_good() -> None:
    assert issubclass(ImageRefused, PolicyDenied)


@pytest.mark.parametrize("name", ["a", "580.95.05-1", "A_b", "0" * 63, "_x"])
def test_a_name_is_taken(name: str) -> None:
    assert image.checked_name(name) == name


@pytest.mark.parametrize("name", ["", ".a", "..", "-a", "a/b", "a b", "ä", "0" * 64, "a\n", "current", "trial"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        image.checked_name(name)
    assert caught.value.what == f"{name!r} is no name of an image"
    assert not image.is_name(name)


def test_an_image_says_where_its_files_are() -> None:
    found = Image("a", PurePosixPath("/images/a"), manifest(), image.digest(text(PLAIN)))
    assert [str(path) for path in (found.kernel, found.initrd, found.root, found.agent)] == [
        "/images/a/vmlinuz",
        "/images/a/initrd",
        "/images/a/root.squashfs",
        "/images/a/agent.tar",
    ]


def changed(**files: str) -> dict[str, str]:
    names = {"agent": "agent.tar", "root": "root.squashfs", "kernel": "vmlinuz", "initrd": "initrd"}
    return {**PLAIN["files"], **{names[key]: sha for key, sha in files.items()}}


@pytest.mark.parametrize(
    ("changes", "change", "words"),
    [
        ({}, Change.SAME, ()),
        ({"files": changed(agent=SHA)}, Change.AGENT_ONLY, ("agent.tar differs",)),
        (
            {"files": changed(agent=SHA), "versions": {**VERSIONS, **NVIDIA, "agent": "0.2.0"}},
            Change.AGENT_ONLY,
            ("agent 0.1.0 becomes 0.2.0", "agent.tar differs"),
        ),
        ({"files": changed(agent=SHA, root=SHA)}, Change.WHOLE, ("agent.tar differs", "root.squashfs differs")),
        ({"files": changed(root=SHA)}, Change.WHOLE, ("root.squashfs differs",)),
        ({"files": changed(kernel=SHA)}, Change.WHOLE, ("vmlinuz differs",)),
        ({"files": changed(initrd=SHA)}, Change.WHOLE, ("initrd differs",)),
        ({"files": {**PLAIN["files"], "more": SHA}}, Change.WHOLE, ("more differs",)),
        (
            {"kernel_arguments": "quiet", "files": changed(agent=SHA)},
            Change.WHOLE,
            ("agent.tar differs", "kernel arguments 'console=ttyS0 panic=-1 quiet' become 'quiet'"),
        ),
        ({"packages": {}}, Change.WHOLE, ("package systemd 252.39-1~deb12u1 becomes none",)),
        ({"simulated": True}, Change.WHOLE, ("Fabric Manager becomes a pretended one",)),
    ],
)
def test_what_differs_is_told(changes: dict[str, Any], change: Change, words: tuple[str, ...]) -> None:
    found = image.difference(manifest(), manifest(**changes))
    assert (found.change, found.words) == (change, words)
    assert not found.driver_changes
    assert found.fabric_manager_changes is ("simulated" in changes)


@pytest.mark.parametrize(
    ("versions", "driver", "fabric_manager"),
    [
        ({"driver": "580.1", "fabric_manager": "580.95.05"}, True, False),
        ({"driver": "580.95.05", "fabric_manager": "580.1"}, False, True),
        ({}, True, True),
    ],
)
def test_a_driver_or_a_fabric_manager_that_changes_is_told(
    versions: dict[str, str], *, driver: bool, fabric_manager: bool
) -> None:
    found = image.difference(manifest(), manifest(versions={**VERSIONS, **versions}))
    assert (found.change, found.driver_changes, found.fabric_manager_changes) == (Change.WHOLE, driver, fabric_manager)


def test_the_difference_is_one_line_for_a_person() -> None:
    assert image.difference(manifest(), manifest()).text == "the images are the same"
    assert image.difference(manifest(), manifest(files=changed(agent=SHA))).text == (
        "the agent alone differs, so it can be replaced while the Service VM runs: agent.tar differs"
    )
    assert image.difference(manifest(), manifest("2", simulated=True)).text == (
        "the Service VM must be restarted with the new image: agent.tar differs; initrd differs; root.squashfs differs;"
        " vmlinuz differs; Fabric Manager becomes a pretended one"
    )


def test_what_is_newest_or_used_is_kept() -> None:
    names = ("d", "c", "b", "a")
    assert image.superfluous(names, keep=2, used={"a", None}) == ("b",)
    assert image.superfluous(names, keep=0, used=set()) == names
    assert image.superfluous(names, keep=9, used=set()) == ()


def test_a_manifest_is_a_value() -> None:
    assert dataclasses.replace(manifest()) == manifest()
    assert json.loads(text(PLAIN)) == PLAIN
