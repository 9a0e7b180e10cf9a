"""A device whose pass hangs leaves its tasks: others do its work, and each request ends."""

from __future__ import annotations

from functools import partial

import pytest

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode
from broker.protocol.messages import NodeFailed, Plan, PlannedNode
from edge_agent.decide import decide
from edge_agent.events import (
    JoinGroup,
    LeaveGroup,
    Load,
    PassIsLost,
    PublishEvent,
    Received,
    Reply,
    Restarting,
    Run,
    Send,
)
from edge_agent.state import AgentState
from tests.builders import ENCODER, agent, all_of, assignment, encoder_route, node_inputs, only, requested

route = partial(encoder_route, compute_s=1.0)


@pytest.fixture
def state() -> AgentState:
    return agent("gw-a", ENCODER, routes=[route("t")], compute_s=1.0)


def test_it_leaves_its_groups_and_joins_and_loads_nothing_more(state: AgentState) -> None:
    group = state.share_groups["t"]
    run = only(decide(state, requested("t"), 0.0), Run)
    actions = decide(state, PassIsLost((run.run,)), 31.0)
    assert [each.filter for each in all_of(actions, LeaveGroup)] == [group]
    told = only(actions, PublishEvent)
    assert (told.type, told.module, told.why) == ("module_failed", "m/encoder", "a pass hangs, so gw-a restarts")
    later = [*decide(state, route("t", generation=9), 32.0), *decide(state, assignment(ENCODER, generation=9), 32.0)]
    assert not all_of(later, JoinGroup)
    assert not all_of(later, Load)


def test_nodes_that_wait_go_back_and_the_hung_one_is_not_tried_elsewhere(state: AgentState) -> None:
    plan = Plan(nodes={"encoder": PlannedNode(key=ENCODER.key, needs=("text",), device="gw-a")}, output="encoder")
    hung, waiting, late = (
        node_inputs("encoder", ("text",), "gw-a", request=name, task="t", coordinator="gw-b", plan=plan)
        for name in ("r-1", "r-2", "r-3")
    )
    text = {"text": RawInput(b"a cat", "text/plain")}
    run = only(decide(state, Received("gw-b", hung, text), 0.0), Run)
    decide(state, Received("gw-b", waiting, text), 0.0)
    failures = [send.message for send in all_of(decide(state, PassIsLost((run.run,)), 31.0), Send)]
    assert all(isinstance(each, NodeFailed) for each in failures)
    assert {each.request: each.retry for each in failures if isinstance(each, NodeFailed)} == {
        "r-1": False,
        "r-2": True,
    }
    refused = only(decide(state, Received("gw-b", late, text), 32.0), Send)
    assert isinstance(refused.message, NodeFailed)
    assert refused.message.retry


def test_what_was_in_a_pass_that_broke_the_accelerator_is_tried_elsewhere_alone(state: AgentState) -> None:
    plan = Plan(nodes={"encoder": PlannedNode(key=ENCODER.key, needs=("text",), device="gw-a")}, output="encoder")
    text = {"text": RawInput(b"a cat", "text/plain")}
    for name in ("r-1", "r-2"):
        message = node_inputs("encoder", ("text",), "gw-a", request=name, task="t", coordinator="gw-b", plan=plan)
        decide(state, Received("gw-b", message, text), 0.0)
    broke = next(run for run in state.passes if run.request == "r-1")
    actions = decide(state, PassIsLost((broke,), "Some Card can't be used"), 1.0)
    failures = {each.request: each for send in all_of(actions, Send) if isinstance(each := send.message, NodeFailed)}
    assert {name: (each.retry, each.quarantined) for name, each in failures.items()} == {
        "r-1": (True, True),
        "r-2": (True, False),
    }
    reason = "its accelerator fails (Some Card can't be used)"
    assert {each.error.message for each in failures.values()} == {f"gw-a restarts: {reason}"}
    assert only(actions, PublishEvent).why == f"{reason}, so gw-a restarts"


def test_what_it_still_coordinates_at_the_end_gets_an_error(state: AgentState) -> None:
    run = only(decide(state, requested("t", expiry_s=3600), 0.0), Run)
    answered = all_of(decide(state, PassIsLost((run.run,)), 31.0), Reply)
    assert [reply.result.error.code for reply in answered if reply.result.error] == [ErrorCode.MODULE_FAILED]
    decide(state, requested("t", 2), 32.0)
    last = only(decide(state, Restarting(), 41.0), Reply)
    assert last.result.error is not None
    assert (last.result.error.code, last.result.error.retry_after_s) == (ErrorCode.OVERLOADED, 1.0)
    assert not state.coordinated
