# SPDX-License-Identifier: Apache-2.0
"""The binding to libnvfm, NVIDIA's client library of Fabric Manager: the one importer of ctypes.

The declarations are our own, from the layouts of the public SDK headers (branches 450 to 615); sizes and version words
are asserted when the module is imported. A call can block for 70 s when Fabric Manager hangs, and nothing in this
process can end it: that is why `guest.worker` runs the binding in a process that it can kill.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from ctypes import POINTER, Structure, byref, c_char, c_int, c_uint32, c_void_p
from typing import Any

from fmctl.core.address import Address, UnixAddress, VsockAddress
from fmctl.core.errors import BadRequest, FabricNotReady, VersionMismatch
from fmctl.core.fmcode import FmCode, Operation, call_refused, connect_refused, describe
from fmctl.core.partition import MAX_GPUS, MAX_PARTITIONS, Gpu, Partition, PartitionList

SONAME = "libnvfm.so.1"


class ConnectParamsV1(Structure):
    """`fmConnectParams_v1`: taken by every branch, for TCP and unix sockets."""

    _fields_ = (
        ("version", c_uint32),
        ("addressInfo", c_char * 256),
        ("timeoutMs", c_uint32),
        ("addressIsUnixSocket", c_uint32),
    )


class ConnectParamsV2(Structure):
    """`fmConnectParams_v2`: branch 580 and later, needed for vsock alone."""

    _fields_ = (*ConnectParamsV1._fields_, ("addressType", c_uint32))


class GpuInfo(Structure):
    """`fmFabricPartitionGpuInfo_t`."""

    _fields_ = (
        ("physicalId", c_uint32),
        ("uuid", c_char * 80),
        ("pciBusId", c_char * 32),
        ("numNvLinksAvailable", c_uint32),
        ("maxNumNvLinks", c_uint32),
        ("nvlinkLineRateMBps", c_uint32),
    )


class PartitionInfo(Structure):
    """`fmFabricPartitionInfo_t`."""

    _fields_ = (
        ("partitionId", c_uint32),
        ("isActive", c_uint32),
        ("numGpus", c_uint32),
        ("gpuInfo", GpuInfo * MAX_GPUS),
    )


class PartitionListV2(Structure):
    """`fmFabricPartitionList_v2`, whose version word nevertheless says 1."""

    _fields_ = (
        ("version", c_uint32),
        ("numPartitions", c_uint32),
        ("maxNumPartitions", c_uint32),
        ("partitionInfo", PartitionInfo * MAX_PARTITIONS),
    )


class ActivatedListV1(Structure):
    """`fmActivatedFabricPartitionList_v1`."""

    _fields_ = (
        ("version", c_uint32),
        ("numPartitions", c_uint32),
        ("partitionIds", c_uint32 * MAX_PARTITIONS),
    )


def version_word(struct: type[Structure], number: int) -> int:
    """The word that tells libnvfm which layout it is given: size in the low bits, number in the top byte."""
    return ctypes.sizeof(struct) | number << 24


CONNECT_V1 = version_word(ConnectParamsV1, 1)
CONNECT_V2 = version_word(ConnectParamsV2, 2)
LIST = version_word(PartitionListV2, 1)
ACTIVATED = version_word(ActivatedListV1, 1)

_WORDS = {CONNECT_V1: 0x0100010C, CONNECT_V2: 0x02000110, LIST: 0x0102030C, ACTIVATED: 0x01000108}
_SIZES = {GpuInfo: 128, PartitionInfo: 2060}
if any(ours != header for ours, header in _WORDS.items()):
    raise ImportError(f"libnvfm's structures have other sizes here: {_WORDS}")
if any(ctypes.sizeof(struct) != size for struct, size in _SIZES.items()):
    raise ImportError(f"libnvfm's structures have other sizes here: {_SIZES}")

_ADDRESS_TYPE_VSOCK = 3

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "fmLibInit": (),
    "fmLibShutdown": (),
    "fmConnect": (c_void_p, POINTER(c_void_p)),
    "fmDisconnect": (c_void_p,),
    "fmGetSupportedFabricPartitions": (c_void_p, POINTER(PartitionListV2)),
    "fmActivateFabricPartition": (c_void_p, c_uint32),
    "fmDeactivateFabricPartition": (c_void_p, c_uint32),
    "fmSetActivatedFabricPartitions": (c_void_p, POINTER(ActivatedListV1)),
}


def _load(library: str) -> ctypes.CDLL:
    try:
        found = ctypes.CDLL(library or SONAME)
        for name, arguments in _SIGNATURES.items():
            function = getattr(found, name)
            function.argtypes, function.restype = arguments, c_int
    except (OSError, AttributeError) as error:
        raise FabricNotReady(
            f"{library or SONAME} cannot be used",
            why=str(error),
            fix="install NVIDIA's fabricmanager-dev package of Fabric Manager's own branch, or set `library`",
        ) from error
    return found


class Nvfm:
    """Fabric Manager through libnvfm in this process: the port `FabricManager`, one connection a call.

    A connection of its own for each call costs little and always speaks to the Fabric Manager that runs now.
    """

    def __init__(self, address: Address, library: str = "", connect_timeout: float = 1.0) -> None:
        """Load and initialise the library, by the system's loader unless `library` is a path.

        Raises FabricNotReady if it cannot be loaded or initialised.
        """
        self._library = _load(library)
        self._address = address
        self._connect_timeout = connect_timeout
        self.simulated = hasattr(self._library, "fmctlSimulated")
        code = self._library.fmLibInit()
        if code != FmCode.SUCCESS:
            raise FabricNotReady("libnvfm cannot be initialised", why=f"fmLibInit returned {describe(code)}")
        self._list = PartitionListV2()

    def close(self) -> None:
        """Shut the library down."""
        self._library.fmLibShutdown()

    def list_partitions(self, *, timeout: float) -> PartitionList:
        """`fmGetSupportedFabricPartitions`."""
        self._list.version = LIST
        with self._connection(timeout) as handle:
            code = self._library.fmGetSupportedFabricPartitions(handle, byref(self._list))
        if code != FmCode.SUCCESS:
            raise call_refused(Operation.LIST, code)
        return _decode(self._list, simulated=self.simulated)

    def activate(self, partition_id: int, *, timeout: float) -> None:
        """`fmActivateFabricPartition`."""
        with self._connection(timeout) as handle:
            code = self._library.fmActivateFabricPartition(handle, partition_id)
        if code != FmCode.SUCCESS:
            raise call_refused(Operation.ACTIVATE, code, partition_id)

    def deactivate(self, partition_id: int, *, timeout: float) -> None:
        """`fmDeactivateFabricPartition`."""
        with self._connection(timeout) as handle:
            code = self._library.fmDeactivateFabricPartition(handle, partition_id)
        if code != FmCode.SUCCESS:
            raise call_refused(Operation.DEACTIVATE, code, partition_id)

    def set_activated(self, partition_ids: Sequence[int], *, timeout: float) -> None:
        """`fmSetActivatedFabricPartitions`; raises BadRequest for more ids than the structure holds."""
        if len(partition_ids) > MAX_PARTITIONS:
            raise BadRequest(
                f"{len(partition_ids)} partitions cannot be active", why=f"a board has at most {MAX_PARTITIONS}"
            )
        activated = ActivatedListV1(version=ACTIVATED, numPartitions=len(partition_ids))
        for index, partition_id in enumerate(partition_ids):
            activated.partitionIds[index] = partition_id
        with self._connection(timeout) as handle:
            code = self._library.fmSetActivatedFabricPartitions(handle, byref(activated))
        if code != FmCode.SUCCESS:
            raise call_refused(Operation.SET_ACTIVATED, code)

    @contextlib.contextmanager
    def _connection(self, timeout: float) -> Iterator[c_void_p]:
        milliseconds = max(1, int(1000 * min(timeout, self._connect_timeout)))
        params = _connect_params(self._address, milliseconds)
        handle = c_void_p()
        code = self._library.fmConnect(byref(params), byref(handle))
        if code != FmCode.SUCCESS:
            raise connect_refused(code, str(self._address))
        try:
            yield handle
        finally:
            self._library.fmDisconnect(handle)


def _connect_params(address: Address, milliseconds: int) -> ConnectParamsV1 | ConnectParamsV2:
    where = address.where
    if isinstance(where, VsockAddress):
        info = f"{where.cid}:{where.port}".encode()
        return ConnectParamsV2(
            version=CONNECT_V2, addressInfo=info, timeoutMs=milliseconds, addressType=_ADDRESS_TYPE_VSOCK
        )
    is_unix = isinstance(where, UnixAddress)
    info = str(where.path if isinstance(where, UnixAddress) else where).encode()
    return ConnectParamsV1(
        version=CONNECT_V1, addressInfo=info, timeoutMs=milliseconds, addressIsUnixSocket=int(is_unix)
    )


def _decode(listed: PartitionListV2, *, simulated: bool) -> PartitionList:
    _bounded("partitions", listed.numPartitions, MAX_PARTITIONS)
    return PartitionList(
        partitions=tuple(_partition(row) for row in listed.partitionInfo[: listed.numPartitions]),
        max_partitions=listed.maxNumPartitions,
        simulated=simulated,
    )


def _partition(row: Any) -> Partition:
    _bounded(f"GPUs in partition {row.partitionId}", row.numGpus, MAX_GPUS)
    gpus = tuple(
        Gpu(
            physical_id=gpu.physicalId,
            nvlinks=gpu.numNvLinksAvailable,
            nvlinks_max=gpu.maxNumNvLinks,
            line_rate_mbps=gpu.nvlinkLineRateMBps,
            uuid=gpu.uuid.decode("ascii", "replace"),
            pci_bus_id=gpu.pciBusId.decode("ascii", "replace"),
        )
        for gpu in row.gpuInfo[: row.numGpus]
    )
    return Partition(id=row.partitionId, gpus=gpus, active=bool(row.isActive))


def _bounded(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise VersionMismatch(
            "Fabric Manager's list cannot be read",
            why=f"it counts {count} {what}, and its structure holds {limit}",
            fix="see that Fabric Manager and libnvfm are of one branch",
        )
