# SPDX-License-Identifier: Apache-2.0
"""The daemon's services, which one `rpc.server` serves together."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from fmctl.control.fabric import FabricController
from fmctl.control.operator import Operator
from fmctl.core.loglines import KeptLog
from fmctl.rpc.controller import FabricControllerServicer
from fmctl.rpc.fmctl.v1.fabric_controller_pb2_grpc import add_FabricControllerServiceServicer_to_server
from fmctl.rpc.fmctl.v1.service_vm_pb2_grpc import add_ServiceVmServiceServicer_to_server
from fmctl.rpc.servicevm import ServiceVmServicer


def services(
    controller: FabricController, operator: Operator | None, log: Callable[[int], KeptLog]
) -> Callable[[grpc.Server], None]:
    """Registers them; without a Service VM of ours its changes are refused. `log` tells its newest lines."""

    def add(server: grpc.Server) -> None:
        add_FabricControllerServiceServicer_to_server(FabricControllerServicer(controller), server)
        servicer = ServiceVmServicer(operator, log, lambda: controller.simulated)
        add_ServiceVmServiceServicer_to_server(servicer, server)

    return add
