# SPDX-License-Identifier: Apache-2.0
"""Which versions of NVIDIA's software go together: the matrix in `fmctl/versions.yaml`, and comparing by it.

Each fact carries a mark and a source, as in `core.platform`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from fmctl.core.finding import Finding
from fmctl.core.platform import Fact, Mark, Platform
from fmctl.core.schema import setting

_BUILD = "build an image of another driver with service-vm/build, and upgrade the Service VM to it"
_SOURCES = {
    Mark.CONFIRMED: "confirmed",
    Mark.MEASURED: "measured",
    Mark.SECONDARY: "from a secondary source",
    Mark.DERIVED: "derived",
    Mark.RECALLED: "recalled from a guide, not confirmed",
    Mark.UNCONFIRMED: "not confirmed",
}


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The boards of one generation of NVLink."""

    nvlink_generation: int = setting(doc="2 for V100 to 5 for Blackwell", low=2, high=5)
    boards: str
    oldest_branch: Fact[int]
    nvlsm: Fact[bool]
    """Whether Fabric Manager needs NVLSM beside it."""


@dataclass(frozen=True)
class SameVersion:
    """What must be of the same version, to the last digit."""

    fabric_manager_and_driver: Fact[bool]
    guest_driver_and_fabric_manager: Fact[bool]


@dataclass(frozen=True)
class Feature:
    """What fmctl uses of Fabric Manager, on boards from a generation on; on none where it does without."""

    name: str
    what: str
    since: Fact[int]
    from_generation: int | None


@dataclass(frozen=True)
class Branch:
    """What is known of a branch of the driver."""

    branch: int
    known: Fact[str]


@dataclass(frozen=True)
class Matrix:
    """All that fmctl knows of versions."""

    generations: tuple[Generation, ...]
    same_version: SameVersion
    features: tuple[Feature, ...]
    branches: tuple[Branch, ...]

    def generation(self, platform: Platform) -> Generation | None:
        """What is known of a board's generation; None where nothing is."""
        return next((each for each in self.generations if each.nvlink_generation == platform.nvlink_generation), None)


@dataclass(frozen=True)
class Versions:
    """What an image has, and a tenant VM; empty where it has none, or nobody said."""

    driver: str
    fabric_manager: str
    guest_driver: str = ""
    nvlsm: str = ""


@dataclass(frozen=True)
class Compared:
    """One comparison: what was compared, on whose word, and what is wrong where it does not fit."""

    what: str
    why: str
    finding: Finding | None = None


def required_guest_driver(fabric_manager: str) -> str:
    """The version that a tenant VM's driver must have: Fabric Manager's, to the last digit."""
    return fabric_manager


def check(matrix: Matrix, platform: Platform, versions: Versions) -> tuple[Finding, ...]:
    """What does not fit."""
    return tuple(each.finding for each in compare(matrix, platform, versions) if each.finding)


def compare(matrix: Matrix, platform: Platform, versions: Versions) -> tuple[Compared, ...]:
    """Everything that was compared, with what does not fit."""
    return tuple(_compare(matrix, platform, versions))


def branch_of(version: str) -> int | None:
    """The branch of a version such as 580.95.05; None where it is no such version."""
    found = re.fullmatch(r"([0-9]{1,6})(\.[0-9]{1,6}){1,3}", version)
    return int(found[1]) if found else None


def _compare(matrix: Matrix, platform: Platform, versions: Versions) -> Iterator[Compared]:
    unreadable = [*_unreadable(versions)]
    yield from unreadable
    generation = matrix.generation(platform)
    if generation is None:
        yield _unknown_board(platform)
    elif not unreadable:
        yield _board(generation, platform, versions)
        yield from _features(matrix, generation, versions)
        yield from _nvlsm(generation, platform, versions)
    if not unreadable:
        yield _fabric_manager(matrix, versions)
        yield _guest(matrix, versions)
        yield _branch(matrix, versions)


def _unreadable(versions: Versions) -> Iterator[Compared]:
    named = {"the image's driver": versions.driver, "the image's Fabric Manager": versions.fabric_manager}
    if versions.guest_driver:
        named["the guest's driver"] = versions.guest_driver
    for name, version in named.items():
        if branch_of(version) is None:
            what = f"the version of {name} is unknown: {version!r}" if version else f"{name} is missing"
            why = "a version such as 580.95.05 is wanted"
            yield Compared(what, why, Finding("version-unknown", what, why, "name it, or build the image again"))


def _unknown_board(platform: Platform) -> Compared:
    what = f"nothing is known of drivers for NVLink {platform.nvlink_generation}, which {platform.name} has"
    why = "fmctl's matrix names the oldest branch for the boards it knows"
    return Compared(what, why, Finding("board-unknown", what, why, "ask NVIDIA which driver the board needs"))


def _board(generation: Generation, platform: Platform, versions: Versions) -> Compared:
    oldest = generation.oldest_branch
    fits = (branch_of(versions.driver) or 0) >= oldest.value
    return _compared(
        fits,
        f"{platform.name} needs driver branch {oldest.value} or later, and the image's driver is {versions.driver}",
        _source(oldest),
        "driver-too-old",
        _BUILD,
    )


def _features(matrix: Matrix, generation: Generation, versions: Versions) -> Iterator[Compared]:
    for feature in matrix.features:
        if feature.from_generation is None or generation.nvlink_generation < feature.from_generation:
            continue
        yield _compared(
            (branch_of(versions.fabric_manager) or 0) >= feature.since.value,
            f"fmctl needs {feature.what}: since branch {feature.since.value}, and the image's Fabric Manager is"
            f" {versions.fabric_manager}",
            _source(feature.since),
            f"without-{feature.name}",
            _BUILD,
        )


def _nvlsm(generation: Generation, platform: Platform, versions: Versions) -> Iterator[Compared]:
    if generation.nvlsm.value:
        there = versions.nvlsm or "none"
        yield _compared(
            bool(versions.nvlsm),
            f"{platform.name} needs NVLSM beside Fabric Manager, and the image's is {there}",
            _source(generation.nvlsm),
            "nvlsm-missing",
            "build the image with NVIDIA's package nvlsm, which Ubuntu's Fabric Manager does not bring",
        )


def _fabric_manager(matrix: Matrix, versions: Versions) -> Compared:
    fact = matrix.same_version.fabric_manager_and_driver
    return _compared(
        versions.fabric_manager == versions.driver or not fact.value,
        f"Fabric Manager's version must be the driver's: {versions.fabric_manager}, and {versions.driver}",
        _source(fact),
        "fabric-manager-differs",
        "build the image with both from one release",
    )


def _guest(matrix: Matrix, versions: Versions) -> Compared:
    fact = matrix.same_version.guest_driver_and_fabric_manager
    wanted = required_guest_driver(versions.fabric_manager)
    if not versions.guest_driver:
        return Compared(f"a tenant VM's driver must be {wanted}; nobody said what it is", _source(fact))
    return _compared(
        versions.guest_driver == wanted or not fact.value,
        f"a tenant VM's driver must be {wanted}, and it is {versions.guest_driver}",
        f"{_source(fact)}. Where they differ, the guest's CUDA fails with error 802, or its NVLinks stay down",
        "guest-driver-differs",
        f"install driver {wanted} in the tenant VM, or build an image of {versions.guest_driver}",
    )


def _branch(matrix: Matrix, versions: Versions) -> Compared:
    branch = branch_of(versions.fabric_manager)
    known = next((each.known for each in matrix.branches if each.branch == branch), None)
    if known is None:
        return Compared(f"of branch {branch} fmctl knows nothing", "its authors had no file of that branch at hand")
    return Compared(f"of branch {branch} fmctl knows: {known.value}", _source(known))


def _compared(fits: bool, what: str, why: str, name: str, fix: str) -> Compared:  # noqa: FBT001 (the answer itself)
    return Compared(what, why, None if fits else Finding(name, what, why, fix))


def _source(fact: Fact[int] | Fact[bool] | Fact[str]) -> str:
    return f"{fact.source} ({_SOURCES[fact.mark]})"
