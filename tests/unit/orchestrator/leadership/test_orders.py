"""The operators' orders: what a number of the broker proves, and a standby's copy of them, with their revisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from broker.protocol.messages import OrchestratorState
from broker.protocol.specs import TaskSpec
from broker.transport.port import LinkUp
from orchestrator.events import (
    DrainReceived,
    RevisionReceived,
    RevisionsListed,
    TaskDeployed,
    TaskRejected,
    TaskUndeployed,
)
from orchestrator.leadership.orders import (
    LACKS_AFTER_S,
    NO_ORDERS,
    Deployed,
    Orders,
    StandbyCopy,
    change_of,
    confirm,
    record,
)
from tests.builders import chain, module

SPECS = [chain("classify", module("vision"), weight=float(weight)) for weight in range(1, 9)]
LEADS = OrchestratorState(epoch=1, online=True, session=7)


def own(*numbers: int) -> Orders:
    """The orders after these specs were deployed, one after the other."""
    orders = NO_ORDERS
    for number in numbers:
        orders = record(orders, {"classify": SPECS[number]}, (), epoch=1, session=None)
    return orders


def heard(copy: StandbyCopy, *newest_first: int) -> StandbyCopy:
    for number in newest_first:
        copy = copy.on_event(RevisionReceived("classify", SPECS[number].revision, SPECS[number]), 2.0)
    copy = copy.on_event(RevisionsListed("classify", tuple(SPECS[number].revision for number in newest_first)), 2.0)
    return copy.on_event(LEADS, 2.0)


def numbers(revisions: Sequence[TaskSpec]) -> list[int]:
    return [SPECS.index(spec) for spec in revisions]


@pytest.mark.parametrize(
    ("deployed", "listed", "after"),
    [
        ([], [4, 3, 2, 1, 0], [4, 3, 2, 1, 0]),  # a new spare
        ([0, 1], [4, 3, 2, 1], [4, 3, 2, 1, 0]),  # it was away
        ([0], [7, 6, 5, 4, 3], [7, 6, 5, 4, 3]),  # it was away for long
        ([1, 2, 3], [2, 1, 0], [3, 2, 1, 0]),  # the broker has an old memory
        ([1, 2], [2, 1], [2, 1]),
        ([1, 2], [], [2, 1]),
    ],
)
def test_a_copy_has_the_revisions_of_the_leader_and_its_own(
    deployed: list[int], listed: list[int], after: list[int]
) -> None:
    before = StandbyCopy(own(*deployed), settle_s=1.0).on_event(LinkUp(1), 0.0)
    copy = heard(before.on_event(TaskDeployed(SPECS[(listed or after)[0]]), 1.0), *listed)
    assert numbers(copy.orders.revisions.get("classify", ())) == after
    assert numbers(copy.with_revisions(NO_ORDERS).revisions.get("classify", ())) == listed
    assert copy.on_event(LEADS, 3.0).orders is copy.orders, "a new copy would be stored again"


def test_a_spare_that_stood_still_takes_nothing_for_undeployed_that_waits_to_be_read() -> None:
    ours = own(1)
    says = LEADS.model_copy(update={"change": ours.change})
    copy = StandbyCopy(ours, settle_s=1.0).on_event(LinkUp(1), 0.0).after_pause(12.0)
    copy = copy.on_event(says, 12.0)  # the first that waited
    assert copy.orders == ours
    copy = copy.on_event(TaskDeployed(SPECS[1]), 12.0)
    assert numbers(list(copy.on_event(says, 13.0).orders.specs.values())) == [1]
    away = StandbyCopy(ours, settle_s=1.0)
    assert away.after_pause(12.0) is away, "its link is down"


def test_an_order_that_no_leader_has_numbered_yet_gets_no_number_of_a_time_before_it() -> None:
    ours = own(1)
    copy = StandbyCopy(ours, settle_s=1.0).on_event(LinkUp(1), 0.0)
    copy = copy.on_event(TaskDeployed(SPECS[2]), 0.5)  # while no orchestrator was there
    leads = LEADS.model_copy(update={"epoch": 2, "change": ours.change})  # it repeats the broker's number first
    copy = copy.on_event(leads, 2.0)
    assert copy.orders.specs == ours.specs
    copy = copy.on_event(leads.model_copy(update={"change": 2048}), 3.0)
    assert copy.orders.tasks["classify"] == Deployed(SPECS[2], 2048)


def test_the_deployed_revision_comes_first_whatever_a_broker_with_an_old_memory_listed_before() -> None:
    copy = StandbyCopy(own(1), settle_s=1.0).on_event(LinkUp(1), 0.0)
    copy = heard(copy.on_event(TaskDeployed(SPECS[0]), 1.0), 0)  # it was undeployed before 1 was deployed
    copy = heard(copy.on_event(TaskDeployed(SPECS[1]), 2.0), 1)  # the leader gives it back
    copy = copy.on_event(LEADS.model_copy(update={"change": copy.orders.change}), 3.0)
    assert numbers(copy.orders.revisions["classify"]) == [1, 0]


def test_a_task_that_was_undeployed_has_none_of_its_revisions_when_it_is_deployed_again() -> None:
    copy = StandbyCopy(own(0, 1), settle_s=1.0).on_event(LinkUp(1), 0.0).on_event(TaskDeployed(SPECS[1]), 0.5)
    copy = heard(copy, 1, 0).on_event(TaskUndeployed("classify"), 2.5)
    copy = copy.on_event(LEADS.model_copy(update={"change": 1100}), 2.6)
    assert not copy.orders.revisions
    copy = copy.on_event(TaskDeployed(SPECS[2]), 2.7).on_event(LEADS.model_copy(update={"change": 1101}), 2.8)
    assert numbers(copy.orders.revisions["classify"]) == [2]
    assert copy.specs_bytes == 0


def test_what_the_broker_still_has_of_an_undeployed_tasks_revisions_is_no_part_of_the_copy() -> None:
    copy = heard(StandbyCopy(NO_ORDERS, settle_s=1.0).on_event(LinkUp(1), 0.0), 1, 0)
    assert not copy.orders.revisions


def test_a_revision_that_was_cleared_or_is_not_listed_does_not_count() -> None:
    copy = StandbyCopy(NO_ORDERS, settle_s=1.0).on_event(LinkUp(1), 0.0)
    copy = copy.on_event(RevisionReceived("classify", SPECS[5].revision, SPECS[5]), 1.0)
    copy = copy.on_event(RevisionReceived("classify", SPECS[2].revision, SPECS[2]), 1.0)
    copy = copy.on_event(RevisionReceived("classify", SPECS[2].revision, None, is_empty=True), 1.0)
    copy = copy.on_event(RevisionsListed("classify", (SPECS[3].revision, SPECS[2].revision)), 1.0)
    assert not copy.on_event(LEADS, 2.0).orders.revisions


def test_a_rejected_spec_leaves_the_one_before_in_a_copy_with_its_revisions() -> None:
    copy = StandbyCopy(own(0, 1), settle_s=1.0).on_event(LinkUp(1), 0.0)
    copy = copy.on_event(TaskRejected("classify", "its spec is wrong"), 1.5)
    copy = copy.on_event(LEADS.model_copy(update={"change": 2000}), 2.0)
    assert copy.orders.specs == {"classify": SPECS[1]}
    assert numbers(copy.orders.revisions["classify"]) == [1, 0]
    copy = copy.on_event(TaskDeployed(SPECS[2]), 2.5).on_event(LEADS.model_copy(update={"change": 2001}), 3.0)
    assert numbers(copy.orders.revisions["classify"]) == [2, 1, 0]


CLASSIFY = chain("classify", module("vision"))
CAPTION = chain("caption", module("text"))


def said(session: int, change: int = 0, *, online: bool = True) -> OrchestratorState:
    return OrchestratorState(epoch=1, online=online, session=session, change=change)


def test_a_will_counts_as_the_number_that_was_heard_over_its_link_and_another_one_as_none() -> None:
    orders = confirm(record(NO_ORDERS, {"classify": CLASSIFY}, (), epoch=1, session=7), 8, 1000)
    assert change_of(orders, said(8, online=False)) == 1000
    assert change_of(orders, said(7, online=False)) == 0
    assert change_of(orders, said(8)) == 0, "it is not a will"


def test_a_change_over_a_link_that_had_all_is_confirmed_and_over_another_one_is_not() -> None:
    orders = record(NO_ORDERS, {"classify": CLASSIFY}, (), epoch=1, session=7)
    assert orders.confirmed == 0
    whole = record(confirm(orders, 7, orders.change), {"classify": CLASSIFY}, {"b"}, epoch=1, session=7)
    assert (whole.session, whole.confirmed) == (7, whole.change)
    partial = record(confirm(orders, 8, orders.change - 1), {"classify": CLASSIFY}, {"b"}, epoch=1, session=8)
    assert (partial.session, partial.confirmed) == (8, orders.change - 1)


def test_a_standbys_copy_knows_the_number_of_a_link_of_the_leader_that_ended_before_it_announced() -> None:
    copy = StandbyCopy(NO_ORDERS, settle_s=1.5)
    for event in (LinkUp(1), TaskDeployed(CLASSIFY), TaskDeployed(CAPTION), DrainReceived("b", drain=True)):
        copy = copy.on_event(event, 10.0)
    copy = copy.on_event(said(7, 1026), 20.0)
    assert (copy.orders.specs, copy.orders.drained) == ({"classify": CLASSIFY, "caption": CAPTION}, frozenset({"b"}))
    copy = copy.on_event(TaskUndeployed("caption"), 21.0)
    copy = copy.on_event(said(8, online=False), 21.5)
    assert change_of(copy.orders, said(8, online=False)) == 1026


def test_the_number_holds_also_for_a_will_that_a_standby_hears_before_it_settled() -> None:
    copy = StandbyCopy(NO_ORDERS, settle_s=1.5)
    for event in (LinkUp(1), said(7, 1026), said(8, online=False), TaskDeployed(CLASSIFY)):
        copy = copy.on_event(event, 10.0)
    copy = copy.on_event(DrainReceived("b", drain=True), 11.5)
    assert copy.orders.specs == {"classify": CLASSIFY}
    assert change_of(copy.orders, said(8, online=False)) == 1026
    assert change_of(copy.on_event(LinkUp(2), 12.0).on_event(said(9, online=False), 12.0).orders, said(9)) == 0


def test_a_copy_knows_which_revision_is_served_while_a_newer_one_is_loaded() -> None:
    copy = StandbyCopy(own(0, 1), settle_s=1.0).on_event(LinkUp(1), 0.0)
    for spec in SPECS[:2]:
        copy = copy.on_event(RevisionReceived("classify", spec.revision, spec), 1.0)
    newest_first = (SPECS[1].revision, SPECS[0].revision)
    waits = copy.on_event(RevisionsListed("classify", newest_first, SPECS[0].revision), 1.0)
    assert waits.on_event(LEADS, 2.0).orders.served == {"classify": SPECS[0]}
    over = waits.on_event(RevisionsListed("classify", newest_first, SPECS[1].revision), 1.0)
    assert not over.on_event(LEADS, 2.0).orders.served


def test_the_served_revision_stays_among_the_last_ones_however_many_are_deployed() -> None:
    orders = replace(own(0), served={"classify": SPECS[0]})
    for spec in SPECS[1:]:
        orders = record(orders, {"classify": spec}, (), epoch=1, session=None)
    kept = numbers(orders.revisions["classify"])
    assert (len(kept), kept[-1]) == (5, 0)


def test_a_leader_whose_number_stays_lower_than_that_of_the_copy_lacks_orders() -> None:
    ours = own(0, 1)
    copy = StandbyCopy(ours, settle_s=1.5).on_event(LinkUp(1), 10.0)
    assert copy.lacks_at_s is None, "no leader was heard"
    copy = copy.on_event(said(7), 11.0).on_event(said(7, ours.change - 1), 12.0).on_event(said(7), 13.0)
    assert copy.lacks_at_s == 11.0 + LACKS_AFTER_S
    assert copy.on_event(said(8), 20.0).lacks_at_s == 20.0 + LACKS_AFTER_S, "it has the time to settle after each link"
    assert copy.excuse_leader(30.0).lacks_at_s == 30.0 + LACKS_AFTER_S
    assert copy.on_event(said(7, ours.change), 20.0).on_event(said(7), 21.0).lacks_at_s is None
    assert copy.on_event(LinkUp(2), 20.0).lacks_at_s is None
    assert StandbyCopy(NO_ORDERS, settle_s=1.5).on_event(LinkUp(1), 0.0).on_event(said(7), 1.0).lacks_at_s is None


def test_a_spare_that_stood_still_reads_the_orders_that_wait_before_its_copy_is_whole() -> None:
    copy = StandbyCopy(own(0), settle_s=1.5).on_event(LinkUp(1), 30.0, arrived_s=10.0)
    copy = copy.on_event(said(7, 5000), 30.0, arrived_s=10.1)
    assert copy.orders.specs == {"classify": SPECS[0]}, "the broker's specs came behind the leader's word"
    copy = copy.on_event(TaskDeployed(SPECS[1]), 30.0, arrived_s=10.2).on_event(said(7), 30.1, arrived_s=12.0)
    assert copy.orders.specs == {"classify": SPECS[1]}
    assert copy.orders.change == 5000
