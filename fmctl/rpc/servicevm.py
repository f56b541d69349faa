# SPDX-License-Identifier: Apache-2.0
"""The Service VM's service: each call one call of `control.operator`."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from fmctl.control.operator import Operator
from fmctl.core.errors import BadRequest
from fmctl.core.loglines import KeptLog
from fmctl.rpc import convert, logs
from fmctl.rpc.fmctl.v1 import service_vm_pb2 as messages
from fmctl.rpc.fmctl.v1.service_vm_pb2_grpc import ServiceVmServiceServicer
from fmctl.rpc.server import time_left


class ServiceVmServicer(ServiceVmServiceServicer):
    """fmctl.v1.ServiceVmService."""

    def __init__(self, operator: Operator | None, log: Callable[[int], KeptLog], simulated: Callable[[], bool]) -> None:
        """Without a Service VM of ours every change is refused. `log` tells so many of its newest lines, all for 0."""
        self._operator = operator
        self._log = log
        self._simulated = simulated

    def StartServiceVm(
        self, request: messages.StartServiceVmRequest, context: grpc.ServicerContext
    ) -> messages.StartServiceVmResponse:
        """Start it unless it runs."""
        status = self._managed().start(interrupt_tenants=request.interrupt_tenants, timeout=time_left(context))
        return messages.StartServiceVmResponse(service_vm=convert.service_vm_to(status), simulated=self._simulated())

    def StopServiceVm(
        self, request: messages.StopServiceVmRequest, context: grpc.ServicerContext
    ) -> messages.StopServiceVmResponse:
        """Shut it down."""
        status = self._managed().stop(interrupt_tenants=request.interrupt_tenants, timeout=time_left(context))
        return messages.StopServiceVmResponse(service_vm=convert.service_vm_to(status), simulated=self._simulated())

    def DestroyServiceVm(
        self, request: messages.DestroyServiceVmRequest, context: grpc.ServicerContext
    ) -> messages.DestroyServiceVmResponse:
        """End it at once."""
        status = self._managed().destroy(interrupt_tenants=request.interrupt_tenants, timeout=time_left(context))
        return messages.DestroyServiceVmResponse(service_vm=convert.service_vm_to(status), simulated=self._simulated())

    def UpgradeServiceVm(
        self, request: messages.UpgradeServiceVmRequest, context: grpc.ServicerContext
    ) -> messages.UpgradeServiceVmResponse:
        """Take another image."""
        status = self._managed().upgrade(
            request.image, interrupt_tenants=request.interrupt_tenants, timeout=time_left(context)
        )
        return messages.UpgradeServiceVmResponse(service_vm=convert.service_vm_to(status), simulated=self._simulated())

    def ListServiceVmLog(
        self, request: messages.ListServiceVmLogRequest, context: grpc.ServicerContext
    ) -> messages.ListServiceVmLogResponse:
        """The newest lines."""
        return logs.kept_to(self._log(request.lines), simulated=self._simulated())

    def _managed(self) -> Operator:
        if self._operator is None:
            raise BadRequest(
                "the Service VM is someone else's",
                why="service_vm.managed is false",
                fix="ask who runs it, or let fmctl manage it",
            )
        return self._operator
