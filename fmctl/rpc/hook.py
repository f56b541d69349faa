# SPDX-License-Identifier: Apache-2.0
"""The daemon as libvirt's hook asks it, for `cli.hook`; `rpc.hook_service` is the other side."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fmctl.core.address import Address
from fmctl.core.asking import Decision, Verdict
from fmctl.rpc.dial import Client
from fmctl.rpc.fmctl.v1 import hook_pb2 as messages
from fmctl.rpc.fmctl.v1.hook_pb2_grpc import HookServiceStub

_VERDICTS = {verdict: messages.HookVerdict.Value(f"HOOK_VERDICT_{verdict.name}") for verdict in Verdict}
_VERDICTS_BACK = {message: verdict for verdict, message in _VERDICTS.items()}


@dataclass(frozen=True)
class HookAnswer:
    """What the daemon decided, and whether it is one of a simulated host."""

    decision: Decision
    simulated: bool


class HookClient(Client):
    """The daemon, as the hook sees it."""

    def __init__(self, address: Address) -> None:
        super().__init__(address, "fmctld")
        self._stub = HookServiceStub(self.channel)

    def check(self, operation: str, xml: str, *, timeout: float) -> HookAnswer:
        """Whether the domain may start, or note what happened to it."""
        request = messages.CheckDomainRequest(operation=operation, xml=xml, caller_pid=os.getppid())
        return _answer(self.call(self._stub.CheckDomain, request, timeout))

    def ready(self, xml: str, *, timeout: float) -> HookAnswer:
        """Get the domain's GPUs ready, and decide again."""
        return _answer(self.call(self._stub.ReadyDomain, messages.ReadyDomainRequest(xml=xml), timeout, changes=True))


def decision_to(decision: Decision) -> messages.HookDecision:
    """The message of a decision."""
    return messages.HookDecision(
        verdict=_VERDICTS[decision.verdict], why=decision.why, fix=decision.fix, warning=decision.warning
    )


def _answer(message: messages.CheckDomainResponse | messages.ReadyDomainResponse) -> HookAnswer:
    """The answer of a message; a verdict that a newer daemon may name and this hook does not know refuses."""
    found = message.decision
    verdict = _VERDICTS_BACK.get(found.verdict, Verdict.REFUSE)
    return HookAnswer(Decision(verdict, found.why, found.fix, found.warning), message.simulated)
