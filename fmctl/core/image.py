# SPDX-License-Identifier: Apache-2.0
"""A Service VM image: what its manifest says of it, and what differs between two of them.

An image is a folder: the files of `FILES`, `MANIFEST` with the SHA-256 of each, and `SIGNATURE` over the manifest.
`core.signature` says who signed it; `host.images` reads the folder and checks the files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath
from typing import Any

from fmctl.core.errors import BadRequest, ImageRefused, NoSuchImage

FORMAT = 1
KERNEL, INITRD, ROOT, AGENT = "vmlinuz", "initrd", "root.squashfs", "agent.tar"
FILES = (AGENT, INITRD, ROOT, KERNEL)
"""What every image has."""
MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
LINKS = ("current", "trial")
"""Names in a store that are no images: the one in use and the one that is tried."""

_KEYS = ("files", "format", "kernel_arguments", "packages", "simulated", "versions")
_VERSIONS = ("agent", "debian", "kernel", "python")
_NVIDIA = ("driver", "fabric_manager", "nvlsm")
_NAME = re.compile("[A-Za-z0-9_][A-Za-z0-9._-]{0,62}")
_SHA256 = re.compile("[0-9a-f]{64}")
_WORD = re.compile("[!-~]{1,200}")
_PATH = re.compile("/[ -~]{1,4000}")


def checked_name(name: str) -> str:
    """The name, if an image can have it; raises BadRequest."""
    if not _NAME.fullmatch(name) or name in LINKS:
        raise BadRequest(
            f"{name!r} is no name of an image",
            why="a name has at most 63 letters, digits, dots, dashes and underscores, begins with none of the dots and"
            f" dashes, and is not {' or '.join(LINKS)}",
            fix="choose another name",
        )
    return name


def is_name(name: str) -> bool:
    """Whether an image can have that name."""
    return _NAME.fullmatch(name) is not None and name not in LINKS


@dataclass(frozen=True)
class Manifest:
    """What an image is, in its builder's words; a signature makes them the signer's."""

    files: Mapping[str, str]
    """SHA-256 in hex by name of file."""
    kernel_arguments: str
    packages: Mapping[str, str]
    """Version by name of every Debian package in the root."""
    simulated: bool
    """Whether its Fabric Manager is a pretended one."""
    versions: Mapping[str, str]
    extra: tuple[str, ...] = ()
    """Paths in the root that are neither Debian's, NVIDIA's nor fmctl's: whoever built it put them there."""

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read manifest.json; raises ImageRefused."""
        plain = _mapping("", _loads(text))
        if "format" in plain and (type(plain["format"]) is not int or plain["format"] != FORMAT):
            raise _refusal(f"its format is {plain['format']!r}, and this fmctl reads format {FORMAT}", _NEWER)
        _refuse_keys("", plain, needed=_KEYS, possible=["extra"])
        return cls(
            files=_files(plain["files"]),
            kernel_arguments=_kernel_arguments(plain["kernel_arguments"]),
            packages=_words("packages", plain["packages"]),
            simulated=_bool("simulated", plain["simulated"]),
            versions=_versions(plain["versions"]),
            extra=_paths("extra", plain.get("extra", [])),
        )

    @property
    def agent(self) -> str:
        """The agent's version."""
        return self.versions["agent"]

    @property
    def driver(self) -> str:
        """The NVIDIA driver's version; empty where none is in it."""
        return self.versions.get("driver", "")

    @property
    def fabric_manager(self) -> str:
        """Fabric Manager's version; empty where none is in it."""
        return self.versions.get("fabric_manager", "")

    @property
    def nvlsm(self) -> str:
        """The version of NVLSM, which Fabric Manager needs on NVLink 5; empty where none is in it."""
        return self.versions.get("nvlsm", "")


@dataclass(frozen=True)
class Image:
    """One image where it lies. That it was read does not say that it is what it says."""

    name: str
    folder: PurePosixPath
    manifest: Manifest
    digest: str
    """SHA-256 of the manifest in hex, which stands for the whole image."""
    size: int = 0
    """Bytes of all files that the manifest names."""
    extra: tuple[str, ...] = ()
    """What else lies in the folder, which nobody vouches for and nothing uses."""
    signed_by: str = ""
    """Fingerprint of the pinned key that signed it; empty where nobody asked, or no signature was wanted."""

    @property
    def kernel(self) -> PurePosixPath:
        """Its kernel."""
        return self.folder / KERNEL

    @property
    def initrd(self) -> PurePosixPath:
        """Its initial RAM disk."""
        return self.folder / INITRD

    @property
    def root(self) -> PurePosixPath:
        """The file of its root, a squashfs."""
        return self.folder / ROOT

    @property
    def agent(self) -> PurePosixPath:
        """The agent, a tar."""
        return self.folder / AGENT


def refused(name: str, file: str, why: str, fix: str) -> ImageRefused:
    """The refusal of an image, which names the one file that is wrong."""
    return ImageRefused(f"the image {name} is refused", why=f"{file}: {why}", fix=fix)


def unknown(name: str, known: Iterable[str]) -> NoSuchImage:
    """The refusal of a name that no image has."""
    names = ", ".join(known)
    return NoSuchImage(
        f"there is no image {name!r}",
        why=f"the store has {names}" if names else "the store is empty",
        fix="choose one of these" if names else "add one with `fmctl image add`",
    )


def digest(manifest: bytes) -> str:
    """What stands for an image with that manifest.json."""
    return hashlib.sha256(manifest).hexdigest()


class Change(str, Enum):
    """What must be replaced to go from one image to another."""

    SAME = "same"
    AGENT_ONLY = "agent-only"
    WHOLE = "whole"


@dataclass(frozen=True)
class Difference:
    """What differs between the image that runs and a new one."""

    change: Change
    driver_changes: bool
    fabric_manager_changes: bool
    words: tuple[str, ...]
    """What differs, for a person, one thing each."""

    @property
    def text(self) -> str:
        """All of it in one line."""
        whole = {
            Change.SAME: "the images are the same",
            Change.AGENT_ONLY: "the agent alone differs, so it can be replaced while the Service VM runs",
            Change.WHOLE: "the Service VM must be restarted with the new image",
        }[self.change]
        return f"{whole}: {'; '.join(self.words)}" if self.words else whole


def difference(running: Manifest, new: Manifest) -> Difference:
    """What differs between two images; a driver and Fabric Manager that differ need a host without tenants."""
    if running == new:
        change = Change.SAME
    elif _without_agent(running) == _without_agent(new):
        change = Change.AGENT_ONLY
    else:
        change = Change.WHOLE
    words = [
        *_changed("", running.versions, new.versions),
        *_changed("package ", running.packages, new.packages),
        *(f"{name} differs" for name in _differing(running.files, new.files)),
    ]
    if running.kernel_arguments != new.kernel_arguments:
        words.append(f"kernel arguments {running.kernel_arguments!r} become {new.kernel_arguments!r}")
    if running.simulated != new.simulated:
        words.append(f"Fabric Manager becomes {'a pretended' if new.simulated else 'the real'} one")
    return Difference(
        change,
        driver_changes=running.driver != new.driver,
        fabric_manager_changes=running.fabric_manager != new.fabric_manager or running.simulated != new.simulated,
        words=tuple(words),
    )


def _without_agent(manifest: Manifest) -> tuple[object, ...]:
    files = {name: sha for name, sha in manifest.files.items() if name != AGENT}
    versions = {name: version for name, version in manifest.versions.items() if name != "agent"}
    return files, manifest.kernel_arguments, manifest.packages, manifest.simulated, versions


def _differing(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    return [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]


def _changed(kind: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    return [
        f"{kind}{name.replace('_', ' ')} {old.get(name, 'none')} becomes {new.get(name, 'none')}"
        for name in _differing(old, new)
    ]


def superfluous(newest_first: Sequence[str], *, keep: int, used: Container[str | None]) -> tuple[str, ...]:
    """The images that may go: all but the newest, and those that are used."""
    return tuple(name for name in newest_first[keep:] if name not in used)


_REBUILD = "build the image again with service-vm/build"
_NEWER = "build it with the same version of fmctl that runs here"


def _refusal(why: str, fix: str = _REBUILD) -> ImageRefused:
    return ImageRefused(f"{MANIFEST} is refused", why=why, fix=fix)


def _loads(text: str | bytes) -> Any:
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(decoded, object_pairs_hook=_once, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise _refusal("it is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise _refusal(f"it is not valid JSON: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which Python would let the last of two equal keys win in silence."""
    plain: dict[str, Any] = {}
    for key, value in pairs:
        if key in plain:
            raise ValueError(f"the key {key!r} stands twice")
        plain[key] = value
    return plain


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _mapping(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _refusal(f"{key}: an object is wanted" if key else "an object is wanted")
    return value


def _refuse_keys(key: str, plain: Mapping[str, Any], *, needed: Iterable[str], possible: Iterable[str] = ()) -> None:
    prefix = f"{key}." if key else ""
    for name in needed:
        if name not in plain:
            raise _refusal(f"{prefix}{name}: it is missing")
    for name in plain:
        if name not in (*needed, *possible):
            raise _refusal(f"{prefix}{name}: there is no such key in format {FORMAT}", _NEWER)


def _words(key: str, value: Any) -> dict[str, str]:
    plain = _mapping(key, value)
    for name, text in plain.items():
        if not isinstance(text, str) or not _WORD.fullmatch(text) or not _WORD.fullmatch(name):
            raise _refusal(f"{key}.{name}: a version of printable ASCII without blanks is wanted, not {text!r}")
    return plain


def _versions(value: Any) -> dict[str, str]:
    plain = _words("versions", value)
    _refuse_keys("versions", plain, needed=_VERSIONS, possible=_NVIDIA)
    return plain


def _files(value: Any) -> dict[str, str]:
    plain = _mapping("files", value)
    for name, sha in plain.items():
        if not is_name(name) or name in (MANIFEST, SIGNATURE):
            raise _refusal(f"files: {name!r} is no name of a file in an image")
        if not isinstance(sha, str) or not _SHA256.fullmatch(sha):
            raise _refusal(f"files.{name}: 64 hex digits in lower case are wanted, not {sha!r}")
    for name in FILES:
        if name not in plain:
            raise _refusal(f"files.{name}: it is missing")
    return plain


def _paths(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(path, str) and _PATH.fullmatch(path) for path in value):
        raise _refusal(f"{key}: a list of absolute paths is wanted, not {value!r}")
    return tuple(value)


def _bool(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refusal(f"{key}: true or false is wanted, not {value!r}")
    return value


def _kernel_arguments(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or not value.isascii():
        raise _refusal(f"kernel_arguments: printable ASCII is wanted, not {value!r}")
    return value
