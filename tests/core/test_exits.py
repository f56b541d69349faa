# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from fmctl.core.domain import Domain, DomainState, End
from fmctl.core.exits import Exits, VmExit
from fmctl.core.pci import Bdf

A, B = Bdf.parse("0000:17:00.0"), Bdf.parse("0000:3d:00.0")
CLEANED = Exits().cleaned(A).cleaned(B)


def vm(*hostdevs: Bdf, uuid: str = "u", instance: int = 1) -> Domain:
    return Domain(uuid, f"vm-{uuid}", DomainState.RUNNING, hostdevs, instance=instance)


def shut_down(uuid: str = "u", instance: int = 1) -> End:
    return End(uuid, instance, shut_down=True)


def killed(uuid: str = "u", instance: int = 1) -> End:
    return End(uuid, instance, shut_down=False)


def clean(exits: Exits) -> set[Bdf]:
    return {gpu for gpu in (A, B) if exits.of(gpu) is VmExit.CLEAN}


def test_what_was_not_seen_to_be_cleaned_counts_as_unclean() -> None:
    assert clean(Exits()) == set()
    assert clean(Exits().seen((vm(A),), {A}).ended(shut_down())) == set()
    assert clean(Exits().cleaned(A)) == {A}


def test_a_guest_s_shutdown_is_clean_and_any_other_end_is_not() -> None:
    running = CLEANED.seen((vm(A),), {A})
    assert clean(running) == {B}
    assert clean(running.ended(shut_down())) == {A, B}
    assert clean(running.ended(killed())) == {B}
    assert clean(running.ended(killed()).cleaned(A)) == {A, B}


@pytest.mark.parametrize("order", [(killed(), shut_down(instance=2)), (shut_down(), killed(instance=2))])
def test_every_vm_since_the_cleaning_counts(order: tuple[End, End]) -> None:
    first = CLEANED.seen((vm(A),), {A}).ended(order[0])
    second = first.seen((vm(A, instance=2),), {A}).ended(order[1])
    assert clean(second) == {B}
    assert clean(first.seen((vm(A, B, uuid="v"),), {A, B}).ended(shut_down("v"))) == {A, B} - (
        set() if order[0].shut_down else {A}
    )


def test_a_vm_that_is_gone_without_an_end_being_heard_counts_as_unclean() -> None:
    assert clean(CLEANED.seen((vm(A),), {A}).seen((), set())) == {B}


def test_of_a_vm_that_was_never_seen_a_kill_counts_for_every_gpu_and_a_shutdown_for_none() -> None:
    assert clean(CLEANED.ended(killed())) == set()
    assert clean(CLEANED.ended(shut_down())) == {A, B}


def test_where_libvirt_does_not_say_which_life_ended_the_vm_is_known_by_its_uuid() -> None:
    running = CLEANED.seen((vm(A), vm(B, uuid="v", instance=2)), {A, B})
    assert clean(running.ended(killed(instance=0)).ended(shut_down("v", 2))) == {B}


def test_what_a_vm_was_given_while_it_ran_counts_and_so_does_what_was_taken_from_it() -> None:
    running = CLEANED.seen((vm(A),), {A}).seen((vm(B),), {B})
    assert clean(running.ended(killed())) == set()
    assert clean(running.ended(shut_down())) == {A, B}


def test_a_gpu_that_is_held_by_no_vm_is_unclean_until_it_is_cleaned() -> None:
    strange = CLEANED.seen((vm(B),), {A, B})
    assert clean(strange.seen((), set()).ended(shut_down())) == {B}
    assert clean(CLEANED.seen((), None)) == set()


def test_a_vm_that_ends_while_a_look_is_taken_confuses_nothing() -> None:
    ended = CLEANED.seen((vm(A),), {A}).ended(shut_down())
    assert clean(ended.seen((vm(A),), {A})) == {A, B}, "it was listed before its end was heard"
    assert clean(ended.seen((), {A})) == {A, B}, "it held the GPU before, and was not listed any more"
    assert clean(ended.seen((), {A}).seen((), {A})) == {B}, "somebody else has it"


def test_nothing_is_kept_of_vms_that_are_over() -> None:
    exits = CLEANED
    for instance in range(1, 4):
        exits = exits.seen((vm(A, instance=instance),), {A}).ended(shut_down(instance=instance))
    assert exits.seen((), set()) == CLEANED
