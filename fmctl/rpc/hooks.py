# SPDX-License-Identifier: Apache-2.0
"""The service of libvirt's hook: each call one call of `control.hook`. `rpc.hook` is its client."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from fmctl.control.hook import Hook
from fmctl.rpc.fmctl.v1 import hook_pb2 as messages
from fmctl.rpc.fmctl.v1.hook_pb2_grpc import HookServiceServicer
from fmctl.rpc.hook import decision_to
from fmctl.rpc.server import time_left


class HookServicer(HookServiceServicer):
    """fmctl.v1.HookService."""

    def __init__(self, hook: Hook, simulated: Callable[[], bool]) -> None:
        self._hook = hook
        self._simulated = simulated

    def CheckDomain(
        self, request: messages.CheckDomainRequest, context: grpc.ServicerContext
    ) -> messages.CheckDomainResponse:
        """Whether a domain may start."""
        decision = self._hook.check(request.operation, request.xml, request.caller_pid)
        return messages.CheckDomainResponse(decision=decision_to(decision), simulated=self._simulated())

    def ReadyDomain(
        self, request: messages.ReadyDomainRequest, context: grpc.ServicerContext
    ) -> messages.ReadyDomainResponse:
        """Get a domain's GPUs ready for it."""
        decision = self._hook.ready(request.xml, timeout=time_left(context))
        return messages.ReadyDomainResponse(decision=decision_to(decision), simulated=self._simulated())
