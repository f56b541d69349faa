# SPDX-License-Identifier: Apache-2.0
"""What is planned for every state that a lease, Fabric Manager and a VM can be in together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fmctl.core import plan
from fmctl.core.book import Book
from fmctl.core.lease import Ending, Lease, LeaseState
from fmctl.core.partition import Gpu, Partition, PartitionList
from fmctl.core.plan import INTERRUPTED, Activate, Deactivate, Observed, Plan, Vm, Write
from fmctl.core.rules import Rules, Unowned

TABLE = PartitionList(
    (
        Partition(0, tuple(map(Gpu, (1, 2, 3, 4)))),
        Partition(3, tuple(map(Gpu, (1, 3)))),
        Partition(4, tuple(map(Gpu, (2, 4)))),
        Partition(7, (Gpu(1),)),
        Partition(8, (Gpu(2),)),
    )
)
VM_UUID = "11111111-2222-3333-4444-555555555555"
VM = Vm(VM_UUID, "tenant", 5, frozenset({1, 3}))
LEASE = Lease("a", "owner", "request", "{}", LeaseState.ACTIVE, (3,), (1, 3), generation=1)
FREE: frozenset[int] = frozenset()


def listed(*active: int) -> PartitionList:
    return replace(TABLE, partitions=tuple(p.with_active(active=p.id in active) for p in TABLE.partitions))


def seen(*active: int, **changes: Any) -> Observed:
    """A look that shows these partitions active, no VM, and nobody who holds a GPU, but for `changes`."""
    return replace(Observed(1000.0, listed(*active), (), FREE, generation=1), **changes)


def planned(lease: Lease | None, look: Observed, rules: Rules = Rules()) -> Plan:  # noqa: B008
    return plan.plan(Book(leases={lease.id: lease} if lease else {}), look, rules)


def written(found: Plan) -> Lease:
    """The lease that the one step writes."""
    (step,) = found.steps
    assert isinstance(step, Write)
    (entry,) = step.entries
    assert entry.lease is not None
    return entry.lease


def test_a_lease_whose_partitions_are_active_and_no_others_are_is_settled() -> None:
    assert planned(LEASE, seen(3)) == Plan()


def test_nothing_is_done_while_fabric_manager_does_not_answer() -> None:
    for state in LeaseState:
        if not state.over and state is not LeaseState.PENDING:
            lease = replace(LEASE, state=state, unattended=True)
            assert planned(lease, replace(seen(), listed=None, vms=None, open=None)) == Plan()


def test_nothing_is_concluded_of_vms_while_libvirt_does_not_answer() -> None:
    lease = replace(LEASE, expires=1.0, vm_uuid=VM_UUID)
    assert planned(lease, seen(3, vms=None)) == Plan()
    assert planned(replace(lease, vm_seen=True), seen(3, vms=None)) == Plan()


def test_what_a_caller_waits_for_no_more_is_undone() -> None:
    for state in (LeaseState.PENDING, LeaseState.ACTIVATING):
        undone = written(planned(replace(LEASE, state=state), seen(3)))
        assert (undone.state, undone.ending) == (LeaseState.RELEASING, Ending.UNDONE)


def test_an_undone_lease_leaves_no_trace_once_its_partition_is_inactive() -> None:
    undone = replace(LEASE, state=LeaseState.RELEASING, ending=Ending.UNDONE)
    undoing = written(planned(undone, seen(3)))
    assert undoing == replace(undone, ending=Ending.UNDOING)
    assert planned(undoing, seen(3)).steps == (Deactivate("a", 3),)
    for lease in (undone, undoing):
        (step,) = planned(lease, seen()).steps
        assert isinstance(step, Write)
        assert (step.entries[0].what, step.entries[0].forget) == ("undone", True)


def test_a_call_that_was_given_up_is_waited_for_before_its_gpus_are_free() -> None:
    lease = replace(LEASE, state=LeaseState.RELEASING, ending=Ending.UNDOING, unsettled_until=1001.0)
    waiting = planned(lease, seen())
    assert waiting.steps == ()
    assert "may take effect" in waiting.drift[0]
    assert planned(lease, seen(3)).steps == (Deactivate("a", 3),)
    assert planned(lease, seen(now=1001.0)).steps != ()


def test_a_call_that_was_given_up_is_waited_for_though_no_lease_tells_of_it() -> None:
    lease = replace(LEASE, state=LeaseState.RELEASING)
    assert planned(lease, seen(unsettled={3: 1001.0})).steps == ()
    assert planned(lease, seen(unsettled={4: 1001.0})).steps != ()
    assert planned(lease, seen(now=1001.0, unsettled={3: 1001.0})).steps != ()


def test_a_lease_that_is_active_remembers_a_call_that_was_given_up() -> None:
    activating = replace(LEASE, state=LeaseState.ACTIVATING, unattended=True)
    interrupted = replace(LEASE, reason=INTERRUPTED)
    for lease in (activating, interrupted):
        assert written(planned(lease, seen(3, unsettled={3: 1001.0}))).unsettled_until == 1001.0


def test_what_a_dead_daemon_may_have_asked_about_is_what_was_begun_and_not_ended() -> None:
    def unfinished(**changes: Any) -> tuple[int, ...]:
        return plan.unfinished(Book(leases={"a": replace(LEASE, **changes)}))

    for state in (LeaseState.ACTIVATING, LeaseState.RELEASING):
        assert unfinished(state=state) == (3,)
    assert unfinished(reason=INTERRUPTED) == (3,)
    assert unfinished() == unfinished(state=LeaseState.PENDING) == ()


def test_what_was_active_before_anyone_asked_for_it_is_not_taken() -> None:
    pending = replace(LEASE, state=LeaseState.PENDING, unattended=True)
    failed = written(planned(pending, seen(3)))
    assert (failed.state, failed.ended) == (LeaseState.FAILED, 1000.0)
    assert "somebody whom fmctl does not know" in failed.reason


def test_a_lease_that_nobody_waits_for_is_brought_to_active() -> None:
    pending = replace(LEASE, state=LeaseState.PENDING, unattended=True)
    assert written(planned(pending, seen())).state is LeaseState.ACTIVATING
    activating = replace(pending, state=LeaseState.ACTIVATING)
    assert planned(activating, seen()).steps == (Activate("a", 3),)
    active = written(planned(activating, seen(3, generation=4)))
    assert (active.state, active.generation) == (LeaseState.ACTIVE, 4)


def test_every_partition_of_a_lease_must_be_active() -> None:
    lease = replace(LEASE, state=LeaseState.ACTIVATING, unattended=True, partitions=(7, 8), gpus=(1, 2))
    assert planned(lease, seen(7)).steps == (Activate("a", 8),)
    assert written(planned(lease, seen(7, 8))).state is LeaseState.ACTIVE


def test_an_activation_that_another_partition_blocks_is_told_and_waits() -> None:
    lease = replace(LEASE, state=LeaseState.ACTIVATING, unattended=True)
    found = planned(lease, seen(7))
    assert found.steps == ()
    assert "partition 3 of lease a is blocked by the active 7" in found.drift


def test_what_fabric_manager_lost_is_activated_again_and_the_lease_says_so() -> None:
    interrupted = written(planned(LEASE, seen(generation=2)))
    assert (interrupted.state, interrupted.reason) == (LeaseState.ACTIVE, INTERRUPTED)
    assert planned(interrupted, seen(generation=2)).steps == (Activate("a", 3),)
    again = written(planned(interrupted, seen(3, generation=2)))
    assert (again.reason, again.generation) == ("", 2)


def test_another_partition_table_is_told_once_and_nothing_is_guessed() -> None:
    other = PartitionList((Partition(3, (Gpu(1), Gpu(2))), Partition(9, (Gpu(3),))))
    affected = written(planned(LEASE, seen(listed=other)))
    assert "no partitions 3 with the GPUs 1,3 any more" in affected.reason
    settled = planned(affected, seen(listed=other))
    assert settled.steps == ()
    assert affected.reason in settled.drift[0]
    assert written(planned(affected, seen(3))).reason == ""


def test_a_release_does_not_deactivate_what_has_other_gpus_now() -> None:
    other = PartitionList((Partition(3, (Gpu(1), Gpu(2)), active=True),))
    lease = replace(LEASE, state=LeaseState.RELEASING)
    assert planned(lease, seen(listed=other)).steps == ()
    inactive = PartitionList((Partition(3, (Gpu(1), Gpu(2))),))
    assert written(planned(lease, seen(listed=inactive))).state is LeaseState.RELEASED


def test_a_release_waits_while_somebody_holds_a_gpu_or_nobody_can_tell() -> None:
    lease = replace(LEASE, state=LeaseState.RELEASING)
    held = planned(lease, seen(3, open=frozenset({3})))
    assert (held.steps, held.drift) == ((), ("lease a: a VM holds the GPUs 3",))
    unknown = planned(lease, seen(3, open=None))
    assert (unknown.steps, len(unknown.drift)) == ((), 1)
    assert planned(lease, seen(open=frozenset({1}))).steps == ()
    assert planned(lease, seen(3, open=frozenset({2}))).steps == (Deactivate("a", 3),)


def test_a_released_lease_is_over_once_its_partition_is_inactive() -> None:
    over = written(planned(replace(LEASE, state=LeaseState.RELEASING), seen()))
    assert (over.state, over.ended) == (LeaseState.RELEASED, 1000.0)
    failed = replace(LEASE, state=LeaseState.RELEASING, ending=Ending.FAILED, reason="why")
    over = written(planned(failed, seen()))
    assert (over.state, over.reason) == (LeaseState.FAILED, "why")


def test_its_vm_is_followed_by_uuid_or_by_its_gpus() -> None:
    by_gpus = written(planned(LEASE, seen(3, vms=(VM,), open=VM.gpus)))
    by_uuid = written(planned(replace(LEASE, vm_uuid=VM_UUID), seen(3, vms=(VM,), open=VM.gpus)))
    for lease in (by_gpus, by_uuid):
        assert (lease.vm_seen, lease.vm_instance, lease.vm_generation) == (True, 5, 1)
        assert planned(lease, seen(3, vms=(VM,), open=VM.gpus)) == Plan()
    other = replace(VM, uuid="other")
    assert planned(replace(LEASE, vm_uuid=VM_UUID), seen(3, vms=(other,), open=VM.gpus)) == Plan()
    wider = replace(VM, gpus=frozenset({1, 2, 3}))
    assert planned(LEASE, seen(3, vms=(wider,), open=wider.gpus)) == Plan()


def test_only_another_start_of_its_vm_ends_an_interruption() -> None:
    lease = replace(LEASE, vm_seen=True, vm_instance=5, vm_generation=1, generation=2)
    assert lease.interrupted(2)
    assert planned(lease, seen(3, vms=(VM,), open=VM.gpus, generation=2)) == Plan()
    restarted = written(planned(lease, seen(3, vms=(replace(VM, instance=6),), open=VM.gpus, generation=2)))
    assert not restarted.interrupted(2)


def test_a_reboot_that_was_seen_ends_an_interruption_once_and_one_that_was_not_is_not_guessed() -> None:
    lease = replace(LEASE, vm_seen=True, vm_instance=5, vm_generation=1, generation=2, vm_rebooted=100.0)
    again = replace(VM, rebooted=200.0)
    step = planned(lease, seen(3, vms=(again,), open=VM.gpus, generation=2))
    rebooted = written(step)
    assert not rebooted.interrupted(2)
    assert isinstance(step.steps[0], Write)
    assert step.steps[0].entries[0].what == "its VM rebooted"
    for known in (VM, again):
        assert planned(rebooted, seen(3, vms=(known,), open=VM.gpus, generation=2)) == Plan()
    assert rebooted.interrupted(3)
    for known in (VM, replace(VM, rebooted=100.0)):
        assert planned(lease, seen(3, vms=(known,), open=VM.gpus, generation=2)) == Plan()


@pytest.mark.parametrize(
    "look",
    [seen(vms=(VM,), open=VM.gpus, generation=2), replace(seen(generation=2), listed=None, vms=(VM,), open=VM.gpus)],
    ids=["inactive", "not listed"],
)
def test_a_vm_that_is_there_before_its_partition_is_active_started_before_the_fabric_did(look: Observed) -> None:
    interrupted = replace(LEASE, reason=INTERRUPTED)
    steps = [step for step in planned(interrupted, look).steps if isinstance(step, Write)]
    (lease,) = [entry.lease for step in steps for entry in step.entries]
    assert lease and lease.vm_generation == 1
    assert lease.interrupted(2)


def test_a_vm_is_looked_for_before_its_partition_counts_as_active_in_another_fabric() -> None:
    look = seen(3, vms=(VM,), open=VM.gpus, generation=2)
    followed, again = planned(LEASE, look).steps
    assert isinstance(followed, Write) and isinstance(again, Write)
    lease = followed.entries[0].lease
    assert lease and (lease.vm_generation, lease.generation) == (1, 1)
    lease = written(planned(lease, look))
    assert (lease.vm_generation, lease.generation) == (1, 2)
    assert planned(lease, look) == Plan()
    assert planned(LEASE, replace(look, vms=None)) == Plan()
    interrupted = replace(LEASE, reason=INTERRUPTED)
    assert written(planned(interrupted, replace(look, vms=None))).generation == 1


def test_a_vm_is_followed_and_a_lease_expires_while_fabric_manager_does_not_answer() -> None:
    away = replace(seen(), listed=None, vms=(VM,), open=VM.gpus)
    assert written(planned(LEASE, away)).vm_seen
    assert written(planned(replace(LEASE, expires=1.0), replace(seen(), listed=None))).state is LeaseState.RELEASING


@pytest.mark.parametrize("gpus", [(1,), (1, 3)])
def test_a_single_gpu_has_no_nvlink_to_interrupt(gpus: tuple[int, ...]) -> None:
    lease = replace(LEASE, gpus=gpus, vm_seen=True, vm_instance=5, vm_generation=1)
    assert lease.interrupted(2) == (len(gpus) > 1)


def test_a_lease_whose_vm_is_gone_is_kept_and_reported() -> None:
    lease = replace(LEASE, vm_seen=True, vm_instance=5)
    assert planned(lease, seen(3, open=frozenset({1}))) == Plan()
    gone = written(planned(lease, seen(3)))
    assert (gone.state, gone.vm_gone) == (LeaseState.ACTIVE, 1000.0)
    later = planned(gone, seen(3, now=1e9))
    assert (later.steps, later.drift) == ((), ("lease a of owner is kept, and its VM is gone",))
    back = written(planned(gone, seen(3, vms=(VM,), open=VM.gpus)))
    assert back.vm_gone is None


def test_a_lease_whose_vm_is_gone_is_released_only_after_the_time_that_is_set() -> None:
    gone = replace(LEASE, vm_seen=True, vm_gone=900.0)
    rules = Rules(release_gone_after=200.0)
    assert planned(gone, seen(3), rules).steps == ()
    assert written(planned(gone, seen(3, now=1100.0), rules)).state is LeaseState.RELEASING


def test_only_a_lease_under_which_no_vm_ever_started_expires() -> None:
    lease = replace(LEASE, expires=1000.0)
    assert written(planned(lease, seen(3))).state is LeaseState.RELEASING
    assert planned(lease, seen(3, now=999.9)) == Plan()
    assert planned(lease, seen(3, open=None)) == Plan()
    assert planned(lease, seen(3, open=frozenset({3}))) == Plan()
    used = replace(lease, vm_seen=True, vm_gone=1.0)
    assert planned(used, seen(3)).steps == ()


def test_an_active_partition_that_no_lease_holds_is_reported_and_left() -> None:
    found = planned(None, seen(3, vms=(VM,), open=VM.gpus))
    assert found.steps == ()
    assert found.drift == ("partition 3 is active, and no lease holds it, and tenant has its GPUs",)


def test_it_is_deactivated_where_a_setting_says_so_and_nobody_has_its_gpus() -> None:
    rules = Rules(unowned=Unowned.DEACTIVATE)
    assert planned(None, seen(3), rules).steps == (Deactivate("", 3),)
    for look in (
        seen(3, open=frozenset({1})),
        seen(3, open=None),
        seen(3, vms=None),
        seen(3, vms=(VM,)),
    ):
        assert planned(None, look, rules).steps == ()


def test_what_is_freed_goes_before_what_is_taken() -> None:
    ends = replace(LEASE, id="z", state=LeaseState.RELEASING)
    begins = replace(
        LEASE, id="a", state=LeaseState.ACTIVATING, unattended=True, partitions=(4,), gpus=(2, 4), created=-1.0
    )
    found = plan.plan(Book(leases={"a": begins, "z": ends}), seen(3), Rules())
    assert found.steps == (Deactivate("z", 3), Activate("a", 4))


def test_a_restarted_fabric_manager_is_told_what_may_be_active() -> None:
    def book(state: LeaseState) -> Book:
        return Book(leases={"a": replace(LEASE, state=state)})

    assert plan.to_set(Book(), None) == ()
    assert plan.to_set(book(LeaseState.ACTIVE), listed()) == (3,)
    for state in (LeaseState.RELEASING, LeaseState.ACTIVATING):
        assert plan.to_set(book(state), listed(3)) == (3,)
        assert plan.to_set(book(state), listed()) == ()
        assert plan.to_set(book(state), None) == (3,)
    assert plan.to_set(book(LeaseState.PENDING), None) == ()
