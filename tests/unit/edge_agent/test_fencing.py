"""Messages of an older epoch or generation change nothing and are counted: each kind of message in turn."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from broker.protocol.messages import (
    NodeFailed,
    NodeInputs,
    Route,
)
from edge_agent.decide import decide
from edge_agent.events import (
    Action,
    Load,
    ModuleReady,
    Ran,
    Received,
    Reply,
    Run,
    Send,
    Tick,
    Unload,
)
from edge_agent.modules import Output
from edge_agent.state import AgentState
from tests.builders import (
    PREFIX,
    agent,
    all_of,
    assignment,
    done,
    encoder_route,
    failed,
    leader,
    module,
    only,
    requested,
)

EPOCH, GENERATION = 4, 7


OWN, OLD = module("own"), module("old")
fenced_assignment = partial(assignment, epoch=EPOCH, generation=GENERATION)


def fenced_route(epoch: int = EPOCH, generation: int = GENERATION, device: str = "gw-a", door: str = "gw-a") -> Route:
    return encoder_route("t", (device,), key=OWN.key, epoch=epoch, generation=generation, front_door=(door,))


asked = partial(requested, "t", expiry_s=60)


@pytest.fixture
def state() -> AgentState:
    state = AgentState("gw-a", PREFIX)
    decide(state, fenced_assignment(OWN), 0.0)
    decide(state, ModuleReady(OWN.key), 0.0)
    decide(state, fenced_route(), 0.0)
    return state


OLDER = pytest.mark.parametrize(
    ("epoch", "generation"), [(EPOCH - 1, GENERATION + 9), (EPOCH, GENERATION - 1)], ids=["epoch", "generation"]
)


@OLDER
def test_an_older_assignment(state: AgentState, epoch: int, generation: int) -> None:
    assert decide(state, fenced_assignment(OLD, epoch=epoch, generation=generation), 1.0) == []
    assert list(state.assigned) == [OWN.key]
    assert state.dropped["stale_assignment"] == 1


@OLDER
def test_an_older_route(state: AgentState, epoch: int, generation: int) -> None:
    assert decide(state, fenced_route(epoch, generation, door="gw-b"), 1.0) == []
    assert state.routes["t"].front_door == ("gw-a",)
    assert state.dropped["stale_route"] == 1


@OLDER
def test_an_older_tensor_is_refused_with_a_message_to_its_coordinator(
    state: AgentState, epoch: int, generation: int
) -> None:
    front = agent("gw-f", routes=[fenced_route(epoch, generation, door="gw-f")])
    send = only(decide(front, asked(), 0.0), Send)
    actions = decide(state, Received("gw-f", send.message, send.values), 1.0)
    assert not all_of(actions, Run)
    (refused,) = [action.message for action in actions if isinstance(action, Send)]
    assert isinstance(refused, NodeFailed)
    assert refused.retry
    assert (refused.epoch, refused.generation) == (epoch, generation)
    assert state.dropped["stale"] == 1


@OLDER
def test_an_older_done_ends_nothing(epoch: int, generation: int) -> None:
    front, message = asked_of_another()
    decide(front, Received("gw-b", done(message, epoch=epoch, generation=generation), {}), 0.1)
    assert front.coordinated
    assert front.dropped["stale_done"] == 1


def test_a_failure_of_an_older_attempt_changes_nothing() -> None:
    front, message = asked_of_another()
    decide(front, Tick(), front.next_deadline_s() or 0.0)
    before = front.next_deadline_s()
    decide(front, Received("gw-b", failed(message, retry=False), {}), 1.1)
    assert front.coordinated
    assert (front.next_deadline_s(), front.dropped["stale_failure"]) == (before, 1)


def asked_of_another() -> tuple[AgentState, NodeInputs]:
    """gw-f assigned the node to gw-b."""
    front = agent("gw-f", routes=[fenced_route(device="gw-b", door="gw-f")])
    send = only(decide(front, asked(), 0.0), Send)
    assert isinstance(send.message, NodeInputs)
    return front, send.message


def test_every_tensor_and_every_result_carries_the_fence_of_the_route_that_it_followed(state: AgentState) -> None:
    run = only(decide(state, asked(), 0.0), Run)
    actions: list[Action] = decide(state, Ran(run.run, Output({"x": np.ones(1)}, {"a": 1}), None, 0.0, 0.1), 0.1)
    reply = only(actions, Reply)
    assert (reply.result.epoch, reply.result.generation) == (EPOCH, GENERATION)
    _, message = asked_of_another()
    assert (message.epoch, message.generation) == (EPOCH, GENERATION)


def test_once_a_newer_leader_was_seen_the_older_one_is_not_obeyed(state: AgentState) -> None:
    decide(state, leader(EPOCH + 1), 1.0)
    assert decide(state, fenced_assignment(generation=GENERATION + 1), 1.1) == []
    assert decide(state, fenced_route(generation=GENERATION + 1, door="gw-b"), 1.1) == []
    assert (state.dropped["stale_assignment"], state.dropped["stale_route"]) == (1, 1)
    decide(state, leader(EPOCH), 1.2)
    assert state.epoch == EPOCH + 1


def test_a_restarted_device_with_an_old_retained_assignment_unloads_the_modules_that_the_new_one_lacks() -> None:
    """The broker still has the old retained assignment, until the orchestrator publishes a new one."""
    state = AgentState("gw-a", PREFIX)
    loads = all_of(decide(state, fenced_assignment(OWN, OLD), 0.0), Load)
    assert {load.assigned.spec.key for load in loads} == {OWN.key, OLD.key}
    decide(state, ModuleReady(OLD.key), 0.1)
    actions = decide(state, fenced_assignment(OWN, epoch=EPOCH + 1, generation=0), 0.2)
    assert [action for action in actions if isinstance(action, (Unload, Load))] == [Unload(OLD.key)]
    assert OLD.key not in state.ready
    assert decide(state, fenced_assignment(OWN, OLD), 0.3) == [], "the old one, delivered again, loads nothing"
