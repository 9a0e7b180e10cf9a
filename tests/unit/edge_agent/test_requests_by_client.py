"""Requests whose topic names their client: one name may stand for many requests; a copy changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from broker.protocol import topics
from broker.transport.port import Delivery
from edge_agent import wire
from edge_agent.decide import decide
from edge_agent.events import Action, Ran, Reply, Requested, Run
from edge_agent.modules import Output
from edge_agent.requests import backup_coordinator, coordinate
from edge_agent.state import AgentState
from tests.builders import PREFIX, able, agent, all_of, module, route, route_node

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


def ask(state: AgentState, client: str, number: int) -> list[Action]:
    names = {"client": client, "request": str(number)}
    event = wire.event_of(
        PREFIX,
        Delivery(topics.CLIENT_REQUESTS.at(PREFIX, task="t", **names), f"{client} {number}".encode(), expiry_s=30),
    )
    assert isinstance(event, Requested)
    return decide(state, event, 0.0)


def served(state: AgentState, actions: list[Action], now_s: float) -> tuple[list[str], list[Action]]:
    """End the first pass; the clients that were answered, and the passes that follow."""
    run = next(action for action in actions if isinstance(action, Run))
    output = Output({"bits": np.zeros(1, np.float32)}, {"label": "x"})
    more = decide(state, Ran(run.run, output, None, now_s, 1.0), now_s + 1.0)
    answered = [reply.reply_to.split("/")[3] for reply in all_of(more, Reply) if reply.result.error is None]
    return answered, [each for each in (*actions, *more) if isinstance(each, Run) and each is not run]


def test_a_client_that_floods_a_task_takes_no_request_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sensor asks more than its device can do; the few requests of another are all admitted and come in turn."""
    monkeypatch.setattr(coordinate, "MAX_COORDINATED", 60)
    nodes = {"head": route_node(HEAD.key, ("image",), able("gw-a", compute_s=1.0))}
    state = agent("gw-a", HEAD, routes=[route("t", nodes)], compute_s=1.0)
    running: list[Action] = []
    refused = 0
    for number in range(100):
        actions = ask(state, "greedy", number)
        refused += len(all_of(actions, Reply))
        running += all_of(actions, Run)
    assert 70 <= refused < 100, "what its device can't finish in time"
    for number in range(5):
        actions = ask(state, "modest", number)
        assert not all_of(actions, Reply)
        running += all_of(actions, Run)
    answered: list[str] = []
    for turn in range(14):
        clients, running = served(state, running, float(turn))
        answered += clients
    assert answered.count("modest") == 5, answered


def test_requests_that_name_no_client_share_one_account_and_leave_room_for_those_that_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coordinate, "MAX_COORDINATED", 60)
    state = agent("gw-a", HEAD, routes=[route("t", {"head": route_node(HEAD.key, ("image",), able("gw-a"))})])
    for number in range(100):
        arrive(state, str(number).encode(), plain=True)
    assert len(state.coordinated) == 20
    assert not all_of(ask(state, "modest", 1), Reply)


def test_a_backup_coordinator_drops_the_copies_of_the_client_with_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup_coordinator, "MAX_BACKUPS", 10)
    known = route("t", {"head": route_node(HEAD.key, ("image",), able("gw-b"))}, front_door=("gw-b",))
    state = agent("gw-a", routes=[known.model_copy(update={"second_door": ("gw-a",)})])
    for number in range(3):
        ask(state, "modest", number)
    for number in range(50):
        ask(state, "greedy", number)
    assert sum(backup.event.client == "modest" for backup in state.backups.values()) == 3
    assert len(state.backups) == 10
