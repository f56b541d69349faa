# SPDX-License-Identifier: Apache-2.0
"""A platform: what one board is, as its YAML file in `fmctl.platforms` says.

Facts about hardware carry a mark: C confirmed in a primary source, M measured, 2nd from a secondary source, D derived,
R recalled from a guide, U unconfirmed.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from fmctl.core import schema
from fmctl.core.partition import MAX_GPUS, MAX_NVLINKS, MAX_PARTITIONS, PartitionList
from fmctl.core.pci import PciClass, PciId
from fmctl.core.schema import setting

T = TypeVar("T")

MAX_NUMBER = 2**32 - 1
"""The largest id or rate: the SDK header gives each 32 bits, and no narrower bound."""
MAX_OFFSET = (16 << 20) - 4
"""The last register of a GPU's first memory region, which has 16 MiB (FACTS 7)."""
MAX_PINS = 8


class Mark(str, Enum):
    """How well a fact is known."""

    CONFIRMED = "C"
    MEASURED = "M"
    SECONDARY = "2nd"
    DERIVED = "D"
    RECALLED = "R"
    UNCONFIRMED = "U"


class Hardware(str, Enum):
    """Whether fmctl activates partitions on a real board of this platform, or on a simulated one only."""

    SUPPORTED = "supported"
    UNSUPPORTED = "unsupported"


class ErrorFamily(str, Enum):
    """Which codes say "already active" and "not active": -7 and -4, or -17 and -18."""

    NVL4 = "nvl4"
    NVL5 = "nvl5"


class ResetMethod(str, Enum):
    """A way to reset a PCI device, by its name in sysfs `reset_method`."""

    FLR = "flr"
    BUS = "bus"


class ResetEffect(str, Enum):
    """What a GPU reset does to the NVLinks of an activated partition."""

    HARMLESS = "harmless"
    BREAKS_LINKS = "breaks-links"


class ModuleIdMethod(str, Enum):
    """What tells which module a GPU of this board is, where no driver runs on the host."""

    REGISTERS = "registers"
    """The GPU itself, by pins that the board ties."""
    FABRIC_MANAGER = "fabric-manager"
    """Fabric Manager's list, which has the GPUs' PCI addresses."""
    ADMIN_TOOLS = "gpu-admin-tools"
    """NVIDIA's gpu-admin-tools, where they are installed."""
    NONE = "none"


@dataclass(frozen=True)
class Fact(Generic[T]):
    """A value with its mark and its source."""

    value: T
    mark: Mark
    source: str

    def __post_init__(self) -> None:
        """Refuse a fact that comes from nowhere."""
        if not self.source:
            raise ValueError("source is empty")


@dataclass(frozen=True)
class Model:
    """A device id with the name it is sold under."""

    id: PciId
    name: str


@dataclass(frozen=True)
class Devices:
    """PCI functions of one kind. `count` is what a healthy board has, none where it varies by chassis.

    `vpd` is a text that the function's vital product data holds, where the id alone does not tell it apart.
    """

    pci_class: PciClass
    models: tuple[Model, ...]
    count: int | None = setting(None, doc="functions of this kind on a healthy board", low=1)
    vpd: str | None = None

    def __post_init__(self) -> None:
        """Refuse a kind that no device can match."""
        if not self.models:
            raise ValueError("models is empty")


@dataclass(frozen=True)
class ResetRules:
    """How a GPU of this board is reset."""

    methods: Fact[tuple[ResetMethod, ...]]
    """Methods in the order to try them."""
    after_unclean_exit: Fact[ResetMethod]
    """The method after a VM that did not shut down cleanly."""
    after_activation: Fact[ResetEffect]
    """What a reset does once the partition is active."""
    after_fm_first_start: Fact[bool]
    """Whether GPUs need a reset after Fabric Manager's first start in shared NVSwitch mode."""
    deadline_s: Fact[int]
    """Seconds after which a reset counts as failed."""

    def __post_init__(self) -> None:
        """Refuse rules that leave a GPU without a reset."""
        if not self.methods.value:
            raise ValueError("methods is empty")
        if self.after_unclean_exit.value not in self.methods.value:
            raise ValueError(f"after_unclean_exit is {self.after_unclean_exit.value.value}, which is none of methods")
        if self.deadline_s.value < 1:
            raise ValueError(f"deadline_s is {self.deadline_s.value}; it must be 1 or more")


@dataclass(frozen=True)
class Expected:
    """What a register of a GPU must hold: `value` in the bits of `mask`. An offset is in bytes from BAR0's begin."""

    offset: int = setting(doc="the register", low=0, high=MAX_OFFSET)
    value: int = setting(doc="what its bits are", low=0, high=MAX_NUMBER)
    mask: int = setting(MAX_NUMBER, doc="which of its bits count", low=1, high=MAX_NUMBER)

    def __post_init__(self) -> None:
        """Refuse what no aligned read can meet."""
        _refuse_unaligned(self.offset)
        if self.value & ~self.mask:
            raise ValueError(f"value {self.value:#x} has bits that mask {self.mask:#x} leaves out")

    def holds(self, value: int) -> bool:
        """Whether a register with that value is as it must be."""
        return value & self.mask == self.value

    def __str__(self) -> str:
        return f"{self.value:#x} in the bits {self.mask:#x} of register {self.offset:#x}"


@dataclass(frozen=True)
class Pin:
    """A bit of a register that shows how the board ties a pin."""

    offset: int = setting(doc="the register", low=0, high=MAX_OFFSET)
    bit: int = setting(doc="the bit", low=0, high=31)

    def __post_init__(self) -> None:
        """Refuse what no aligned read can meet."""
        _refuse_unaligned(self.offset)


@dataclass(frozen=True)
class StrapRules:
    """How the pins of a GPU say which module it is."""

    chip: Expected
    """The chip id, without which no register is believed."""
    bits: tuple[Pin, ...]
    """The pins, lowest bit first."""
    ready: Expected | None = None
    """What tells that the GPU's own firmware has started."""
    first: int = setting(1, doc="the physical id where all bits are 0", low=0, high=MAX_GPUS)
    inverted: int = setting(0, doc="the bits that are tied the other way round", low=0, high=2**MAX_PINS - 1)
    variants: tuple[str, ...] = ()
    """GPUs of which this is known, by device and subsystem id such as 2330:16c1; none for all."""

    def __post_init__(self) -> None:
        """Refuse rules that say nothing."""
        if not 1 <= len(self.bits) <= MAX_PINS:
            raise ValueError(f"bits has {len(self.bits)} pins; 1 to {MAX_PINS} are possible")
        for variant in self.variants:
            if not re.fullmatch("[0-9a-f]{4}:[0-9a-f]{4}", variant):
                raise ValueError(f"variant {variant!r} is no device and subsystem id such as '2330:16c1'")


@dataclass(frozen=True)
class ModuleIdRules:
    """What tells which GPU of this board is which."""

    method: Fact[ModuleIdMethod]
    straps: StrapRules | None = None

    def __post_init__(self) -> None:
        """Refuse a method that lacks its rules."""
        if (self.method.value is ModuleIdMethod.REGISTERS) != (self.straps is not None):
            raise ValueError("straps goes with the method registers, and with no other")


NO_MODULE_IDS = ModuleIdRules(
    Fact(ModuleIdMethod.NONE, Mark.UNCONFIRMED, "the platform file does not say what tells which GPU is which")
)


@dataclass(frozen=True)
class PartitionRow:
    """A row of the table: id, physical ids, NVLinks per GPU; written `[3, [1, 3], 18]`."""

    id: int
    gpu_ids: tuple[int, ...]
    nvlinks_per_gpu: int

    @classmethod
    def parse(cls, value: object) -> PartitionRow:
        """Read `[3, [1, 3], 18]`; raises ValueError."""
        match value:
            case [int(row_id), [*gpu_ids], int(nvlinks)]:
                whole = tuple(gpu for gpu in gpu_ids if isinstance(gpu, int))
                if len(whole) == len(gpu_ids) and bool not in map(type, (row_id, *whole, nvlinks)):
                    return cls(row_id, whole, nvlinks)
        raise ValueError(f"a row such as [3, [1, 3], 18] is wanted, not {value!r}")

    def plain(self) -> list[int | list[int]]:
        """The row as `parse` reads it."""
        return [self.id, list(self.gpu_ids), self.nvlinks_per_gpu]

    def __post_init__(self) -> None:
        """Refuse what Fabric Manager's structures cannot hold."""
        if not 0 <= self.id <= MAX_NUMBER:
            raise ValueError(f"id {self.id} is not between 0 and 2^32 - 1")
        if not 1 <= len(self.gpu_ids) <= MAX_GPUS:
            raise ValueError(f"partition {self.id} has {len(self.gpu_ids)} GPUs; 1 to {MAX_GPUS} are possible")
        if len(set(self.gpu_ids)) != len(self.gpu_ids):
            raise ValueError(f"partition {self.id} names a GPU twice")
        for gpu in self.gpu_ids:
            if not 1 <= gpu <= MAX_NUMBER:
                raise ValueError(f"partition {self.id} has GPU {gpu}; physical ids are 1 to 2^32 - 1")
        if not 0 <= self.nvlinks_per_gpu <= MAX_NVLINKS:
            raise ValueError(f"partition {self.id} has {self.nvlinks_per_gpu} NVLinks; 0 to {MAX_NVLINKS} are possible")


@dataclass(frozen=True, kw_only=True)
class Platform:
    """One board."""

    name: str
    title: str
    hardware: Hardware
    hardware_reason: str = ""
    """Why fmctl leaves a real board alone."""
    nvlink_generation: int = setting(doc="2 for V100 to 5 for Blackwell", low=2, high=5)
    error_family: ErrorFamily
    line_rate_mbps: Fact[int] | None = None
    """Megabytes per second of one NVLink, as Fabric Manager reports it; none where nobody has seen it."""
    gpus: Devices
    nvswitches: Devices
    """The functions that the Service VM drives the NVSwitches through."""
    memory_controller: Devices | None = None
    """What the Service VM has beside the NVSwitches."""
    reset: ResetRules
    module_ids: ModuleIdRules = NO_MODULE_IDS
    partitions: tuple[PartitionRow, ...]

    def __post_init__(self) -> None:
        """Refuse a board that contradicts itself."""
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise ValueError(f"name {self.name!r} is not of lower-case words joined by hyphens, such as hgx-h100-8")
        if self.hardware is Hardware.UNSUPPORTED and not self.hardware_reason:
            raise ValueError("hardware is unsupported, but hardware_reason does not say why")
        if self.line_rate_mbps and not 1 <= self.line_rate_mbps.value <= MAX_NUMBER:
            raise ValueError(f"line_rate_mbps is {self.line_rate_mbps.value}; 1 to 2^32 - 1 are possible")
        if not 1 <= len(self.partitions) <= MAX_PARTITIONS:
            raise ValueError(f"partitions has {len(self.partitions)} rows; 1 to {MAX_PARTITIONS} are possible")
        _refuse_twice("partition id", [row.id for row in self.partitions])
        _refuse_twice("set of GPUs", [tuple(sorted(row.gpu_ids)) for row in self.partitions])
        if len(self.physical_ids) > MAX_GPUS:
            raise ValueError(f"partitions name {len(self.physical_ids)} GPUs; 1 to {MAX_GPUS} are possible")
        if len(self.physical_ids) != self.gpus.count:
            wanted = self.gpus.count or "missing"
            raise ValueError(f"partitions name {len(self.physical_ids)} GPUs, but gpus.count is {wanted}")

    @property
    def physical_ids(self) -> tuple[int, ...]:
        """Every physical id of the board, ascending."""
        return tuple(sorted({gpu for row in self.partitions for gpu in row.gpu_ids}))

    @property
    def drops_failed_gpus(self) -> bool:
        """Whether Fabric Manager's list loses the partitions of a missing GPU; it is static from NVLink 4 on."""
        return self.nvlink_generation < 4

    def describes(self, listed: PartitionList) -> bool:
        """Whether Fabric Manager's list is this board's table, or part of it where lists shrink."""
        table = {row.id: frozenset(row.gpu_ids) for row in self.partitions}
        seen = {p.id: frozenset(p.gpu_ids) for p in listed.partitions}
        if not seen or not seen.items() <= table.items():
            return False
        return self.drops_failed_gpus or len(seen) == len(table)


def _refuse_unaligned(offset: int) -> None:
    if offset % 4:
        raise ValueError(f"offset {offset:#x} is no multiple of 4")


def _refuse_twice(what: str, values: Iterable[Hashable]) -> None:
    seen: set[Hashable] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"partitions has the {what} {value} twice")
        seen.add(value)


def parse(text: str, source: str) -> Platform:
    """Read a platform file; raises InvalidDocument, which names `source`, the key and the reason."""
    return schema.load(Platform, text, source)


def recognise(listed: PartitionList, platforms: Iterable[Platform]) -> Platform | None:
    """The one platform whose table Fabric Manager's list is, if exactly one is; a whole table goes before a part."""
    found = [platform for platform in platforms if platform.describes(listed)]
    whole = [platform for platform in found if len(platform.partitions) == len(listed.partitions)]
    best = whole or found
    return best[0] if len(best) == 1 else None
