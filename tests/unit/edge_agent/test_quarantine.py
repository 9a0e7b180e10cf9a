"""Requests that may kill devices run alone and with a permit; refused payloads run nowhere."""

from __future__ import annotations

import numpy as np
import pytest

from broker.protocol.codec import RawInput, decode_request, inputs_digest, request_id
from broker.protocol.errors import ErrorCode
from broker.protocol.messages import NodeFailed, NodeInputs, Permit, Quarantine
from edge_agent.decide import decide
from edge_agent.events import Action, Ran, Received, Reply, Requested, Run, Send, SendHeartbeat, Tick
from edge_agent.heart import snapshot_of
from edge_agent.modules import Output
from edge_agent.requests.quarantine import PERMIT_S
from edge_agent.state import AgentState
from tests.builders import ENCODER, agent, all_of, encoder_route, failed, only, requested

FIRST, SECOND = requested("t", 1), requested("t", 2)
PAYLOAD = inputs_digest(decode_request(FIRST.payload, FIRST.content_type, encoder_route("t").inputs))


def id_of(event: Requested) -> str:
    return request_id(event.task, event.reply_to, event.correlation, event.payload)


@pytest.fixture
def state() -> AgentState:
    return agent("gw-a", ENCODER, routes=[encoder_route("t")], compute_s=0.1)


def ran(run: Run, now_s: float) -> Ran:
    return Ran(run.run, Output({"x": np.ones(1, np.float32)}, {"label": "a"}), None, now_s, 0.1)


def refused(**fields: object) -> Quarantine:
    return Quarantine.model_validate({"epoch": 1, "refused": {PAYLOAD: 600.0}} | fields)


def told(actions: list[Action]) -> tuple[str, str]:
    error = only(actions, Reply).result.error
    assert error is not None
    return error.code, error.message


@pytest.mark.parametrize("listed", ["request", "payload"])
def test_a_request_in_quarantine_is_named_in_a_heartbeat_and_runs_with_the_permit(
    state: AgentState, listed: str
) -> None:
    lists = {"requests": (id_of(FIRST),)} if listed == "request" else {"payloads": (PAYLOAD,)}
    decide(state, Quarantine.model_validate({"epoch": 1} | lists), 0.0)
    asked = decide(state, FIRST, 1.0)
    assert all_of(asked, SendHeartbeat)
    assert not all_of(asked, Run)
    alone = snapshot_of(state, {}).alone
    assert alone is not None
    assert (alone.request, alone.payload) == (id_of(FIRST), PAYLOAD)
    assert not decide(state, Permit(epoch=1, request="another"), 1.1)
    run = only(decide(state, Permit(epoch=1, request=id_of(FIRST)), 1.2), Run)
    assert run.payload == PAYLOAD
    assert not decide(state, Permit(epoch=1, request=id_of(FIRST)), 1.3), "a second permit begins nothing"
    assert all_of(decide(state, ran(run, 1.3), 1.4), SendHeartbeat)
    assert snapshot_of(state, {}).alone is None


def test_nothing_else_is_computed_beside_it(state: AgentState) -> None:
    decide(state, Quarantine(epoch=1, requests=(id_of(FIRST),)), 0.0)
    before = only(decide(state, SECOND, 1.0), Run)
    assert not all_of(decide(state, FIRST, 1.0), SendHeartbeat), "it waits until the compute thread is idle"
    assert all_of(decide(state, ran(before, 1.1), 1.1), SendHeartbeat)
    assert not all_of(decide(state, requested("t", 3), 1.2), Run)
    run = only(decide(state, Permit(epoch=1, request=id_of(FIRST)), 1.3), Run)
    after = only(decide(state, ran(run, 1.4), 1.4), Run)
    assert after.run.request == id_of(requested("t", 3))


def test_without_a_leader_it_waits_for_a_moment_only(state: AgentState) -> None:
    decide(state, Quarantine(epoch=1, requests=(id_of(FIRST),)), 0.0)
    decide(state, FIRST, 1.0)
    assert state.alone is not None
    assert (state.next_deadline_s() or 0) <= state.alone.due_s == 1.0 + PERMIT_S
    assert only(decide(state, Tick(), 1.0 + PERMIT_S), Run).run.request == id_of(FIRST)


def test_while_another_device_computes_the_same_payload_it_waits_on(state: AgentState) -> None:
    decide(state, Quarantine(epoch=1, requests=(id_of(FIRST),)), 0.0)
    decide(state, FIRST, 1.0)
    assert not decide(state, Permit(epoch=1, request=id_of(FIRST), granted=False), 2.0)
    assert not all_of(decide(state, Tick(), 1.0 + PERMIT_S), Run)
    assert all_of(decide(state, Tick(), 2.0 + PERMIT_S), Run)


def test_a_request_whose_device_is_not_in_the_route_any_more_is_in_quarantine() -> None:
    front = agent("gw-a", routes=[encoder_route("t", ("gw-b",))])
    first = only(decide(front, FIRST, 0.0), Send).message
    assert isinstance(first, NodeInputs)
    assert (first.quarantined, first.payload) == (False, PAYLOAD)
    again = only(decide(front, encoder_route("t", ("gw-c",), generation=2), 0.1), Send).message
    assert isinstance(again, NodeInputs)
    assert again.quarantined
    there = agent("gw-c", ENCODER, compute_s=0.1)
    values = {"text": front.coordinated[id_of(FIRST)].inputs["text"]}
    assert not all_of(decide(there, Received("gw-a", again, values), 0.2), Run)
    assert snapshot_of(there, {}).alone is not None


def test_a_request_that_nobody_received_is_in_quarantine_and_one_that_a_device_refused_is_not() -> None:
    front = agent("gw-a", routes=[encoder_route("t", ("gw-b", "gw-c"))])
    first = only(decide(front, FIRST, 0.0), Send).message
    request = front.coordinated[id_of(FIRST)]
    decide(front, Received("gw-b", failed(first, "gw-b"), {}), 0.1)
    assert not request.quarantined
    decide(front, Received("gw-a", failed(first, "gw-b"), {}), 0.1)
    assert request.quarantined


def test_a_refused_payload_is_answered_at_once_for_as_long_as_the_leader_says(state: AgentState) -> None:
    decide(state, refused(), 0.0)
    code, sentence = told(decide(state, FIRST, 1.0))
    assert (code, "two devices died" in sentence) == (ErrorCode.MODULE_FAILED, True)
    assert not all_of(decide(state, requested("t", 9, client="other"), 2.0), Run), "to any sensor"
    assert all_of(decide(state, FIRST, 601.0), Run)


def test_a_payload_that_the_leader_allows_again_runs(state: AgentState) -> None:
    decide(state, refused(), 0.0)
    decide(state, Quarantine(epoch=1), 1.0)
    assert all_of(decide(state, FIRST, 2.0), Run)


def test_requests_under_way_end_when_their_payload_is_refused(state: AgentState) -> None:
    decide(state, Quarantine(epoch=1, requests=(id_of(FIRST),)), 0.0)
    decide(state, FIRST, 0.1)
    actions = decide(state, refused(), 0.2)
    assert told(actions)[0] == ErrorCode.MODULE_FAILED
    assert (state.alone, len(state.pending), len(state.coordinated)) == (None, 0, 0)
    assert not decide(state, Permit(epoch=1, request=id_of(FIRST)), 0.3)
    other = requested("t", 5, inputs={"text": RawInput(b"a dog", "text/plain")})
    assert all_of(decide(state, other, 0.4), Run)


def test_a_device_refuses_the_node_of_a_coordinator_that_does_not_know_yet(state: AgentState) -> None:
    other = agent("gw-b", routes=[encoder_route("t")])
    inputs = only(decide(other, FIRST, 0.0), Send)
    decide(state, refused(), 0.0)
    answer = only(decide(state, Received("gw-b", inputs.message, inputs.values), 0.1), Send).message
    assert isinstance(answer, NodeFailed)
    assert (answer.retry, answer.error.code) == (False, ErrorCode.MODULE_FAILED)


def test_the_list_of_an_older_leader_is_ignored(state: AgentState) -> None:
    state.epoch = 2
    decide(state, refused(), 0.0)
    assert all_of(decide(state, FIRST, 1.0), Run)
    assert state.dropped["stale_quarantine"] == 1
