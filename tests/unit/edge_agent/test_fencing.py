"""Messages of an older epoch or generation change nothing and are counted: each kind of message in turn."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from broker.protocol.messages import (
    MAX_EPOCH_JUMP,
    MAX_FENCE,
    NodeFailed,
    NodeInputs,
    Route,
)
from edge_agent.decide import decide
from edge_agent.events import (
    Action,
    ControlLinkRestored,
    Event,
    LeaderAnnounced,
    Load,
    Log,
    ModuleReady,
    Ran,
    ReadRetained,
    Received,
    Reply,
    Run,
    Send,
    Tick,
    Unload,
)
from edge_agent.modules import Output
from edge_agent.state import AgentState
from edge_agent.term import CONFIRM_S
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


ABSURD = pytest.mark.parametrize("absurd", [EPOCH + MAX_EPOCH_JUMP + 1, MAX_FENCE])


@ABSURD
@pytest.mark.parametrize("kind", ["leader", "announced", "assignment", "route"])
def test_an_epoch_that_no_leader_can_have_come_to_captures_no_device(state: AgentState, absurd: int, kind: str) -> None:
    messages: dict[str, Event] = {
        "leader": leader(absurd),
        "announced": LeaderAnnounced(leader(absurd)),
        "assignment": fenced_assignment(OLD, epoch=absurd),
        "route": fenced_route(absurd, door="gw-b"),
    }
    assert decide(state, messages[kind], 1.0) == []
    assert (state.epoch, state.dropped["implausible_epoch"]) == (EPOCH, 1)
    decide(state, LeaderAnnounced(leader(EPOCH)), 1.1)  # the real leader overwrites it
    assert list(state.assigned) == [OWN.key]
    assert decide(state, fenced_assignment(OLD, OWN, generation=GENERATION + 1), 1.2)
    decide(state, fenced_route(EPOCH + 1, door="gw-b"), 1.3)
    assert state.routes["t"].front_door == ("gw-b",)
    assert not all_of(decide(state, Tick(), 100.0), ReadRetained)


@pytest.mark.parametrize("huge", [GENERATION + 1, MAX_FENCE])
def test_an_assignment_that_the_leader_does_not_know_is_given_up_when_it_repeats_its_own(
    state: AgentState, huge: int
) -> None:
    decide(state, fenced_assignment(OLD, generation=huge), 1.0)
    for at_s in (2.0, 2.0 + CONFIRM_S / 2):
        assert decide(state, fenced_assignment(OWN), at_s) == []
    assert list(state.assigned) == [OLD.key]
    assert all_of(decide(state, fenced_assignment(OWN), 2.0 + CONFIRM_S), Load)
    assert (list(state.assigned), state.fence) == ([OWN.key], (EPOCH, GENERATION))


def test_an_assignment_that_is_heard_again_is_not_given_up_nor_for_a_late_message(state: AgentState) -> None:
    newer = fenced_assignment(OWN, OLD, generation=GENERATION + 1)
    decide(state, newer, 1.0)
    decide(state, fenced_assignment(OWN), 2.0)  # a late one
    decide(state, newer, 3.0)
    assert decide(state, fenced_assignment(OWN), 2.0 + CONFIRM_S) == []
    for number, at_s in enumerate((20.0, 20.0 + 2 * CONFIRM_S), 1):  # each is another one
        assert decide(state, fenced_assignment(OWN, generation=GENERATION - number), at_s) == []
    assert state.fence == (EPOCH, GENERATION + 1)


@pytest.mark.parametrize("kind", ["leader", "assignment", "route"])
@pytest.mark.parametrize("later", [EPOCH + 1, EPOCH + MAX_EPOCH_JUMP])
def test_a_later_term_that_no_leader_stands_up_for_is_given_up(state: AgentState, kind: str, later: int) -> None:
    front, message = asked_of_another()
    decide(front, fenced_route(later, device="gw-b", door="gw-f"), 0.5)
    for each in (state, front):
        decide(each, leader(EPOCH), 0.0)
        lies: dict[str, Event] = {
            "leader": leader(later),
            "assignment": fenced_assignment(epoch=later),
            "route": fenced_route(later, door="gw-b"),
        }
        decide(each, lies[kind], 1.0)
        decide(each, LeaderAnnounced(leader(EPOCH)), 2.0)
        decide(each, LeaderAnnounced(leader(EPOCH)), 4.0)
        assert each.next_deadline_s() is not None
        assert not all_of(decide(each, Tick(), 2.0 + CONFIRM_S - 0.1), ReadRetained)
        assert all_of(decide(each, Tick(), 2.0 + CONFIRM_S), ReadRetained)
        assert each.epoch == EPOCH
        decide(each, fenced_assignment(OWN, generation=GENERATION + 1), 11.0)
        decide(each, fenced_route(generation=GENERATION + 1, door="gw-c"), 11.0)
        assert (list(each.assigned), each.fence) == ([OWN.key], (EPOCH, GENERATION + 1))
        assert each.routes["t"].front_door == ("gw-c",)
    decide(front, Received("gw-b", done(message, epoch=EPOCH, generation=GENERATION + 1), {}), 11.1)
    assert not front.coordinated, "requests that were planned in the later term end, too"


def test_a_leader_that_is_opposed_at_once_is_not_obeyed(state: AgentState) -> None:
    """An older leader that comes back announces itself; the newer one overwrites that."""
    for at_s in range(0, 60, 5):
        decide(state, LeaderAnnounced(leader(EPOCH - 1)), at_s + 1.0)
        decide(state, LeaderAnnounced(leader(EPOCH)), at_s + 1.1)
        assert not all_of(decide(state, Tick(), at_s + 4.0), ReadRetained)
    assert state.epoch == EPOCH


def test_what_a_broker_remembers_of_a_dead_leader_ends_no_term(state: AgentState) -> None:
    decide(state, leader(EPOCH - 1), 1.0)
    decide(state, Tick(), 100.0)
    assert state.epoch == EPOCH
    decide(state, LeaderAnnounced(leader(EPOCH - 1)), 101.0)
    decide(state, ControlLinkRestored(), 102.0)
    decide(state, Tick(), 200.0)
    assert state.epoch == EPOCH


def test_a_leader_far_ahead_is_obeyed_once_nobody_opposed_it(state: AgentState) -> None:
    far = EPOCH + 10 * MAX_EPOCH_JUMP
    decide(state, LeaderAnnounced(leader(far)), 1.0)
    assert decide(state, fenced_assignment(OLD, epoch=far), 1.1) == []
    assert all_of(decide(state, Tick(), 1.0 + CONFIRM_S), ReadRetained)
    decide(state, fenced_assignment(OLD, epoch=far), 10.0)
    assert list(state.assigned) == [OLD.key]


def test_a_restarted_device_with_an_old_retained_assignment_unloads_the_modules_that_the_new_one_lacks() -> None:
    """The broker still has the old retained assignment, until the orchestrator publishes a new one."""
    state = AgentState("gw-a", PREFIX)
    loads = all_of(decide(state, fenced_assignment(OWN, OLD), 0.0), Load)
    assert {load.assigned.spec.key for load in loads} == {OWN.key, OLD.key}
    decide(state, ModuleReady(OLD.key), 0.1)
    actions = decide(state, fenced_assignment(OWN, epoch=EPOCH + 1, generation=0), 0.2)
    assert [action for action in actions if isinstance(action, (Unload, Load))] == [Unload(OLD.key, "m/old")]
    assert OLD.key not in state.ready
    assert decide(state, fenced_assignment(OWN, OLD), 0.3) == [], "the old one, delivered again, loads nothing"


def test_a_device_says_once_that_the_leader_expects_another_heartbeat_interval() -> None:
    state = AgentState("gw-a", PREFIX, heartbeat_interval_s=10.0)
    told = [
        each
        for said in (leader(1), leader(1), leader(2, online=False), leader(2), leader(1))
        for each in all_of(decide(state, said, 0.0), Log)
        if each.action == "heartbeat_interval_differs"
    ]
    assert [each.fields for each in told] == [{"own_s": 10.0, "expected_s": 1.0, "counts": "own_s"}]
    assert not all_of(decide(AgentState("gw-b", PREFIX), leader(1), 0.0), Log)
