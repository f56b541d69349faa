# SPDX-License-Identifier: Apache-2.0
"""Core values to messages and back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from fmctl.core.answers import (
    AgentInfo,
    DaemonStatus,
    FabricState,
    GateStatus,
    HookLoad,
    NewWork,
    ServiceVmState,
    ServiceVmStatus,
)
from fmctl.core.partition import Gpu, Partition, PartitionList
from fmctl.rpc.fmctl.v1 import fabric_controller_pb2, partition_pb2, service_vm_pb2

if TYPE_CHECKING:
    from fmctl.rpc.fmctl.v1 import fabric_manager_pb2

_STATES = {
    FabricState.UNREACHABLE: partition_pb2.FABRIC_STATE_UNREACHABLE,
    FabricState.NOT_STARTED: partition_pb2.FABRIC_STATE_NOT_STARTED,
    FabricState.ENDED: partition_pb2.FABRIC_STATE_ENDED,
    FabricState.INITIALISING: partition_pb2.FABRIC_STATE_INITIALISING,
    FabricState.AWAITING_ACTIVE_LIST: partition_pb2.FABRIC_STATE_AWAITING_ACTIVE_LIST,
    FabricState.READY: partition_pb2.FABRIC_STATE_READY,
    FabricState.FAILED: partition_pb2.FABRIC_STATE_FAILED,
}
_STATES_BACK = {message: state for state, message in _STATES.items()}
_SERVICE_VM_STATES = {
    state: service_vm_pb2.ServiceVmState.Value(f"SERVICE_VM_STATE_{state.name}") for state in ServiceVmState
}
_SERVICE_VM_STATES_BACK = {
    service_vm_pb2.SERVICE_VM_STATE_UNSPECIFIED: ServiceVmState.UNMANAGED,
    **{message: state for state, message in _SERVICE_VM_STATES.items()},
}
_HOOK_LOADS = {load: fabric_controller_pb2.HookLoad.Value(f"HOOK_LOAD_{load.name}") for load in HookLoad}
_HOOK_LOADS_BACK = {message: load for load, message in _HOOK_LOADS.items()}


def partition_to(partition: Partition, owner: str = "") -> partition_pb2.Partition:
    """The message of a partition."""
    active = partition_pb2.PARTITION_STATE_ACTIVE if partition.active else partition_pb2.PARTITION_STATE_INACTIVE
    return partition_pb2.Partition(
        id=partition.id,
        state=active,
        nvlinks=partition.nvlinks,
        owner=owner,
        gpus=[_gpu_to(gpu) for gpu in partition.gpus],
    )


@lru_cache(maxsize=1024)
def _gpu_to(gpu: Gpu) -> partition_pb2.Gpu:
    """The message of a GPU; kept, since a board has few and lists them over and over, and never changed."""
    return partition_pb2.Gpu(**gpu._asdict())


def partition_from(message: partition_pb2.Partition) -> Partition:
    """The partition of a message."""
    return Partition(
        id=message.id,
        active=message.state == partition_pb2.PARTITION_STATE_ACTIVE,
        gpus=tuple(
            Gpu(gpu.physical_id, gpu.nvlinks, gpu.nvlinks_max, gpu.line_rate_mbps, gpu.uuid, gpu.pci_bus_id)
            for gpu in message.gpus
        ),
    )


def state_to(state: FabricState) -> partition_pb2.FabricState.ValueType:
    """The message's word for a state."""
    return _STATES[state]


def state_from(message: partition_pb2.FabricState.ValueType) -> FabricState:
    """The state; one that a newer side may name and this one does not know counts as failed."""
    return _STATES_BACK.get(message, FabricState.FAILED)


def status_to(status: DaemonStatus) -> fabric_controller_pb2.GetStatusResponse:
    """The message of the daemon's status."""
    message = fabric_controller_pb2.GetStatusResponse(
        version=status.version,
        platform=status.platform,
        simulated=status.simulated,
        agent=fabric_controller_pb2.AgentInfo(
            address=status.agent.address,
            reachable=status.agent.reachable,
            version=status.agent.version,
            library=status.agent.library,
            digest=status.agent.digest,
            fm_version=status.agent.fm_version,
            driver_version=status.agent.driver_version,
            versions_differ=status.agent.versions_differ,
        ),
        fabric_state=state_to(status.fabric_state),
        fabric_message=status.fabric_message,
        service_vm=service_vm_to(status.service_vm),
        gate=fabric_controller_pb2.GateStatus(
            hook=_HOOK_LOADS[status.gate.hook], degraded=status.gate.degraded, alarms=status.gate.alarms
        ),
        new_work=fabric_controller_pb2.NewWork(**vars(status.new_work)),
    )
    message.start_time.FromNanoseconds(int(status.started * 1e9))
    return message


def status_from(message: fabric_controller_pb2.GetStatusResponse) -> DaemonStatus:
    """The daemon's status of a message."""
    agent = message.agent
    return DaemonStatus(
        version=message.version,
        started=message.start_time.ToNanoseconds() / 1e9,
        agent=AgentInfo(
            agent.address,
            agent.reachable,
            agent.version,
            agent.library,
            agent.digest,
            agent.fm_version,
            agent.driver_version,
            agent.versions_differ,
        ),
        fabric_state=state_from(message.fabric_state),
        fabric_message=message.fabric_message,
        platform=message.platform,
        simulated=message.simulated,
        service_vm=service_vm_from(message.service_vm),
        gate=GateStatus(
            _HOOK_LOADS_BACK.get(message.gate.hook, HookLoad.UNKNOWN),
            message.gate.degraded,
            tuple(message.gate.alarms),
        ),
        new_work=NewWork(message.new_work.refused, message.new_work.fix, message.new_work.passing),
    )


def service_vm_to(status: ServiceVmStatus) -> service_vm_pb2.ServiceVm:
    """The message of the Service VM."""
    return service_vm_pb2.ServiceVm(
        state=_SERVICE_VM_STATES[status.state],
        message=status.message,
        name=status.name,
        uuid=status.uuid,
        cid=status.cid,
        changed=status.changed,
        degraded=status.degraded,
        console_log=status.console_log,
        image=status.image,
        next_image=status.next_image,
        upgrade=status.upgrade,
        fabric_generation=status.fabric_generation,
    )


def service_vm_from(message: service_vm_pb2.ServiceVm) -> ServiceVmStatus:
    """The Service VM of a message; a state that a newer daemon may name and this one does not know is a failed one."""
    return ServiceVmStatus(
        state=_SERVICE_VM_STATES_BACK.get(message.state, ServiceVmState.FAILED),
        message=message.message,
        name=message.name,
        uuid=message.uuid,
        cid=message.cid,
        changed=message.changed,
        degraded=message.degraded,
        console_log=message.console_log,
        image=message.image,
        next_image=message.next_image,
        upgrade=message.upgrade,
        fabric_generation=message.fabric_generation,
    )


def partitions_to(listed: PartitionList, owners: Mapping[int, str]) -> list[partition_pb2.Partition]:
    """The messages of a list."""
    return [partition_to(partition, owners.get(partition.id, "")) for partition in listed.partitions]


def list_from(
    answer: fabric_controller_pb2.ListPartitionsResponse | fabric_manager_pb2.ListFabricPartitionsResponse,
) -> PartitionList:
    """The list of either service's answer."""
    partitions = tuple(partition_from(message) for message in answer.partitions)
    return PartitionList(partitions, answer.max_partitions, answer.simulated)
