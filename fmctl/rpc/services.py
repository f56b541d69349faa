# SPDX-License-Identifier: Apache-2.0
"""The daemon's services, which one `rpc.server` serves together."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from fmctl.control.controller import FabricController
from fmctl.control.gpumap import GpuMaps
from fmctl.control.hook import Hook
from fmctl.control.operator import Operator
from fmctl.control.parking import Parking
from fmctl.core.loglines import KeptLog
from fmctl.rpc.controller import FabricControllerServicer
from fmctl.rpc.fmctl.v1.fabric_controller_pb2_grpc import add_FabricControllerServiceServicer_to_server
from fmctl.rpc.fmctl.v1.gpu_map_pb2_grpc import add_GpuMapServiceServicer_to_server
from fmctl.rpc.fmctl.v1.gpu_pb2_grpc import add_GpuServiceServicer_to_server
from fmctl.rpc.fmctl.v1.hook_pb2_grpc import add_HookServiceServicer_to_server
from fmctl.rpc.fmctl.v1.layout_pb2_grpc import add_LayoutServiceServicer_to_server
from fmctl.rpc.fmctl.v1.lease_pb2_grpc import add_LeaseServiceServicer_to_server
from fmctl.rpc.fmctl.v1.service_vm_pb2_grpc import add_ServiceVmServiceServicer_to_server
from fmctl.rpc.gpumap import GpuMapServicer
from fmctl.rpc.hooks import HookServicer
from fmctl.rpc.layout import LayoutServicer
from fmctl.rpc.leases import LeaseServicer
from fmctl.rpc.marks import GpuServicer
from fmctl.rpc.server import Add
from fmctl.rpc.servicevm import ServiceVmServicer
from fmctl.rpc.watches import Watches


def services(
    controller: FabricController,
    operator: Operator | None,
    log: Callable[[int], KeptLog],
    watches: Watches | None = None,
    *,
    maps: GpuMaps | None = None,
    hook: Hook | None = None,
    parking: Parking | None = None,
) -> Add:
    """Registers them; without a Service VM of ours its changes are refused. `log` tells its newest lines.

    `watches` holds the streams that `LeaseService` may have, and `maps` is the GPU map of a host that keeps one.
    Without a `hook` libvirt's gets no answer, and without `parking` no GPU is made ready.
    """
    streams = watches or Watches()

    def add(server: grpc.Server) -> Callable[[], None]:
        add_FabricControllerServiceServicer_to_server(FabricControllerServicer(controller), server)
        servicer = ServiceVmServicer(operator, log, lambda: controller.simulated)
        add_ServiceVmServiceServicer_to_server(servicer, server)
        add_LeaseServiceServicer_to_server(LeaseServicer(controller, streams, parking), server)
        add_GpuServiceServicer_to_server(GpuServicer(controller), server)
        add_LayoutServiceServicer_to_server(LayoutServicer(controller), server)
        if maps is not None:
            add_GpuMapServiceServicer_to_server(GpuMapServicer(maps, lambda: controller.simulated), server)
        if hook is not None:
            add_HookServiceServicer_to_server(HookServicer(hook, lambda: controller.simulated), server)
        return streams.close

    return add
