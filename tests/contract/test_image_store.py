# SPDX-License-Identifier: Apache-2.0
"""What every side of the port `ImageStore` does: over a folder, and in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pytest

from fmctl.core import signature
from fmctl.core.errors import FmctlError, ImageRefused, NoSuchImage
from fmctl.core.ports import ImageStore
from fmctl.core.signature import KeyKind, PublicKey, Trust
from fmctl.host.images import FolderImages
from fmctl.sim.images import MemoryImages
from tests import images
from tests.images import FINGERPRINT, OTHER, PAIR, PINNED, TRUST


class Side(Protocol):
    def store(self, trust: Trust = TRUST) -> ImageStore: ...

    def put(self, name: str, files: Mapping[str, bytes]) -> None: ...

    def tamper(self, name: str, file: str, data: bytes) -> None: ...

    def lose(self, name: str, file: str) -> None: ...


class OnDisk:
    def __init__(self, folder: Path) -> None:
        self._folder = folder / "images"

    def store(self, trust: Trust = TRUST) -> ImageStore:
        return FolderImages(self._folder, trust)

    def put(self, name: str, files: Mapping[str, bytes]) -> None:
        self._folder.mkdir(mode=0o755, exist_ok=True)
        images.write(self._folder / name, files)

    def tamper(self, name: str, file: str, data: bytes) -> None:
        images.write(self._folder / name, {file: data})

    def lose(self, name: str, file: str) -> None:
        (self._folder / name / file).unlink()


class InMemory:
    def __init__(self, folder: Path) -> None:
        self._images: dict[str, dict[str, bytes]] = {}
        self._stores: list[MemoryImages] = []

    def store(self, trust: Trust = TRUST) -> ImageStore:
        made = MemoryImages(trust)
        for name, files in self._images.items():
            made.put(name, files)
        self._stores.append(made)
        return made

    def put(self, name: str, files: Mapping[str, bytes]) -> None:
        self._images[name] = dict(files)
        for store in self._stores:
            store.put(name, files)

    def tamper(self, name: str, file: str, data: bytes) -> None:
        self._images[name][file] = data
        for store in self._stores:
            store.tamper(name, file, data)

    def lose(self, name: str, file: str) -> None:
        del self._images[name][file]
        for store in self._stores:
            store.lose(name, file)


@pytest.fixture(params=[OnDisk, InMemory], ids=["disk", "memory"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Side:
    made: Side = request.param(tmp_path)
    return made


def refusal(store: ImageStore, name: str) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        store.vouched(name)
    assert caught.value.what == f"the image {name} is refused"
    assert caught.value.fix
    return caught.value


def test_an_empty_store_has_nothing(side: Side) -> None:
    store = side.store()
    assert (store.names(), store.current(), store.trial()) == ((), None, None)
    with pytest.raises(NoSuchImage) as caught:
        store.read("a")
    assert (caught.value.what, caught.value.why) == ("there is no image 'a'", "the store is empty")
    assert caught.value.fix == "add one with `fmctl image add`"


def test_a_name_that_no_image_has_is_told(side: Side) -> None:
    side.put("b", images.files())
    side.put("c", images.files())
    store = side.store()
    for call in (store.read, store.vouched, store.choose, store.set_trial, store.remove):
        with pytest.raises(NoSuchImage) as caught:
            call("a")
        assert (caught.value.what, caught.value.why) == ("there is no image 'a'", "the store has b, c")
    with pytest.raises(NoSuchImage):
        store.read("../images/b")


def test_an_image_is_read_as_its_manifest_says(side: Side) -> None:
    files = images.files()
    side.put("b", files)
    side.put("a", {**files, "notes": b"mine"})
    store = side.store()
    assert store.names() == ("a", "b")
    found = store.read("a")
    assert (found.name, found.folder.name, found.signed_by) == ("a", "a", "")
    assert found.digest == hashlib.sha256(files["manifest.json"]).hexdigest()
    assert found.size == sum(map(len, images.contents().values()))
    assert found.extra == ("notes",)
    assert found.manifest.driver == "580.95.05"


def test_an_image_that_stands_every_check_is_vouched_for(side: Side) -> None:
    side.put("a", {**images.files(), "notes": b"mine"})
    found = side.store().vouched("a")
    assert (found.signed_by, found.extra) == (FINGERPRINT, ("notes",))
    assert found == side.store().vouched("a")


@pytest.mark.parametrize("file", sorted(images.contents()))
def test_a_file_that_was_changed_is_told(side: Side, file: str) -> None:
    side.put("a", images.files())
    store = side.store()
    store.vouched("a")
    side.tamper("a", file, b"other")
    found, wanted = (hashlib.sha256(text).hexdigest() for text in (b"other", images.contents()[file]))
    assert refusal(store, "a").why == f"{file}: its SHA-256 is {found}, and the manifest says {wanted}"
    assert store.read("a").signed_by == ""


@pytest.mark.parametrize("file", sorted(images.contents()))
def test_a_file_that_is_missing_is_told(side: Side, file: str) -> None:
    side.put("a", images.files())
    side.lose("a", file)
    assert refusal(side.store(), "a").why == f"{file}: No such file or directory"


def test_more_files_in_the_manifest_are_checked_too(side: Side) -> None:
    more = {**images.contents(), "zz": b"more"}
    manifest = images.text(images.plain(more))
    side.put("a", {**more, "manifest.json": manifest, "manifest.json.sig": signature.sign(manifest, PAIR.private)})
    store = side.store()
    assert store.vouched("a").extra == ()
    side.tamper("a", "zz", b"other")
    assert refusal(store, "a").why.startswith("zz: its SHA-256 is ")


NOT_MADE = (
    "manifest.json.sig: /etc/fmctl/image.pub: this key did not make the signature, or the manifest was changed since"
)


def test_a_manifest_that_was_changed_is_told_by_its_signature(side: Side) -> None:
    side.put("a", images.files())
    side.tamper("a", "manifest.json", images.files(kernel_arguments="init=/bin/sh")["manifest.json"])
    assert refusal(side.store(), "a").why == NOT_MADE


def test_a_manifest_is_not_believed_before_its_signature(side: Side) -> None:
    side.put("a", images.files())
    side.tamper("a", "manifest.json", b"{")
    assert refusal(side.store(), "a").why == NOT_MADE


@pytest.mark.parametrize("signed", [b"", b"x" * 64, signature.sign(b"other", PAIR.private)])
def test_a_signature_that_was_changed_is_told(side: Side, signed: bytes) -> None:
    side.put("a", images.files())
    side.tamper("a", "manifest.json.sig", signed)
    assert refusal(side.store(), "a").why == NOT_MADE


def test_a_signature_that_is_missing_is_told(side: Side) -> None:
    side.put("a", images.files(private=None))
    assert refusal(side.store(), "a").why == "manifest.json.sig: there is no signature"


def test_a_manifest_that_is_missing_is_told(side: Side) -> None:
    side.put("a", images.files())
    side.lose("a", "manifest.json")
    store = side.store()
    assert refusal(store, "a").why == "manifest.json: No such file or directory"
    with pytest.raises(ImageRefused):
        store.read("a")


def test_a_manifest_that_says_nonsense_is_told_however_signed(side: Side) -> None:
    side.put("a", images.files(format=2))
    store = side.store()
    assert refusal(store, "a").why == "manifest.json: its format is 2, and this fmctl reads format 1"
    with pytest.raises(ImageRefused) as caught:
        store.read("a")
    assert caught.value.what == "the image a is refused"


def test_another_signer_is_refused_and_told_with_each_pinned_key(side: Side) -> None:
    side.put("a", images.files(private=OTHER.private))
    assert refusal(side.store(), "a").why == NOT_MADE
    both = Trust(lambda: (PINNED, PublicKey("/b.pub", signature.generate(KeyKind.ED25519).public)))
    assert refusal(side.store(both), "a").why == (
        f"{NOT_MADE}; /b.pub: this key did not make the signature, or the manifest was changed since"
    )
    either = Trust(lambda: (PINNED, PublicKey("/b.pub", OTHER.public)))
    assert side.store(either).vouched("a").signed_by == signature.fingerprint(OTHER.public)


def test_without_a_pinned_key_nothing_is_vouched_for(side: Side) -> None:
    side.put("a", images.files())
    assert refusal(side.store(Trust(tuple)), "a").why == (
        "manifest.json.sig: no public key is pinned on this host, so nobody can vouch for an image"
    )


def test_where_no_signature_is_wanted_the_hashes_still_are(side: Side) -> None:
    side.put("a", images.files(private=None))
    store = side.store(Trust(tuple, require_signature=False))
    assert store.vouched("a").signed_by == ""
    side.tamper("a", "vmlinuz", b"other")
    assert refusal(store, "a").why.startswith("vmlinuz: its SHA-256 is ")


def test_the_agent_is_given_out_only_as_the_manifest_says(side: Side) -> None:
    files = images.files()
    side.put("a", files)
    store = side.store()
    assert store.agent("a") == files["agent.tar"]
    side.tamper("a", "agent.tar", b"another agent")
    with pytest.raises(ImageRefused) as caught:
        store.agent("a")
    assert "agent.tar" in caught.value.why
    with pytest.raises(NoSuchImage):
        store.agent("b")


def test_the_one_in_use_is_chosen_and_the_one_that_is_tried_noted(side: Side) -> None:
    side.put("a", images.files("1"))
    side.put("b", images.files("2"))
    store = side.store()
    store.choose("a")
    store.choose("a")
    store.set_trial("b")
    assert (store.current(), store.trial()) == ("a", "b")
    store.choose("b")
    store.set_trial(None)
    store.set_trial(None)
    assert (store.current(), store.trial()) == ("b", None)
    assert store.names() == ("a", "b")


def test_images_tell_when_they_came(side: Side) -> None:
    side.put("b", images.files())
    side.put("a", images.files())
    store = side.store()
    assert store.added("b") <= store.added("a")
    with pytest.raises(NoSuchImage):
        store.added("c")


def test_an_image_is_removed_unless_it_is_used(side: Side) -> None:
    for name in ("a", "b", "c"):
        side.put(name, images.files(name))
    store = side.store()
    store.choose("a")
    store.set_trial("b")
    store.remove("c")
    assert store.names() == ("a", "b")
    for name, use in (("a", "in use"), ("b", "tried")):
        with pytest.raises(FmctlError) as caught:
            store.remove(name)
        assert str(caught.value) == f"the image {name} is not removed: it is the one that is {use}"
    assert store.names() == ("a", "b")
