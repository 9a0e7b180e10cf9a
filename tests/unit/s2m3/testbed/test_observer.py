"""The state messages that an observer keeps, without a broker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from broker.protocol.codec import encode
from broker.protocol.messages import MAX_EPOCH_JUMP, Heartbeat, OrchestratorState, Route
from broker.protocol.topics import DEVICE_HEARTBEAT, ORCHESTRATOR_STATE, TASK_ROUTE
from broker.transport.connection import Connection
from broker.transport.port import Delivery
from s2m3 import message_room
from s2m3.testbed import observer
from s2m3.testbed.observer import Observer
from tests.builders import encoder_route, heartbeat

READY = {"k": {"module": "m", "state": "ready", "memory_bytes": 1}}


class Nowhere:
    """A transport that reaches no broker."""

    def __init__(self, *_: object, **__: object) -> None:
        self.subscribed: tuple[str, ...] = ()

    def subscribe(self, *filters: str) -> None:
        self.subscribed = filters

    def start(self) -> None:
        """Connect to nothing."""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Observer:
    monkeypatch.setattr(observer, "connect", Nowhere)
    return Observer(Connection("nowhere"))


def report(seen: Observer, seq: int, **fields: Any) -> Heartbeat:
    """Let a heartbeat arrive; returns what is kept of it."""
    message = heartbeat(seq, progress=seq, **fields)
    seen._put(Delivery(DEVICE_HEARTBEAT.at(seen.prefix, device="gw-a"), encode(message)))
    seen.look()
    assert seen.heartbeats["gw-a"] == message, "the newest is known as it is"
    kept = seen.sightings[-1].message
    assert isinstance(kept, Heartbeat)
    return kept


def test_heartbeats_that_report_the_same_are_kept_once(seen: Observer) -> None:
    first = report(seen, 1, modules=READY)
    assert report(seen, 2, modules=READY) is first
    suspicious = report(seen, 3, modules=READY, suspects={"gw-b": 0.5})
    assert suspicious.suspects
    assert report(seen, 4, modules=READY, suspects={"gw-b": 1.5}) is suspicious
    assert not report(seen, 5).modules
    assert report(seen, 6, modules=READY, session=2).session == 2
    assert [sighting.id for sighting in seen.sightings] == ["gw-a"] * 6


def test_what_arrived_in_time_counts_where_the_process_is_too_slow_to_look_at_it(seen: Observer) -> None:
    for seq in (1, 2):
        seen._put(Delivery(DEVICE_HEARTBEAT.at(seen.prefix, device="gw-a"), encode(heartbeat(seq, progress=seq))))
    assert seen.wait_for(lambda site: "gw-a" in site.heartbeats and site.heartbeats["gw-a"].seq == 2, 0.0)
    assert not seen.wait_for(lambda site: "gw-b" in site.heartbeats, 0.0)


def test_time_in_which_the_process_stood_still_does_not_count(seen: Observer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its network's thread stood still, too: what came meanwhile is read a moment later."""
    now_s, waits = 100.0, list[float]()

    def get(wait_s: float) -> tuple[float, Delivery] | None:
        nonlocal now_s
        waits.append(wait_s)
        now_s += 60.0 if len(waits) == 1 else wait_s
        arrives = len(waits) == 3
        return (
            (now_s, Delivery(DEVICE_HEARTBEAT.at(seen.prefix, device="gw-a"), encode(heartbeat()))) if arrives else None
        )

    monkeypatch.setattr(observer, "time", SimpleNamespace(monotonic=lambda: now_s))
    monkeypatch.setattr(seen._mailbox, "get", get)
    assert seen.wait_for(lambda site: "gw-a" in site.heartbeats, 1.0)
    began_s = now_s
    assert not seen.wait_for(lambda site: "gw-b" in site.heartbeats, 1.0)
    assert now_s - began_s == 1.0


def test_stale_messages_are_no_evidence(seen: Observer) -> None:
    new = encoder_route("t", ("gw-a",), epoch=2, generation=1)
    old = encoder_route("t", ("gw-b",), epoch=1, generation=9)
    for route in (new, old, new):
        seen._put(Delivery(TASK_ROUTE.at(seen.prefix, task="t"), encode(route)))
    seen.look()
    assert [sighting.message for sighting in seen.sightings] == [new, new]
    assert seen.routes == {"t": new}


def test_a_plan_of_the_leaders_term_replaces_one_of_a_term_that_nobody_leads(seen: Observer) -> None:
    true, lie = (
        encoder_route("t", (device,), epoch=epoch, generation=1) for device, epoch in (("gw-a", 2), ("x", 1002))
    )

    def hear(*messages: Route | OrchestratorState) -> Route:
        for said in messages:
            of_task = isinstance(said, Route)
            place = TASK_ROUTE.at(seen.prefix, task="t") if of_task else ORCHESTRATOR_STATE.at(seen.prefix)
            seen._put(Delivery(place, encode(said)))
        seen.look()
        return seen.routes["t"]

    leader = OrchestratorState(epoch=2, online=True, session=1)
    assert hear(true, lie, true) == lie, "the term may have begun, and its leader be heard later"
    assert hear(leader) == lie
    assert hear(true) == true
    assert hear(lie, leader.model_copy(update={"epoch": 1002})) == lie
    assert hear(true) == lie, "a late one of the term before"


def test_the_plans_of_a_leader_that_a_lie_drove_beyond_a_million_terms_are_shown(seen: Observer) -> None:
    far = encoder_route("t", ("gw-a",), epoch=MAX_EPOCH_JUMP + 1, generation=1)
    seen._put(Delivery(TASK_ROUTE.at(seen.prefix, task="t"), encode(far)))
    seen.look()
    assert seen.routes == {"t": far}


def test_the_oldest_sightings_are_dropped_in_the_end(seen: Observer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "SIGHTINGS", 10)
    for seq in range(100):
        report(seen, seq, session=seq)
    assert 5 <= len(seen.sightings) <= 10
    last = seen.sightings[-1].message
    assert isinstance(last, Heartbeat)
    assert last.session == 99


def test_what_is_kept_of_a_hostile_site_is_bounded_and_told(seen: Observer, monkeypatch: pytest.MonkeyPatch) -> None:
    own = encoder_route("own", ("gw-a",))
    size_bytes = len(encode(own))
    monkeypatch.setattr(message_room, "MESSAGES", 10)
    monkeypatch.setattr(message_room, "MESSAGES_BYTES", 20 * size_bytes)
    for number in range(30):
        route = encoder_route(f"t-{number}", ("gw-a",))
        seen._put(Delivery(TASK_ROUTE.at(seen.prefix, task=route.task), encode(route)))
    seen.look()
    assert (len(seen.routes), seen.left_out) == (10, 20)
    for payload in (b"", encode(own.model_copy(update={"task": "t-1", "unavailable": "x" * 11 * size_bytes}))):
        seen._put(Delivery(TASK_ROUTE.at(seen.prefix, task="t-1"), payload))
        seen._put(Delivery(TASK_ROUTE.at(seen.prefix, task="own"), encode(own)))
    seen.look()
    assert ("t-1" in seen.routes, "own" in seen.routes, seen.left_out) == (False, True, 21)
