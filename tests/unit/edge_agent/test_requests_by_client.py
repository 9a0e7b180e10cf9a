"""Requests whose topic names their client: one name may stand for many requests; a copy changes nothing."""

from __future__ import annotations

from broker.protocol import topics
from broker.transport.port import Delivery
from edge_agent import wire
from edge_agent.decide import decide
from edge_agent.events import Requested
from edge_agent.state import AgentState
from tests.builders import PREFIX, able, agent, module, route, route_node

HEAD = module("head", memory_bytes=10, output_bytes=8)
NAMED = {"client": "ESP_1A2B", "request": "1"}
REPLY_TO = f"{PREFIX}/clients/ESP_1A2B/results/1"


def arrive(state: AgentState, payload: bytes, *, plain: bool = False) -> None:
    topic = topics.TASK_REQUESTS.at(PREFIX, task="t") if plain else topics.CLIENT_REQUESTS.at(PREFIX, task="t", **NAMED)
    event = wire.event_of(PREFIX, Delivery(topic, payload, response_topic=REPLY_TO if plain else None))
    assert isinstance(event, Requested)
    decide(state, event, 0.0)


def test_two_pictures_under_one_name_are_two_requests_and_a_copy_of_either_is_none() -> None:
    state = agent("gw-a", HEAD, routes=[route("t", {"head": route_node(HEAD.key, ("image",), able("gw-a"))})])
    for picture in (b"a cat", b"a dog", b"a cat", b"a dog"):
        arrive(state, picture)
    assert [each.reply_to for each in state.coordinated.values()] == [REPLY_TO] * 2
    assert state.dropped["duplicate_request"] == 2
    assert all(len(name) == 32 for name in state.coordinated), "the internal id is a hash"


def test_a_request_that_a_client_repeats_on_the_other_topic_is_a_copy() -> None:
    state = agent("gw-a", HEAD, routes=[route("t", {"head": route_node(HEAD.key, ("image",), able("gw-a"))})])
    arrive(state, b"a cat")
    arrive(state, b"a cat", plain=True)
    assert len(state.coordinated) == 1
