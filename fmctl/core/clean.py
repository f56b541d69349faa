# SPDX-License-Identifier: Apache-2.0
"""What must be done to a GPU, and be found of it, before the next tenant gets it: the decisions.

`control.clean` takes the steps and records the verdict. A GPU is being cleaned for as long as its mark in the book
says so, from the commit that ends its lease on, and every cleaning begins with the reset: whoever finds the mark after
a crash just begins again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from fmctl.core import schema
from fmctl.core.book import Book, Entry, Kind, Mark, MarkKind, of_mark, of_unmark
from fmctl.core.errors import BadRequest, InvalidDocument
from fmctl.core.exits import VmExit
from fmctl.core.pci import PciFunction, PciId
from fmctl.core.platform import ResetMethod, ResetRules
from fmctl.core.rules import Firmware, Memory

ACTOR = "fmctl"
"""Who is named in the journal for what is cleaned."""
HEADER = 64
"""Bytes of the configuration space that are looked at after a reset."""


@dataclass(frozen=True)
class FirmwareList:
    """The SHA-256 of every firmware that the operator allows, by device id; written `'10de:2330': [SHA-256, ...]`."""

    allowed: Mapping[PciId, frozenset[str]]

    @classmethod
    def parse(cls, value: object) -> FirmwareList:
        """Read a mapping of device ids to lists of digests; raises ValueError."""
        if not isinstance(value, dict) or not value:
            raise ValueError("a line such as '10de:2330': [SHA-256] is wanted for each device id")
        return cls({PciId.parse(key): frozenset(map(_digest, _listed(key, value[key]))) for key in value})


def firmware_list(text: str, source: str) -> FirmwareList:
    """Read a list's file; raises InvalidDocument, which names `source` and the reason."""
    return schema.load(FirmwareList, text, source)


@dataclass(frozen=True)
class Rules:
    """The settings that decide, times in seconds. `reset_timeout` of None is the platform's own deadline.

    A command is run with the GPU's PCI address and its device id as its last arguments.
    """

    memory: Memory = Memory.RESET_ONLY
    memory_command: tuple[str, ...] = ()
    memory_timeout: float = 600.0
    firmware: Firmware = Firmware.RECORD
    firmware_command: tuple[str, ...] = ()
    firmware_timeout: float = 60.0
    firmware_list: FirmwareList | None = None
    reset_timeout: float | None = None

    def deadline(self, reset: ResetRules) -> float:
        """Seconds that a reset may take."""
        return float(reset.deadline_s.value) if self.reset_timeout is None else self.reset_timeout


class Step(str, Enum):
    """One step of a cleaning. An inspection VM of fmctl's own will take the place of the memory command."""

    RESET = "reset"
    ANSWERS = "answers"
    MEMORY = "memory"
    FIRMWARE = "firmware"
    SOUND = "sound"


_ORDER = tuple(Step)


@dataclass(frozen=True)
class Found:
    """What one cleaning has found so far: the last step that went well, and what is told of each; `problem` ends it."""

    done: Step | None = None
    notes: tuple[str, ...] = ()
    problem: str = ""

    def well(self, step: Step, note: str = "") -> Found:
        """The step went well."""
        return replace(self, done=step, notes=(*self.notes, note) if note else self.notes)

    def failed(self, problem: str) -> Found:
        """A step did not, and the GPU is quarantined."""
        return replace(self, problem=problem)


class Verdict(str, Enum):
    """What a cleaning comes to."""

    CLEAN = "cleaned"
    QUARANTINE = "quarantine"


def next_step(rules: Rules, found: Found) -> Step | Verdict:
    """What to do next, or what it comes to."""
    if found.problem:
        return Verdict.QUARANTINE
    left = _ORDER[0 if found.done is None else _ORDER.index(found.done) + 1 :]
    wanted = [step for step in left if step is not Step.FIRMWARE or rules.firmware is not Firmware.OFF]
    return wanted[0] if wanted else Verdict.CLEAN


def methods(reset: ResetRules, vm_exit: VmExit, offered: Iterable[str]) -> tuple[ResetMethod, ...]:
    """The reset methods to try in turn, of those that the kernel offers for the function.

    What a VM that was killed leaves behind, only the platform's method for that is known to clear.
    """
    wanted = (reset.after_unclean_exit.value,) if vm_exit is VmExit.UNCLEAN else reset.methods.value
    there = set(offered)
    return tuple(method for method in wanted if method.value in there)


def unsound(function: PciFunction, header: bytes) -> str:
    """What is wrong with the first bytes of a configuration space after a reset; empty where nothing is."""
    if not header:
        return "it is gone"
    if header == b"\xff" * len(header):
        return "its registers read as all ones"
    if len(header) < HEADER:
        return f"only {len(header)} bytes of its configuration space can be read"
    identity = PciId(int.from_bytes(header[0:2], "little"), int.from_bytes(header[2:4], "little"))
    if identity != function.id:
        return f"it says that it is {identity}, not {function.id}"
    code = int.from_bytes(header[10:12], "little")
    if code != function.pci_class.code:
        return f"it says that its class is {code:04x}, not {function.pci_class}"
    return ""


def judge_firmware(rules: Rules, found: Found, device: PciId, digest: str, source: str) -> Found:
    """What evidence of the firmware comes to: its SHA-256, empty where there is none, and where it was looked for."""
    if not digest:
        note = f"there is no evidence of its firmware: {source}"
        return found.failed(note) if rules.firmware is Firmware.ENFORCE else found.well(Step.FIRMWARE, note)
    allowed = rules.firmware_list.allowed.get(device, frozenset()) if rules.firmware_list else None
    note = f"its firmware has the SHA-256 {digest} by {source}"
    if allowed is None:
        return found.well(Step.FIRMWARE, note)
    if digest in allowed:
        return found.well(Step.FIRMWARE, f"{note}, which is on the list")
    note = f"{note}, which is not on the list for {device}"
    return found.failed(note) if rules.firmware is Firmware.ENFORCE else found.well(Step.FIRMWARE, note)


def refuse_unproven(rules: Rules, evidence: Mapping[PciId, bool | None]) -> None:
    """Raise InvalidDocument where firmware is enforced, and no GPU of the host could ever pass.

    `evidence` tells for each device id of the host's GPUs whether a source gives any, None where nobody could look.
    """
    if rules.firmware is not Firmware.ENFORCE:
        return
    allowed = rules.firmware_list.allowed if rules.firmware_list else {}
    lacking = [str(device) for device in evidence if not allowed.get(device)]
    blank = [str(device) for device, found in evidence.items() if found is False]
    if lacking or blank:
        why = (
            f"no source tells the firmware of {', '.join(blank)}: the devices have no ROM that can be read"
            if blank
            else f"the list has no firmware for {', '.join(lacking)}"
        )
        raise InvalidDocument(
            "clean.firmware: enforce would quarantine every GPU",
            why=why,
            fix="set clean.firmware_command, or clean.firmware: record" if blank else "add it to clean.firmware_list",
        )


# The book.


def marked(gpus: Iterable[int], reason: str, now: float, *, actor: str = ACTOR) -> tuple[Entry, ...]:
    """These GPUs are to be cleaned before anybody gets them."""
    mark = Mark(MarkKind.CLEANING, reason, now)
    return tuple(of_mark(Kind.GPU, str(gpu), mark, actor=actor) for gpu in sorted(gpus))


def started_fresh(book: Book, gpus: Iterable[int], generation: int, now: float) -> tuple[Entry, ...]:
    """Free GPUs are to be cleaned after Fabric Manager was started fresh: what they know of the fabric is stale.

    Done once for each fabric generation, which a mark of the fabric notes as its reason.
    """
    noted = book.marks.get((Kind.FABRIC, "", MarkKind.MET))
    if noted is not None and int(noted.reason) >= generation:
        return ()
    left = {int(subject) for subject in book.marked(Kind.GPU, MarkKind.QUARANTINED)} | set(book.held)
    met = of_mark(Kind.FABRIC, "", Mark(MarkKind.MET, str(generation), now), actor=ACTOR)
    return (*marked(set(gpus) - left, "Fabric Manager was started fresh", now), met)


def cleaned(gpu: int, found: Found) -> tuple[Entry, ...]:
    """The GPU is free, and what was found of it."""
    return (of_unmark(Kind.GPU, str(gpu), MarkKind.CLEANING, actor=ACTOR, detail="; ".join(found.notes)),)


def quarantined(gpu: int, found: Found, now: float) -> tuple[Entry, ...]:
    """The GPU goes to nobody until a person says so, and what was found of it before."""
    notes = "; ".join((*found.notes, found.problem))
    mark = Mark(MarkKind.QUARANTINED, found.problem, now)
    return (
        of_unmark(Kind.GPU, str(gpu), MarkKind.CLEANING, actor=ACTOR, detail=notes),
        of_mark(Kind.GPU, str(gpu), mark, actor=ACTOR),
    )


def stuck(book: Book, gpus: Iterable[int], reason: str, now: float) -> tuple[Entry, ...]:
    """GPUs whose partition Fabric Manager does not deactivate go to nobody even once it does; none that are already."""
    there = book.marked(Kind.GPU, MarkKind.QUARANTINED)
    mark = Mark(MarkKind.QUARANTINED, reason, now)
    return tuple(of_mark(Kind.GPU, str(gpu), mark, actor=ACTOR) for gpu in sorted(gpus) if str(gpu) not in there)


def unquarantined(book: Book, gpu: int, reason: str, now: float, *, actor: str) -> tuple[Entry, ...]:
    """A person lets a GPU go: it is not free by that, but cleaned again. Raises BadRequest."""
    if (Kind.GPU, str(gpu), MarkKind.QUARANTINED) not in book.marks:
        raise BadRequest(f"GPU {gpu} is not quarantined", fix="`fmctl capacity` shows which GPUs are")
    if not reason.strip():
        raise BadRequest(f"GPU {gpu} stays quarantined", why="no reason is given", fix="say why it can be trusted")
    release = of_unmark(Kind.GPU, str(gpu), MarkKind.QUARANTINED, actor=actor, detail=reason)
    return (release, *marked((gpu,), f"it was quarantined until {actor} said: {reason}", now, actor=actor))


def aside(book: Book, gpus: Iterable[int]) -> tuple[int, ...]:
    """Those of the GPUs that are to be cleaned, or quarantined."""
    kinds = (MarkKind.CLEANING, MarkKind.QUARANTINED)
    return tuple(gpu for gpu in gpus if any((Kind.GPU, str(gpu), kind) in book.marks for kind in kinds))


def being_cleaned(book: Book, gpus: Iterable[int], ended: float) -> tuple[int, ...]:
    """Those of the GPUs that a lease which ended then left to be cleaned, and that still are not clean."""
    marks = book.marked(Kind.GPU, MarkKind.CLEANING)
    return tuple(gpu for gpu in gpus if (mark := marks.get(str(gpu))) is not None and mark.since <= ended)


def waiting(book: Book) -> dict[int, Mark]:
    """The GPUs that are to be cleaned now: none that a person must release first, or that a lease holds."""
    stopped = {int(subject) for subject in book.marked(Kind.GPU, MarkKind.QUARANTINED)} | set(book.held)
    marks = book.marked(Kind.GPU, MarkKind.CLEANING)
    return {int(subject): mark for subject, mark in marks.items() if int(subject) not in stopped}


def _listed(key: object, value: object) -> Sequence[object]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{key}: a list of SHA-256 digests is wanted, not {value!r}")
    return value


def _digest(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError(f"a SHA-256 in lower-case hexadecimal is wanted, in quotes, not {value!r}")
    return value


def digest_of(output: bytes) -> str:
    """The SHA-256 that a firmware command printed as its first word; empty where it printed none."""
    words = output.decode("ascii", "replace").split(maxsplit=1)
    return words[0] if words and re.fullmatch("[0-9a-f]{64}", words[0]) else ""
