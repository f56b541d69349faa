# SPDX-License-Identifier: Apache-2.0
"""Who says which GPU is which, and what all of them together come to. `control.gpumap` asks them.

One source alone is never enough: it may be of another host, typed wrong, or misread. A map is verified where two
independent sources agree on every GPU, or a person accepts it; what contradicts itself nobody can accept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from fmctl.core import fingerprint
from fmctl.core.errors import MapPending, MapUnverified
from fmctl.core.fingerprint import Fingerprint
from fmctl.core.gpumap import GpuMap
from fmctl.core.inventory import Inventory
from fmctl.core.pci import Bdf
from fmctl.core.platform import ModuleIdMethod


class SourceKind(str, Enum):
    """Who says it."""

    REGISTERS = "registers"
    ADMIN_TOOLS = "gpu-admin-tools"
    FABRIC_MANAGER = "fabric-manager"
    NVIDIA_SMI = "nvidia-smi"
    FILE = "file"

    @property
    def is_import(self) -> bool:
        """Whether a person brought it; the others can be asked anew, and must be after each boot."""
        return self in (SourceKind.NVIDIA_SMI, SourceKind.FILE)

    @property
    def origin(self) -> str:
        """Where it has its knowledge from: sources of one origin do not confirm each other.

        gpu-admin-tools read the pins that fmctl reads, and a file may have been written from what nvidia-smi printed.
        """
        if self.is_import:
            return "import"
        return self.value if self is SourceKind.FABRIC_MANAGER else "pins"


@dataclass(frozen=True)
class Source:
    """What one of them said of each GPU, when in seconds since the epoch, and in which boot of the host.

    `detail` is for a person: a file's name, a driver's version. `digest` tells one import from the next.
    """

    kind: SourceKind
    readings: Mapping[Bdf, int]
    time: float = 0.0
    boot: str = ""
    detail: str = ""
    digest: str = ""

    def plain(self) -> dict[str, Any]:
        """All of it, as JSON can write it."""
        readings = {str(bdf): number for bdf, number in sorted(self.readings.items())}
        return {**vars(self), "kind": self.kind.value, "readings": readings}

    @classmethod
    def parse(cls, value: object) -> Source:
        """The way back from `plain`; raises ValueError."""
        match value:
            case {
                "kind": str(kind),
                "readings": dict(readings),
                "time": float(time),
                "boot": str(boot),
                "detail": str(detail),
                "digest": str(digest),
            }:
                numbers = {Bdf.parse(bdf): number for bdf, number in readings.items() if type(number) is int}
                if len(numbers) == len(readings):
                    return cls(SourceKind(kind), numbers, time, boot, detail, digest)
        raise ValueError(f"a source of a GPU map is wanted, not {value!r}")


@dataclass(frozen=True)
class Acceptance:
    """Who accepted a map, when, and which: by the fingerprint that was typed."""

    by: str
    time: float
    fingerprint: str


@dataclass(frozen=True)
class MapRecord:
    """What is kept of the GPU map: the board it is of, what each source said, and why a GPU could not be read.

    `boot` is the boot in which sources that can be asked were asked last. `verified` is the last map of this board that
    counted: who holds which GPU is told by it, whatever sources came to say since.
    """

    board: Fingerprint
    boot: str
    sources: tuple[Source, ...] = ()
    unread: Mapping[Bdf, str] = field(default_factory=dict)
    accepted: Acceptance | None = None
    verified: Mapping[Bdf, int] = field(default_factory=dict)

    @property
    def counted(self) -> GpuMap | None:
        """The last map of this board that counted; None where none has."""
        by_id = sorted((number, bdf) for bdf, number in self.verified.items())
        return GpuMap(dict(by_id)) if by_id else None

    def of(self, kind: SourceKind) -> Source | None:
        """What that source said, if it was asked."""
        return next((source for source in self.sources if source.kind is kind), None)

    def with_source(self, source: Source) -> MapRecord:
        """The record with that source in the place of what the same one said before."""
        return replace(self, sources=(*(s for s in self.sources if s.kind is not source.kind), source))

    def plain(self) -> dict[str, Any]:
        """All of it, as JSON can write it."""
        return {
            "board": self.board.plain(),
            "boot": self.boot,
            "sources": [source.plain() for source in self.sources],
            "unread": {str(bdf): why for bdf, why in sorted(self.unread.items())},
            "accepted": vars(self.accepted) if self.accepted else None,
            "verified": {str(bdf): number for bdf, number in sorted(self.verified.items())},
        }

    @classmethod
    def parse(cls, value: object) -> MapRecord:
        """The way back from `plain`; raises ValueError."""
        match value:
            case {
                "board": board,
                "boot": str(boot),
                "sources": [*sources],
                "unread": dict(unread),
                "accepted": by,
                "verified": dict(verified),
            }:
                return cls(
                    Fingerprint.parse(board),
                    boot,
                    tuple(map(Source.parse, sources)),
                    {Bdf.parse(bdf): str(why) for bdf, why in unread.items()},
                    _accepted(by),
                    {Bdf.parse(bdf): int(number) for bdf, number in verified.items()},
                )
        raise ValueError(f"a GPU map is wanted, not {value!r}")


def _accepted(value: object) -> Acceptance | None:
    match value:
        case None:
            return None
        case {"by": str(by), "time": float(time), "fingerprint": str(typed)}:
            return Acceptance(by, time, typed)
    raise ValueError(f"an acceptance is wanted, not {value!r}")


class MapState(str, Enum):
    """Whether anything may be activated by a map."""

    VERIFIED = "verified"
    UNVERIFIED = "unverified"
    CONTRADICTORY = "contradictory"


@dataclass(frozen=True)
class Verdict:
    """What the sources come to: the map as far as it is known, whether it counts, why, and what to do where not.

    `fingerprint` names the map and the board together; accepting it is accepting both.
    """

    state: MapState
    map: GpuMap
    why: str
    fix: str = ""
    fingerprint: str = ""
    is_pending: bool = False
    """Whether GPUs are still to be asked in this boot."""

    def check(self) -> None:
        """Raise MapUnverified unless it counts, which is MapPending where it may yet."""
        if self.state is not MapState.VERIFIED:
            kind = MapPending if self.is_pending else MapUnverified
            raise kind("the GPU map is not verified", why=self.why, fix=f"see `fmctl gpumap show`: {self.fix}")


def judge(record: MapRecord, found: Inventory) -> Verdict:
    """What a record comes to on the board as it is now; GPUs that are gone need no entry, those that are there do."""
    gpus = [device.function.bdf for device in fingerprint.present(found)]
    said = {bdf: {s.kind: s.readings[bdf] for s in record.sources if bdf in s.readings} for bdf in gpus}
    wrong = list(_contradictions(said, set(found.platform.physical_ids)))
    if wrong:
        return Verdict(
            MapState.CONTRADICTORY,
            GpuMap({}),
            "; ".join(wrong),
            "find out who is wrong, and `fmctl gpumap import` or `discover` that anew",
        )
    ids = {bdf: next(iter(by.values())) for bdf, by in said.items() if by}
    gpu_map = GpuMap({number: bdf for bdf, number in sorted(ids.items(), key=lambda item: item[1])})
    typed = _named(record)
    unnamed = [bdf for bdf in gpus if bdf not in ids]
    fix = _fix(found)
    if not gpus:
        return Verdict(MapState.UNVERIFIED, gpu_map, "no GPU is there", "see `fmctl inventory`")
    if unnamed:
        return Verdict(MapState.UNVERIFIED, gpu_map, "; ".join(_unnamed(record, bdf) for bdf in unnamed), fix)
    lone = {bdf: by for bdf, by in said.items() if len({kind.origin for kind in by}) < 2}
    if not lone:
        agree = sorted({kind.value for by in said.values() for kind in by})
        return Verdict(MapState.VERIFIED, gpu_map, f"{_and(agree)} agree", fingerprint=typed)
    if record.accepted is not None and record.accepted.fingerprint == typed:
        return Verdict(MapState.VERIFIED, gpu_map, f"{record.accepted.by} accepted it", fingerprint=typed)
    kinds = sorted({kind for by in lone.values() for kind in by}, key=lambda kind: kind.value)
    names, which = _and(kind.value for kind in kinds), "which GPU is which"
    if len(lone) < len(gpus):
        which = f"which GPU is at {_and(map(str, sorted(lone)))}"
    accept = f"compare `fmctl gpumap show` with the chassis, and `fmctl gpumap accept --fingerprint {typed}`"
    return Verdict(
        MapState.UNVERIFIED, gpu_map, f"nothing but {names} tells {which}", _fix(found, kinds, accept), typed
    )


def blank(found: Inventory) -> Verdict:
    """The verdict where nothing is kept for this board."""
    return Verdict(MapState.UNVERIFIED, GpuMap({}), "nobody has said which GPU has which physical id", _fix(found))


def _named(record: MapRecord) -> str:
    """The fingerprint of the board with all that was ever said of it, also of a GPU that was lost since."""
    said = {
        str(gpu.bdf): s.readings.get(gpu.bdf)
        for gpu in record.board.gpus
        for s in record.sources
        if gpu.bdf in s.readings
    }
    return fingerprint.digest(record.board.plain(), said)


def _contradictions(said: Mapping[Bdf, Mapping[SourceKind, int]], known: set[int]) -> Iterable[str]:
    holders: dict[int, set[Bdf]] = {}
    for bdf, by in said.items():
        if len(set(by.values())) > 1:
            yield f"GPU {bdf} is {' but '.join(f'{number} by {kind.value}' for kind, number in by.items())}"
            continue
        for kind, number in by.items():
            holders.setdefault(number, set()).add(bdf)
            if number not in known:
                yield f"{kind.value} says that GPU {bdf} is {number}, and the board has no such physical id"
    for number, bdfs in sorted(holders.items()):
        if len(bdfs) > 1:
            yield f"the GPUs at {_and(map(str, sorted(bdfs)))} are both said to be {number}"


def _unnamed(record: MapRecord, bdf: Bdf) -> str:
    why = record.unread.get(bdf)
    return f"nobody tells which GPU is at {bdf}" + (f": {why}" if why else "")


def _fix(found: Inventory, said: Iterable[SourceKind] = (), accept: str = "") -> str:
    """What brings another source, by what the board has, where `said` are those that are there, or `accept`."""
    imported = any(kind.is_import for kind in said)
    method = found.platform.module_ids.method.value
    ask = "" if said and not imported else _ASKS[method]
    bring = "" if imported else "`fmctl gpumap import FILE` with the output of `nvidia-smi -q` on this host, or a map"
    return "; or ".join(filter(None, (ask, bring, accept)))


_ASKS = {
    ModuleIdMethod.REGISTERS: "`fmctl gpumap discover` while no VM has the GPUs",
    ModuleIdMethod.FABRIC_MANAGER: "wait until Fabric Manager lists its partitions, then `fmctl gpumap discover`",
    ModuleIdMethod.ADMIN_TOOLS: "set gpu_admin_tools to NVIDIA's gpu-admin-tools, then `fmctl gpumap discover`",
    ModuleIdMethod.NONE: "",
}


def _and(words: Iterable[str]) -> str:
    *rest, last = words
    return f"{', '.join(rest)} and {last}" if rest else last
