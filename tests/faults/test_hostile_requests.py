"""Requests with hostile properties, and retained ones, cost no connection and no other request. On real Mosquitto."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from structlog.testing import capture_logs

from broker.protocol.topics import RESULTS, TASK_REQUESTS
from broker.servers.mosquitto import MosquittoBroker
from broker.transport.connection import parse_url
from broker.transport.port import Delivery, LinkEvent, LinkUp, Outgoing, Transport
from orchestrator.service import Orchestrator
from s2m3.testbed.replay.stage import connected
from tests.builders import InlinePlanner
from tests.patience import until
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


def test_a_retained_request_is_answered_once_and_cleared_by_the_next_leader(
    site: SmallSite, sensor: Transport, recorder: Any, tmp_path: Path
) -> None:
    other = RESULTS.at(PREFIX, client="cam-2", request="1")
    sensor.publish(Outgoing(REQUESTS, PICTURE, response_topic=other, expiry_s=3_000, retain=True))
    sensor.publish(Outgoing(NAMED, PICTURE, expiry_s=3_000, retain=True))
    recorder.wait_for(lambda event: isinstance(event, Delivery) and "/cam-" in event.topic, count=2)
    standby = Orchestrator(parse_url(site.url), tmp_path / "other", settle_s=0.1, make_planner=InlinePlanner)
    with capture_logs() as log, running(standby):
        until(lambda: any(line["event"] == "waiting_as_standby" for line in log))
        site.orchestrator.stop()
        until(
            lambda: {REQUESTS, NAMED} == {each["topic"] for each in log if each["event"] == "retained_request_cleared"}
        )
        until(lambda: any(line["event"] == "route" and line["complete"] for line in log))
        assert site.answers()
        kept: list[LinkEvent] = []
        with connected(parse_url(site.url), kept.append, f"{REQUESTS}/#", "s2m3/v1/orchestrator/state"):
            until(lambda: [event for event in kept if isinstance(event, Delivery)])
            assert site.answers()
    assert not [event for event in kept if isinstance(event, Delivery) and event.retain and "requests" in event.topic]
    assert sorted(event.topic for event in recorder.deliveries if "/cam-" in event.topic) == [ANSWER, other]
