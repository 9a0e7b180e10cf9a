"""A sensor that names itself in its topic: one line of ``mosquitto_pub``, no properties, over both brokers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from broker.transport.connection import parse_url
from broker.transport.port import Delivery
from s2m3.catalogue import load_task
from s2m3.reference.pictures import picture
from s2m3.testbed.replay.stage import connected
from s2m3.testbed.site import Site
from tests.acceptance.conftest import agents
from tests.patience import PATIENCE_S

Publish = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module", params=["mosquitto", "embedded"])
def served(request: pytest.FixtureRequest) -> Iterator[Site]:
    """One device that serves one task."""
    with Site(request.param, agents(gw_a="160MiB")) as running:
        running.serve([load_task("pocket/classify")])
        yield running


@pytest.fixture
def publish(served: Site, recorder: Any) -> Iterator[Publish]:
    """Publish with ``mosquitto_pub``; returns the next answers, each with its topic."""
    address = parse_url(served.url)
    where = ("-h", address.host, "-p", str(address.port))

    def run(*requests: tuple[str, ...], client: str, task: str = "classify", answers: int = 1) -> list[dict[str, Any]]:
        recorder.clear()
        for name, *options in requests:
            topic = f"s2m3/v1/tasks/{task}/requests/{client}/{name}"
            subprocess.run(["mosquitto_pub", *where, "-t", topic, *options], check=True, timeout=PATIENCE_S)
        recorder.wait_for(Delivery, count=answers)
        return [json.loads(each.payload) | {"topic": each.topic} for each in recorder.deliveries]

    with connected(served.connection, recorder, "s2m3/v1/clients/#"):
        yield run


def photo(name: str) -> tuple[str, str]:
    """The options that send a real photograph."""
    return "-f", str(picture(name).path)


@pytest.mark.parametrize("quality", ["0", "1"])
def test_a_picture_alone_is_a_request_and_the_answer_has_the_sensors_own_names(publish: Publish, quality: str) -> None:
    (answer,) = publish(("1", "-V", "5", "-q", quality, *photo("rocket.jpg")), client="ESP_1A2B")
    assert answer["topic"] == "s2m3/v1/clients/ESP_1A2B/results/1"
    assert answer["revision"] == load_task("pocket/classify").revision
    assert answer["answer"]["label"] == "missile"


def test_a_sensor_may_call_each_of_its_requests_1(publish: Publish) -> None:
    pictures = ("rocket.jpg", "coffee.png", "rocket.jpg")
    read = [publish(("1", "-V", "5", "-q", "1", *photo(name)), client="door cam")[0] for name in pictures]
    assert {each["topic"] for each in read} == {"s2m3/v1/clients/door cam/results/1"}
    assert [each["answer"]["label"] for each in read] == ["missile", "espresso", "missile"]
    assert len({each["request"] for each in read}) == 2


def test_an_error_reaches_the_sensor_that_named_itself(publish: Publish) -> None:
    (wrong,) = publish(("x", "-V", "5", "-q", "1", "-m", "no picture"), client="Kamera-Süd")
    assert wrong["topic"] == "s2m3/v1/clients/Kamera-Süd/results/x"
    assert wrong["error"]["code"] == "bad_input"
    (unknown,) = publish(("x", "-V", "5", "-m", "y"), client="Kamera-Süd", task="nope")
    assert unknown["error"]["code"] == "no_route"


def test_another_response_topic_is_ignored(publish: Publish) -> None:
    elsewhere = ("-D", "publish", "response-topic", "s2m3/v1/clients/other/results/1")
    (answer,) = publish(("7", "-V", "5", "-q", "1", *photo("rocket.jpg"), *elsewhere), client="cam-1")
    assert answer["topic"] == "s2m3/v1/clients/cam-1/results/7"


@pytest.mark.parametrize("served", ["mosquitto"], indirect=True)  # the embedded broker speaks MQTT 5 only
def test_a_sensor_of_mqtt_3_1_1_needs_no_properties(publish: Publish) -> None:
    (answer,) = publish(("1", "-V", "mqttv311", "-q", "1", *photo("rocket.jpg")), client="plc")
    assert answer["answer"]["label"] == "missile"


def test_requests_of_both_forms_are_each_answered_once(served: Site, publish: Publish) -> None:
    """One share group reads both topics: two filters in it would lose the second's messages on the embedded broker."""
    forms = [(str(n), "-V", "5", "-q", "1", *photo("rocket.jpg")) for n in range(5)]
    read = publish(*forms, client="mixed", answers=5)
    assert sorted(each["topic"].rsplit("/", 1)[1] for each in read) == list("01234")
    responses = [served.client.request("classify", {"image": picture("coffee.png").path.read_bytes()}) for _ in "ab"]
    assert [response.ok for response in responses] == [True, True]
