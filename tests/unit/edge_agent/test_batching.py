"""Batching, as the rules see it: which waiting nodes join a pass, in which order, and when a pass takes no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from broker.protocol.codec import RawInput
from broker.protocol.messages import NodeFailed, Quarantine
from edge_agent.decide import decide
from edge_agent.events import Action, ModuleReady, PassIsLost, Ran, Received, Requested, Run, Send, SendHeartbeat
from edge_agent.modules import Output
from edge_agent.state import AgentState
from tests.builders import (
    ENCODER,
    able,
    agent,
    all_of,
    encoder_route,
    failed,
    module,
    node_inputs,
    only,
    requested,
    route,
    route_node,
)

OTHER = module("other", memory_bytes=1000, flops=1e6, output_bytes=8)


def batching(batch: int = 4, compute_s: float = 0.1, batched: frozenset[str | None] = frozenset({None})) -> AgentState:
    """gw-a holds two modules that take a batch, and serves the tasks ``a`` and ``b`` with one, ``c`` with the other."""
    routes = [encoder_route(task, compute_s=compute_s) for task in ("a", "b")]
    routes.append(encoder_route("c", key=OTHER.key, compute_s=compute_s))
    state = agent("gw-a", ENCODER, OTHER, routes=routes, compute_s=compute_s)
    state.batch = batch
    for spec in (ENCODER, OTHER):
        decide(state, ModuleReady(spec.key, compute_s, batched), 0.0)
    return state


def asked(task: str, number: int, *, client: str = "", deadline_s: int = 10) -> Requested:
    return replace(requested(task, number, client=client or task, expiry_s=deadline_s), client=client or task)


def ask(state: AgentState, task: str, *numbers: int, now_s: float = 0.0, **fields: object) -> list[Run]:
    asks = [asked(task, number, **fields) for number in numbers]  # type: ignore[arg-type]
    return [run for each in asks for run in all_of(decide(state, each, now_s), Run)]


def ran(runs: Sequence[Run], state: AgentState, now_s: float, seconds: float = 0.1) -> list[Action]:
    """One pass of these runs ends."""
    output = Output({"x": np.ones(1, np.float32)}, {"label": "a"})
    events = [Ran(run.run, output, None, now_s - seconds, seconds, batch=len(runs)) for run in runs]
    return [action for event in events for action in decide(state, event, now_s)]


def groups(runs: Sequence[Run]) -> list[int]:
    """The sizes of the groups, in the order in which they were submitted."""
    numbers = [run.group for run in runs]
    return [numbers.count(number) for number in dict.fromkeys(numbers)]


def test_a_lone_request_is_submitted_at_once_and_alone() -> None:
    assert groups(ask(batching(), "a", 1)) == [1]


def test_what_waits_while_another_pass_is_computed_is_computed_together_across_tasks() -> None:
    state = batching()
    runs = ask(state, "a", 1, 2) + ask(state, "b", 3, 4, 5, 6)
    assert groups(runs) == [1, 4], "the first begins at once, four are a batch, and the last one waits"
    after = all_of(ran(runs[:1], state, 0.1), Run)
    assert groups(after) == [1]
    assert {run.key for run in runs + after} == {ENCODER.key}


def test_without_a_batch_each_pass_has_one_node() -> None:
    assert groups(ask(batching(batch=1), "a", 1, 2, 3)) == [1, 1]


def test_a_use_that_takes_no_batch_is_computed_node_by_node() -> None:
    assert groups(ask(batching(batched=frozenset()), "a", 1, 2, 3)) == [1, 1]
    assert groups(ask(batching(batched=frozenset({"another"})), "a", 1, 2, 3)) == [1, 1]


def test_only_nodes_of_one_module_are_computed_together() -> None:
    state = batching()
    runs = ask(state, "a", 1, 2) + ask(state, "c", 3) + ask(state, "b", 4)
    assert [(run.key, run.group) for run in runs] == [(ENCODER.key, 1), (ENCODER.key, 2), (ENCODER.key, 2)]
    assert [run.key for run in all_of(ran(runs[:1], state, 0.1), Run)] == [OTHER.key]


def test_only_nodes_of_one_use_are_computed_together() -> None:
    state = batching(batched=frozenset({None, "mean"}))
    own = route_node(ENCODER.key, ("text",), able("gw-a")).model_copy(update={"use": "mean"})
    decide(state, route("b", {"encoder": own}, generation=2), 0.0)
    runs = ask(state, "a", 1, 2) + ask(state, "b", 3) + ask(state, "a", 4)
    assert [(run.use, run.group) for run in runs] == [(None, 1), (None, 2), (None, 2)]


def test_a_batch_is_filled_in_turn_from_the_tasks_and_clients_that_wait() -> None:
    state = batching(batch=4)
    first = ask(state, "c", 1, 2)  # both passes are taken
    waits = ask(state, "a", *range(10, 18), client="greedy") + ask(state, "b", 20, 21, client="modest")
    waits += ask(state, "a", 30, 31, client="modest")
    assert not waits
    ran(first[:1], state, 0.1)  # one of the encoder's nodes begins a group, which others join
    names = [(submitted.flow, submitted.key) for submitted in state.passes.values()]
    flows = [flow for flow, key in names if key == ENCODER.key]
    assert sorted(flows) == [("a", "greedy"), ("a", "modest"), ("b", "modest"), ("b", "modest")]


def test_each_task_pays_its_share_of_a_pass() -> None:
    state = batching()
    runs = ask(state, "c", 1) + ask(state, "a", 2, 3) + ask(state, "b", 4)
    assert groups(runs) == [1, 3]
    ran(runs[:1], state, 0.1)
    ran(runs[1:], state, 0.4, seconds=0.3)
    again = ask(state, "c", 5, 6) + ask(state, "a", 7) + ask(state, "b", 8)
    order = [run.run.request for run in again]
    assert len(order) == 2
    assert state.measured_s[ENCODER.key] == pytest.approx(0.1), "0.3 s for three are 0.1 s each"


def test_a_pass_of_many_counts_as_one_measurement() -> None:
    state = batching(batch=32, compute_s=0.1)
    runs = ask(state, "a", *range(1, 30))
    assert groups(runs) == [1, 28]
    ran(runs[:1], state, 0.1)
    ran(runs[1:], state, 3.0, seconds=28.0)
    assert 0.1 < state.measured_s[ENCODER.key] < 0.3, "a slow pass doesn't make the average jump, however many it had"


def test_an_expired_node_joins_no_batch() -> None:
    state = batching()
    first = ask(state, "c", 1, 2, deadline_s=60)
    ask(state, "a", 3, deadline_s=2)
    ask(state, "a", 4, 5, deadline_s=60)
    later = all_of(ran(first[:1], state, 3.0), Run)
    assert [len(later), state.dropped["expired"]] == [2, 1]


def test_a_batch_is_not_grown_past_the_deadline_of_a_member() -> None:
    state = batching(batch=8, compute_s=1.0)
    begun = ask(state, "c", 1, deadline_s=60)
    head = ask(state, "a", 2, deadline_s=5)  # it waits for one second of ``c``, and takes one itself
    joined = ask(state, "a", 3, 4, 5, 6, 7, deadline_s=60)
    assert groups(begun + head + joined) == [1, 4], "with a fifth the first would end after 6 s of its 5 s"


def test_a_node_whose_own_deadline_is_too_near_for_the_batch_does_not_join_it() -> None:
    state = batching(batch=8, compute_s=1.0)
    state.measured_s[OTHER.key] = 0.0
    ask(state, "c", 1, deadline_s=60)
    assert groups(ask(state, "a", 2, 3, 4, deadline_s=60)) == [3]
    state.pending.clear()
    waiting = ask(state, "b", 5, deadline_s=3)
    assert not waiting, "four take 4 s"


def test_a_node_in_quarantine_is_computed_alone() -> None:
    state = batching()
    runs = ask(state, "a", 1, 2)
    suspect = asked("a", 3)
    decide(state, suspect, 0.0)
    request = next(run.request for run in state.pending if run.request not in {each.run.request for each in runs})
    waits = batching()
    first = ask(waits, "c", 1, 2)
    decide(waits, Quarantine(epoch=1, requests=(request,)), 0.0)
    ask(waits, "a", 4, 5)
    decide(waits, suspect, 0.0)
    ask(waits, "a", 6)
    later = all_of(ran(first[:1], waits, 0.1), Run)
    assert request not in {run.run.request for run in later}
    assert groups(later) == [3]
    ran(first[1:], waits, 0.2)
    assert waits.alone is None
    told = ran(later, waits, 0.3)
    assert all_of(told, SendHeartbeat), "it asks for its permit when nothing else is computed"
    assert waits.alone is not None
    assert waits.alone.run.request == request


def test_of_a_batch_that_hangs_each_node_is_retried_alone() -> None:
    state = batching()
    for number in range(3):
        message = node_inputs("encoder", ("text",), "gw-a", request=f"r-{number}", coordinator="gw-b")
        plan = message.plan.nodes["encoder"].model_copy(update={"key": ENCODER.key})
        message = message.model_copy(update={"plan": message.plan.model_copy(update={"nodes": {"encoder": plan}})})
        decide(state, Received("gw-b", message, {"text": RawInput(b"a")}), 0.0)
    batch = [run for run, submitted in state.passes.items() if submitted.group == 2]
    assert len(batch) == 2
    failures = [each.message for each in all_of(decide(state, PassIsLost(tuple(batch)), 31.0), Send)]
    found = {each.request: each for each in failures if isinstance(each, NodeFailed)}
    assert len(found) == 3
    assert all(each.retry for each in found.values())
    assert sorted(each.quarantined for each in found.values()) == [False, True, True]


def test_a_trace_and_a_timing_say_how_many_nodes_the_pass_had() -> None:
    state = batching()
    runs = ask(state, "a", 1, 2, 3)
    ran(runs[:1], state, 0.1)
    ran(runs[1:], state, 0.2)
    assert sorted(kept.batch for kept in state.kept.values()) == [1, 2, 2]


def test_a_coordinator_has_a_node_that_may_hang_run_alone() -> None:
    routes = [encoder_route("a", devices=("gw-b", "gw-c"))]
    state = agent("gw-a", routes=routes)
    sent = only(decide(state, asked("a", 1), 0.0), Send)
    (request,) = state.coordinated.values()
    assert not request.quarantined
    decide(state, Received(sent.receiver, failed(sent.message, sent.receiver, quarantined=True), {}), 0.1)
    assert request.quarantined
