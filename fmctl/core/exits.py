# SPDX-License-Identifier: Apache-2.0
"""How the VMs ended that had a GPU since it was cleaned: what is known for certain, and what counts as unclean.

`control.exits` keeps it up with what libvirt and the kernel tell, and `core.clean` chooses the reset by it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from fmctl.core.domain import Domain, End
from fmctl.core.pci import Bdf

Life = tuple[str, int]
"""A domain's UUID and instance."""


class VmExit(str, Enum):
    """How the VMs ended that had a GPU since it was cleaned."""

    CLEAN = "clean"
    """Each by its guest's own shutdown, or there was none."""
    UNCLEAN = "unclean"
    """One was killed, or crashed; what is not known counts as this."""


@dataclass(frozen=True)
class Exits:
    """What was seen since libvirt tells of every end without a gap; at first nothing, so that every GPU is unclean.

    `clean` are the GPUs that were cleaned since, and that nobody had afterwards but VMs whose guests shut down.
    `lives` are the functions that each VM was seen to have, and `over` those of them that have ended.
    """

    clean: frozenset[Bdf] = frozenset()
    lives: Mapping[Life, frozenset[Bdf]] = field(default_factory=dict)
    over: frozenset[Life] = frozenset()

    def of(self, gpu: Bdf) -> VmExit:
        """How the VMs of a GPU ended; unclean while the end of one was not heard yet."""
        has = any(gpu in had for life, had in self.lives.items() if life not in self.over)
        return VmExit.CLEAN if gpu in self.clean and not has else VmExit.UNCLEAN

    def cleaned(self, gpu: Bdf) -> Exits:
        """A GPU was cleaned, so that what was before counts no more."""
        lives = {life: had - {gpu} for life, had in self.lives.items()}
        return replace(self, clean=self.clean | {gpu}, lives=lives)

    def seen(self, domains: Iterable[Domain], held: Collection[Bdf] | None) -> Exits:
        """Functions were held, None where that cannot be told, and these domains were listed after that.

        What is held, and was given to no VM, somebody else has, of whose end nothing is heard. Of a VM that has ended
        no more is kept once a list does not show it: the next one was begun after its end.
        """
        listed = {(domain.uuid, domain.instance): frozenset(domain.hostdevs) for domain in domains}
        lives = dict(self.lives)
        for life, had in listed.items():
            lives[life] = lives.get(life, frozenset()) | had
        given = frozenset[Bdf]().union(*lives.values())
        clean = frozenset[Bdf]() if held is None else self.clean - (frozenset(held) - given)
        forgotten = self.over - listed.keys()
        return Exits(clean, {k: v for k, v in lives.items() if k not in forgotten}, self.over - forgotten)

    def ended(self, end: End) -> Exits:
        """A domain ended; of one that was never seen it is not known what it had."""
        lives = {
            life: had for life, had in self.lives.items() if life[0] == end.uuid and end.instance in (0, life[1])
        } or {(end.uuid, end.instance): frozenset[Bdf]()}
        clean = self.clean
        if not end.shut_down:
            had = frozenset[Bdf]().union(*lives.values())
            clean = self.clean - had if lives.keys() <= self.lives.keys() else frozenset()
        return replace(self, clean=clean, lives={**self.lives, **lives}, over=self.over | lives.keys())
