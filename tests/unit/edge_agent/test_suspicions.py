"""Suspicion: which devices are suspected when a request is late, and how a suspicion ends."""

from __future__ import annotations

import math

import pytest

from broker.protocol.messages import SUSPECTED_FOR_S, NodeInputs, RouteNode
from broker.transport.port import RECONNECT_S
from edge_agent.decide import decide
from edge_agent.events import Action, DataLinkChanged, Received, Send, SendHeartbeat, Tick
from edge_agent.state import AgentState
from tests.builders import able, agent, all_of, done, only, requested, route, route_node


def node(needs: tuple[str, ...], *devices: str) -> RouteNode:
    return route_node(f"key-of-{'-'.join(needs)}", needs, able(*devices))


@pytest.fixture
def front() -> AgentState:
    """gw-a is the front door of encoder (gw-b) -> head (gw-c)."""
    return agent("gw-a", routes=[route("t", {"encoder": node(("text",), "gw-b"), "head": node(("encoder",), "gw-c")})])


def ask(state: AgentState, number: int, now_s: float, expiry_s: int = 60) -> NodeInputs:
    message = only(decide(state, requested("t", number, expiry_s=expiry_s), now_s), Send).message
    assert isinstance(message, NodeInputs)
    return message


def late(state: AgentState) -> tuple[float, list[Action]]:
    now_s = state.next_deadline_s()
    assert now_s is not None
    return now_s, decide(state, Tick(), now_s)


def test_a_device_that_lets_a_call_time_out_is_suspected_and_reported_at_once(front: AgentState) -> None:
    ask(front, 1, 0.0)
    now_s, actions = late(front)
    assert front.suspects == {"gw-b": now_s}, "not gw-c: it never got its inputs"
    assert SendHeartbeat() in actions


def test_no_device_is_suspected_while_our_own_link_is_down_and_just_after(front: AgentState) -> None:
    decide(front, DataLinkChanged(up=True), 0.0)
    ask(front, 1, 0.0)
    decide(front, DataLinkChanged(up=False), 0.1)
    now_s, _ = late(front)
    decide(front, DataLinkChanged(up=True), 2.0)
    while now_s < 2.0 + RECONNECT_S:
        now_s, _ = late(front)
        assert not front.suspects, "messages may be lost, and the others need time to reconnect"
    assert front.coordinated, "it was resent since"
    now_s, _ = late(front)
    assert list(front.suspects) == ["gw-b"]


def test_attempts_lost_to_our_own_link_are_resent_with_the_first_timeout_when_it_is_back(front: AgentState) -> None:
    decide(front, DataLinkChanged(up=True), 0.0)
    ask(front, 1, 0.0)
    decide(front, DataLinkChanged(up=False), 0.1)
    (request,) = front.coordinated.values()
    _, actions = late(front)
    assert not all_of(actions, Send), "nothing is sent while the link is down"
    assert front.next_deadline_s() == request.deadline_s
    decide(front, DataLinkChanged(up=True), 15.0)
    now_s, actions = late(front)
    assert now_s < 15.2
    assert [action.receiver for action in actions if isinstance(action, Send)] == ["gw-b"]
    assert request.retry_at_s - now_s < 1.5, "a device that was away may reconnect a moment later"
    assert front.latency_inflation.get("t", 1.0) == 1.0
    head = done(ask(front, 2, 15.3), node="head")
    decide(front, Received("gw-c", head, {}), 17.0)
    assert front.latency_inflation.get("t", 1.0) == 1.0, "a burst says nothing about latency"


def test_only_the_device_of_a_chain_that_had_all_inputs_is_suspected(front: AgentState) -> None:
    message = ask(front, 1, 0.0)
    decide(front, Received("gw-b", done(message, node="encoder"), {}), 0.0)
    late(front)
    assert list(front.suspects) == ["gw-c"]


def test_a_device_that_just_got_its_inputs_is_not_suspected(front: AgentState) -> None:
    message = ask(front, 1, 0.0)
    decide(front, Received("gw-b", done(message, node="encoder"), {}), 0.95)
    late(front)
    assert not front.suspects


def test_a_device_that_answered_others_meanwhile_is_slow_and_not_silent(front: AgentState) -> None:
    ask(front, 1, 0.0)
    other = ask(front, 2, 0.1)
    decide(front, Received("gw-b", done(other, node="encoder"), {}), 0.5)
    late(front)
    assert "gw-b" not in front.suspects


def test_the_next_sign_of_life_clears_a_suspect_and_is_reported_at_once(front: AgentState) -> None:
    message = ask(front, 1, 0.0)
    now_s, _ = late(front)
    assert SendHeartbeat() in decide(front, Received("gw-b", done(message, node="encoder"), {}), now_s + 0.1)
    assert not front.suspects


def test_each_further_timeout_renews_the_suspicion_and_an_old_one_is_forgotten(front: AgentState) -> None:
    ask(front, 1, 0.0)
    first_s, _ = late(front)
    second_s, _ = late(front)
    assert front.suspects == {"gw-b": second_s}
    assert second_s > first_s
    front.suspects["gw-z"] = second_s - SUSPECTED_FOR_S
    late(front)
    assert list(front.suspects) == ["gw-b"]


def test_an_old_suspicion_is_forgotten_though_nothing_comes(front: AgentState) -> None:
    ask(front, 1, 0.0, expiry_s=8)
    while front.coordinated:
        now_s, _ = late(front)
    suspected_s = front.suspects["gw-b"]
    assert suspected_s < now_s
    assert late(front) == (suspected_s + SUSPECTED_FOR_S, [])
    assert not front.suspects
    assert front.next_deadline_s() is None


def test_a_sign_of_life_clears_a_suspect_that_has_no_assignment_any_more(front: AgentState) -> None:
    message = ask(front, 1, 0.0, expiry_s=8)
    while front.coordinated:
        now_s, _ = late(front)
    assert decide(front, Received("gw-b", done(message, node="encoder"), {}), now_s + 0.1) == [SendHeartbeat()]
    assert not front.suspects


def test_no_device_is_suspected_while_the_route_is_incomplete(front: AgentState) -> None:
    ask(front, 1, 0.0)
    known = front.routes["t"]
    pending = known.model_copy(update={"generation": 2, "nodes": known.nodes | {"encoder": node(("text",))}})
    decide(front, pending, 0.05)  # gw-b died, its module loads elsewhere
    now_s = 0.05
    while now_s < 3.0:
        now_s, _ = late(front)
        assert not front.suspects
    loaded = known.model_copy(update={"generation": 3, "nodes": known.nodes | {"encoder": node(("text",), "gw-d")}})
    send = only(decide(front, loaded, now_s + 0.5), Send)
    assert send.receiver == "gw-d"
    late(front)
    assert list(front.suspects) == ["gw-d"], "it got its inputs"


def changed(state: AgentState, now_s: float, **able: str) -> list[Send]:
    """The messages sent when the route names these devices: none, one or, separated by spaces, several."""
    known = state.routes["t"]
    nodes = {name: node(known.nodes[name].needs, *devices.split()) for name, devices in able.items()}
    moved = known.model_copy(update={"generation": known.generation + 1, "nodes": known.nodes | nodes})
    return all_of(decide(state, moved, now_s), Send)


def test_a_new_assignee_of_a_lost_output_is_suspected_and_not_the_device_that_waits_for_it(front: AgentState) -> None:
    message = ask(front, 1, 0.0)
    decide(front, Received("gw-b", done(message, node="encoder"), {}), 0.1)
    assert not changed(front, 0.2, encoder="", head="")  # gw-b and gw-c died
    (send,) = changed(front, 0.3, encoder="gw-d", head="gw-e")
    assert send.receiver == "gw-d", "the output that gw-b kept is lost"
    late(front)
    assert list(front.suspects) == ["gw-d"]


def test_a_late_done_of_an_earlier_assignee_does_not_clear_the_current_one(front: AgentState) -> None:
    message = ask(front, 1, 0.0)
    changed(front, 0.1, encoder="gw-d", head="gw-e")
    decide(front, Received("gw-b", done(message, node="encoder"), {}), 0.2)  # its output went to gw-c
    late(front)
    assert list(front.suspects) == ["gw-d"]


def test_a_device_that_does_not_forward_its_kept_output_is_suspected_and_not_its_receiver(
    front: AgentState,
) -> None:
    message = ask(front, 1, 0.0)
    decide(front, Received("gw-b", done(message, node="encoder"), {}), 0.1)
    (send,) = changed(front, 0.2, head="gw-e")
    assert send.receiver == "gw-b"
    late(front)
    assert list(front.suspects) == ["gw-b"]


def test_a_device_that_got_a_kept_output_is_suspected(front: AgentState) -> None:
    message = ask(front, 1, 0.0)
    decide(front, Received("gw-b", done(message, node="encoder"), {}), 0.1)
    (send,) = changed(front, 0.2, head="gw-e")
    assert isinstance(send.message, NodeInputs)
    decide(front, Received("gw-b", done(send.message, node="encoder"), {}), 0.3)
    late(front)
    assert list(front.suspects) == ["gw-e"]


def test_a_device_does_not_suspect_itself(front: AgentState) -> None:
    own = front.routes["t"].model_copy(update={"generation": 2, "nodes": {"head": node(("text",), "gw-a")}})
    decide(front, own, 0.0)
    decide(front, requested("t", expiry_s=60), 0.0)
    late(front)
    assert not front.suspects


def test_messages_of_devices_without_an_assignment_are_not_remembered(front: AgentState) -> None:
    message = ask(front, 1, 0.0)
    for number in range(100):
        decide(front, Received(f"stranger-{number}", done(message, node="encoder"), {}), 0.1)
    assert set(front.last_heard_s) == {"gw-b", "gw-c"}


def test_signs_of_life_of_devices_without_an_assignment_are_forgotten(front: AgentState) -> None:
    first, second = ask(front, 1, 0.0), ask(front, 2, 0.0)
    decide(front, Received("gw-c", done(first, node="head"), {}), 0.1)
    assert front.last_heard_s == {"gw-b": -math.inf, "gw-c": 0.1}, "the second request is under way"
    for generation in range(2, 100):  # its encoder is assigned to many devices, one after the other
        nodes = front.routes["t"].nodes | {"encoder": node(("text",), f"gw-{generation}")}
        moved = front.routes["t"].model_copy(update={"generation": generation, "nodes": nodes})
        decide(front, moved, 0.2)
    decide(front, Received("gw-c", done(second, node="head"), {}), 0.3)
    assert not front.coordinated
    assert not front.last_heard_s
