"""Who is suspected when a request is late, and what clears them."""

from __future__ import annotations

from typing import TypeVar

import pytest

from broker.codec import RawInput, encode_request
from broker.messages import NodeDone, NodeInputs, Route, RouteDevice, RouteNode
from broker.specs import InputSpec
from edge_agent.decide import decide
from edge_agent.state import SUSPECT_S, Action, AgentState, Beat, Received, Requested, Routed, Send, Tick

PREFIX = "s2m3/v1"
A = TypeVar("A", bound=Action)


def node(needs: tuple[str, ...], *devices: str) -> RouteNode:
    able = tuple(RouteDevice(device=d, compute_s=0.1, latency_s=0.0, bandwidth_bits_per_s=1e12) for d in devices)
    return RouteNode(module="m/x", key=f"key-of-{'-'.join(needs)}", needs=needs, output_bytes=8, devices=able)


@pytest.fixture
def front() -> AgentState:
    """gw-a is the front door of encoder (gw-b) -> head (gw-c)."""
    state = AgentState("gw-a", PREFIX)
    route = Route(
        task="t",
        epoch=1,
        generation=1,
        group=1,
        inputs={"text": InputSpec(kind="text", bytes=10)},
        nodes={"encoder": node(("text",), "gw-b"), "head": node(("encoder",), "gw-c")},
        output="head",
        front_door=("gw-a",),
    )
    decide(state, Routed(route), 0.0)
    return state


def ask(state: AgentState, number: int, now_s: float) -> NodeInputs:
    payload, content_type = encode_request({"text": RawInput(b"a cat", "text/plain")})
    asked = Requested("t", payload, content_type, f"{PREFIX}/clients/c/results/{number}", b"%d" % number, expiry_s=60)
    (send,) = [action for action in decide(state, asked, now_s) if isinstance(action, Send)]
    assert isinstance(send.message, NodeInputs)
    return send.message


def done(message: NodeInputs, name: str) -> NodeDone:
    kept = {field: getattr(message, field) for field in ("request", "task", "epoch", "generation", "attempt")}
    return NodeDone(**kept, node=name)


def late(state: AgentState) -> tuple[float, list[Action]]:
    now_s = state.next_deadline_s()
    assert now_s is not None
    return now_s, decide(state, Tick(), now_s)


def test_a_device_that_lets_a_call_time_out_is_suspected_and_reported_at_once(front: AgentState) -> None:
    ask(front, 1, 0.0)
    now_s, actions = late(front)
    assert front.suspects == {"gw-b": now_s}, "not gw-c: it was never given what it needs"
    assert Beat() in actions


def test_of_a_chain_only_who_had_all_it_needs_is_suspected(front: AgentState) -> None:
    message = ask(front, 1, 0.0)
    decide(front, Received("gw-b", done(message, "encoder"), {}), 0.0)
    late(front)
    assert list(front.suspects) == ["gw-c"]


def test_who_has_had_its_inputs_for_a_moment_only_is_not_suspected(front: AgentState) -> None:
    message = ask(front, 1, 0.0)
    decide(front, Received("gw-b", done(message, "encoder"), {}), 0.95)
    late(front)
    assert not front.suspects


def test_a_device_that_answered_others_meanwhile_is_slow_and_not_silent(front: AgentState) -> None:
    ask(front, 1, 0.0)
    other = ask(front, 2, 0.1)
    decide(front, Received("gw-b", done(other, "encoder"), {}), 0.5)
    late(front)
    assert "gw-b" not in front.suspects


def test_the_next_sign_of_life_clears_a_suspect_and_is_reported_at_once(front: AgentState) -> None:
    message = ask(front, 1, 0.0)
    now_s, _ = late(front)
    assert Beat() in decide(front, Received("gw-b", done(message, "encoder"), {}), now_s + 0.1)
    assert not front.suspects


def test_each_further_timeout_renews_the_suspicion_and_an_old_one_is_forgotten(front: AgentState) -> None:
    ask(front, 1, 0.0)
    first_s, _ = late(front)
    second_s, _ = late(front)
    assert front.suspects == {"gw-b": second_s}
    assert second_s > first_s
    front.suspects = {"gw-z": second_s - SUSPECT_S}
    late(front)
    assert list(front.suspects) == ["gw-b"]


def test_a_device_does_not_suspect_itself(front: AgentState) -> None:
    own = front.routes["t"].model_copy(update={"generation": 2, "nodes": {"head": node(("text",), "gw-a")}})
    decide(front, Routed(own), 0.0)
    payload, content_type = encode_request({"text": RawInput(b"a cat", "text/plain")})
    decide(front, Requested("t", payload, content_type, f"{PREFIX}/clients/c/results/1", b"1", expiry_s=60), 0.0)
    late(front)
    assert not front.suspects


def test_a_stranger_s_word_is_no_sign_of_life_worth_keeping(front: AgentState) -> None:
    message = ask(front, 1, 0.0)
    for number in range(100):
        decide(front, Received(f"stranger-{number}", done(message, "encoder"), {}), 0.1)
    assert set(front.heard) == {"gw-b", "gw-c"}
