# SPDX-License-Identifier: Apache-2.0
"""Signatures: of our own, of openssl's, and what is refused."""

from __future__ import annotations

import base64
import builtins
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmctl.core import signature
from fmctl.core.errors import FmctlError, ImageRefused, InvalidDocument
from fmctl.core.signature import KeyKind, KeyPair, PublicKey, Trust

DATA = b'{"format": 1}\n'
PAIRS = {kind: signature.generate(kind) for kind in KeyKind}
CURVES = {"secp384r1": "secp384r1", "secp521r1": "secp521r1", "secp256k1": "secp256k1"}


@pytest.fixture(params=list(KeyKind), ids=lambda kind: kind.value)
def kind(request: pytest.FixtureRequest) -> KeyKind:
    found: KeyKind = request.param
    return found


@pytest.fixture
def pair(kind: KeyKind) -> KeyPair:
    return PAIRS[kind]


def openssl(*arguments: str | Path) -> bytes:
    done = subprocess.run(["/usr/bin/openssl", *map(str, arguments)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(data: bytes, signed: bytes, public: bytes) -> str:
    with pytest.raises(ImageRefused) as caught:
        signature.verify(data, signed, public)
    assert caught.value.what == "the signature is refused"
    assert caught.value.fix
    return caught.value.why


NOT_MADE = "this key did not make the signature, or the manifest was changed since"


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda raw: raw, id="raw"),
        pytest.param(base64.b64encode, id="base64"),
        pytest.param(lambda raw: base64.b64encode(raw) + b"\n", id="base64-newline"),
        pytest.param(base64.encodebytes, id="base64-lines"),
    ],
)
def test_what_was_signed_is_verified(pair: KeyPair, form: Callable[[bytes], bytes]) -> None:
    signature.verify(DATA, form(signature.sign(DATA, pair.private)), pair.public)


def test_other_data_and_other_keys_are_refused(pair: KeyPair) -> None:
    signed = signature.sign(DATA, pair.private)
    assert refusal(DATA + b"\n", signed, pair.public) == NOT_MADE
    assert refusal(b"", signed, pair.public) == NOT_MADE
    for other in (*PAIRS.values(), signature.generate(KeyKind.ED25519), signature.generate(KeyKind.ECDSA_P256)):
        if other is not pair:
            assert refusal(DATA, signed, other.public) == NOT_MADE


@pytest.mark.parametrize(
    "signed",
    [b"", b"\n", b"x", b"\0" * 64, b"\0" * 63, b"MAYCAQACAQA=", base64.b64decode("MAYCAQACAQA="), b"QUJD\xff"],
)
def test_what_is_no_signature_is_refused(pair: KeyPair, signed: bytes) -> None:
    assert refusal(DATA, signed, pair.public) == NOT_MADE


def test_what_stands_after_a_signature_is_no_part_of_it(pair: KeyPair) -> None:
    signed = signature.sign(DATA, pair.private)
    assert refusal(DATA, signed + b"\n", pair.public) == NOT_MADE
    assert refusal(DATA, signed * 2, pair.public) == NOT_MADE


def test_base64_with_anything_else_in_it_is_refused(pair: KeyPair) -> None:
    signed = base64.b64encode(signature.sign(DATA, pair.private))
    assert refusal(DATA, signed[:8] + b"!" + signed[8:], pair.public) == NOT_MADE


def test_what_is_far_too_long_is_not_looked_at(pair: KeyPair) -> None:
    signed = base64.b64encode(signature.sign(DATA, pair.private)) + b"\n" * 1024
    assert refusal(DATA, signed, pair.public) == f"the signature has {len(signed)} bytes, far more than one has"


def test_sizes_are_those_of_plain_signatures() -> None:
    assert len(signature.sign(DATA, PAIRS[KeyKind.ED25519].private)) == 64
    assert signature.sign(DATA, PAIRS[KeyKind.ECDSA_P256].private)[0] == 0x30


def test_the_public_half_is_that_of_the_private_one(pair: KeyPair) -> None:
    assert signature.public_of(pair.private) == pair.public


def openssl_key(kind: KeyKind, folder: Path) -> tuple[Path, Path]:
    private, public = folder / "key.pem", folder / "key.pub"
    if kind is KeyKind.ED25519:
        openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    else:
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    return private, public


def sign_by_openssl(kind: KeyKind, key: Path, data: Path, signed: Path) -> None:
    if kind is KeyKind.ED25519:
        openssl("pkeyutl", "-sign", "-inkey", key, "-rawin", "-in", data, "-out", signed)
    else:
        openssl("dgst", "-sha256", "-sign", key, "-out", signed, data)


def verify_by_openssl(kind: KeyKind, key: Path, data: Path, signed: Path) -> None:
    if kind is KeyKind.ED25519:
        openssl("pkeyutl", "-verify", "-pubin", "-inkey", key, "-rawin", "-in", data, "-sigfile", signed)
    else:
        openssl("dgst", "-sha256", "-verify", key, "-signature", signed, data)


def test_what_openssl_signs_with_its_own_key_is_verified(kind: KeyKind, tmp_path: Path) -> None:
    private, public = openssl_key(kind, tmp_path)
    data, signed = tmp_path / "manifest.json", tmp_path / "manifest.json.sig"
    data.write_bytes(DATA)
    sign_by_openssl(kind, private, data, signed)
    signature.verify(DATA, signed.read_bytes(), public.read_bytes())
    signature.verify(DATA, openssl("base64", "-in", signed), public.read_bytes())
    assert signature.public_of(private.read_bytes()) == public.read_bytes()


def test_what_is_signed_here_is_verified_by_openssl(kind: KeyKind, pair: KeyPair, tmp_path: Path) -> None:
    data, signed, public = tmp_path / "manifest.json", tmp_path / "manifest.json.sig", tmp_path / "key.pub"
    data.write_bytes(DATA)
    signed.write_bytes(signature.sign(DATA, pair.private))
    public.write_bytes(pair.public)
    verify_by_openssl(kind, public, data, signed)


def test_keys_cross_between_openssl_and_here(kind: KeyKind, pair: KeyPair, tmp_path: Path) -> None:
    private, public = openssl_key(kind, tmp_path)
    signature.verify(DATA, signature.sign(DATA, private.read_bytes()), public.read_bytes())
    private.write_bytes(pair.private)
    data, signed = tmp_path / "manifest.json", tmp_path / "manifest.json.sig"
    data.write_bytes(DATA)
    sign_by_openssl(kind, private, data, signed)
    signature.verify(DATA, signed.read_bytes(), pair.public)


def test_a_key_in_openssl_s_older_form_is_taken(tmp_path: Path) -> None:
    private = tmp_path / "key.pem"
    private.write_bytes(openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout"))
    assert b"BEGIN EC PRIVATE KEY" in private.read_bytes()
    public = openssl("pkey", "-in", private, "-pubout")
    signature.verify(DATA, signature.sign(DATA, private.read_bytes()), public)


def test_the_fingerprint_is_what_openssl_and_sha256sum_tell(pair: KeyPair, tmp_path: Path) -> None:
    public = tmp_path / "key.pub"
    public.write_bytes(pair.public)
    der = tmp_path / "key.der"
    openssl("pkey", "-pubin", "-in", public, "-outform", "DER", "-out", der)
    told = openssl("dgst", "-sha256", "-r", der).decode().split()[0]
    assert signature.fingerprint(pair.public) == told


WANTED = "an Ed25519 key, or an ECDSA key on P-256, is wanted"


def other_key(which: str) -> bytes:
    if which == "RSA":
        return openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")
    if which in ("Ed448", "X25519"):
        return openssl("genpkey", "-algorithm", which)
    return openssl("genpkey", "-algorithm", "EC", "-pkeyopt", f"ec_paramgen_curve:{CURVES[which]}")


@pytest.mark.parametrize("which", ["RSA", "Ed448", "X25519", *CURVES])
def test_other_kinds_of_keys_are_refused_by_name(which: str, tmp_path: Path) -> None:
    private = tmp_path / "key.pem"
    private.write_bytes(other_key(which))
    public = openssl("pkey", "-in", private, "-pubout")
    named = f"a key on the curve {which}" if which in CURVES else f"a key of the kind {which}"
    assert refusal(DATA, b"x" * 64, public) == f"it is {named}; {WANTED}"
    with pytest.raises(InvalidDocument) as caught:
        signature.sign(DATA, private.read_bytes())
    assert caught.value.why == f"it is {named}; {WANTED}"


def test_a_signature_by_an_rsa_key_is_refused_however_valid(tmp_path: Path) -> None:
    private, data, signed = tmp_path / "key.pem", tmp_path / "data", tmp_path / "sig"
    private.write_bytes(other_key("RSA"))
    data.write_bytes(DATA)
    sign_by_openssl(KeyKind.ECDSA_P256, private, data, signed)
    public = openssl("pkey", "-in", private, "-pubout")
    assert refusal(DATA, signed.read_bytes(), public) == f"it is a key of the kind RSA; {WANTED}"


def test_a_private_key_is_no_public_one(pair: KeyPair) -> None:
    assert refusal(DATA, b"", pair.private) == "it holds a private key, which belongs on no host"
    assert refusal(DATA, b"", pair.public + pair.private) == "it holds a private key, which belongs on no host"


@pytest.mark.parametrize("pem", [b"", b"x", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_key_is_refused(pem: bytes) -> None:
    assert refusal(DATA, b"", pem) == f"it is no public key in PEM; {WANTED}"
    with pytest.raises(InvalidDocument) as caught:
        signature.sign(DATA, pem)
    assert caught.value.what == "the private key cannot be used"
    assert caught.value.why == f"it is no private key in PEM; {WANTED}"


def test_an_encrypted_key_is_refused(pair: KeyPair, tmp_path: Path) -> None:
    private = tmp_path / "key.pem"
    private.write_bytes(pair.private)
    encrypted = openssl("pkey", "-in", private, "-aes256", "-passout", "pass:secret")
    with pytest.raises(InvalidDocument) as caught:
        signature.sign(DATA, encrypted)
    assert caught.value.why == "it is encrypted"


ED, EC = (PublicKey(kind.value, pair.public) for kind, pair in PAIRS.items())
BROKEN = PublicKey("broken", b"")


@pytest.mark.parametrize("keys", [(ED, EC), (EC, ED), (ED,), (BROKEN, ED)])
def test_any_of_the_keys_may_have_signed(keys: tuple[PublicKey, ...]) -> None:
    signed = signature.sign(DATA, PAIRS[KeyKind.ED25519].private)
    assert Trust(lambda: keys).signer(DATA, signed) == signature.fingerprint(ED.pem)


def trust_refusal(trust: Trust, signed: bytes | None) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        trust.signer(DATA, signed)
    return caught.value


def test_when_no_key_signed_each_is_told_of() -> None:
    signed = signature.sign(DATA, signature.generate(KeyKind.ED25519).private)
    told = trust_refusal(Trust(lambda: (ED, BROKEN)), signed)
    assert told.why == f"ed25519: {NOT_MADE}; broken: it is no public key in PEM; {WANTED}"


def test_without_a_pinned_key_nobody_vouches() -> None:
    signed = signature.sign(DATA, PAIRS[KeyKind.ED25519].private)
    told = trust_refusal(Trust(tuple), signed)
    assert told.why == "no public key is pinned on this host, so nobody can vouch for an image"
    assert "image_keys" in told.fix


def test_without_a_signature_nobody_vouches() -> None:
    assert trust_refusal(Trust(lambda: (ED,)), None).why == "there is no signature"


def test_where_no_signature_is_wanted_any_will_do_and_a_good_one_is_told() -> None:
    signed = signature.sign(DATA, PAIRS[KeyKind.ED25519].private)
    lax = Trust(lambda: (ED,), require_signature=False)
    assert lax.signer(DATA, None) == ""
    assert lax.signer(DATA, b"x") == ""
    assert Trust(tuple, require_signature=False).signer(DATA, signed) == ""
    assert lax.signer(DATA, signed) == signature.fingerprint(ED.pem)


def test_keys_are_asked_for_anew() -> None:
    keys: list[PublicKey] = []
    trust = Trust(lambda: keys)
    signed = signature.sign(DATA, PAIRS[KeyKind.ED25519].private)
    trust_refusal(trust, signed)
    keys.append(ED)
    assert trust.signer(DATA, signed)


def test_the_package_is_imported_when_it_is_needed() -> None:
    probe = "import sys, fmctl.cli.image, fmctl.local; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_that_the_package_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError("No module named 'cryptography'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    key = PAIRS[KeyKind.ED25519]
    calls: list[Callable[[], object]] = [
        lambda: signature.verify(DATA, b"", key.public),
        lambda: signature.sign(DATA, key.private),
        lambda: signature.generate(KeyKind.ED25519),
    ]
    for call in calls:
        with pytest.raises(FmctlError) as caught:
            call()
        assert caught.value.what == "signatures cannot be made or checked"
        assert not isinstance(caught.value, ImageRefused)
