"""A spare and its leader, and when there is none."""

from __future__ import annotations

from broker.messages import OrchestratorState
from broker.transport import LinkDown, LinkUp
from orchestrator.watch import (
    LEADER_INTERVAL_S,
    READ_RETAINED_S,
    SILENT_AFTER_INTERVALS,
    Watch,
    observe,
    take_over_at_s,
)

SILENCE_S = SILENT_AFTER_INTERVALS * LEADER_INTERVAL_S


def said(epoch: int, session: int, *, online: bool = True) -> OrchestratorState:
    return OrchestratorState(epoch=epoch, online=online, session=session)


def linked(at_s: float = 10.0) -> Watch:
    return observe(Watch(), LinkUp(1), at_s)


def test_where_nobody_led_it_leads_once_the_broker_had_time_to_tell() -> None:
    assert take_over_at_s(Watch()) is None, "the link is down"
    assert take_over_at_s(linked(10.0)) == 10.0 + READ_RETAINED_S


def test_after_a_goodbye_or_a_will_it_leads_at_once() -> None:
    watch = observe(linked(), said(3, 7), 11.0)
    gone = observe(watch, said(3, 7, online=False), 12.0)
    due_s = take_over_at_s(gone)
    assert due_s is not None
    assert due_s <= 12.0
    assert gone.epoch == 3, "the next one must be higher"


def test_it_waits_while_the_leader_beats_and_leads_after_its_silence() -> None:
    watch = observe(linked(), said(3, 7), 11.0)
    assert take_over_at_s(watch) == 11.0 + SILENCE_S
    assert take_over_at_s(observe(watch, said(3, 7), 12.0)) == 12.0 + SILENCE_S


def test_a_late_will_of_the_leaders_earlier_link_and_words_of_an_earlier_epoch_change_nothing() -> None:
    watch = observe(linked(), said(3, 8), 11.0)
    for late in (said(3, 7, online=False), said(2, 9, online=False), said(2, 9)):
        assert observe(watch, late, 12.0) == watch


def test_its_own_link_being_down_is_no_silence_of_the_leader() -> None:
    watch = observe(observe(linked(), said(3, 7), 11.0), LinkDown("lost"), 12.0)
    assert take_over_at_s(watch) is None
    assert take_over_at_s(observe(watch, LinkUp(2), 60.0)) == 60.0 + SILENCE_S


def test_its_own_word_of_a_term_that_is_over_keeps_nobody_waiting() -> None:
    watch = observe(observe(Watch(own=frozenset({5})), LinkUp(6), 10.0), said(4, 5), 10.1)
    due_s = take_over_at_s(watch)
    assert due_s is not None
    assert due_s <= 10.1
    assert watch.epoch == 4
