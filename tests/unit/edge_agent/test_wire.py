"""Messages between agents as bytes: the names of the arrays, and what the receiver reads of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from broker.protocol import topics
from broker.protocol.codec import RawInput, encode
from broker.protocol.errors import RemoteProtocolError
from broker.protocol.messages import Assignment, DeviceState, NodeDone, OrchestratorState
from broker.protocol.tensors import unpack
from broker.transport.port import Delivery, Denied, Undelivered
from edge_agent import wire
from edge_agent.events import (
    Echoed,
    LeaderAnnounced,
    RebirthRequested,
    Received,
    Requested,
    RouteCleared,
    Send,
)
from edge_agent.modules import Value
from tests.builders import PREFIX, node_inputs, route, route_node

MESSAGE = node_inputs(needs=("encoder", "text"), content_types={"text": "text/plain"})

ROUTE = route("t", {"head": route_node("k", ("image",), ())})
ASSIGNMENT = encode(Assignment(epoch=1, generation=2))
OWN_STATE = encode(DeviceState(status="offline", session=7))
LEADER = encode(OrchestratorState(epoch=3, online=True, session=1))


def test_a_raw_input_is_one_array_of_bytes_on_the_wire_and_a_raw_input_again_behind_it() -> None:
    features = np.ones((1, 2), dtype=np.float16)
    values: Mapping[str, Value] = {"text": RawInput(b"a cat", "text/plain"), "encoder": {"features": features}}
    sent = wire.tensors_message(PREFIX, "gw-a", Send("gw-b", MESSAGE, values, 1.0), 0.0)
    arrays, _ = unpack(sent.payload)
    assert sorted(arrays) == ["encoder/features", "text/raw"]
    assert (arrays["text/raw"].dtype.name, arrays["text/raw"].tobytes()) == ("uint8", b"a cat")
    received = wire.event_of(PREFIX, Delivery(sent.topic, sent.payload))
    assert isinstance(received, Received)
    assert received.message == MESSAGE
    assert received.values["text"] == values["text"]
    found = received.values["encoder"]
    assert isinstance(found, dict)
    assert found["features"].tobytes() == features.tobytes()


def test_arrays_of_an_input_that_has_no_content_type_are_read_as_the_output_of_a_node() -> None:
    message = MESSAGE.model_copy(update={"content_types": {}})
    sent = wire.tensors_message(PREFIX, "gw-a", Send("gw-b", message, {"text": RawInput(b"x")}, 1.0), 0.0)
    received = wire.event_of(PREFIX, Delivery(sent.topic, sent.payload))
    assert isinstance(received, Received)
    assert isinstance(received.values["text"], dict)


def test_the_coordinator_learns_of_inputs_that_no_device_received() -> None:
    sent = wire.tensors_message(PREFIX, "gw-c", Send("gw-b", MESSAGE, {}, 1.0), 0.0)
    event = wire.not_received(Undelivered(sent.topic, sent.token), 2.0)
    assert event is not None
    assert (event.coordinator, event.failed.device, event.failed.retry, event.deadline_s) == ("gw-a", "gw-b", True, 2.0)
    assert event.failed.error.message == "nobody receives messages for gw-b"
    refused = wire.not_received(Denied(sent.topic, "Not authorized", sent.token), 2.0)
    assert refused is not None
    assert refused.failed.error.message == f"the broker refused {sent.topic}: Not authorized"
    assert wire.not_received(Denied("s2m3/v1/tasks/+/route", "Not authorized"), 2.0) is None
    done = NodeDone(request="r", task="t", node="head", epoch=1, generation=1, attempt=0)
    token = wire.tensors_message(PREFIX, "gw-b", Send("gw-a", done, {}, 1.0), 0.0).token
    assert wire.not_received(Undelivered("any", token), 2.0) is None


@pytest.mark.parametrize(
    ("topic", "ids", "payload", "event"),
    [
        (topics.DEVICE_REBIRTH, {"device": "gw-a"}, b"", RebirthRequested()),
        (topics.DEVICE_ECHO, {"device": "gw-a"}, b"x", Echoed(b"x")),
        (topics.DEVICE_ASSIGNMENT, {"device": "gw-a"}, ASSIGNMENT, Assignment(epoch=1, generation=2)),
        (topics.DEVICE_ASSIGNMENT, {"device": "gw-a"}, b"", None),
        (topics.DEVICE_STATE, {"device": "gw-a"}, OWN_STATE, DeviceState(status="offline", session=7)),
        (topics.DEVICE_STATE, {"device": "gw-a"}, b"", RebirthRequested()),
        (topics.DEVICE_STATE, {"device": "gw-a"}, b'{"status": 1}', RebirthRequested()),
        (topics.ORCHESTRATOR_STATE, {}, LEADER, LeaderAnnounced(OrchestratorState(epoch=3, online=True, session=1))),
        (topics.ORCHESTRATOR_STATE, {}, b"", None),
        (topics.TASK_ROUTE, {"task": ROUTE.task}, encode(ROUTE), ROUTE),
        (topics.TASK_ROUTE, {"task": ROUTE.task}, b"", RouteCleared(ROUTE.task)),
        (topics.TASK_SPEC, {"task": ROUTE.task}, b"", None),
    ],
)
def test_each_topic_has_its_event(topic: topics.Topic, ids: dict[str, str], payload: bytes, event: object) -> None:
    assert wire.event_of(PREFIX, Delivery(topic.at(PREFIX, **ids), payload)) == event
    assert wire.event_of(PREFIX, Delivery(topic.at("elsewhere/s2m3/v1", **ids), payload)) is None


def test_a_request_that_names_its_client_is_answered_there_and_nowhere_else() -> None:
    ids = {"client": "ESP 1/A".replace("/", "."), "request": "1"}
    named = Delivery(
        topics.CLIENT_REQUESTS.at(PREFIX, task="t", **ids),
        b"jpeg",
        response_topic=topics.RESULTS.at(PREFIX, client="other", request="1"),
        correlation=b"7",
        expiry_s=9,
    )
    wanted = Requested("t", b"jpeg", "", f"{PREFIX}/clients/ESP 1.A/results/1", b"7", 9, client="ESP 1.A")
    assert wire.event_of(PREFIX, named) == wanted
    plain = replace(named, topic=topics.TASK_REQUESTS.at(PREFIX, task="t"))
    assert wire.event_of(PREFIX, plain) == replace(wanted, reply_to=f"{PREFIX}/clients/other/results/1", client="")


@pytest.mark.parametrize("end", ["cam", "cam/1/2", f"{'a' * 65}/1", "cam/", "/1"])
def test_a_request_under_another_topic_is_refused_with_the_right_ones(end: str) -> None:
    with pytest.raises(RemoteProtocolError, match=r"requests/CLIENT/REQUEST, two names of 1 to 64 bytes$"):
        wire.event_of(PREFIX, Delivery(f"{PREFIX}/tasks/t/requests/{end}", b"jpeg"))


def test_a_message_that_differs_from_its_topic_breaks_the_contract() -> None:
    other = topics.TASK_ROUTE.at(PREFIX, task="other")
    with pytest.raises(RemoteProtocolError, match="another task than its topic"):
        wire.event_of(PREFIX, Delivery(other, encode(ROUTE)))
    sent = wire.tensors_message(PREFIX, "gw-a", Send("gw-b", MESSAGE, {}, 1.0), 0.0)
    with pytest.raises(RemoteProtocolError, match="another request or node than the topic"):
        wire.event_of(PREFIX, Delivery(f"{sent.topic}-2", sent.payload))
