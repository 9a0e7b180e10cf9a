"""From what was recorded to the report: each number by its definition."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest

from broker.protocol.errors import ErrorCode
from broker.protocol.messages import (
    AssignedModule,
    Assignment,
    Heartbeat,
    HeldModule,
    Route,
)
from broker.protocol.reports import Standing
from s2m3.testbed.replay import timeline
from s2m3.testbed.replay.recording import Outcome, Recording
from s2m3.testbed.replay.report import report
from s2m3.testbed.replay.scenario import Expect
from s2m3.testbed.replay.timeline import Injected
from s2m3.testbed.sightings import Sighting
from tests.builders import encoder_route, heartbeat, leader, module, offline

MODULE = module("m")
FAULT_KEYS = {"at_s", "kind", "target", "detected_after_s", "replaced_after_s", "first_answer_after_s"}
KEYS = {"name", "sent", "answered", "errors", "lost", "wrong", "duplicates", "latency_s", "faults", "ok"}


def served_by(task: str, *devices: str, generation: int = 1, epoch: int = 1) -> Route:
    return encoder_route(task, devices, epoch=epoch, generation=generation, front_door=devices[:1])


def assignment(*modules: str, generation: int = 1, role: Any = "active") -> Assignment:
    held = tuple(AssignedModule(module=name, spec=MODULE, role=role) for name in modules)
    return Assignment(epoch=1, generation=generation, modules=held)


def holding(*ready: str) -> Heartbeat:
    return heartbeat(modules={name: HeldModule(module=name, state="ready") for name in ready})


def accuse(device: str) -> Heartbeat:
    return heartbeat(2, suspects={device: 0.1})


def seen(*rows: tuple[float, str, Any]) -> list[Sighting]:
    return [Sighting(at_s, name, message) for at_s, name, message in rows]


def answer(sent_s: float, ended_s: float, *devices: str, task: str = "t", ending: Any = "right") -> Outcome:
    return Outcome(task, sent_s, ended_s, ending, devices=devices)


def recorded(
    *, outcomes: Sequence[Outcome] = (), faults: Sequence[Injected] = (), sightings: Sequence[Sighting] = ()
) -> Recording:
    return Recording("a replay", 7, 100.0, 200.0, outcomes, faults, sightings, duplicates=2)


KILLED = Injected(110.0, "kill", "gw-a")
HUNG = Injected(110.0, "pause", "gw-a", for_s=6.0)
A_DEATH = seen(
    (90, "t", served_by("t", "gw-a")),
    (90, "u", served_by("u", "gw-b")),
    (91, "gw-a", assignment("m")),
    (110.05, "gw-a", offline()),
    (110.1, "t", served_by("t", generation=2)),  # withdrawn: nobody holds it
    (110.2, "gw-c", assignment("m", generation=2)),
    (112.0, "gw-c", holding("m")),
    (112.1, "t", served_by("t", "gw-c", generation=3)),
)


KILLED_BOX = Injected(110.0, "kill", "box")
OFF = Injected(110.0, "switch_off", "box", for_s=5.0)


@pytest.mark.parametrize(
    ("outcomes", "faults", "sentences"),
    [
        ([answer(101, 102, "gw-a", "box"), answer(120, 121, "box")], [OFF], []),
        ([answer(101, 102, "box")], [replace(OFF, for_s=None)], []),  # it doesn't come back
        ([answer(120, 121, "box")], [OFF], ["box computed for no answer from 0.0 s on"]),
        ([answer(101, 102, "box"), answer(112, 113, "box")], [OFF], ["box computed for no answer from 15.0 s on"]),
        ([answer(101, 102, "box", ending="wrong")], [], ["box computed for no answer from 0.0 s on"]),
        ([answer(101, 102, "gw-a")], [KILLED_BOX], ["box computed for no answer from 0.0 s on"]),
    ],
)
def test_a_device_that_must_be_used_computes_each_time_that_it_is_there(
    outcomes: list[Outcome], faults: list[Injected], sentences: list[str]
) -> None:
    recording = recorded(outcomes=outcomes, faults=faults)
    told = report(recording, Expect(used=("box",), wrong=9)).why_not
    assert [sentence for sentence in told if "computed" in sentence] == sentences


def test_a_standing_that_alarms_is_told_of_the_devices_that_must_alarm_nobody() -> None:
    def standing(name: str, word: Any) -> Standing:
        return Standing(device=name, standing=word, since=1.0, why="so it is")

    before, box = (99, "box", standing("box", "dead")), (110, "box", standing("box", "away"))
    recording = recorded(sightings=seen(before, box, (111, "gw-a", standing("gw-a", "dead"))))
    expect = Expect(no_alarm=("box",), served_at_end=False)
    assert report(recording, expect).ok
    alarm = seen((112, "box", standing("box", "probation")))
    assert report(replace(recording, sightings=alarm), expect).why_not == ["box was probation: so it is"]


def test_every_request_is_counted_once_and_the_document_has_the_promised_keys() -> None:
    outcomes = [
        answer(100, 100.1),
        answer(101, 101.3, ending="wrong"),
        Outcome("t", 102, 103, "error", "no_route"),
        Outcome("t", 102, 103, "error", "no_route"),
        Outcome("u", 103, 113, "lost", "deadline_exceeded"),
    ]
    document = json.loads(json.dumps(asdict(report(recorded(outcomes=outcomes), Expect()))))
    assert document.keys() >= KEYS
    counts = {key: document[key] for key in ("sent", "answered", "errors", "lost", "wrong", "duplicates", "ok")}
    assert counts == {
        "sent": 5,
        "answered": 2,
        "errors": {"no_route": 2},
        "lost": 1,
        "wrong": 1,
        "duplicates": 2,
        "ok": False,
    }
    assert document["latency_s"] == {"p50": pytest.approx(0.1), "p95": pytest.approx(0.3), "p99": pytest.approx(0.3)}


def test_a_death_is_detected_by_the_route_without_the_device_and_replaced_when_all_is_served() -> None:
    outcomes = [
        answer(109.9, 110.01, "gw-a"),  # had been computed there before the death
        answer(110.3, 110.4, "gw-b", task="u"),  # a task that never needed the device
        answer(109.95, 112.3, "gw-c"),
        answer(111, 112.2, "gw-c"),
    ]
    (fault,) = report(recorded(outcomes=outcomes, faults=[KILLED], sightings=A_DEATH), Expect()).faults
    assert fault.__dict__.keys() >= FAULT_KEYS
    assert fault.at_s == 10
    assert fault.detected_after_s == pytest.approx(0.1)
    assert fault.replaced_after_s == pytest.approx(2.1)
    assert fault.first_answer_after_s == pytest.approx(2.2)
    assert (fault.in_flight, fault.moves) == (2, 1)
    assert (fault.affected, fault.over_after_s) == (["t"], None)
    assert fault.load_s == pytest.approx(1.8)  # from the assignment to the first heartbeat with it
    assert fault.stood_by is False


@pytest.mark.parametrize(
    ("between", "signal"),
    [
        (seen((110.05, "gw-a", offline())), "will"),
        (seen((110.04, "gw-b", accuse("gw-a")), (110.05, "gw-a", offline())), "will"),
        (seen((112.0, "gw-b", accuse("gw-a"))), "timeouts"),
        (seen((112.0, "gw-b", accuse("gw-c"))), "heartbeats"),
        (seen((109.0, "gw-b", accuse("gw-a"))), "heartbeats"),  # before the fault
        ([], "heartbeats"),
    ],
)
def test_a_death_is_told_by_one_of_three_signals(between: list[Sighting], signal: str) -> None:
    before, after = A_DEATH[:3], seen((113.1, "t", served_by("t", "gw-c", generation=2)))
    sightings = sorted([*before, *between, *after], key=lambda sighting: sighting.at_s)
    (fault,) = report(recorded(faults=[KILLED], sightings=sightings), Expect()).faults
    assert fault.detected_by == signal
    assert fault.detected_after_s == pytest.approx(3.1)


def test_a_device_that_no_route_names_is_detected_by_its_state_and_no_answer_waits_for_it() -> None:
    rows = seen((90, "t", served_by("t", "gw-b")), (110.3, "gw-a", offline()))
    outcomes = [answer(111, 111.1, "gw-b")]
    (fault,) = report(recorded(outcomes=outcomes, faults=[KILLED], sightings=rows), Expect()).faults
    assert fault.detected_after_s == pytest.approx(0.3)
    assert (fault.replaced_after_s, fault.first_answer_after_s) == (None, None)


def test_what_never_happened_is_null() -> None:
    rows = seen((90, "t", served_by("t", "gw-a")), (111, "t", served_by("t", "gw-a", generation=2)))
    (fault,) = report(recorded(faults=[Injected(110, "pause", "gw-a")], sightings=rows), Expect()).faults
    assert (fault.detected_after_s, fault.replaced_after_s, fault.first_answer_after_s) == (None, None, None)


def test_a_device_that_came_back_may_serve_again() -> None:
    rows = [*A_DEATH[:5], *seen((115, "gw-a", holding("m")), (115.1, "t", served_by("t", "gw-a", generation=3)))]
    (fault,) = report(recorded(faults=[KILLED], sightings=rows), Expect()).faults
    assert fault.replaced_after_s == pytest.approx(5.1)


@pytest.mark.parametrize(
    ("others", "hits", "stood_by"),
    [
        (seen((100, "gw-b", holding("m"))), [], True),
        (seen((100, "gw-b", holding("n"))), [], False),
        (seen((100, "gw-b", holding("m")), (105, "gw-b", offline())), [], False),
        (seen((100, "gw-b", holding("m"))), [Injected(109.5, "pause", "gw-b")], False),
        (seen((100, "gw-b", holding("m"))), [Injected(110.5, "kill", "gw-b")], False),  # in the same moment
        (seen((100, "gw-b", holding("m"))), [Injected(120, "kill", "gw-b")], True),
        (seen((100, "gw-b", holding("m"))), [Injected(90, "pause", "gw-b")], True),  # it sent heartbeats since
    ],
)
def test_a_standby_counts_when_it_was_ready_and_alive(
    others: list[Sighting], hits: list[Injected], stood_by: object
) -> None:
    faults = sorted([KILLED, *hits], key=lambda fault: fault.at_s)
    sightings = seen((91, "gw-a", assignment("m")), (92, "gw-a", holding("m"))) + others
    found = report(recorded(faults=faults, sightings=sightings), Expect()).faults[faults.index(KILLED)]
    assert found.stood_by is stood_by


def test_a_device_that_serves_nothing_needs_no_standby() -> None:
    sightings = seen((91, "gw-a", assignment("m", role="standby")), (100, "gw-b", holding("m")))
    (fault,) = report(recorded(faults=[KILLED], sightings=sightings), Expect()).faults
    assert fault.stood_by is None


def test_a_drained_device_must_leave_every_route() -> None:
    rows = seen(
        (90, "t", served_by("t", "gw-a")),
        (111, "gw-a", holding("m")),
        (111.5, "t", served_by("t", "gw-a", "gw-b", generation=2)),
        (112, "t", served_by("t", "gw-b", generation=3)),
    )
    (fault,) = report(recorded(faults=[Injected(110, "drain", "gw-a")], sightings=rows), Expect()).faults
    assert (fault.detected_after_s, fault.replaced_after_s) == (None, 2)


def test_an_orchestrator_is_gone_by_its_will_and_replaced_by_a_higher_epoch() -> None:
    rows = seen(
        (90, "", leader(4, online=True)),
        (110.1, "", leader(4, online=False)),
        (110.5, "", leader(4, online=True)),  # a late echo of the old term
        (112, "", leader(5, online=True)),
    )
    (fault,) = report(recorded(faults=[Injected(110, "restart", "orchestrator")], sightings=rows), Expect()).faults
    assert fault.detected_after_s == pytest.approx(0.1)
    assert fault.replaced_after_s == pytest.approx(2)


def test_an_orchestrator_that_hangs_is_gone_when_a_spare_that_missed_it_leads() -> None:
    rows = seen(
        (90, "", leader(4, online=True)), (113.3, "", leader(5, online=True)), (114.5, "", leader(4, online=False))
    )
    (fault,) = report(recorded(faults=[Injected(110, "pause", "orchestrator")], sightings=rows), Expect()).faults
    assert fault.detected_after_s == pytest.approx(3.3)
    assert fault.detected_by == "heartbeats"
    assert fault.replaced_after_s == pytest.approx(3.3)


def test_a_broker_is_back_when_the_orchestrator_and_every_route_have_been_said_again() -> None:
    rows = seen(
        (90, "t", served_by("t", "gw-a")),
        (90, "u", served_by("u", "gw-a")),
        (112, "t", served_by("t", "gw-a", generation=2)),
        (113, "", leader(4, online=True)),
        (114, "u", served_by("u", "gw-a", generation=2)),
    )
    outcomes = [answer(109, 114.5, "gw-a"), answer(112, 114.2, "gw-a")]
    faults = [Injected(110, "restart", "broker")]
    (fault,) = report(recorded(outcomes=outcomes, faults=faults, sightings=rows), Expect()).faults
    assert (fault.detected_after_s, fault.replaced_after_s) == (None, 4)
    assert fault.first_answer_after_s == pytest.approx(4.2)


def test_a_start_is_seen_by_the_first_heartbeat() -> None:
    rows = seen((109, "gw-a", holding()), (111, "gw-b", holding()), (113, "gw-a", holding()))
    (fault,) = report(recorded(faults=[Injected(110, "start", "gw-a")], sightings=rows), Expect()).faults
    assert fault.detected_after_s == 3
    assert fault.first_answer_after_s is None


def test_moves_are_modules_newly_active_and_not_those_said_again() -> None:
    rows = seen(
        (90, "gw-a", assignment("m", "n")),
        (91, "gw-b", assignment("m", role="standby")),
        (110, "gw-a", assignment("m", "n", generation=2)),  # the same, in a new term
        (111, "gw-b", assignment("m", generation=3)),  # promoted
        (112, "gw-a", assignment("n", generation=4)),
        (113, "gw-a", assignment("n", "o", generation=5)),
    )
    assert timeline.moves(rows, 100, 200) == [(111, "gw-b", "m"), (113, "gw-a", "o")]
    assert timeline.moves(rows, 100, 113) == [(111, "gw-b", "m")]


def test_a_replica_beside_the_copy_from_before_is_no_move() -> None:
    rows = seen(
        (90, "gw-a", assignment("m/x")),
        (91, "t", served_by("t", "gw-a")),
        (110, "gw-b", assignment("m/x", generation=2)),
        (111, "t", served_by("t", "gw-a", "gw-b", generation=2)),
    )
    assert timeline.moves(rows, 100, 200) == []
    moved = (112, "t", served_by("t", "gw-b", generation=3))  # the first device is gone
    assert timeline.moves([*rows, *seen(moved)], 100, 200) == [(110, "gw-b", "m/x")]


def test_a_refusal_is_a_module_that_a_device_newly_lists_as_failed() -> None:
    refused = Heartbeat(
        session=1,
        seq=2,
        epoch=1,
        generation=1,
        modules={"k": HeldModule(module="m", state="failed", error="no memory")},
    )
    rows = seen((90, "gw-b", refused), (101, "gw-b", refused), (102, "gw-a", holding("m")), (103, "gw-a", refused))
    assert timeline.refusals(rows, 100) == [(103, "gw-a", "m")]


def test_bands_end_with_the_device_with_its_silence_and_with_the_module() -> None:
    rows = seen(
        (1, "gw-a", assignment("m", "n")),
        (2, "gw-a", holding("m", "n")),
        (3, "gw-a", holding("m")),
        (4, "gw-a", offline()),
        (20, "gw-a", assignment("m", generation=2, role="standby")),
        (20.5, "gw-a", holding("m")),
        (30, "gw-a", holding("m")),
    )
    assert {(b.module, b.role, b.from_s, b.to_s) for b in timeline.bands(rows, silence_s=3, end_s=40)} == {
        ("m", "active", 2, 4),
        ("n", "active", 2, 3),
        ("m", "standby", 20.5, 23.5),
        ("m", "standby", 30, 33),
    }


@pytest.mark.parametrize(
    ("expect", "broken"),
    [
        (Expect(served_at_end=False), "lost: 1, expected at most 0"),
        (Expect(lost=1), "the last request for u was not answered"),
        (Expect(lost=1, served_at_end=False, errors=0), "errors: 1, expected at most 0"),
        (Expect(lost=1, served_at_end=False, moves=0), "moves: 1, expected at most 0"),
        (Expect(lost=1, served_at_end=False, refusals_at_least=1), "refusals: 0, expected at least 1"),
        (Expect(lost=1, served_at_end=False, errors_at_least=2), "errors: 1, expected at least 2"),
        (
            Expect(lost=1, served_at_end=False, error_codes=(ErrorCode.OVERLOADED,)),
            "no_route: 1, expected none of this code",
        ),
        (
            Expect(
                lost=1, served_at_end=False, errors=1, moves=1, error_codes=(ErrorCode.NO_ROUTE,), errors_at_least=1
            ),
            None,
        ),
    ],
)
def test_what_is_expected_must_hold(expect: Expect, broken: str | None) -> None:
    outcomes = [answer(100, 101), Outcome("u", 101, 111, "lost"), Outcome("t", 102, 103, "error", "no_route")]
    outcomes.append(answer(104, 105))
    found = report(recorded(outcomes=outcomes, faults=[KILLED], sightings=A_DEATH), expect)
    assert found.ok == (broken is None)
    assert list(found.why_not) == ([broken] if broken else [])


def test_a_fault_that_did_not_come_means_that_it_does_not_hold() -> None:
    recording = Recording("x", 0, 0.0, 1.0, [answer(0, 1)], [], [], 0, troubles=["kill gw-a never came"])
    found = report(recording, Expect())
    assert (found.ok, list(found.why_not)) == (False, ["kill gw-a never came"])


@pytest.mark.parametrize(
    ("faults", "sentence"),
    [
        ([KILLED], None),  # replaced after 2.1 s
        ([KILLED, Injected(112.5, "start", "gw-a")], None),
        ([KILLED, Injected(111, "start", "gw-b")], None),  # another one
        ([Injected(105, "start", "gw-a"), KILLED], None),  # an earlier one
        (
            [KILLED, Injected(112, "start", "gw-a")],
            "kill of gw-a at 10.0 s: not replaced before it was over after 2.0 s",
        ),
        ([HUNG], None),
        ([replace(HUNG, for_s=2.0)], "pause of gw-a at 10.0 s: not replaced before it was over after 2.0 s"),
        ([replace(HUNG, kind="partition", for_s=2.0)], "partition of gw-a at 10.0 s: not replaced before it was over"),
        ([replace(HUNG, kind="slow")], "replaced: no fault took away"),
        ([replace(KILLED, target="gw-c")], "replaced: no fault took away"),  # serves nothing, and nobody misses it
        ([replace(KILLED, at_s=113, target="gw-c")], "kill of gw-c at 13.0 s: not replaced"),
        ([KILLED, replace(KILLED, at_s=111, target="gw-b")], "kill of gw-b at 11.0 s: not replaced"),
        ([Injected(110, "drain", "gw-a")], None),
        ([Injected(110, "drain", "gw-a"), Injected(112, "undrain", "gw-a")], "drain of gw-a at 10.0 s: not replaced"),
    ],
)
def test_who_serves_and_is_taken_away_is_replaced_before_the_fault_is_over(
    faults: list[Injected], sentence: str | None
) -> None:
    recording = recorded(outcomes=[answer(113, 114)], faults=faults, sightings=A_DEATH)
    assert report(recording, Expect()).ok  # nobody asked
    why_not = list(report(recording, Expect(replaced=True)).why_not)
    assert [text[: len(sentence or "")] for text in why_not] == ([sentence] if sentence else [])


def test_a_hung_device_that_serves_again_by_itself_was_not_replaced() -> None:
    again = seen((116.1, "gw-a", holding("m")), (116.2, "t", served_by("t", "gw-a", generation=2)))
    for rows in (A_DEATH[:3], [*A_DEATH[:5], *again]):  # nobody noticed it; noticed, and waited until it woke up
        recording = recorded(outcomes=[answer(109.9, 116.3)], faults=[HUNG], sightings=rows)
        (sentence,) = report(recording, Expect(replaced=True)).why_not
        assert sentence == "pause of gw-a at 10.0 s: not replaced before it was over after 6.0 s"


@pytest.mark.parametrize(("anew_s", "ok"), [(113.3, True), (117.0, False), (None, False)])
def test_a_leader_that_hangs_is_replaced_by_a_higher_epoch_before_it_wakes_up(anew_s: float | None, ok: object) -> None:
    rows = seen(
        (90, "t", served_by("t", "gw-a")), (90, "", leader(4, online=True)), (116.0, "", leader(4, online=True))
    )
    rows += seen((anew_s, "", leader(5, online=True))) if anew_s else []
    faults = [replace(HUNG, target="orchestrator")]
    recording = recorded(outcomes=[answer(118, 119)], faults=faults, sightings=sorted(rows, key=lambda s: s.at_s))
    assert report(recording, Expect(replaced=True)).ok is ok


def test_leaders_are_the_epochs_that_led_since_the_load_began() -> None:
    rows = seen(
        (80, "", leader(3, online=True)),  # of a scenario before
        (85, "", leader(4, online=True)),
        (99, "", leader(3, online=False)),  # late
        (110, "", leader(4, online=False)),
        (111, "", leader(3, online=True)),  # what a broker remembered
        (112, "", leader(4, online=True)),  # it had not gone
        (113, "", leader(6, online=False)),  # never led
    )
    assert timeline.leaders(rows, 100) == [4]
    rows += seen((114, "", leader(7, online=True)))
    assert timeline.leaders(rows, 100) == [4, 7]
    assert timeline.leaders(rows, 120) == [7]
    assert timeline.leaders([], 100) == []
    lie = seen((79, "", leader(2**50, online=True)))
    assert timeline.leaders([*lie, *rows], 100) == [4, 7], "it was overwritten since"
    recording = recorded(outcomes=[answer(113, 114)], sightings=rows)
    assert report(recording, Expect(leaders_at_least=2)).ok
    assert list(report(recording, Expect(leaders_at_least=3)).why_not) == ["leaders: 2, expected at least 3"]
