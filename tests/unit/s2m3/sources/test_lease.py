"""The term of the process that runs the sources."""

from __future__ import annotations

import pytest

from broker.leader_watch import LEADER_INTERVAL_S
from broker.protocol.codec import decode
from broker.protocol.messages import MAX_EPOCH_JUMP
from broker.protocol.sources import SourcesState
from s2m3.sources.lease import Term, Verdict, goodbye


def said(epoch: int, session: int, *, online: bool = True) -> SourcesState:
    return SourcesState(epoch=epoch, online=online, session=session)


def leading() -> Term:
    return Term(3).on_link(50, 10.0)


def test_it_announces_itself_at_once_and_then_once_in_an_interval_while_its_link_is_up() -> None:
    assert Term(3).announcement(10.0) == (Term(3), None)
    term, first = leading().announcement(10.0)
    assert first == said(3, 50)
    assert term.announcement(10.0 + LEADER_INTERVAL_S / 2)[1] is None
    assert term.announcement(10.0 + LEADER_INTERVAL_S)[1] == said(3, 50)
    assert term.on_link(None, 11.0).announcement(20.0)[1] is None
    assert term.on_link(None, 11.0).on_link(60, 20.0).announcement(20.0)[1] == said(3, 60)


@pytest.mark.parametrize(
    ("message", "verdict"),
    [
        (said(3, 50), Verdict.NOTHING),
        (said(4, 7), Verdict.RESIGN),
        (said(4, 7, online=False), Verdict.RESIGN),
        (said(3, 51), Verdict.RESIGN),
        (said(3, 49), Verdict.ANNOUNCE),  # the other one resigns when it hears us
        (said(2, 99), Verdict.ANNOUNCE),
        (said(3, 50, online=False), Verdict.ANNOUNCE),  # another client wrote it
        (said(1, 7, online=False), Verdict.ANNOUNCE),  # a late will overwrote our announcement
        (said(4 + MAX_EPOCH_JUMP, 7), Verdict.ANNOUNCE),
    ],
)
def test_only_a_later_term_ends_it_and_it_overwrites_all_else(message: SourcesState, verdict: Verdict) -> None:
    term, found = leading().announcement(10.0)[0].on_state(message, 10.5)
    assert found is verdict
    assert (term.announcement(10.5)[1] is not None) == (verdict is Verdict.ANNOUNCE)


def test_the_will_of_an_earlier_connection_is_overwritten_and_does_not_end_the_term() -> None:
    again = leading().on_link(None, 11.0).on_link(40, 12.0)
    assert again.on_state(said(3, 50, online=False), 12.1)[1] is Verdict.ANNOUNCE
    assert again.on_state(said(3, 50), 12.1)[1] is Verdict.ANNOUNCE


def test_an_epoch_that_isnt_plausible_counts_when_a_leader_repeats_it() -> None:
    term, far = leading(), said(4 + MAX_EPOCH_JUMP, 7)
    verdicts = []
    for _ in range(3):
        term, verdict = term.on_state(far, 11.0)
        verdicts.append(verdict)
    assert verdicts == [Verdict.ANNOUNCE, Verdict.ANNOUNCE, Verdict.RESIGN]


def test_the_will_says_that_nobody_runs_the_sources() -> None:
    will = goodbye("s2m3/v1", 3, 50)
    assert (will.topic, will.retain) == ("s2m3/v1/sources/state", True)
    assert decode(SourcesState, will.payload) == said(3, 50, online=False)
