"""Requests whose topic names their client, over a real Mosquitto with access rules: who may ask, and where."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from broker.client import Client
from broker.protocol.codec import encode
from broker.protocol.messages import Result
from broker.protocol.topics import (
    CLIENT_REQUESTS,
    RESULTS,
    TASK_ROUTE,
    answer_topic,
    prefix_of,
    read,
    share_group_filter,
)
from broker.servers.mosquitto import MosquittoBroker
from broker.transport.connect import connect
from broker.transport.connection import parse_url
from broker.transport.port import Delivery, Denied, LinkEvent, LinkUp, Outgoing
from tests.builders import able, route, route_node

PREFIX = prefix_of()
ROUTE = encode(route("t", {"node": route_node("m", ("image",), able("gw-a"))}))
GROUP = share_group_filter(PREFIX, "t", 1, 1)
RULES = (
    "user gw-a\ntopic readwrite s2m3/v1/#\n"
    "user cam-1\ntopic read s2m3/v1/tasks/+/route\ntopic read s2m3/v1/clients/cam-1/results/#\n"
)
OWN_TOPIC = RULES + "topic write s2m3/v1/tasks/+/requests/cam-1/#\n"
PLAIN_TOPIC = RULES + "topic write s2m3/v1/tasks/+/requests\n"


class FrontDoor:
    """A front door that reads its requests by ``group`` and answers each one at its topic."""

    def __init__(self, stack: ExitStack, url: str, recorder: Any, group: str) -> None:
        self.requests: list[str] = []
        self._recorder = recorder
        self.transport = connect(parse_url(url.replace("//", "//gw-a:x@")), client_id="gw-a", inbox=self._receive)
        stack.callback(self.transport.close)
        self.transport.subscribe(group)
        self.transport.start()
        recorder.wait_for(LinkUp)
        self.transport.publish(Outgoing(TASK_ROUTE.at(PREFIX, task="t"), ROUTE, retain=True))

    def _receive(self, event: LinkEvent) -> None:
        self._recorder(event)
        incoming = read(PREFIX, event.topic, event.payload) if isinstance(event, Delivery) else None
        if incoming is None or not isinstance(event, Delivery):
            return
        self.requests.append(event.topic)
        name = event.correlation.decode() if event.correlation else "r"
        answer = encode(Result(request=name, task="t", answer={"label": "a cat"}))
        topic = answer_topic(PREFIX, incoming, event.response_topic)
        self.transport.publish(Outgoing(topic, answer, content_type="application/json"))


@pytest.fixture
def start(start_mosquitto: Callable[..., MosquittoBroker], tmp_path: Path, recorder: Any) -> Any:
    """Starts a broker with rules and a front door; returns the door and the URL of the sensor ``cam-1``."""
    with ExitStack() as stack:

        def run(rules: str, group: str = GROUP) -> tuple[FrontDoor, str]:
            file = tmp_path / "acl"
            file.write_text(rules)
            url = start_mosquitto(f"acl_file {file}").url
            return FrontDoor(stack, url, recorder, group), url.replace("//", "//cam-1:x@")

        yield run


def test_a_rule_for_one_clients_topic_lets_it_ask_and_nobody_else(start: Any, make_recorder: Callable[[], Any]) -> None:
    door, url = start(OWN_TOPIC)
    heard = make_recorder()
    sensor = connect(parse_url(url), client_id="cam-1", inbox=heard)
    sensor.subscribe(RESULTS.filter(PREFIX, client="cam-1"))
    sensor.start()
    heard.wait_for(LinkUp)
    other, own = (CLIENT_REQUESTS.at(PREFIX, task="t", client=name, request="1") for name in ("cam-2", "cam-1"))
    sensor.publish(Outgoing(other, b"jpeg"))
    assert heard.wait_for(Denied).topic == other
    sensor.publish(Outgoing(own, b"jpeg", response_topic=RESULTS.at(PREFIX, client="cam-2", request="1")))
    assert heard.wait_for(Delivery).topic == RESULTS.at(PREFIX, client="cam-1", request="1")
    assert door.requests == [own]
    sensor.close()


@pytest.mark.parametrize(
    ("rules", "group", "asked"),
    [
        (OWN_TOPIC, GROUP, ["named"]),
        (PLAIN_TOPIC, GROUP, ["plain"]),
        (RULES + "topic write s2m3/v1/tasks/#\n", GROUP.removesuffix("/#"), ["plain"]),
    ],
    ids=["a rule for its own topic", "a rule of an older site", "a front door of an older version"],
)
def test_the_client_is_answered_on_whichever_topic_its_site_takes(
    start: Any, rules: str, group: str, asked: list[str]
) -> None:
    door, url = start(rules, group)
    with Client(url, client_id="cam-1") as client:
        assert client.request("t", {"image": b"jpeg"}).ok
    assert ["named" if CLIENT_REQUESTS.match(PREFIX, topic) else "plain" for topic in door.requests] == asked
