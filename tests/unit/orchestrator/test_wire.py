"""The events of the orchestrator's messages, and the topics of its actions."""

from __future__ import annotations

import pytest

from broker.protocol import topics
from broker.protocol.codec import decode, decode_tensors, encode
from broker.protocol.errors import RemoteProtocolError
from broker.protocol.messages import MAX_FENCE, NodeInputs, OrchestratorState, Route
from broker.transport.port import Delivery
from orchestrator.events import (
    CheckAnswered,
    CheckDevice,
    Clear,
    LeaderTopicLost,
    PublishRoute,
    PublishSpec,
    PublishState,
    RequestReceived,
    RequestUnanswerable,
    RetainedRouteReceived,
    RouteHeard,
    TaskDeployed,
    TaskUndeployed,
)
from orchestrator.wire import event_of, outgoing_of
from tests.builders import chain, module

PREFIX = topics.prefix_of("plant")
ROUTE = Route(task="classify", epoch=1, generation=2, group=0)
VISION = module("vision", memory_bytes=60)
SPEC = chain("classify", VISION, image_bytes=1000)
AT = topics.TASK_ROUTE.at(PREFIX, task="classify")


def test_a_published_route_is_heard_and_a_retained_one_is_read() -> None:
    heard = RouteHeard("classify", ROUTE.epoch, ROUTE.generation, payload=encode(ROUTE))
    assert event_of(PREFIX, Delivery(AT, encode(ROUTE))) == heard
    unreadable = RouteHeard("classify", MAX_FENCE, payload=b"{")
    assert event_of(PREFIX, Delivery(AT, b"{")) == unreadable, "it must be overwritten"
    assert event_of(PREFIX, Delivery(AT, b"")) == RouteHeard("classify", 0, is_empty=True)
    assert event_of(PREFIX, Delivery(AT, b"", retain=True)) is None
    assert event_of(PREFIX, Delivery(AT, encode(ROUTE), retain=True)) == RetainedRouteReceived(
        "classify", available=True, epoch=1
    )


def test_an_unreadable_retained_route_is_reported_so_that_it_is_cleared() -> None:
    assert event_of(PREFIX, Delivery(AT, b"{", retain=True)) == RetainedRouteReceived("classify", available=False)


@pytest.mark.parametrize("topic", [topics.DEVICE_STATE, topics.ORCHESTRATOR_STATE, topics.TASK_ROUTE])
def test_a_cleared_retained_message_means_nothing(topic: topics.Topic) -> None:
    ids = {"device": "a", "task": "classify"}
    assert event_of(PREFIX, Delivery(topic.at(PREFIX, **ids), b"", retain=True)) is None


@pytest.mark.parametrize("payload", [b"", b"[]", b'{"epoch": 1' + b"0" * 4300 + b', "online": true, "session": 1}'])
def test_a_cleared_or_unreadable_leaders_topic_is_an_event_and_no_error(payload: bytes) -> None:
    topic = topics.ORCHESTRATOR_STATE.at(PREFIX)
    assert isinstance(event_of(PREFIX, Delivery(topic, payload)), LeaderTopicLost)


def test_an_empty_spec_undeploys() -> None:
    topic = topics.TASK_SPEC.at(PREFIX, task="classify")
    assert event_of(PREFIX, Delivery(topic, b"")) == TaskUndeployed("classify")


def test_other_topics_and_other_sites_mean_nothing() -> None:
    state = encode(OrchestratorState(epoch=1, online=True, session=1))
    assert event_of(PREFIX, Delivery("s2m3/v1/orchestrator/state", state)) is None
    assert event_of(PREFIX, Delivery(topics.DEVICE_ASSIGNMENT.at(PREFIX, device="a"), b"{}")) is None
    assert event_of(PREFIX, Delivery(topics.DEVICE_STATE.at(PREFIX, device="a") + "/x", b"{}")) is None


def test_a_message_that_breaks_the_contract_is_an_error_of_its_sender() -> None:
    with pytest.raises(RemoteProtocolError, match="Heartbeat: session: is missing"):
        event_of(PREFIX, Delivery(topics.DEVICE_HEARTBEAT.at(PREFIX, device="a"), b"{}"))


def test_a_retained_request_is_not_answered_at_each_reconnection() -> None:
    topic = topics.TASK_REQUESTS.at(PREFIX, task="classify")
    reply_to = topics.RESULTS.at(PREFIX, client="cam", request="r")
    assert event_of(PREFIX, Delivery(topic, b"", response_topic=reply_to)) is not None
    assert event_of(PREFIX, Delivery(topic, b"", response_topic=reply_to, retain=True)) is None
    assert event_of(PREFIX, Delivery(topic, b"")) is None


def test_a_requests_payload_is_part_of_its_event() -> None:
    topic = topics.TASK_REQUESTS.at(PREFIX, task="classify")
    reply_to = topics.RESULTS.at(PREFIX, client="cam", request="r")
    seen = event_of(PREFIX, Delivery(topic, b"a picture", response_topic=reply_to))
    assert seen == RequestReceived("classify", reply_to, None, b"a picture")


def test_a_request_that_names_its_client_is_refused_at_that_client() -> None:
    topic = topics.CLIENT_REQUESTS.at(PREFIX, task="classify", client="ESP_1A2B", request="1")
    answer_at = topics.RESULTS.at(PREFIX, client="ESP_1A2B", request="1")
    elsewhere = topics.RESULTS.at(PREFIX, client="other", request="1")
    for response_topic in (None, elsewhere):
        seen = event_of(PREFIX, Delivery(topic, b"x", response_topic=response_topic))
        assert seen == RequestReceived("classify", answer_at, None, b"x")
    assert event_of(PREFIX, Delivery(topic, b"x", retain=True)) is None


@pytest.mark.parametrize("task", ["Classify", "zero_shot", "t" * 300, "ä b", ""])
def test_a_request_of_any_name_is_answered_where_it_asks_for_it(task: str) -> None:
    reply_to = topics.RESULTS.at(PREFIX, client="cam", request="r")
    asked = f"{PREFIX}/tasks/{task}/requests"
    seen = event_of(PREFIX, Delivery(asked, b"x", response_topic=reply_to))
    assert seen == RequestReceived(task[:64], reply_to, None, b"x")
    assert event_of(PREFIX, Delivery(f"{asked}/cam/r", b"x")) == seen
    assert event_of(PREFIX, Delivery(asked, b"x", response_topic=reply_to, retain=True)) is None
    for response_topic, reason in ((None, "no_response_topic"), ("home/x", "response_topic_not_allowed")):
        wrong = event_of(PREFIX, Delivery(asked, b"x", response_topic=response_topic))
        assert wrong == RequestUnanswerable(task[:64], reason)
    assert event_of(PREFIX, Delivery(f"{asked}/cam", b"x")) == RequestUnanswerable(task[:64], "wrong_topic")
    assert event_of(PREFIX, Delivery(asked, b"")) is None, "a topic that is cleared"


def test_actions_become_retained_messages_on_their_topics() -> None:
    said = outgoing_of(PREFIX, PublishRoute(ROUTE))
    assert (said.topic, said.retain, said.qos, decode(Route, said.payload)) == (AT, True, 1, ROUTE)
    cleared = outgoing_of(PREFIX, Clear(topics.TASK_ROUTE, "classify"))
    assert (cleared.topic, cleared.retain, cleared.payload) == (AT, True, b"")
    forgotten = outgoing_of(PREFIX, Clear(topics.DEVICE_ASSIGNMENT, "a"))
    told = topics.DEVICE_ASSIGNMENT.at(PREFIX, device="a")
    assert (forgotten.topic, forgotten.retain, forgotten.payload) == (told, True, b"")
    restored = outgoing_of(PREFIX, PublishSpec(SPEC))
    assert restored.retain
    assert event_of(PREFIX, Delivery(restored.topic, restored.payload)) == TaskDeployed(SPEC)
    state = OrchestratorState(epoch=1, online=True, session=1)
    led = outgoing_of(PREFIX, PublishState(state))
    assert event_of(PREFIX, Delivery(led.topic, led.payload)) == state


def test_a_check_is_a_request_that_an_agent_refuses_in_its_turn_and_the_answer_is_an_event() -> None:
    """The agent's side of it: a module in a use that it doesn't have."""
    sent = outgoing_of(PREFIX, CheckDevice("gw-a", "check-1", VISION.key, (1, 2), 1.5))
    incoming = topics.read(PREFIX, sent.topic, sent.payload)
    assert incoming is not None
    assert incoming.ids == {"sender": "orchestrator", "receiver": "gw-a", "request": "check-1", "node": "node"}
    message, tensors = decode_tensors(sent.payload)
    assert isinstance(message, NodeInputs)
    assert (message.coordinator, message.plan.nodes["node"].use) == ("orchestrator", "check")
    assert list(tensors) == ["check/raw"]
    answer = topics.TENSORS.at(PREFIX, sender="gw-a", receiver="orchestrator", request="check-1", node="node")
    assert event_of(PREFIX, Delivery(answer, b"whatever it says")) == CheckAnswered("gw-a", "check-1")
