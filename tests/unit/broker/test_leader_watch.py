"""A standby, with and without a leader."""

from __future__ import annotations

from dataclasses import replace

from broker.epochs import ACCEPTED_AFTER, LARGEST_REPEATED
from broker.leader_watch import (
    BROKER_ENDS_S,
    LEADER_INTERVAL_S,
    READ_RETAINED_S,
    SILENT_AFTER_INTERVALS,
    LeaderWatch,
    on_event,
    reset_timer,
    take_over_at_s,
)
from broker.protocol.messages import MAX_EPOCH_JUMP, MAX_FENCE
from broker.transport.port import RECONNECT_S, LinkDown, LinkUp
from tests.builders import leader

SILENCE_S = SILENT_AFTER_INTERVALS * LEADER_INTERVAL_S


def linked(at_s: float = 10.0) -> LeaderWatch:
    return on_event(LeaderWatch(), LinkUp(1), at_s)


def test_without_a_leader_it_leads_once_the_retained_messages_had_time_to_arrive() -> None:
    assert take_over_at_s(LeaderWatch()) is None, "the link is down"
    assert take_over_at_s(linked(10.0)) == 10.0 + READ_RETAINED_S


def test_a_retained_goodbye_of_an_unknown_leader_delays_nothing() -> None:
    assert take_over_at_s(on_event(linked(10.0), leader(3, 7, online=False), 10.1)) == 10.1


def test_after_a_goodbye_or_a_will_it_leads_as_soon_as_it_can_not_be_the_brokers_end() -> None:
    watch = on_event(linked(), leader(3, 7), 11.0)
    gone = on_event(watch, leader(3, 7, online=False), 12.0)
    assert take_over_at_s(gone) == 12.0 + BROKER_ENDS_S
    assert gone.epoch == 3, "the next one must be higher"


def test_it_waits_while_the_leader_sends_heartbeats_and_leads_after_its_silence() -> None:
    watch = on_event(linked(), leader(3, 7), 11.0)
    assert take_over_at_s(watch) == 11.0 + SILENCE_S
    assert take_over_at_s(on_event(watch, leader(3, 7), 12.0)) == 12.0 + SILENCE_S


def test_a_late_will_of_the_leaders_earlier_link_and_messages_of_an_earlier_epoch_change_nothing() -> None:
    watch = on_event(linked(), leader(3, 8), 11.0)
    for late in (leader(3, 7, online=False), leader(2, 9, online=False), leader(2, 9)):
        assert on_event(watch, late, 12.0) == watch


def test_wills_that_the_broker_publishes_when_it_ends_make_no_standby_lead_whatever_it_retains() -> None:
    watch = on_event(linked(), leader(3, 7), 11.0)
    ended = on_event(on_event(watch, leader(3, 7, online=False), 12.0), LinkDown("lost"), 12.01)
    assert take_over_at_s(ended) is None
    back = on_event(ended, LinkUp(2), 14.0)
    assert take_over_at_s(back) == 14.0 + RECONNECT_S + SILENCE_S, "the leader reconnects, too, and may be the last"
    assert on_event(back, leader(3, 7, online=False), 14.1) == back, "the broker kept its memory"
    assert on_event(back, leader(3, 7), 14.1, retained=True) == back, "of before it was killed, perhaps"
    assert take_over_at_s(on_event(back, leader(3, 9), 18.0)) == 18.0 + SILENCE_S


def test_a_leader_that_went_well_before_our_link_stays_gone() -> None:
    gone = on_event(on_event(linked(), leader(3, 7), 11.0), leader(3, 7, online=False), 12.0)
    ended = on_event(gone, LinkDown("lost"), 12.0 + BROKER_ENDS_S)
    assert take_over_at_s(on_event(ended, LinkUp(2), 20.0)) is not None
    assert ended.leader is None


def test_a_leader_that_was_heard_over_this_link_may_say_goodbye_over_it() -> None:
    back = on_event(on_event(on_event(linked(), leader(3, 7), 11.0), LinkDown("lost"), 12.0), LinkUp(2), 20.0)
    beating = on_event(back, leader(3, 7), 20.5)
    assert take_over_at_s(on_event(beating, leader(3, 7, online=False), 21.0)) == 21.0 + BROKER_ENDS_S


def test_its_own_link_being_down_and_its_own_sleep_are_no_silence_of_the_leader() -> None:
    watch = on_event(on_event(linked(), leader(3, 7), 11.0), LinkDown("lost"), 12.0)
    assert take_over_at_s(watch) is None
    assert reset_timer(watch, 50.0) == watch
    assert take_over_at_s(on_event(watch, LinkUp(2), 60.0)) == 60.0 + RECONNECT_S + SILENCE_S
    awake = reset_timer(on_event(linked(), leader(3, 7), 11.0), 60.0)
    assert take_over_at_s(awake) == 60.0 + SILENCE_S


def test_its_own_message_of_a_term_that_is_over_delays_nothing() -> None:
    watch = on_event(on_event(LeaderWatch(own=frozenset({5})), LinkUp(6), 10.0), leader(4, 5), 10.1)
    due_s = take_over_at_s(watch)
    assert due_s is not None
    assert due_s <= 10.1
    assert watch.epoch == 4


def test_a_message_whose_epoch_is_not_plausible_changes_nothing() -> None:
    watch = on_event(replace(linked(), stored=5), leader(6, 7), 11.0)
    for absurd in (6 + MAX_EPOCH_JUMP + 1, MAX_FENCE):
        for online in (True, False):
            doubted = on_event(watch, leader(absurd, 9, online=online), 11.5)
            assert (doubted.epoch, doubted.leader, take_over_at_s(doubted)) == (6, (6, 7), 11.0 + SILENCE_S)


def test_an_absurd_retained_leader_delays_a_takeover_only_until_its_heartbeats_are_missed() -> None:
    watch = on_event(linked(10.0), leader(MAX_FENCE, 9), 10.1, retained=True)
    assert take_over_at_s(watch) == 10.1 + SILENCE_S
    assert take_over_at_s(on_event(linked(10.0), leader(MAX_FENCE, 9, online=False), 10.1)) == 10.0 + READ_RETAINED_S


def test_a_leader_far_ahead_is_accepted_when_it_repeats_its_epoch() -> None:
    watch, far = linked(), MAX_EPOCH_JUMP + 1
    for times in range(ACCEPTED_AFTER):
        watch = on_event(watch, leader(far, 9), 10.0 + times)
    assert (watch.epoch, watch.leader) == (far, (far, 9))
    for times in range(10):
        watch = on_event(watch, leader(LARGEST_REPEATED + 1, 11), 20.0 + times)
    assert watch.epoch == far, "no series of terms comes to such a number"
