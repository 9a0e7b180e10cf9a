"""The bounds, in number and bytes, of all that an agent keeps of strangers' messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode
from broker.protocol.messages import NodeFailed, NodeInputs, Plan, PlannedNode, Timing
from edge_agent.decide import decide
from edge_agent.events import Received, Send, Tick
from edge_agent.requests import coordinate, execute
from edge_agent.requests.counters import MAX_TASKS, Counters
from edge_agent.state import AgentState
from tests.builders import ENCODER, agent, done, encoder_route, node_inputs, only, requested

LARGE = {f"n{number}": PlannedNode(key=ENCODER.key, needs=("image", "text"), device="gw-a") for number in range(200)}


@pytest.fixture
def state() -> AgentState:
    return agent("gw-a", ENCODER, routes=[encoder_route("encode", ("gw-b",))])


def half_of(number: int, coordinator: str = "gw-b", **fields: Any) -> NodeInputs:
    """One of two inputs of a node whose plan is large: it waits for the other."""
    return node_inputs(
        "n0",
        device="gw-a",
        request=f"r-{number}",
        plan=Plan(nodes=LARGE, output="n0"),
        coordinator=coordinator,
        deadline_s=80_000.0,
        **fields,
    )


def test_messages_that_wait_count_with_their_plans(state: AgentState, monkeypatch: pytest.MonkeyPatch) -> None:
    """They had only their arrays' bytes: 4,096 plans of 256 nodes filled the memory of a device."""
    monkeypatch.setattr(execute, "MAX_PENDING_BYTES", 10_000_000)
    actions = [decide(state, Received("gw-b", half_of(n), {"image": RawInput(b"x")}), 0.0) for n in range(40)]
    assert 5 < len(state.pending) < 13
    assert state.pending_bytes <= 5_000_000
    refused = only(actions[-1], Send).message
    assert isinstance(refused, NodeFailed)
    assert refused.error.code == ErrorCode.OVERLOADED
    decide(state, Tick(), 90_000.0)
    assert (state.pending, state.pending_bytes) == ({}, 0)


@pytest.mark.parametrize(("limit", "most"), [("MAX_PENDING", 8), ("MAX_PENDING_BYTES", 4_000_000)])
def test_a_device_that_never_sends_the_rest_leaves_half_of_the_room_to_others(
    state: AgentState, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    monkeypatch.setattr(execute, limit, most)
    for number in range(40):
        decide(state, Received("gw-b", half_of(number), {"image": RawInput(b"x")}), 0.0)
    held = len(state.pending)
    assert 1 < held < 10
    honest = half_of(100, coordinator="gw-c")
    assert decide(state, Received("gw-c", honest, {"image": RawInput(b"x")}), 0.0) == []
    assert len(state.pending) == held + 1
    decide(state, Received("gw-a", half_of(101, coordinator="gw-a"), {"image": RawInput(b"x")}), 0.0)
    assert len(state.pending) == held + 2
    decide(state, Tick(), 90_000.0)
    assert (state.pending_of, state.pending_bytes_of) == ({}, {})


def test_only_timings_of_the_plans_nodes_are_kept(state: AgentState) -> None:
    for number in range(20):
        told = Timing(node=f"x{number}", device="gw-b", queue_s=0, compute_s=0, output_bytes=0, attempt=0)
        known = told.model_copy(update={"node": "n1"})
        message = half_of(1, timings=(told, known))
        decide(state, Received("gw-b", message, {"image": RawInput(b"x")}), 0.0)
    (pending,) = state.pending.values()
    assert pending.timings.keys() == {"n1"}


def test_arrays_without_elements_count(state: AgentState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "MAX_PENDING_BYTES", 2_000_000)
    empty = {f"a{number}": np.zeros(0, np.float32) for number in range(256)}
    for number in range(20):
        decide(state, Received("gw-b", half_of(number), {"image": empty}), 0.0)
    assert 0 < len(state.pending) < 6


def test_reported_queues_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinate, "MAX_REPORTED", 3)
    state = agent("gw-a", routes=[encoder_route(f"t-{number}", ("gw-b",)) for number in range(9)])
    for number in range(9):
        sent = only(decide(state, requested(f"t-{number}", number), 0.0), Send).message
        decide(state, Received("gw-b", done(sent, queue_s=1e9), {}), 0.1)
    assert list(state.reported_s) == [("gw-b", (f"t-{number}", "")) for number in (6, 7, 8)]


def test_counters_of_refused_requests_of_undeployed_tasks_stay_dropped() -> None:
    counters = Counters()
    refused = {f"t-{number}": 1 for number in range(MAX_TASKS + 1)}
    counters.count_refused(refused)
    counters.take_snapshot(deployed=["t-0"])
    counters.count_refused(refused)
    assert counters.total().keys() == {"t-0"}
