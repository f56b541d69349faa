# SPDX-License-Identifier: Apache-2.0
"""Plain detached signatures: Ed25519, or ECDSA over P-256 with SHA-256, and nothing else.

openssl, cosign and hardware modules make and read the same. This is the one door to the package `cryptography`, which
is imported when a signature is made or checked, since most commands do neither.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from fmctl.core.errors import FmctlError, ImageRefused, InvalidDocument

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_LONGEST = 1024
"""Bytes of the longest signature worth a look; base64 of an ECDSA signature has about 100."""
_WANTED = "an Ed25519 key, or an ECDSA key on P-256, is wanted"
_OTHER = "make one with `fmctl image keygen`, openssl or cosign"


class KeyKind(str, Enum):
    """The kinds of keys that can sign an image."""

    ED25519 = "ed25519"
    ECDSA_P256 = "ecdsa-p256"


@dataclass(frozen=True)
class PublicKey:
    """A public key in PEM, and where it was found."""

    source: str
    pem: bytes


@dataclass(frozen=True)
class KeyPair:
    """A new key, both halves in PEM."""

    private: bytes
    public: bytes


@dataclass(frozen=True)
class Trust:
    """Whose signature counts. `keys` are asked for anew each time, so that they can be rotated."""

    keys: Callable[[], Sequence[PublicKey]]
    require_signature: bool = True

    def signer(self, data: bytes, signature: bytes | None) -> str:
        """The fingerprint of the key that signed; empty where none did and none need to. Raises ImageRefused."""
        if self.require_signature:
            return self._required(data, signature)
        try:
            return self._required(data, signature)
        except ImageRefused:
            return ""

    def _required(self, data: bytes, signature: bytes | None) -> str:
        keys = self.keys()
        if not keys:
            raise _refusal(
                "no public key is pinned on this host, so nobody can vouch for an image",
                "put the signer's public key in a file that the setting `image_keys` names",
            )
        if signature is None:
            raise _refusal("there is no signature", "sign it with `fmctl image sign`, openssl or cosign")
        return signed_by(data, signature, keys)


def signed_by(data: bytes, signature: bytes, keys: Sequence[PublicKey]) -> str:
    """The fingerprint of the first of the keys that made the signature; raises ImageRefused that tells of each key."""
    reasons = []
    for key in keys:
        try:
            verify(data, signature, key.pem)
            return fingerprint(key.pem)
        except ImageRefused as refused:
            reasons.append(f"{key.source}: {refused.why}")
    raise _refusal("; ".join(reasons), "sign it with the private half of a pinned key, or pin the key that signed it")


def verify(data: bytes, signature: bytes, public: bytes) -> None:
    """Check a signature, raw or in base64, against a public key in PEM; raises ImageRefused."""
    key = _public(public)
    from cryptography.exceptions import InvalidSignature

    for form in _forms(signature):
        try:
            return _verify(key, form, data)
        except InvalidSignature:
            continue
    raise _refusal("this key did not make the signature, or the manifest was changed since", "sign it again")


def sign(data: bytes, private: bytes) -> bytes:
    """A signature by a private key in PEM: 64 bytes for Ed25519, DER for ECDSA; raises InvalidDocument."""
    key = _private(private)
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def generate(kind: KeyKind) -> KeyPair:
    """A new key."""
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    ed = kind is KeyKind.ED25519
    key = ed25519.Ed25519PrivateKey.generate() if ed else ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return KeyPair(private, _spki(key.public_key(), serialization.Encoding.PEM))


def public_of(private: bytes) -> bytes:
    """The public half, in PEM, of a private key in PEM; raises InvalidDocument."""
    return _spki(_private(private).public_key(), _serialization().Encoding.PEM)


def fingerprint(public: bytes) -> str:
    """SHA-256 in hex of a public key's DER, as `openssl pkey -pubin -outform DER | sha256sum` tells it."""
    return hashlib.sha256(_spki(_public(public), _serialization().Encoding.DER)).hexdigest()


def _verify(key: Ed25519PublicKey | EllipticCurvePublicKey, signature: bytes, data: bytes) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    if isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, data)
    else:
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))


def _forms(signature: bytes) -> list[bytes]:
    """What the signature may be: its bytes, and what they are base64 of."""
    if len(signature) > _LONGEST:
        raise _refusal(f"the signature has {len(signature)} bytes, far more than one has", "sign it again")
    try:
        return [signature, base64.b64decode(b"".join(signature.split()), validate=True)]
    except binascii.Error:
        return [signature]


def _public(pem: bytes) -> Ed25519PublicKey | EllipticCurvePublicKey:
    serialization = _serialization()
    if b"PRIVATE KEY-----" in pem:
        raise _refusal("it holds a private key, which belongs on no host", "pin the public key alone")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise _refusal(f"it is no public key in PEM; {_WANTED}", _OTHER) from None
    if isinstance(key, ed25519.Ed25519PublicKey) or (
        isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    ):
        return key
    raise _refusal(f"it is {_named(key)}; {_WANTED}", _OTHER)


def _private(pem: bytes) -> Ed25519PrivateKey | EllipticCurvePrivateKey:
    serialization = _serialization()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    try:
        key = serialization.load_pem_private_key(pem, None)
    except TypeError:
        raise _unusable("it is encrypted", "sign with openssl, which asks for its passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise _unusable(f"it is no private key in PEM; {_WANTED}", _OTHER) from None
    if isinstance(key, ed25519.Ed25519PrivateKey) or (
        isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)
    ):
        return key
    raise _unusable(f"it is {_named(key)}; {_WANTED}", _OTHER)


def _named(key: Any) -> str:
    """A key's kind, by which it is refused."""
    curve = getattr(key, "curve", None)
    if curve is not None:
        return f"a key on the curve {curve.name}"
    kind = type(key).__name__.lstrip("_").removesuffix("PublicKey").removesuffix("PrivateKey")
    return f"a key of the kind {kind}"


def _spki(key: Any, encoding: Any) -> bytes:
    der: bytes = key.public_bytes(encoding, _serialization().PublicFormat.SubjectPublicKeyInfo)
    return der


def _serialization() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise FmctlError(
            "signatures cannot be made or checked",
            why=f"the Python package cryptography cannot be used: {error}",
            fix="install it, as fmctl's extra `host` does",
        ) from error
    return serialization


def _refusal(why: str, fix: str) -> ImageRefused:
    return ImageRefused("the signature is refused", why=why, fix=fix)


def _unusable(why: str, fix: str) -> InvalidDocument:
    return InvalidDocument("the private key cannot be used", why=why, fix=fix)
