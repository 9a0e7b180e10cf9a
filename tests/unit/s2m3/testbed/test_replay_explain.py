"""The words of a report about each kind of fault: only what was published or answered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from broker.protocol.messages import Route
from broker.protocol.reports import Candidate, Standing, TaskStatus
from s2m3.testbed.replay.recording import FaultReport, Outcome, Recording
from s2m3.testbed.replay.report import report
from s2m3.testbed.replay.scenario import KINDS, Expect
from s2m3.testbed.replay.timeline import Injected
from tests.builders import heartbeat, leader, offline
from tests.unit.s2m3.testbed.test_replay_report import A_DEATH, answer, assignment, holding, seen, served_by

DEVICE = ("kill", "switch_off", "pause", "partition", "hang")


def explained(fault: Injected, rows: Any = (), outcomes: Any = (), then: Any = ()) -> str:
    return explained_of(fault, rows, outcomes, then).explained


def explained_of(fault: Injected, rows: Any = (), outcomes: Any = (), then: Any = ()) -> FaultReport:
    rows = sorted(rows, key=lambda sighting: sighting.at_s)
    recording = Recording("a replay", 7, 100.0, 200.0, outcomes, [fault, *then], rows, duplicates=0)
    return report(recording, Expect(served_at_end=False)).faults[0]


def test_every_kind_of_fault_is_explained_whatever_was_seen() -> None:
    for kind in KINDS:
        targets = {"restart": ("orchestrator", "broker")} | dict.fromkeys(DEVICE, ("gw-a", "orchestrator"))
        for target in targets.get(kind, ("gw-a",)):
            for rows in ((), A_DEATH):
                text = explained(Injected(110.0, kind, target, for_s=5.0), rows)
                assert text.endswith("."), kind
                assert text[0].isupper(), kind
                assert "None" not in text, kind


@pytest.mark.parametrize("kind", DEVICE)
def test_a_device_with_standbys_only_had_nothing_to_be_replaced(kind: Any) -> None:
    """As once told: replaced after 11.126, first answer empty, moves 0."""
    rows = seen(
        (90, "t", served_by("t", "gw-b")),
        (91, "gw-b", assignment("m")),
        (91, "gw-a", assignment("m", role="standby")),
        (110.05, "gw-a", offline()),
        (112, "gw-c", assignment("m", generation=2, role="standby")),
        (121.1, "t", served_by("t", "gw-b", generation=2)),  # published again, for another reason
    )
    found = explained_of(Injected(110.0, kind, "gw-a"), rows, [answer(109, 111, "gw-b")])
    assert (found.replaced_after_s, found.first_answer_after_s, found.moves) == (None, None, 0)
    assert found.explained == (
        "It served no task: it held only standby copies of m; it was announced as offline after 0.05 s; so nothing had "
        "to be replaced, and no answer waited for it; new standby copies: m on gw-c. 1 request under way: 1 answered."
    )


def test_a_device_without_anything_had_nothing_to_be_replaced() -> None:
    text = explained(Injected(110.0, "kill", "gw-a"), seen((90, "t", served_by("t", "gw-b"))))
    assert text == (
        "It served no task: it held nothing; nobody had noticed it when the replay ended; so nothing had to be "
        "replaced, and no answer waited for it. No request was under way."
    )


def test_a_device_that_served_is_explained_by_its_duty_the_signal_the_source_and_the_requests() -> None:
    outcomes = [answer(109.9, 112.2, "gw-c"), answer(109.8, 112.4, "gw-c"), answer(109, 109.5, "gw-a")]
    assert explained(Injected(110.0, "kill", "gw-a"), A_DEATH, outcomes) == (
        "It served t with m; it was announced as offline after 0.10 s; everything was served again after 2.10 s, when "
        "modules were loaded, the slowest in 1.80 s; the first answer came after 2.20 s; newly active: m on gw-c. "
        "2 requests under way: all answered."
    )
    ready = [*A_DEATH, *seen((92, "gw-c", holding("m")))]
    assert "everything was served again after 2.10 s, from copies that were ready;" in explained(
        Injected(110.0, "kill", "gw-a"), ready, outcomes
    )


def test_what_was_not_served_again_has_the_reason_and_the_requests_their_ends() -> None:
    gone = Route(task="t", epoch=1, generation=2, group=1, unavailable="no device fits m")
    rows = [*A_DEATH[:4], *seen((110.1, "t", gone))]
    outcomes = [Outcome("t", 109, 111, "error", "no_route"), Outcome("t", 109, 120, "lost"), answer(109, 110)]
    text = explained(Injected(110.0, "kill", "gw-a"), rows, outcomes)
    assert "what it served was not served again: no device fits m." in text
    assert text.endswith("3 requests under way: 1 lost, 1 ended in no_route, 1 answered.")


def test_a_fault_that_ends_before_anybody_notices_says_so() -> None:
    text = explained(Injected(110.0, "pause", "gw-a", for_s=0.5), A_DEATH[:3])
    assert text.startswith(
        "It served t with m; it was over after 0.50 s, before anybody noticed; what it served was not"
    )


@pytest.mark.parametrize("kind", ["start", "join"])
def test_a_device_that_comes_is_explained_by_what_it_gets(kind: Any) -> None:
    rows = seen(
        (112.5, "gw-c", holding()),
        (113, "gw-c", assignment("m")),
        (114, "gw-c", assignment("m", generation=2)),
        (115, "gw-b", assignment("n", generation=3)),
    )
    text = explained(Injected(110.0, kind, "gw-c"), rows)
    assert text.startswith(
        "Its first heartbeat came after 2.50 s; it got m to serve; active elsewhere since then: n on gw-b."
    )
    standby = [*rows[:1], *seen((113, "gw-c", assignment("m", role="standby")))]
    assert explained(Injected(110.0, kind, "gw-c"), standby).startswith(
        "Its first heartbeat came after 2.50 s; standby copies of m."
    )
    assert "it got nothing to hold" in explained(Injected(110.0, kind, "gw-c"), rows[:1])
    assert explained(Injected(110.0, kind, "gw-c")).startswith("It sent no heartbeat until the replay ended.")


def test_an_orchestrator_and_a_broker_are_explained_by_when_they_were_back() -> None:
    rows = seen(
        (90, "t", served_by("t", "gw-a")),
        (90, "", leader(4, online=True)),
        (110.1, "", leader(4, online=False)),
        (112, "", leader(5, online=True)),
        (112.5, "t", served_by("t", "gw-a", generation=2)),
    )
    text = explained(Injected(110.0, "restart", "orchestrator"), rows)
    assert text.startswith("Its end was announced after 0.10 s; one led again after 2.00 s; nothing moved.")
    assert "no other one took the lead" in explained(Injected(110.0, "kill", "orchestrator"), rows[:3])
    text = explained(Injected(110.0, "restart", "broker"), rows, [answer(109, 113, "gw-a")])
    assert text.startswith(
        "The orchestrator and all routes were there again after 2.50 s; the first answer came after 3.00 s; nothing"
    )


def test_a_drain_says_who_serves_or_why_it_stays() -> None:
    rows = seen((90, "t", served_by("t", "gw-a")), (91, "gw-a", assignment("m")))
    moved = [
        *rows,
        *seen((111, "gw-b", assignment("m", generation=2)), (112, "t", served_by("t", "gw-b", generation=2))),
    ]
    text = explained(Injected(110.0, "drain", "gw-a"), moved)
    assert text.startswith(
        "It served t with m; others serve that after 2.00 s, and it served on until then; newly active: m"
    )
    kept = assignment("m", generation=2).model_copy(update={"stays": "no other device fits m"})
    text = explained(Injected(110.0, "drain", "gw-a"), [*rows, *seen((111, "gw-a", kept))])
    assert text.startswith("It served t with m; it serves on: no other device fits m.")
    assert explained(Injected(110.0, "drain", "gw-c"), rows).startswith(
        "It served no task: it held nothing; so nothing had to move."
    )
    assert explained(Injected(110.0, "undrain", "gw-c"), rows).startswith("It may hold modules again; nothing moved.")


def test_a_slowed_device_is_explained_by_what_the_leader_thought() -> None:
    fault = Injected(110.0, "slow", "gw-a", for_s=3.0, how="1/5 of its time")
    assert explained(fault).startswith(
        "It had 1/5 of its time for 3.00 s; the leader saw nothing wrong with it; nothing"
    )
    standing = Standing(device="gw-a", standing="suspect", since=1.0, why="late")
    rows = seen((111, "gw-a", standing), (112, "gw-a", standing.model_copy(update={"standing": "dead"})))
    assert "the leader called it suspect, then the leader called it dead;" in explained(fault, rows)
    after = Injected(111.5, "kill", "gw-b")
    text = explained(fault, rows, then=[after])
    assert "dead" not in text, "it belongs to the next fault"
    assert "nothing moved before the next fault." in text


def test_faults_inside_a_device_say_whether_they_showed() -> None:
    refused = seen((113, "gw-a", heartbeat(modules={"m": {"module": "m", "state": "failed", "error": "no memory"}})))
    squeezed = Injected(110.0, "squeeze", "gw-a", for_s=5.0, how="8 MiB more than it had")
    assert explained(squeezed, refused).startswith("It refused m for want of memory; nothing moved.")
    assert explained(squeezed).startswith("It had room for 8 MiB more than it had, and refused no module;")
    assert explained(squeezed, seen((111, "gw-a", offline()))).startswith(
        "It went offline while it had so little memory;"
    )
    meanwhile = [Injected(111.0, "kill", "gw-b")]
    assert explained(squeezed, refused, then=meanwhile).startswith("It refused m"), (
        "it lasts longer than to the next fault"
    )
    stalled = Injected(110.0, "stall", "gw-a")
    assert explained(stalled, refused, then=meanwhile).startswith("The load of m on it made no progress")
    assert explained(stalled, refused).startswith("The load of m on it made no progress and was given up;")
    assert explained(stalled, seen((111, "gw-a", assignment("m")))).startswith(
        "It was to load m, and that load was not"
    )
    assert explained(stalled).startswith("It had nothing to load, so the fault did not show;")
    filled = Injected(110.0, "fill", "gw-a", for_s=5.0)
    assert explained(filled, refused, then=meanwhile).startswith("It refused m for want of room on its disk;")
    assert explained(filled).startswith("It refused no module while its disk was full;")
    crashed = seen((111, "gw-a", offline()), (112, "gw-b", offline()), (112.1, "gw-b", offline()))
    assert explained(Injected(110.0, "crash", "t"), crashed).startswith(
        "The deadly request ended 2 agents (gw-a, gw-b);"
    )
    twice = [*refused, *seen((114, "gw-a", holding())), *((replace(row, at_s=115.0)) for row in refused)]
    assert explained(stalled, twice).startswith("The load of m on it made no progress"), "each module once"
    assert explained(Injected(110.0, "crash", "t")).startswith("The deadly request ended no agent.")
    hostile = Injected(110.0, "hostile", "gw-a", how="200 messages")
    assert explained(hostile).startswith("It got 200 messages; the leader saw nothing wrong with it; nothing moved.")


def test_a_revision_is_served_or_refused_with_the_reason() -> None:
    revision = "0123456789ab"
    fault = Injected(110.0, "deploy", "t", how=revision)
    before = seen((90, "t", served_by("t", "gw-a")))
    rows = seen((112, "t", served_by("t", "gw-a", generation=2).model_copy(update={"revision": revision})))
    found = explained_of(fault, [*before, *rows])
    assert (found.replaced_after_s, found.affected) == (2.0, ["t"])
    assert found.explained.startswith(f"Revision {revision} was served after 2.00 s.")
    why = Candidate(revision=revision, state="refused", why="no device can load m")
    refused = seen((111, "t", TaskStatus(task="t", candidate=why)))
    assert explained(fault, [*before, *refused]).startswith(
        f"Revision {revision} was refused, and the one before was served on: no device can load m."
    )
    assert "was not served until the replay ended" in explained(fault, before)
