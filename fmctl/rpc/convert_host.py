# SPDX-License-Identifier: Apache-2.0
"""What can be asked of a host beside its leases, to messages of the service of leases and back."""

from __future__ import annotations

from collections.abc import Sequence

from fmctl.core.answers import HostInfo
from fmctl.core.book import Entry
from fmctl.core.errors import BadRequest
from fmctl.core.explain import Outcome, Verdict
from fmctl.core.layout import LayoutRow, LayoutState
from fmctl.core.leased import Candidate, Capacity, Explanation, Fit, Reconciliation
from fmctl.core.packing import GpuCounts, Headroom
from fmctl.core.partition import Partition
from fmctl.core.plan import Activate, Deactivate, Plan, Step
from fmctl.rpc.fmctl.v1 import layout_pb2
from fmctl.rpc.fmctl.v1 import lease_pb2 as messages

API_VERSION = "v1"
MAX_REASON = 256


def reason(text: str) -> str:
    """Why somebody does something, if it can be written down; raises BadRequest."""
    if not text.isprintable() or not 0 < len(text.strip()) <= MAX_REASON:
        raise BadRequest(
            "the reason is refused",
            why=f"it must have 1 to {MAX_REASON} printable characters",
            fix="give another reason",
        )
    return text.strip()


def capacity_to(
    headroom: Headroom, cordoned: str, rules: Sequence[str], *, simulated: bool
) -> messages.GetCapacityResponse:
    """The message of what could be granted."""
    return messages.GetCapacityResponse(
        sizes=[messages.SizeCapacity(gpus=size, leases=leases) for size, leases in headroom.partitions.items()],
        gpus=messages.GpuCounts(**vars(headroom.gpus)),
        cordoned=cordoned,
        rules=rules,
        simulated=simulated,
    )


def capacity_from(message: messages.GetCapacityResponse) -> Capacity:
    """What could be granted, of its message."""
    gpus = message.gpus
    counts = GpuCounts(**{name: getattr(gpus, name) for name in GpuCounts.__dataclass_fields__})
    headroom = Headroom({size.gpus: size.leases for size in message.sizes}, counts)
    return Capacity(headroom, message.cordoned, tuple(message.rules), message.simulated)


def fit_to(partitions: Sequence[Partition] | None, rule: str, *, simulated: bool) -> messages.CanAllocateResponse:
    """The message of partitions that would do together, or of none, and which rule refuses them."""
    return messages.CanAllocateResponse(
        possible=partitions is not None,
        partition_ids=[partition.id for partition in partitions or ()],
        rule=rule,
        simulated=simulated,
    )


def fit_from(message: messages.CanAllocateResponse) -> Fit:
    """Partitions that would do together, of their message."""
    return Fit(tuple(message.partition_ids) if message.possible else None, message.rule, message.simulated)


def explanation_to(verdicts: Sequence[Verdict], *, simulated: bool) -> messages.ExplainResponse:
    """The message of the verdicts on all candidates."""
    return messages.ExplainResponse(
        candidates=[
            messages.Candidate(
                partition_id=verdict.partition.id,
                physical_ids=verdict.partition.gpu_ids,
                taken=verdict.outcome is Outcome.TAKEN,
                why=verdict.text,
            )
            for verdict in verdicts
        ],
        simulated=simulated,
    )


def explanation_from(message: messages.ExplainResponse) -> Explanation:
    """The candidates of a message."""
    return Explanation(
        tuple(Candidate(c.partition_id, tuple(c.physical_ids), c.taken, c.why) for c in message.candidates),
        message.simulated,
    )


def host_info_to(info: HostInfo, *, simulated: bool) -> messages.GetHostInfoResponse:
    """The message of what is told of the host."""
    return messages.GetHostInfoResponse(**{**vars(info), "api_version": API_VERSION, "simulated": simulated})


def host_info_from(message: messages.GetHostInfoResponse) -> HostInfo:
    """What is told of the host, of its message."""
    return HostInfo(**{name: getattr(message, name) for name in HostInfo.__dataclass_fields__})


def plan_to(plan: Plan, observed: str, *, simulated: bool) -> messages.PlanReconciliationResponse:
    """The message of a plan, in words."""
    return messages.PlanReconciliationResponse(
        steps=[text for step in plan.steps for text in _in_words(step)],
        drift=plan.drift,
        observed=observed,
        simulated=simulated,
    )


def plan_from(message: messages.PlanReconciliationResponse) -> Reconciliation:
    """The plan of a message."""
    return Reconciliation(tuple(message.steps), tuple(message.drift), message.observed, message.simulated)


def _in_words(step: Step) -> list[str]:
    if isinstance(step, Activate):
        return [f"activate partition {step.partition_id} for lease {step.lease_id}"]
    if isinstance(step, Deactivate):
        whose = f"of lease {step.lease_id}" if step.lease_id else "which no lease holds"
        return [f"deactivate partition {step.partition_id}, {whose}"]
    return [_entry_in_words(entry) for entry in step.entries]


def _entry_in_words(entry: Entry) -> str:
    return f"record of {entry.kind.value} {entry.subject}: {entry.what}" + (
        f" ({entry.detail})" if entry.detail else ""
    )


def layout_to(state: LayoutState) -> layout_pb2.Layout:
    """The message of a layout and how the host differs from it."""
    return layout_pb2.Layout(
        settings=state.settings,
        applied=state.applied,
        shown=state.shown,
        partitions=[
            layout_pb2.LayoutPartition(
                partition_id=row.partition_id, physical_ids=row.gpus, active=row.active, owner=row.owner
            )
            for row in state.rows
        ],
        differences=state.differences,
    )


def layout_from(message: layout_pb2.Layout) -> LayoutState:
    """The layout of a message."""
    rows = (LayoutRow(p.partition_id, tuple(p.physical_ids), p.active, p.owner) for p in message.partitions)
    return LayoutState(message.settings, message.applied, message.shown, tuple(rows), tuple(message.differences))
