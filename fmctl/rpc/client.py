# SPDX-License-Identifier: Apache-2.0
"""The daemon's API as the CLI uses it. `rpc.lease_client` is for leases, `rpc.dial` common to all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fmctl.core.address import Address
from fmctl.core.answers import Changed, DaemonStatus, Listed, ServiceVmStatus
from fmctl.core.loglines import KeptLog
from fmctl.rpc import convert
from fmctl.rpc.dial import Client
from fmctl.rpc.fmctl.v1 import fabric_controller_pb2 as controller
from fmctl.rpc.fmctl.v1 import fabric_controller_pb2_grpc as controller_grpc
from fmctl.rpc.fmctl.v1 import service_vm_pb2 as service_vm


class ControllerClient(Client):
    """The daemon's API, as the CLI uses it."""

    def __init__(self, address: Address) -> None:
        super().__init__(address, "fmctld")
        self._stub = controller_grpc.FabricControllerServiceStub(self.channel)

    def list_partitions(self, *, timeout: float) -> Listed:
        """Every partition, with its owner."""
        answer = self.call(self._stub.ListPartitions, controller.ListPartitionsRequest(), timeout)
        owners = {message.id: message.owner for message in answer.partitions if message.owner}
        return Listed(convert.list_from(answer), owners)

    def activate(
        self, owner: str, *, partition_id: int | None = None, gpu_ids: Sequence[int] = (), timeout: float
    ) -> Changed:
        """Activate a partition, named by its id or by exactly its GPUs."""
        request = controller.ActivatePartitionRequest(owner=owner)
        if partition_id is None:
            request.gpus.physical_ids.extend(gpu_ids)
        else:
            request.partition_id = partition_id
        return _changed(self.call(self._stub.ActivatePartition, request, timeout, changes=True))

    def deactivate(self, owner: str, partition_id: int, *, timeout: float, force: bool = False) -> Changed:
        """Deactivate a partition, with `force` also another owner's."""
        request = controller.DeactivatePartitionRequest(owner=owner, partition_id=partition_id, force=force)
        return _changed(self.call(self._stub.DeactivatePartition, request, timeout, changes=True))

    def start_service_vm(self, *, interrupt_tenants: bool, timeout: float) -> ServiceVmStatus:
        """Start the Service VM unless it runs."""
        request = service_vm.StartServiceVmRequest(interrupt_tenants=interrupt_tenants)
        return self._service_vm("StartServiceVm", request, timeout)

    def stop_service_vm(self, *, interrupt_tenants: bool, timeout: float) -> ServiceVmStatus:
        """Shut the Service VM down, and let it stay down."""
        request = service_vm.StopServiceVmRequest(interrupt_tenants=interrupt_tenants)
        return self._service_vm("StopServiceVm", request, timeout)

    def destroy_service_vm(self, *, interrupt_tenants: bool, timeout: float) -> ServiceVmStatus:
        """End the Service VM at once, and let it stay down."""
        request = service_vm.DestroyServiceVmRequest(interrupt_tenants=interrupt_tenants)
        return self._service_vm("DestroyServiceVm", request, timeout)

    def upgrade_service_vm(self, image: str, *, interrupt_tenants: bool, timeout: float) -> ServiceVmStatus:
        """Let the Service VM take another image."""
        request = service_vm.UpgradeServiceVmRequest(image=image, interrupt_tenants=interrupt_tenants)
        return self._service_vm("UpgradeServiceVm", request, timeout)

    def service_vm_log(self, lines: int, *, timeout: float) -> KeptLog:
        """So many of the newest lines of the Service VM's logs; all that are kept for 0."""
        from fmctl.rpc import logs
        from fmctl.rpc.fmctl.v1.service_vm_pb2_grpc import ServiceVmServiceStub

        request = service_vm.ListServiceVmLogRequest(lines=lines)
        return logs.kept_from(self.call(ServiceVmServiceStub(self.channel).ListServiceVmLog, request, timeout))

    def _service_vm(self, method: str, request: Any, timeout: float) -> ServiceVmStatus:
        from fmctl.rpc.fmctl.v1.service_vm_pb2_grpc import ServiceVmServiceStub

        answer = self.call(getattr(ServiceVmServiceStub(self.channel), method), request, timeout, changes=True)
        return convert.service_vm_from(answer.service_vm)

    def status(self, *, timeout: float) -> DaemonStatus:
        """The daemon's state, and what it sees behind it."""
        return convert.status_from(self.call(self._stub.GetStatus, controller.GetStatusRequest(), timeout))


def _changed(answer: controller.ActivatePartitionResponse | controller.DeactivatePartitionResponse) -> Changed:
    partition = convert.partition_from(answer.partition)
    return Changed(partition, answer.partition.owner, answer.already, answer.simulated)
