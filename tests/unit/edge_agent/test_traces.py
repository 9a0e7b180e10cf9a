"""The traces of requests: which figures they have, on whose clock, and how many are published."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.errors import ErrorCode
from broker.protocol.messages import NodeInputs
from broker.protocol.reports import EventType, Trace
from edge_agent.decide import decide
from edge_agent.events import (
    Action,
    ModuleFailed,
    ModuleReady,
    ModuleUnloaded,
    PublishEvent,
    PublishTrace,
    Ran,
    Received,
    Reply,
    Run,
    Send,
    SendHeartbeat,
    Tick,
)
from edge_agent.modules import Output
from edge_agent.state import MAX_TRACES_PER_S, AgentState
from tests.builders import (
    ENCODER,
    able,
    agent,
    all_of,
    assignment,
    done,
    encoder_route,
    module,
    only,
    requested,
    route,
    route_node,
)

HEAD = module("head")


def chain(*, latency_s: float = 0.0, head: str = "gw-c") -> AgentState:
    """gw-a is the front door of encoder (gw-b) -> head (gw-c)."""
    link = {"latency_s": latency_s, "bandwidth_bits_per_s": 1e9}
    encoder = route_node(ENCODER.key, ("text",), able("gw-b", **link))
    nodes = {"encoder": encoder, "head": route_node(HEAD.key, ("encoder",), able(head, **link))}
    return agent("gw-a", routes=[route("t", nodes)])


def traced(actions: list[Action]) -> Trace:
    return only(actions, PublishTrace).trace


def asked(state: AgentState, now_s: float = 0.0, **fields: Any) -> NodeInputs:
    message = only(decide(state, requested("t", **fields), now_s), Send).message
    assert isinstance(message, NodeInputs)
    return message


def test_a_trace_has_the_device_and_the_seconds_of_each_node() -> None:
    state = chain(latency_s=0.001)
    inputs = asked(state, 10.0)
    finished = done(inputs, waited_s=0.1, compute_s=0.2, input_bytes=5)
    assert not all_of(decide(state, Received("gw-b", finished, {}), 10.4), PublishTrace)
    finished = done(inputs, node="head", waited_s=0.01, compute_s=0.05, input_bytes=80)
    trace = traced(decide(state, Received("gw-c", finished, {}), 10.5))
    assert (trace.task, trace.outcome, trace.request) == ("t", "answered", inputs.request)
    assert trace.total_s == pytest.approx(0.5)
    encoder, head = trace.nodes["encoder"], trace.nodes["head"]
    assert (encoder.device, encoder.queue_s, encoder.compute_s, encoder.bytes) == ("gw-b", 0.1, 0.2, 5)
    assert (head.device, head.queue_s, head.compute_s, head.bytes, head.attempts) == ("gw-c", 0.01, 0.05, 80, 1)
    assert encoder.transfer_s + encoder.return_s == pytest.approx(0.1), "the rest of 0.4 s"
    assert not trace.unfinished


def test_the_seconds_along_the_way_to_the_answer_add_up_to_its_latency() -> None:
    """The head's inputs leave the encoder when ``done`` does, not when the coordinator receives it."""
    state = chain(latency_s=0.02)
    inputs = asked(state)
    decide(state, Received("gw-b", done(inputs, waited_s=0.1, compute_s=0.2), {}), 0.4)
    trace = traced(decide(state, Received("gw-c", done(inputs, node="head", compute_s=0.1), {}), 0.6))
    encoder, head = trace.nodes["encoder"], trace.nodes["head"]
    on_the_way = encoder.transfer_s + head.transfer_s + head.return_s
    computed = encoder.queue_s + encoder.compute_s + head.queue_s + head.compute_s
    assert on_the_way + computed == pytest.approx(trace.total_s, abs=1e-5)
    assert encoder.return_s > 0


@given(*[st.floats(0, 10) for _ in range(6)], st.floats(0, 1))
def test_no_figure_is_negative_whatever_the_devices_report(  # noqa: PLR0917 - what Hypothesis draws
    first_s: float, second_s: float, a: float, b: float, c: float, d: float, latency_s: float
) -> None:
    state = chain(latency_s=latency_s)
    inputs = asked(state, expiry_s=100)
    decide(state, Received("gw-b", done(inputs, waited_s=a, compute_s=b), {}), first_s)
    actions = decide(
        state, Received("gw-c", done(inputs, node="head", waited_s=c, compute_s=d), {}), first_s + second_s
    )
    for node in traced(actions).nodes.values():
        assert min(node.transfer_s, node.return_s) >= 0
        assert node.transfer_s + node.return_s <= first_s + second_s + 2e-6  # rounded to microseconds


def test_a_device_with_another_clock_gives_the_same_trace() -> None:
    """An agent's seconds since its start say nothing about those of another one."""

    def trace_with(offset_s: float) -> Trace:
        front, back = agent("gw-a", routes=[encoder_route("t", ("gw-b",))]), agent("gw-b", ENCODER)
        (send,) = all_of(decide(front, requested("t"), 5.0), Send)
        at_s = offset_s + 5.1
        run = only(decide(back, Received("gw-a", send.message, send.values), at_s), Run)
        ran = Ran(run.run, Output({}, {"label": "a"}), None, at_s + 0.25, 0.5)
        (finished,) = all_of(decide(back, ran, at_s + 0.75), Send)
        return traced(decide(front, Received("gw-b", finished.message, {}), 6.0))

    near, far = trace_with(0.0), trace_with(4096.0)
    assert near == far
    node = near.nodes["encoder"]
    assert (node.queue_s, node.compute_s, node.bytes) == (0.25, 0.5, len(b"a cat"))
    assert node.transfer_s + node.return_s == pytest.approx(0.25)


def test_on_one_device_nothing_is_transferred() -> None:
    state = agent("gw-a", ENCODER, routes=[encoder_route("t")])
    run = only(decide(state, requested("t"), 0.0), Run)
    trace = traced(decide(state, Ran(run.run, Output({}, {"label": "a"}), None, 0.1, 0.3), 0.5))
    node = trace.nodes["encoder"]
    assert (node.transfer_s, node.queue_s, node.compute_s) == (0.0, 0.1, 0.3)
    assert node.return_s == pytest.approx(0.1), "until the coordinator's loop took the output"


def test_an_error_has_its_code_and_names_the_nodes_that_did_not_finish() -> None:
    state = chain()
    inputs = asked(state, expiry_s=3)
    decide(state, Received("gw-b", done(inputs, compute_s=0.2), {}), 0.4)
    trace = traced(decide(state, Tick(), 3.0))
    assert (trace.outcome, trace.total_s) == ("deadline_exceeded", 3.0)
    assert trace.nodes.keys() == {"encoder"}
    assert trace.unfinished == {"head": "gw-c"}


def test_a_refused_request_has_a_trace_without_nodes() -> None:
    trace = traced(decide(agent("gw-a"), requested("t"), 1.0))
    assert (trace.outcome, trace.nodes, trace.total_s) == ("no_route", {}, 0.0)


def test_a_node_that_took_the_output_of_equal_work_says_so_in_its_answer_and_in_the_trace() -> None:
    state = agent("gw-a", ENCODER, routes=[encoder_route("t")])
    run = only(decide(state, requested("t"), 0.0), Run)
    output = Output({}, {"label": "a"}, notes=("text 1 is cut",))
    actions = decide(state, Ran(run.run, output, None, 0.1, 0.001, cached=True), 0.2)
    (timing,) = only(actions, Reply).result.timings
    assert timing.notes == ("text 1 is cut",)
    node = traced(actions).nodes["encoder"]
    assert (timing.cached, node.cache_hit, node.compute_s) == (True, True, 0.001)


def test_an_output_that_was_kept_is_a_cache_hit_without_compute() -> None:
    front, back = agent("gw-a", routes=[encoder_route("t", ("gw-b",))]), agent("gw-b", ENCODER)
    (send,) = all_of(decide(front, requested("t"), 0.0), Send)
    run = only(decide(back, Received("gw-a", send.message, send.values), 0.0), Run)
    decide(back, Ran(run.run, Output({}, {"label": "a"}), None, 0.0, 0.5), 0.5)  # and ``done`` is lost
    (again,) = all_of(decide(front, Tick(), front.next_deadline_s() or 0.0), Send)
    (finished,) = all_of(decide(back, Received("gw-a", again.message, again.values), 2.0), Send)
    node = traced(decide(front, Received("gw-b", finished.message, {}), 2.0)).nodes["encoder"]
    assert (node.cache_hit, node.compute_s, node.queue_s, node.attempts) == (True, 0.0, 0.0, 2)


def test_a_retry_is_counted_in_the_attempts() -> None:
    state = chain()
    inputs = asked(state, expiry_s=60)
    now_s = state.next_deadline_s() or 0.0
    again = only(decide(state, Tick(), now_s), Send).message
    decide(state, Received("gw-b", done(again), {}), now_s + 0.1)
    trace = traced(decide(state, Received("gw-c", done(again, node="head"), {}), now_s + 0.2))
    assert (again.attempt, inputs.attempt) == (1, 0)
    assert {node.attempts for node in trace.nodes.values()} == {2}


def test_traces_are_sampled_and_counters_are_not() -> None:
    state = agent("gw-a")
    number = 3 * MAX_TRACES_PER_S
    actions = [action for each in range(number) for action in decide(state, requested("t", each), 0.5)]
    assert len(all_of(actions, PublishTrace)) == MAX_TRACES_PER_S
    assert state.counters.total()["t"].errors == {"no_route": number}
    assert all_of(decide(state, requested("t", number), 1.5), PublishTrace)


def test_a_resent_request_in_flight_is_counted_once() -> None:
    state = chain()
    for _ in range(3):
        decide(state, requested("t"), 0.0)
    assert state.counters.total()["t"].requests == 1


def test_a_request_that_is_taken_over_counts_from_its_arrival() -> None:
    state = agent("gw-b", routes=[encoder_route("t", ("gw-c",), second_door=("gw-b",))])
    decide(state, requested("t", expiry_s=10), 2.0)
    due_s = state.next_deadline_s()
    assert due_s is not None
    actions = decide(state, Tick(), due_s)
    told = only(actions, PublishEvent)
    assert (told.type, told.task, told.requests) == (EventType.TOOK_OVER, "t", 1)
    inputs = only(actions, Send).message
    trace = traced(decide(state, Received("gw-c", done(inputs), {}), due_s + 0.1))
    assert trace.total_s == pytest.approx(due_s + 0.1 - 2.0)


# --- events ---


def told(actions: list[Action]) -> list[tuple[str, str | None, str | None]]:
    return [(event.type.value, event.module, event.why) for event in all_of(actions, PublishEvent)]


def test_the_life_of_a_module_is_published() -> None:
    state = AgentState("gw-a", "s2m3/v1")
    assert told(decide(state, assignment(ENCODER), 0.0)) == [("module_loading", "m/encoder", None)]
    assert told(decide(state, ModuleReady(ENCODER.key), 0.0)) == [("module_ready", "m/encoder", None)]
    assert not told(decide(state, assignment(generation=2), 1.0)), "it is not unloaded yet"
    actions = decide(state, ModuleUnloaded("m/encoder"), 1.1)
    assert told(actions) == [("module_unloaded", "m/encoder", None)]
    assert SendHeartbeat() in actions


def test_a_failed_module_is_published_with_the_reason() -> None:
    state = AgentState("gw-a", "s2m3/v1")
    decide(state, assignment(ENCODER), 0.0)
    actions = decide(state, ModuleFailed(ENCODER.key, "it is too large"), 0.0)
    assert told(actions) == [("module_failed", "m/encoder", "it is too large")]
    assert not told(decide(state, ModuleReady("another"), 0.0)), "nothing assigned, nothing to tell"


def test_error_codes_are_the_outcomes() -> None:
    assert all(Trace(request="r", task="t", outcome=code, total_s=0, nodes={}) for code in ErrorCode)


def test_a_node_that_ends_after_its_resent_inputs_were_refused_is_answered_and_traced() -> None:
    state = agent("gw-a", ENCODER, routes=[encoder_route("t")], compute_s=0.1)
    run = only(decide(state, requested("t", expiry_s=60), 0.0), Run)
    decide(state, assignment(ENCODER, generation=9), 0.5)  # its route comes later: the next attempt's plan is too old
    decide(state, Tick(), 1.5)
    assert state.dropped["stale"] == 1
    ended = Ran(run.run, Output({}, {"label": "a"}), None, 0.1, 1.5)
    actions = decide(state, ended, 1.6)
    assert only(actions, Reply).result.answer == {"label": "a"}
    node = traced(actions).nodes["encoder"]
    assert (node.compute_s, node.transfer_s, node.return_s) == (1.5, 0.0, 0.0)
    assert not state.coordinated
