"""Requests with hostile properties, and retained ones, cost no connection and no other request. On real Mosquitto."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from structlog.testing import capture_logs

from broker.protocol.codec import encode
from broker.protocol.messages import MAX_FENCE, Assignment, DeviceState, Heartbeat, Route
from broker.protocol.topics import (
    DEVICE_ASSIGNMENT,
    DEVICE_HEARTBEAT,
    DEVICE_STATE,
    RESULTS,
    TASK_REQUESTS,
    TASK_ROUTE,
)
from broker.servers.mosquitto import MosquittoBroker
from broker.transport.connection import parse_url
from broker.transport.port import Delivery, LinkEvent, LinkUp, Outgoing, Transport
from orchestrator.decide import decide
from orchestrator.events import Event, HeartbeatReceived
from orchestrator.service import Orchestrator
from orchestrator.state import State
from s2m3.testbed.replay.stage import connected
from tests.builders import InlinePlanner, profile
from tests.patience import PATIENCE_S, until
from tests.threads import PICTURE, SmallSite, running, small_site

StartMosquitto = Callable[..., MosquittoBroker]
PREFIX = "s2m3/v1"
REQUESTS = TASK_REQUESTS.at(PREFIX, task="echo")
NAMED = f"{REQUESTS}/cam-1/1"
ANSWER = RESULTS.at(PREFIX, client="cam-1", request="1")


@pytest.fixture
def site(start_mosquitto: StartMosquitto, tmp_path: Path) -> Iterator[SmallSite]:
    """A site whose agent has subscribed: none of a test's requests is lost, or comes later, as a retained one."""
    with small_site(start_mosquitto().url, tmp_path / "state") as found:
        assert found.answers()
        yield found


@pytest.fixture
def sensor(site: SmallSite, recorder: Any) -> Iterator[Transport]:
    """A connection of a sensor, which hears all answers."""
    with connected(parse_url(site.url), recorder, f"{PREFIX}/clients/#") as transport:
        recorder.wait_for(LinkUp)
        yield transport


@pytest.mark.parametrize(
    "fields",
    [
        {"response_topic": f"{PREFIX}/clients" + "/a" * 220},
        {"response_topic": f"{PREFIX}/clients/" + "/" * 600},
        {"response_topic": f"{PREFIX}/clients/cam-1/results/1/2"},
        {"response_topic": f"{PREFIX}/clients/" + "a" * 60_000},
        {"response_topic": ANSWER, "correlation": bytes(65_535)},
        {"response_topic": ANSWER, "content_type": "image/" + "x" * 65_000},
        {"response_topic": ANSWER, "correlation": bytes(65_535), "content_type": "é" * 32_000},
    ],
    ids=["220 levels", "empty levels", "one level more", "long", "correlation", "content type", "both"],
)
def test_odd_properties_of_a_request_end_no_connection(
    site: SmallSite, sensor: Transport, fields: dict[str, Any]
) -> None:
    with capture_logs() as log:
        for number in range(5):
            sensor.publish(Outgoing(REQUESTS, PICTURE + bytes([number]), expiry_s=20, **fields))
            sensor.publish(Outgoing(f"{REQUESTS}/cam-{number}/1", PICTURE, expiry_s=20, **fields))
            assert site.answers()
    assert not [line for line in log if line["event"] in {"link_down", "event_failed", "action_failed"}]


def test_an_answer_comes_with_the_largest_correlation_data(site: SmallSite, sensor: Transport, recorder: Any) -> None:
    correlation = bytes(range(256)) * 255
    sensor.publish(Outgoing(REQUESTS, PICTURE, response_topic=ANSWER, correlation=correlation, expiry_s=60))
    assert recorder.wait_for(Delivery).correlation == correlation
    assert site.answers()


def test_thousands_of_user_properties_before_a_large_payload_hold_up_nobody(site: SmallSite) -> None:
    """The client library would copy the payload for each of them."""
    address = parse_url(site.url)
    hostile = paho.Client(CallbackAPIVersion.VERSION2, "hostile", protocol=paho.MQTTv5)
    hostile.connect(address.host, address.port)
    hostile.loop_start()
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.UserProperty = [("a", "b")] * 15_000
    with capture_logs() as log:
        sent = [hostile.publish(NAMED, bytes(15 * 1024 * 1024), 1, properties=properties) for _ in range(2)]
        for each in sent:
            each.wait_for_publish()
        assert site.answers()
    hostile.loop_stop()
    assert not [line for line in log if line["event"] == "link_down"]


def is_kept(event: LinkEvent) -> bool:
    return isinstance(event, Delivery) and event.retain and "requests" in event.topic


def test_a_retained_request_is_answered_once_and_cleared_by_the_leader_at_once(
    site: SmallSite, sensor: Transport, recorder: Any
) -> None:
    kept: list[LinkEvent] = []
    with capture_logs() as log:
        for number in range(20):
            sensor.publish(Outgoing(f"{REQUESTS}/cam-1/{number}", PICTURE, expiry_s=3_000, retain=True))
        until(lambda: len([line for line in log if line["event"] == "retained_request_cleared"]) >= 20)
        recorder.wait_for(lambda event: isinstance(event, Delivery) and "/cam-1/" in event.topic, count=20)
        assert site.answers()
    with connected(parse_url(site.url), kept.append, f"{REQUESTS}/#", f"{PREFIX}/orchestrator/state"):
        until(lambda: [event for event in kept if isinstance(event, Delivery)])
        assert site.answers()
    assert not [event for event in kept if is_kept(event)]
    cleared = [line for line in log if line["event"] == "retained_request_cleared"]
    assert len(cleared) == 20, "it clears no clearing message of its own"


def test_a_retained_request_that_no_leader_saw_is_answered_once_and_cleared_by_the_next_one(
    site: SmallSite, sensor: Transport, recorder: Any, tmp_path: Path
) -> None:
    other = RESULTS.at(PREFIX, client="cam-2", request="1")
    with capture_logs() as log:
        site.orchestrator.stop()
        until(lambda: any(line["event"] == "stopped" for line in log))
    sensor.publish(Outgoing(REQUESTS, PICTURE, response_topic=other, expiry_s=3_000, retain=True))
    sensor.publish(Outgoing(NAMED, PICTURE, expiry_s=3_000, retain=True))
    recorder.wait_for(lambda event: isinstance(event, Delivery) and "/cam-" in event.topic, count=2)
    following = Orchestrator(parse_url(site.url), tmp_path / "other", settle_s=0.1, make_planner=InlinePlanner)
    with capture_logs() as log, running(following):
        until(
            lambda: {REQUESTS, NAMED} == {each["topic"] for each in log if each["event"] == "retained_request_cleared"}
        )
        until(lambda: any(line["event"] == "route" and line["complete"] for line in log))
        assert site.answers()
        kept: list[LinkEvent] = []
        with connected(parse_url(site.url), kept.append, f"{REQUESTS}/#", "s2m3/v1/orchestrator/state"):
            until(lambda: [event for event in kept if isinstance(event, Delivery)])
            assert site.answers()
    assert not [event for event in kept if is_kept(event)]
    assert sorted(event.topic for event in recorder.deliveries if "/cam-" in event.topic) == [ANSWER, other]


def test_an_assignment_and_a_route_of_a_huge_generation_that_a_stranger_publishes_block_nobody(
    site: SmallSite, sensor: Transport
) -> None:
    """In the leader's own term, on a broker without access rules."""
    before = site.orchestrator._state
    assert before is not None
    generation = MAX_FENCE // 4
    stranger = Assignment(epoch=before.epoch, generation=generation, modules=())
    nobody = Route(task="echo", epoch=before.epoch, generation=generation, group=0, unavailable="a lie")
    sensor.publish(Outgoing(DEVICE_ASSIGNMENT.at(PREFIX, device="gw-a"), encode(stranger), retain=True))
    sensor.publish(Outgoing(TASK_ROUTE.at(PREFIX, task="echo"), encode(nobody), retain=True))
    agent = site.agents["gw-a"]._state
    until(lambda: agent.fence[1] > generation and agent.ready and agent.routes["echo"].complete)
    assert site.ask()
    assert site.orchestrator._state is not None
    assert site.orchestrator._state.epoch == before.epoch, "no device's word ends a term"


Lie = Callable[[Any], tuple[str, bytes]]
"""The topic and the payload of what a stranger writes once, from the orchestrator's state."""


def _of_route(**lie: Any) -> Lie:
    def make(leader: Any) -> tuple[str, bytes]:
        return TASK_ROUTE.at(PREFIX, task="echo"), encode(leader.routes["echo"].model_copy(update=lie))

    return make


def _of_device(**lie: Any) -> Lie:
    def make(leader: Any) -> tuple[str, bytes]:
        known = leader.cluster.devices["gw-a"]
        said = DeviceState(status="online", session=known.session, profile=known.profile)
        return DEVICE_STATE.at(PREFIX, device="gw-a"), encode(said.model_copy(update=lie))

    return make


def _of_heartbeat(leader: Any) -> tuple[str, bytes]:
    known = leader.cluster.devices["gw-a"]
    said = Heartbeat(session=known.session, seq=MAX_FENCE, epoch=known.fence[0], generation=known.fence[1])
    return DEVICE_HEARTBEAT.at(PREFIX, device="gw-a"), encode(said)


def _of_assignment(leader: Any) -> tuple[str, bytes]:
    said = leader.assignments["gw-a"].model_copy(update={"modules": ()})
    return DEVICE_ASSIGNMENT.at(PREFIX, device="gw-a"), encode(said)


LIES: dict[str, Lie] = {
    "a route of the same generation": _of_route(front_door=(), nodes={}, unavailable="a lie"),
    "a route of an older generation": _of_route(generation=0, front_door=("nobody",)),
    "a route of an earlier term": _of_route(epoch=0, front_door=("nobody",)),
    "the device's end": _of_device(status="offline", profile=None),
    "its drain": _of_device(status="draining"),
    "a birth of a device too small": _of_device(profile=profile(1)),
    "a birth of another session": _of_device(session=1, profile=profile(1)),
    "a heartbeat with the last number": _of_heartbeat,
    "an assignment of nothing": _of_assignment,
}


@pytest.mark.parametrize("name", LIES)
def test_what_a_stranger_writes_once_in_anothers_name_is_put_right(
    site: SmallSite, sensor: Transport, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a broker without access rules: its owner says the truth again, and the site knows its device and serves."""
    leader, agent = site.orchestrator, site.agents["gw-a"]
    topic, payload = LIES[name](leader._state)
    heard: list[bytes] = []
    counted = threading.Event()

    def count(state: State, event: Event, now_s: float) -> Any:
        decided = decide(state, event, now_s)
        if isinstance(event, HeartbeatReceived) and event.message.seq == MAX_FENCE:
            counted.set()
        return decided

    monkeypatch.setattr("orchestrator.service.decide", count)

    def hear(event: LinkEvent) -> None:
        if isinstance(event, Delivery):
            heard.append(event.payload)

    def is_right() -> bool:
        state = leader._state
        assert state is not None
        known, route = state.cluster.devices.get("gw-a"), state.routes.get("echo")
        if known is None or route is None or not (known.alive and known.status == "online" and agent._state.ready):
            return False
        return known.session == agent._session and known.seq < MAX_FENCE and agent._state.routes.get("echo") == route

    with connected(parse_url(site.url), hear, topic):
        is_kept = "heartbeat" not in name
        sensor.publish(Outgoing(topic, payload, qos=1 if is_kept else 0, retain=is_kept))
        until(lambda: payload in heard and heard[-1] != payload)
        if not is_kept:
            assert counted.wait(PATIENCE_S)
    until(is_right)
    until(site.answers)
