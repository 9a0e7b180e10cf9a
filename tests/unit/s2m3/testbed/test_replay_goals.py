"""The replay's pure parts: the goals' table, flatness, the soak's faults, hostile messages, the order of the load."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from broker.protocol.codec import MAX_CONTROL_BYTES, MAX_INPUT_BYTES, decode, decode_tensors
from broker.protocol.errors import RemoteProtocolError
from broker.protocol.messages import Assignment
from broker.transport.port import MAX_PACKET_BYTES, Delivery
from s2m3.bench.flatness import Sample, judge, slope
from s2m3.bench.soak import draw_scenario, judge_errors, with_errors
from s2m3.testbed.replay import goals
from s2m3.testbed.replay.goals import Played
from s2m3.testbed.replay.hostile import OVERSIZED_EVERY, Hostile
from s2m3.testbed.replay.library import in_order, load_scenario, requests_for
from s2m3.testbed.replay.recording import FaultReport, Report

MB = 10**6


def fault(kind: str, **more: Any) -> FaultReport:
    fields: dict[str, Any] = {
        "at_s": 1.0,
        "kind": kind,
        "target": "gw-a",
        "affected": ["classify"],
        "over_after_s": None,
        "detected_after_s": None,
        "detected_by": None,
        "replaced_after_s": None,
        "first_answer_after_s": None,
        "in_flight": 0,
        "moves": 0,
        "load_s": None,
        "stood_by": None,
    }
    return FaultReport(**{**fields, **more})


def played(
    *faults: FaultReport, lost: int = 0, wrong: int = 0, refusals: int = 0, errors: Mapping[str, int] | None = None
) -> Played:
    found = Report(
        name="x",
        sent=10,
        answered=10,
        errors=errors or {},
        lost=lost,
        wrong=wrong,
        duplicates=0,
        latency_s={},
        faults=faults,
        moves=0,
        refusals=refusals,
        leaders=1,
        seed=0,
        ok=True,
    )
    return Played(load_scenario("hung-device"), found)


def judged(library: list[Played], **campaigns: Played) -> dict[str, goals.Goal]:
    named = {name.replace("_", "-"): each for name, each in campaigns.items()}
    return {goal.name: goal for goal in goals.judge([*library, *named.values()], named)}


def test_goals_that_are_met() -> None:
    kill = fault("kill", detected_after_s=0.1, first_answer_after_s=0.3, stood_by=True)
    loaded = fault("kill", detected_after_s=0.1, first_answer_after_s=1.9, load_s=1.6, stood_by=False)
    idle = fault("kill", detected_after_s=0.1)  # it served nothing: nobody waited for an answer
    refused = fault("kill", detected_after_s=0.1, first_answer_after_s=9.0, load_s=1.6, stood_by=False)
    no_room = fault("kill", detected_after_s=0.1, first_answer_after_s=6.3, load_s=0.1, stood_by=False)
    found = judged(
        [
            played(fault("restart", target="broker"), kill, loaded, idle),
            played(refused, refusals=1),
            played(no_room, errors={"no_route": 8}),
        ],
        hung=played(fault("pause", detected_after_s=3.4)),
    )
    assert all(goal.holds for goal in found.values()), found


@pytest.mark.parametrize(
    ("part", "library", "campaigns"),
    [
        ("lost", [played(lost=1)], {}),
        ("differ", [played(wrong=1)], {}),
        ("will", [played(fault("kill", detected_after_s=0.15))], {}),
        ("will", [played(fault("kill"))], {}),  # never detected
        ("with a standby", [played(fault("kill", first_answer_after_s=0.4, stood_by=True))], {}),
        ("with a standby", [played(fault("kill", stood_by=True))], {}),
        ("with a standby", [played(fault("kill", first_answer_after_s=0.1, stood_by=False))], {}),
        (
            "without a standby",
            [played(fault("kill", detected_after_s=0.1, first_answer_after_s=2.1, load_s=1.6, stood_by=False))],
            {},
        ),
        ("without a standby", [played(fault("kill", detected_after_s=0.1, load_s=1.6, stood_by=False))], {}),
        ("without a standby", [played(fault("kill", detected_after_s=0.1, stood_by=False))], {}),
        ("hung", [], {"hung": played(fault("pause", detected_after_s=3.6))}),
        ("hung", [], {"hung": played(fault("pause"))}),
        ("hung", [], {"hung": played(fault("pause", detected_after_s=2.0)), "hung_idle": played(fault("pause"))}),
        ("restart", [played(fault("restart", target="orchestrator", moves=1))], {}),
    ],
)
def test_goals_that_are_missed_or_not_measured(part: str, library: list[Played], campaigns: dict[str, Played]) -> None:
    found = [goal for name, goal in judged(library, **campaigns).items() if part in name]
    assert found
    assert not any(goal.holds for goal in found)


def test_detection_is_told_apart_by_signal_in_seconds_and_in_the_replays_own_intervals() -> None:
    told = [fault("kill", detected_after_s=0.1 * n, detected_by="will") for n in range(1, 11)]
    told += [fault("pause", detected_after_s=3.0, detected_by="heartbeats"), fault("pause")]
    told += [fault("kill", detected_after_s=9.0, detected_by="will", target="orchestrator")]
    will, timeouts, heartbeats = goals.detections([played(*told)])
    assert (will.signal, will.samples, will.p50_s, will.longest_s) == ("will", 10, 0.5, 1.0)
    assert (timeouts.signal, timeouts.samples, timeouts.p95_s) == ("timeouts", 0, None)
    assert (heartbeats.samples, heartbeats.longest_intervals) == (1, 3.0)


def life(*, growth_bytes_per_s: float = 0.0, threads: int = 9, files: int = 20) -> list[Sample]:
    chance = random.Random(1)  # noqa: S311 - noise
    samples = []
    for step in range(200):
        noise = chance.uniform(-2, 2) * MB + (80 * MB if step % 37 == 0 else 0)  # a picture is decoded now and then
        late = step >= 150
        memory = round(500 * MB + noise + growth_bytes_per_s * 2.0 * step)
        samples.append(Sample(2.0 * step, memory, threads if late else 9, files if late else 20))
    return samples


def test_a_process_that_only_breathes_is_flat() -> None:
    verdict = judge("gw-a", life())
    assert verdict is not None
    assert verdict.flat
    assert abs(verdict.growth_bytes) < MB


@pytest.mark.parametrize(
    "grown", [life(growth_bytes_per_s=0.08 * MB), life(threads=10), life(files=22)], ids=["memory", "threads", "files"]
)
def test_a_process_that_grows_is_not(grown: list[Sample]) -> None:
    verdict = judge("gw-a", grown)
    assert verdict is not None
    assert not verdict.flat


def test_a_start_s_growth_is_no_leak_and_a_short_life_says_nothing() -> None:
    warm = [Sample(float(step), min(step, 20) * 10 * MB, 9, 20) for step in range(200)]
    verdict = judge("gw-a", warm)
    assert verdict is not None
    assert verdict.flat
    assert judge("gw-a", life()[:20]) is None
    assert judge("gw-a", life(), least_s=2.0 * 199) is not None
    assert judge("gw-a", life(), least_s=2.0 * 200) is None


def test_a_module_that_was_placed_there_is_no_leak() -> None:
    placed = [
        replace(sample, memory_bytes=sample.memory_bytes + held, held_bytes=held)
        for sample, held in zip(life(), [0] * 120 + [90 * MB] * 80, strict=True)
    ]
    verdict = judge("gw-a", placed)
    assert verdict is not None
    assert verdict.flat
    assert verdict.resident_growth_bytes > 10 * MB


def placed(lived: list[Sample], memory_bytes: int, held_bytes: int, *, late: bool) -> list[Sample]:
    """The same life with a module in its last part, or in its first."""
    return [
        replace(each, memory_bytes=each.memory_bytes + memory_bytes, held_bytes=held_bytes)
        if (step >= 120) is late
        else each
        for step, each in enumerate(lived)
    ]


def test_what_a_module_works_on_comes_and_goes_with_it() -> None:
    verdict = judge("gw-a", placed(life(), memory_bytes=65 * MB, held_bytes=25 * MB, late=True))
    assert verdict is not None
    assert verdict.flat
    assert verdict.resident_growth_bytes > 20 * MB > 4 * MB > abs(verdict.growth_bytes)


def test_a_module_that_goes_hides_no_leak() -> None:
    verdict = judge("gw-a", placed(life(growth_bytes_per_s=0.08 * MB), 65 * MB, 25 * MB, late=False))
    assert verdict is not None
    assert not verdict.flat


def test_the_slope_is_that_of_most_pairs() -> None:
    assert slope([0, 1, 2, 3, 4], [0, 2, 4, 6, 1000]) == 2


def test_a_soak_is_drawn_by_its_seed_alone_and_ends_processes_only_in_its_first_part() -> None:
    drawn = draw_scenario(1800, 3)
    assert drawn == draw_scenario(1800, 3)
    assert drawn != draw_scenario(1800, 4)
    assert len(drawn.faults) > 60
    deaths = [fault.at_s for fault in drawn.faults if fault.kind in {"kill", "restart"}]
    assert deaths
    assert max(deaths) < 0.4 * 1800
    killed = sum(fault.kind == "kill" for fault in drawn.faults)
    assert killed == sum(fault.kind == "start" for fault in drawn.faults)


def test_a_soak_restarts_the_broker_gently_about_every_second_time() -> None:
    drawn = [fault for seed in range(20) for fault in draw_scenario(1800, seed).faults if fault.restart]
    assert not any(fault.gently for fault in drawn if fault.restart == "orchestrator")
    gently = [fault.gently is True for fault in drawn if fault.restart == "broker"]
    assert 0.3 < sum(gently) / len(gently) < 0.7


@pytest.mark.parametrize(
    ("errors", "broken"),
    [
        ({}, []),
        ({"overloaded": 4, "no_route": 6}, []),
        ({"overloaded": 5, "no_route": 6}, ["no_route or overloaded: 11, expected at most 1 % of 1000"]),
        ({"deadline_exceeded": 1}, ["any other error: 1, expected at most 0"]),
        ({"module_failed": 1, "bad_input": 2}, ["any other error: 3, expected at most 0"]),
    ],
)
def test_in_a_soak_one_request_in_a_hundred_may_be_shed_and_none_may_fail(
    errors: dict[str, int], broken: list[str]
) -> None:
    found = replace(played().report, sent=1000, errors=errors)
    judged = with_errors(found, judge_errors(found))
    assert (judged.ok, list(judged.why_not)) == (not broken, broken)
    assert with_errors(replace(found, ok=False, why_not=["lost"]), judge_errors(found)).why_not == ["lost", *broken]


def test_hostile_messages_are_drawn_by_a_seed_and_are_of_every_sort() -> None:
    real = Delivery("s2m3/v1/tasks/classify/requests", b"jpeg", response_topic="s2m3/v1/clients/c/results/1")

    def made() -> list[Any]:
        hostile = Hostile("s2m3/v1", "gw-a", ["classify"], seed=7)
        return [hostile.next([real]) for _ in range(600)]

    messages = made()
    # (safetensors writes the metadata of equal messages in any order)
    assert [(m.topic, len(m.payload)) for m in messages] == [(m.topic, len(m.payload)) for m in made()]
    large = [message for message in messages if len(message.payload) > MAX_CONTROL_BYTES]
    assert len(large) == 600 // OVERSIZED_EVERY
    assert {len(message.payload) > MAX_INPUT_BYTES for message in large} == {True, False}
    assert all(message.packet_bytes <= MAX_PACKET_BYTES for message in large)  # the broker takes and delivers them
    assert sum(message.payload == b"jpeg" for message in messages) > 10  # duplicated
    stale = refused = 0
    for message in messages:
        if message.topic.endswith("/assignment"):
            try:
                stale += decode(Assignment, message.payload).epoch == 0
            except RemoteProtocolError:
                refused += 1
        elif "/tensors/" in message.topic:
            try:
                stale += decode_tensors(message.payload)[0].epoch == 0
            except RemoteProtocolError:
                refused += 1
    assert stale > 10
    assert refused > 30
    lies = [message for message in messages if message.topic.endswith(("/route", "/orchestrator/state"))]
    assert sum(b'"epoch":900' in message.payload for message in lies) > 10  # near 2^53
    assert sum(b'"epoch": 9999' in message.payload for message in lies) > 3
    assert {message.retain for message in messages} == {True, False}
    assert sum("/devices/hostile/" in message.topic for message in messages) > 20


def test_the_load_asks_the_tasks_in_turn_and_every_request_before_any_again() -> None:
    scenario = load_scenario("slow-device").changed(tasks=["pocket/classify", "pocket/vqa"])
    requests = requests_for(scenario)
    asked = list(islice(in_order(requests, seed=7), 12))
    assert [request.task for request in asked] == ["classify", "vqa"] * 6
    assert set(asked[0:8:2]) == set(requests["classify"])
    assert set(asked[1::2]) == set(requests["vqa"])
    assert asked == list(islice(in_order(requests, seed=7), 12))
    assert asked != list(islice(in_order(requests, seed=8), 12))
