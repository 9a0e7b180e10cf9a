"""The agent's rules, event by event, without a clock, a socket or a model."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from inspect import isfunction, isgeneratorfunction
from types import ModuleType
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from pydantic import ValidationError

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode, LocalProtocolError, ModuleRefused, RequestFailed
from broker.protocol.messages import (
    ErrorBody,
    NodeDone,
    NodeFailed,
    NodeInputs,
    Plan,
    PlannedNode,
    Route,
)
from broker.transport.port import RECONNECT_S
from edge_agent import decide as decide_module
from edge_agent import events
from edge_agent.decide import LEAVE_S, decide, step
from edge_agent.events import (
    Action,
    ControlLinkRestored,
    JoinGroup,
    LeaveGroup,
    Load,
    Log,
    ModuleFailed,
    ModuleReady,
    NotReceived,
    PublishEvent,
    PublishTrace,
    Ran,
    Received,
    Reply,
    Requested,
    RouteCleared,
    Run,
    Send,
    SendHeartbeat,
    Tick,
    Unload,
)
from edge_agent.modules import Output
from edge_agent.requests import backup_coordinator, coordinate, execute
from edge_agent.requests.execute import SWEEP_S
from edge_agent.requests.load_estimate import waits_s
from edge_agent.state import AgentState
from edge_agent.workers import rounded_output, widened_values
from tests import builders
from tests.builders import (
    ENCODER,
    PREFIX,
    able,
    agent,
    all_of,
    assignment,
    done,
    failed,
    leader,
    module,
    only,
    requested,
    route_node,
)

REPLY_TO = f"{PREFIX}/clients/camera/results/1"


HEAD = module("head", memory_bytes=1000, flops=1e6, output_bytes=8)


def zero_shot_route(
    encoder: tuple[str, ...] = ("gw-a",), head: tuple[str, ...] = ("gw-b",), **changed: object
) -> Route:
    """image -> encoder -> head (which also takes the text), with the front door where the encoder is."""
    cost = {"compute_s": 0.01, "latency_s": 0.001, "bandwidth_bits_per_s": 1e8}
    nodes = {
        "encoder": route_node(ENCODER.key, ("image",), able(*encoder, **cost)),
        "head": route_node(HEAD.key, ("encoder", "text"), able(*head, **cost)),
    }
    return builders.route("zero-shot", nodes, **{"front_door": encoder} | changed)


def request(inputs: dict[str, RawInput] | None = None, **changed: Any) -> Requested:
    both = {"image": RawInput(b"\x89PNG", "image/png"), "text": RawInput(b"a cat", "text/plain")}
    return replace(requested("zero-shot", inputs=inputs or both), **changed)


ASKED = request()  # the same bytes each time, as a retry sends them


@pytest.fixture
def front() -> AgentState:
    """gw-a: holds the encoder, is the front door; gw-b holds the head."""
    return agent("gw-a", ENCODER, routes=[zero_shot_route()])


@pytest.fixture
def back() -> AgentState:
    """gw-b: holds the head."""
    return agent("gw-b", HEAD, routes=[zero_shot_route()])


def features(value: float = 1.0) -> Output:
    return Output({"features": np.full((1, 2), value, dtype=np.float32)})


def computed(run: Run, output: Output) -> Ran:
    """The end of a pass, as the compute thread reports it."""
    kept, given = rounded_output(run, output)
    return Ran(run.run, kept, None, 0.0, 0.0, given)


def encoded(front: AgentState) -> list[Action]:
    """A request's encoder ran on the front door."""
    run = only(decide(front, request(), 0.0), Run)
    return decide(front, Ran(run.run, features(), None, 0.0, 0.02), 0.1)


# --- rules ---


def test_every_event_has_one_rule() -> None:
    control_messages = set(get_args(events.Event)) - {events.OwnEvent}
    assert set(decide_module.RULES) == control_messages | set(events.OwnEvent.__subclasses__())


@pytest.mark.parametrize("rules", [decide_module, backup_coordinator, coordinate, execute])
def test_every_rule_returns_a_list_and_none_is_a_generator(rules: ModuleType) -> None:
    """A generator would change the state only when its actions are consumed."""
    found = {name: each for name, each in vars(rules).items() if isfunction(each) and each.__module__ == rules.__name__}
    assert not [name for name, each in found.items() if isgeneratorfunction(each)]
    entries = [name for name in found if name.startswith(("on_", "_on_"))]
    assert entries
    assert {name: get_type_hints(found[name])["return"] for name in entries} == dict.fromkeys(entries, list[Action])


def test_others_get_their_messages_before_this_device_goes_on() -> None:
    state = agent("gw-a", HEAD, routes=[zero_shot_route(encoder=("gw-b",), head=("gw-a",), front_door=("gw-a",))])
    waiting: deque[events.Event] = deque([ASKED])
    asks = step(state, waiting, 0.0)
    assert only(asks, Send).receiver == "gw-b"
    assert not state.pending
    (own,) = waiting
    assert isinstance(own, Received)
    decide(state, own, 0.0)
    sent = only(asks, Send).message
    assert isinstance(sent, NodeInputs)
    inputs = sent.model_copy(update={"node": "head", "content_types": {}})
    run = only(decide(state, Received("gw-b", inputs, {"encoder": features().tensors}), 0.1), Run)
    waiting = deque([computed(run, Output({}, {"label": "a cat"}))])
    assert all_of(step(state, waiting, 0.2), Reply)
    assert state.coordinated  # it hears that the request has ended after the answer
    only(step(state, waiting, 0.2), PublishTrace)


def test_a_rule_has_its_effect_though_its_actions_are_dropped(front: AgentState) -> None:
    coordinate.on_request(front, ASKED, 0.0)
    assert len(front.coordinated) == 1
    coordinate.on_task_cleared(front, "zero-shot", 0.0)
    assert not front.coordinated


def test_the_same_events_give_the_same_actions_and_the_same_state() -> None:
    history: list[events.Event] = [
        assignment(ENCODER),
        ModuleReady(ENCODER.key, 0.1),
        zero_shot_route(),
        ASKED,
        ASKED,
        Tick(),
        Tick(),
    ]
    states = [AgentState("gw-a", PREFIX), AgentState("gw-a", PREFIX)]
    for now_s, event in enumerate(history):
        first, second = (decide(state, event, float(now_s)) for state in states)
        assert first == second
    seen = [{name: value for name, value in vars(state).items() if name != "fair_queue"} for state in states]
    assert seen[0] == seen[1]


# --- assignments ---


def test_assigned_modules_are_loaded_after_the_others_are_unloaded() -> None:
    state = AgentState("gw-a", PREFIX)
    assert only(decide(state, assignment(ENCODER), 0.0), Load).assigned.spec == ENCODER
    actions = decide(state, assignment(HEAD, generation=2), 0.0)
    assert [type(action) for action in actions] == [Unload, Load, PublishEvent, SendHeartbeat]


def test_the_same_assignment_again_loads_nothing(front: AgentState) -> None:
    assert not all_of(decide(front, assignment(ENCODER), 0.0), Load)


def test_an_older_assignment_is_dropped_and_counted(front: AgentState) -> None:
    decide(front, assignment(ENCODER, generation=5), 0.0)
    assert decide(front, assignment(generation=4), 0.0) == []
    assert front.dropped["stale_assignment"] == 1
    assert ENCODER.key in front.assigned


def test_an_assignment_of_an_older_epoch_is_dropped_even_with_a_higher_generation(front: AgentState) -> None:
    decide(front, leader(7), 0.0)
    assert decide(front, assignment(generation=99, epoch=6), 0.0) == []
    assert ENCODER.key in front.assigned


def test_a_new_leader_gets_a_heartbeat_at_once(front: AgentState) -> None:
    assert decide(front, leader(2), 0.0) == [SendHeartbeat()]
    assert decide(front, leader(2), 0.0) == []


def test_a_module_that_failed_is_reported_and_its_requests_go_back(front: AgentState) -> None:
    decide(front, ModuleFailed(ENCODER.key), 0.0)
    actions = decide(front, request(), 0.0)
    assert not all_of(actions, Run)
    assert front.coordinated  # still open: a new route may come


# --- routes ---


def test_the_front_door_joins_its_share_group() -> None:
    state = AgentState("gw-a", PREFIX)
    assert (
        only(decide(state, zero_shot_route(), 0.0), JoinGroup).filter
        == f"$share/zero-shot-1-1/{PREFIX}/tasks/zero-shot/requests/#"
    )


def test_a_new_front_door_set_joins_the_new_group_before_leaving_the_old(front: AgentState) -> None:
    actions = decide(front, zero_shot_route(group=2, generation=2), 0.0)
    assert [type(action) for action in actions] == [JoinGroup, LeaveGroup]


def test_a_removed_front_door_leaves_when_the_new_one_had_time_to_join(front: AgentState) -> None:
    decide(front, zero_shot_route(encoder=("gw-c",), group=2, generation=2), 0.0)
    assert decide(front, Tick(), 0.5) == []
    assert all_of(decide(front, request(), 0.5), Send), "a request in between is coordinated here"
    assert front.next_deadline_s() == LEAVE_S
    old = f"$share/zero-shot-1-1/{PREFIX}/tasks/zero-shot/requests/#"
    assert only(decide(front, Tick(), LEAVE_S), LeaveGroup).filter == old
    assert not all_of(decide(front, Tick(), 2 * LEAVE_S), LeaveGroup)


def test_a_front_door_that_returns_to_its_group_meanwhile_does_not_leave_it(front: AgentState) -> None:
    decide(front, zero_shot_route(encoder=("gw-c",), group=2, generation=2), 0.0)
    decide(front, zero_shot_route(generation=3), 0.5)
    assert not all_of(decide(front, Tick(), 2 * LEAVE_S), LeaveGroup)


def test_a_front_door_of_an_unavailable_task_leaves_at_once(front: AgentState) -> None:
    nobody = Route(task="zero-shot", epoch=1, generation=2, group=2, unavailable="no device can hold it")
    assert all_of(decide(front, nobody, 0.0), LeaveGroup)


def test_an_older_route_is_dropped_and_counted(front: AgentState) -> None:
    decide(front, zero_shot_route(generation=3), 0.0)
    assert decide(front, zero_shot_route(encoder=("gw-c",), generation=2), 0.0) == []
    assert front.dropped["stale_route"] == 1


def test_an_undeployed_task_leaves_its_group_and_ends_its_requests(front: AgentState) -> None:
    decide(front, request(), 0.0)
    actions = decide(front, RouteCleared("zero-shot"), 0.0)
    assert only(actions, LeaveGroup)
    body = only(actions, Reply).result.error
    assert body is not None
    assert body.code == ErrorCode.NO_ROUTE
    assert not front.coordinated


# --- a request's way ---


def test_both_branches_leave_at_once(front: AgentState) -> None:
    actions = decide(front, request(), 0.0)
    run = only(actions, Run)
    assert run.key == ENCODER.key
    assert run.values == (RawInput(b"\x89PNG", "image/png"),)
    sent = only(actions, Send)
    assert (sent.receiver, sent.message.node) == ("gw-b", "head")
    assert isinstance(sent.message, NodeInputs)
    assert sent.message.content_types == {"text": "text/plain"}


def test_an_output_goes_to_the_device_of_the_consuming_node(front: AgentState) -> None:
    sent = only(encoded(front), Send)
    assert (sent.receiver, sent.message.node) == ("gw-b", "head")
    assert {need: list(value) for need, value in sent.values.items() if isinstance(value, dict)} == {
        "encoder": ["features"]
    }


def test_the_consuming_device_joins_inputs_that_arrive_in_any_order(front: AgentState, back: AgentState) -> None:
    asked = decide(front, request(), 0.0)
    text = only(asked, Send)
    run = only(asked, Run)
    image = only(decide(front, Ran(run.run, features(), None, 0.0, 0.02), 0.1), Send)
    assert decide(back, Received("gw-a", image.message, image.values), 0.2) == []
    joined = only(decide(back, Received("gw-a", text.message, text.values), 0.3), Run)
    assert joined.key == HEAD.key
    assert joined.values[1] == RawInput(b"a cat", "text/plain")
    assert isinstance(joined.values[0], dict)
    assert joined.values[0]["features"].tolist() == [[1.0, 1.0]]


def answered(front: AgentState, back: AgentState) -> tuple[list[Action], list[Send]]:
    asked = decide(front, ASKED, 0.0)
    sends = all_of(asked, Send)
    sends += all_of(decide(front, Ran(only(asked, Run).run, features(), None, 0.0, 0.02), 0.1), Send)
    runs = [only(actions, Run) for s in sends if (actions := decide(back, Received("gw-a", s.message, s.values), 0.2))]
    answer = Output({"scores": np.ones(1, dtype=np.float32)}, {"label": "a cat"})
    return decide(back, Ran(runs[0].run, answer, None, 0.01, 0.02), 0.3), sends


def test_the_output_node_answers_the_sensor_and_tells_the_coordinator(front: AgentState, back: AgentState) -> None:
    actions, _ = answered(front, back)
    reply = only(actions, Reply)
    assert (reply.reply_to, reply.correlation) == (REPLY_TO, b"1")
    assert reply.result.answer == {"label": "a cat"}
    assert [(t.node, t.device) for t in reply.result.timings] == [("encoder", "gw-a"), ("head", "gw-b")]
    done = only(actions, Send)
    assert (done.receiver, isinstance(done.message, NodeDone)) == ("gw-a", True)
    decide(front, Received("gw-b", done.message, {}), 0.4)
    assert not front.coordinated


THIRD = float(np.float32(1 / 3))


@pytest.mark.parametrize("device", ["gw-a", "gw-b"])
def test_with_a_float16_wire_a_node_takes_the_same_rounded_numbers_wherever_it_runs(device: str) -> None:
    state = AgentState("gw-a", PREFIX)
    decide(state, assignment(ENCODER, HEAD), 0.0)
    for spec in (ENCODER, HEAD):
        decide(state, ModuleReady(spec.key), 0.0)
    decide(state, zero_shot_route(head=(device,), wire="float16"), 0.0)
    encoder = only(decide(state, ASKED, 0.0), Run)
    actions = decide(state, computed(encoder, features(THIRD)), 0.1)
    if device == "gw-a":
        taken = widened_values(only(actions, Run))[0]
        assert isinstance(taken, dict)
        found = taken["features"]
    else:
        sent = only(actions, Send)
        given = sent.values["encoder"]
        assert isinstance(given, dict)
        found = given["features"]
        assert found.dtype == np.float16, "half the bytes go over the network"
        assert isinstance(sent.message, NodeInputs)
        assert sent.message.plan.wire == "float16"
        found = found.astype(np.float32)
    assert found.dtype == np.float32
    assert found.tolist() == [[float(np.float16(THIRD))] * 2] != [[THIRD] * 2]


def test_the_sensor_s_output_is_never_rounded(front: AgentState, back: AgentState) -> None:
    decide(front, zero_shot_route(generation=2, wire="float16"), 0.0)
    _, sends = answered(front, back)
    back.kept.clear()
    actions = [a for send in sends for a in decide(back, Received("gw-a", send.message, send.values), 0.5)]
    mask = np.full((2, 2), THIRD, dtype=np.float32)
    reply = only(decide(back, computed(only(actions, Run), Output({"mask": mask})), 0.6), Reply)
    assert reply.tensors is not None
    assert reply.tensors["mask"].tolist() == mask.tolist()


def test_an_output_for_the_sensor_and_for_another_node_is_rounded_for_the_node_alone() -> None:
    state = agent("gw-a", ENCODER, routes=[zero_shot_route(wire="float16", output="encoder")])
    actions = decide(state, computed(only(decide(state, ASKED, 0.0), Run), features(THIRD)), 0.1)
    reply, sent = only(actions, Reply), only(actions, Send)
    assert reply.tensors is not None
    assert reply.tensors["features"].tolist() == [[THIRD] * 2]
    given = sent.values["encoder"]
    assert isinstance(given, dict)
    assert (given["features"].dtype, given["features"].tolist()) == (np.float16, [[float(np.float16(THIRD))] * 2])
    assert state.kept_bytes >= reply.tensors["features"].nbytes + given["features"].nbytes


def test_an_output_that_is_an_array_is_answered_in_the_form_of_its_task() -> None:
    nodes = {"encoder": route_node(ENCODER.key, ("image",), able("gw-a"))}
    state = agent("gw-a", ENCODER, routes=[builders.route("embed", nodes, answer="unit-embeddings")])
    run = only(decide(state, replace(requested("embed", inputs={"image": RawInput(b"x")})), 0.0), Run)
    reply = only(decide(state, computed(run, features(3.0)), 0.1), Reply)
    assert reply.result.answer == {"embeddings": [[0.70710677, 0.70710677]]}
    assert reply.tensors is None, "it is JSON"


def test_a_task_with_another_form_of_answer_is_other_work() -> None:
    plan = zero_shot_route().plan_on({"encoder": "gw-a", "head": "gw-a"})
    other = plan.model_copy(update={"answer": "embeddings"})
    assert Plan.model_validate(other.model_dump()).work != plan.work


def test_a_number_beyond_float16_ends_the_request_with_what_to_do(front: AgentState) -> None:
    decide(front, zero_shot_route(generation=2, wire="float16"), 0.0)
    run = only(decide(front, ASKED, 0.1), Run)
    with pytest.raises(LocalProtocolError) as error:
        rounded_output(run, features(7e4))
    reply = only(decide(front, Ran(run.run, None, error.value, 0.0, 0.0), 0.2), Reply)
    assert reply.result.error is not None
    assert reply.result.error.code == ErrorCode.MODULE_FAILED
    assert "features has numbers beyond float16's 65504.0: set the task's wire to float32" in reply.result.error.message


def test_a_tensor_output_is_answered_as_a_tensor(front: AgentState, back: AgentState) -> None:
    _, sends = answered(front, back)
    (run,) = back.kept
    back.kept.clear()
    for send in sends:
        decide(back, Received("gw-a", send.message, send.values), 0.5)
    mask = np.zeros((2, 2), dtype=np.float32)
    reply = only(decide(back, Ran(run, Output({"mask": mask}), None, 0.0, 0.0), 0.6), Reply)
    assert reply.result.answer is None
    assert reply.tensors is not None
    assert reply.tensors["mask"].shape == (2, 2)


def test_a_copy_of_a_request_in_flight_is_not_run_again(front: AgentState) -> None:
    decide(front, ASKED, 0.0)
    assert decide(front, ASKED, 0.1) == []
    assert front.dropped["duplicate_request"] == 1


def test_a_retry_of_an_answered_request_is_answered_without_computing_again(
    front: AgentState, back: AgentState
) -> None:
    first, _ = answered(front, back)
    done = only(first, Send)
    decide(front, Received("gw-b", done.message, {}), 0.4)
    again = decide(front, ASKED, 1.0)
    assert not all_of(again, Run)
    received = [decide(back, Received("gw-a", s.message, s.values), 1.1) for s in all_of(again, Send)]
    replies = [reply for actions in received for reply in all_of(actions, Reply)]
    assert replies
    assert replies[0].result.answer == only(first, Reply).result.answer


def test_a_duplicate_message_does_not_run_a_node_twice(front: AgentState) -> None:
    asked = decide(front, request(), 0.0)
    assert only(asked, Run)
    run = front.pending[(only(asked, Run).run)]
    again = decide(front, Received("gw-a", run.message, {"image": RawInput(b"\x89PNG", "image/png")}), 0.1)
    assert not all_of(again, Run)


# --- failures ---


def test_a_missing_node_is_sent_to_the_device_of_the_new_route_and_finished_ones_are_not_computed_again(
    front: AgentState,
) -> None:
    encoded(front)
    moved = decide(front, zero_shot_route(head=("gw-c",), generation=2), 0.5)
    assert not all_of(moved, Run)
    assert {(s.receiver, s.message.node, s.message.attempt) for s in all_of(moved, Send)} == {("gw-c", "head", 1)}
    values = {need: type(value) for s in all_of(moved, Send) for need, value in s.values.items()}
    assert values == {"encoder": dict, "text": RawInput}


# gw-a is only the front door. The first of two equal replicas is chosen: a node that stays on gw-d stays for a reason.


def elsewhere(state: AgentState, now_s: float, encoder: str, head: str) -> list[Send]:
    """The messages sent when the route names these devices: none, one or, separated by spaces, several."""
    known = state.routes["zero-shot"].generation
    made = zero_shot_route(tuple(encoder.split()), tuple(head.split()), generation=known + 1, front_door=("gw-a",))
    return all_of(decide(state, made, now_s), Send)


def encoded_on(state: AgentState, device: str, now_s: float) -> None:
    (request,) = state.coordinated.values()
    epoch, generation = request.fence
    told = {"request": request.request, "task": "zero-shot", "epoch": epoch, "generation": generation, "attempt": 0}
    decide(state, Received(device, NodeDone(**told, node="encoder"), {}), now_s)


def receivers(sends: list[Send]) -> dict[str, str]:
    return {send.message.node: send.receiver for send in sends if isinstance(send.message, NodeInputs)}


@pytest.fixture
def asked() -> AgentState:
    """gw-a assigned the encoder to gw-d and the head to gw-b."""
    state = AgentState("gw-a", PREFIX)
    decide(state, zero_shot_route(("gw-d",), front_door=("gw-a",)), 0.0)
    assert receivers(all_of(decide(state, ASKED, 0.0), Send)) == {"encoder": "gw-d", "head": "gw-b"}
    return state


def test_a_completed_node_stays_on_its_device_though_the_route_was_incomplete_meanwhile(asked: AgentState) -> None:
    encoded_on(asked, "gw-d", 0.1)
    assert not elsewhere(asked, 0.2, "gw-c gw-d", "")
    assert receivers(elsewhere(asked, 0.3, "gw-c gw-d", "gw-e")) == {"encoder": "gw-d", "head": "gw-e"}


def test_a_node_that_completes_while_the_route_is_incomplete_stays_on_its_device(asked: AgentState) -> None:
    assert not elsewhere(asked, 0.1, "gw-c gw-d", "")
    encoded_on(asked, "gw-d", 0.2)
    assert receivers(elsewhere(asked, 0.3, "gw-c gw-d", "gw-e")) == {"encoder": "gw-d", "head": "gw-e"}


def test_a_node_whose_device_left_is_computed_on_another_one(asked: AgentState) -> None:
    encoded_on(asked, "gw-d", 0.1)
    assert not elsewhere(asked, 0.2, "gw-c", "")
    assert receivers(elsewhere(asked, 0.3, "gw-c", "gw-e")) == {"encoder": "gw-c", "head": "gw-e"}
    assert set(waits_s(asked, 0.3, task="zero-shot")) == {"gw-c", "gw-e"}


def test_a_device_that_delivered_its_output_may_leave_the_route(asked: AgentState) -> None:
    encoded_on(asked, "gw-d", 0.1)
    assert not elsewhere(asked, 0.2, "gw-c", "gw-b")


def test_a_device_that_leaves_before_it_forwards_its_kept_output_is_replaced_at_once(asked: AgentState) -> None:
    encoded_on(asked, "gw-d", 0.1)
    assert receivers(elsewhere(asked, 0.2, "gw-d", "gw-e")) == {"encoder": "gw-d", "head": "gw-e"}
    assert receivers(elsewhere(asked, 0.3, "gw-c", "gw-e")) == {"encoder": "gw-c", "head": "gw-e"}


def test_a_late_done_of_an_earlier_assignee_does_not_hide_that_the_current_one_left(asked: AgentState) -> None:
    assert receivers(elsewhere(asked, 0.1, "gw-f", "gw-e")) == {"encoder": "gw-f", "head": "gw-e"}
    encoded_on(asked, "gw-d", 0.2)  # its output went to gw-b
    assert receivers(elsewhere(asked, 0.3, "gw-c", "gw-e")) == {"encoder": "gw-c", "head": "gw-e"}


def test_a_late_done_of_an_earlier_assignee_does_not_hide_where_the_output_is_kept(asked: AgentState) -> None:
    elsewhere(asked, 0.1, "gw-f", "gw-e")
    encoded_on(asked, "gw-f", 0.2)
    encoded_on(asked, "gw-d", 0.3)
    assert receivers(elsewhere(asked, 0.4, "gw-c gw-f", "gw-b")) == {"encoder": "gw-f", "head": "gw-b"}


def test_a_completed_node_whose_device_refuses_it_is_computed_elsewhere(asked: AgentState) -> None:
    encoded_on(asked, "gw-d", 0.1)
    sent = next(send for send in elsewhere(asked, 0.2, "gw-c gw-d", "gw-e") if send.receiver == "gw-d")
    decide(asked, Received("gw-a", failed(sent.message, "gw-d", node="encoder"), {}), 0.3)
    due_s = asked.next_deadline_s()
    assert due_s is not None
    again = all_of(decide(asked, Tick(), due_s), Send)
    assert receivers(again) == {"encoder": "gw-c", "head": "gw-e"}


def test_a_route_that_changes_elsewhere_sends_nothing_again(front: AgentState) -> None:
    decide(front, request(), 0.0)
    assert not all_of(decide(front, zero_shot_route(generation=2), 0.1), Send)


def test_while_a_module_is_loading_requests_wait_and_then_go(front: AgentState) -> None:
    decide(front, zero_shot_route(head=(), generation=2), 0.0)
    assert not all_of(decide(front, request(), 0.1), Send)
    assert all_of(decide(front, zero_shot_route(head=("gw-c",), generation=2), 0.5), Send)


def test_an_unavailable_task_ends_its_requests_with_the_reason(front: AgentState) -> None:
    decide(front, request(), 0.0)
    withdrawn = Route(task="zero-shot", epoch=1, generation=2, group=1, unavailable="no device fits m/head")
    body = only(decide(front, withdrawn, 0.1), Reply).result.error
    assert body == ErrorBody(code=ErrorCode.NO_ROUTE, message="no device fits m/head")


def test_a_refusal_is_tried_again_soon_and_elsewhere(front: AgentState) -> None:
    decide(front, zero_shot_route(head=("gw-b", "gw-c"), generation=2), 0.0)
    sent = only(decide(front, request(), 0.0), Send)
    assert sent.receiver == "gw-b"
    decide(front, Received("gw-b", failed(sent.message, generation=2), {}), 0.05)
    due_s = front.next_deadline_s()
    assert due_s is not None
    assert due_s < 1.0
    assert {s.receiver for s in all_of(decide(front, Tick(), due_s), Send)} == {"gw-c"}


def test_a_refusal_of_an_older_attempt_is_ignored(front: AgentState) -> None:
    sent = only(decide(front, request(), 0.0), Send)
    decide(front, zero_shot_route(head=("gw-c",), generation=2), 0.1)
    decide(front, NotReceived("gw-a", failed(sent.message), 1.0), 0.2)
    assert "gw-b" not in next(iter(front.coordinated.values())).avoid


def test_silence_is_answered_by_sending_again(front: AgentState) -> None:
    decide(front, request(), 0.0)
    due_s = front.next_deadline_s()
    assert due_s is not None
    assert all_of(decide(front, Tick(), due_s), Send)
    assert next(iter(front.coordinated.values())).attempt == 1


def test_the_deadline_ends_a_request_with_an_error(front: AgentState) -> None:
    decide(front, request(), 0.0)
    body = only(decide(front, Tick(), 10.0), Reply).result.error
    assert body is not None
    assert body.code == ErrorCode.DEADLINE_EXCEEDED
    assert not front.coordinated
    assert front.coordinated_bytes == 0
    (run,) = front.pending  # its module is running: the output will be dropped
    assert not decide(front, Ran(run, features(), None, 0.0, 11.0), 11.0)
    assert not front.pending
    assert front.next_deadline_s() is None
    assert front.pending_bytes == 0


def test_a_module_that_cannot_read_its_input_ends_the_request(front: AgentState) -> None:
    run = only(decide(front, request(), 0.0), Run)
    error = RequestFailed(ErrorCode.BAD_INPUT, "not a picture: send a JPEG")
    body = only(decide(front, Ran(run.run, None, error, 0.0, 0.0), 0.1), Reply).result.error
    assert body == ErrorBody(code=ErrorCode.BAD_INPUT, message="not a picture: send a JPEG")


def test_a_module_that_crashes_ends_the_request_and_not_the_agent(front: AgentState) -> None:
    run = only(decide(front, request(), 0.0), Run)
    body = only(decide(front, Ran(run.run, None, ValueError("shape"), 0.0, 0.0), 0.1), Reply).result.error
    assert body is not None
    assert body.code == ErrorCode.MODULE_FAILED
    assert "encoder failed on gw-a" in body.message


def test_a_module_that_gets_no_memory_is_tried_elsewhere_or_again(front: AgentState) -> None:
    run = only(decide(front, request(), 0.0), Run)
    assert not all_of(decide(front, Ran(run.run, None, MemoryError(), 0.0, 0.0), 0.1), Reply)
    assert front.coordinated


def test_a_module_unloaded_while_its_work_waited_is_tried_elsewhere(front: AgentState) -> None:
    run = only(decide(front, request(), 0.0), Run)
    assert not all_of(decide(front, Ran(run.run, None, ModuleRefused("gone"), 0.0, 0.0), 0.1), Reply)
    assert front.coordinated


def test_a_tensor_of_an_older_generation_is_refused_with_a_message_to_its_coordinator(
    front: AgentState, back: AgentState
) -> None:
    sent = only(decide(front, request(), 0.0), Send)
    decide(back, assignment(HEAD, generation=4), 0.0)
    failed = only(decide(back, Received("gw-a", sent.message, sent.values), 0.1), Send)
    assert failed.receiver == "gw-a"
    assert isinstance(failed.message, NodeFailed)
    assert failed.message.retry
    assert back.dropped["stale"] == 1


def test_a_tensor_for_a_module_that_is_not_here_is_refused(front: AgentState) -> None:
    sent = only(decide(front, request(), 0.0), Send)
    stranger = AgentState("gw-b", PREFIX)
    failed = only(decide(stranger, Received("gw-a", sent.message, sent.values), 0.1), Send)
    assert isinstance(failed.message, NodeFailed)
    assert failed.message.device == "gw-b"


def test_inputs_wait_for_a_module_that_is_still_loading(front: AgentState) -> None:
    asked = decide(front, request(), 0.0)
    sends = [only(asked, Send), only(decide(front, Ran(only(asked, Run).run, features(), None, 0, 0.02), 0.1), Send)]
    state = AgentState("gw-b", PREFIX)
    decide(state, assignment(HEAD), 0.0)
    for send in sends:
        assert not all_of(decide(state, Received("gw-a", send.message, send.values), 0.1), Run)
    assert only(decide(state, ModuleReady(HEAD.key), 0.2), Run).key == HEAD.key


def test_a_module_runs_in_the_use_that_its_node_names(front: AgentState) -> None:
    used = zero_shot_route(generation=2)
    encoder = used.nodes["encoder"].model_copy(update={"use": "patch-mean"})
    decide(front, assignment(ENCODER, generation=2), 0.0)
    decide(front, used.model_copy(update={"nodes": used.nodes | {"encoder": encoder}}), 0.0)
    assert only(decide(front, request(), 0.0), Run).use == "patch-mean"


# --- bad requests ---


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"payload": b"", "content_type": "image/png"}, ErrorCode.BAD_INPUT, "empty"),
        ({"payload": b"\x89PNG", "content_type": "image/png"}, ErrorCode.BAD_INPUT, "text is missing"),
        ({"payload": b"\x89PNG", "content_type": ""}, ErrorCode.BAD_INPUT, "safetensors"),
        ({"payload": b"\x08\x00\x00", "content_type": "application/vnd.safetensors"}, ErrorCode.BAD_INPUT, "truncated"),
        ({"task": "nope"}, ErrorCode.NO_ROUTE, "not deployed"),
    ],
)
def test_a_bad_request_is_answered_at_once(
    front: AgentState, change: dict[str, Any], code: ErrorCode, says: str
) -> None:
    body = only(decide(front, request(**change), 0.0), Reply).result.error
    assert body is not None
    assert body.code == code
    assert says in body.message


def test_an_input_that_is_too_large_is_answered_with_the_limit(front: AgentState) -> None:
    huge = {"image": RawInput(bytes(9 * 1024 * 1024), "image/png"), "text": RawInput(b"x", "text/plain")}
    body = only(decide(front, request(inputs=huge), 0.0), Reply).result.error
    assert body is not None
    assert body.code == ErrorCode.TOO_LARGE
    assert "at most 8 MiB" in body.message


@pytest.mark.parametrize("reply_to", ["", "elsewhere/x", f"{PREFIX}/devices/gw-a/assignment", f"{PREFIX}/clients/#"])
def test_a_reply_topic_outside_the_allowed_prefix_is_refused(front: AgentState, reply_to: str) -> None:
    actions = decide(front, request(reply_to=reply_to), 0.0)
    assert not all_of(actions, Reply)
    assert not all_of(actions, Run)
    assert front.dropped["reply_topic"] == 1
    reason = "response_topic_not_allowed" if reply_to else "no_response_topic"
    assert [log.fields["reason"] for log in all_of(actions, Log)] == [reason]
    assert not all_of(decide(front, request(reply_to=reply_to), 0.0), Log), "warned about once"


def test_beyond_its_capacity_a_front_door_answers_with_retry_after(front: AgentState) -> None:
    for number in range(256):
        decide(front, request(correlation=str(number).encode() + b"x"), 0.0)
    body = only(decide(front, request(correlation=b"one-more"), 0.0), Reply).result.error
    assert body is not None
    assert body.code == ErrorCode.OVERLOADED
    assert body.retry_after_s


# --- edge cases ---


def test_the_same_correlation_with_another_picture_is_another_request(front: AgentState) -> None:
    decide(front, Ran(only(decide(front, ASKED, 0.0), Run).run, features(1.0), None, 0.0, 0.0), 0.1)
    other = request({"image": RawInput(b"\x89PNG2", "image/png"), "text": RawInput(b"a cat", "text/plain")})
    assert only(decide(front, other, 0.2), Run).values == (RawInput(b"\x89PNG2", "image/png"),)


def test_an_output_of_another_module_is_not_taken_for_this_ones(front: AgentState) -> None:
    decide(front, Ran(only(decide(front, ASKED, 0.0), Run).run, features(1.0), None, 0.0, 0.0), 0.1)
    newer = module("encoder-2")
    decide(front, assignment(newer, generation=2), 1.0)
    decide(front, ModuleReady(newer.key), 1.0)
    changed = zero_shot_route(generation=2).model_dump()
    changed["nodes"]["encoder"]["key"] = newer.key
    actions = decide(front, Route.model_validate(changed), 1.0)
    actions += decide(front, Tick(), 9.0)
    assert {run.key for run in all_of(actions, Run)} == {newer.key}


def test_a_kept_output_ends_with_its_request(front: AgentState) -> None:
    decide(front, Ran(only(decide(front, ASKED, 0.0), Run).run, features(1.0), None, 0.0, 0.0), 0.1)
    assert not all_of(decide(front, ASKED, 9.0), Run)
    decide(front, Tick(), 10.0)
    assert only(decide(front, ASKED, 86_400.0), Run)


@pytest.mark.parametrize(
    "nodes",
    [
        {"a": PlannedNode(key="k", needs=("a",), device="gw-a")},
        {
            "a": PlannedNode(key="k", needs=("b",), device="gw-a"),
            "b": PlannedNode(key="k", needs=("a",), device="gw-b"),
        },
        {"b": PlannedNode(key="k", needs=("image",), device="gw-a")},
    ],
    ids=["itself", "each-other", "no-output"],
)
def test_a_plan_that_leads_nowhere_cannot_exist(nodes: dict[str, PlannedNode]) -> None:
    with pytest.raises(ValidationError):
        Plan(nodes=nodes, output="a")


def test_a_route_whose_output_is_not_a_node_cannot_exist() -> None:
    with pytest.raises(ValidationError, match="which is not a node"):
        zero_shot_route(output="nothing")


def test_a_deadline_of_a_day_and_more_is_a_day(front: AgentState) -> None:
    for number in range(0, 20_000, 163):
        sent = only(decide(front, request(expiry_s=2**32 - 1, correlation=b"%d" % number), 0.1 * number), Send)
        assert isinstance(sent.message, NodeInputs)
        assert sent.message.deadline_s <= 86_400


def test_only_an_assignee_can_complete_a_node(front: AgentState) -> None:
    sent = only(decide(front, ASKED, 0.0), Send)
    ended = done(sent.message, node="head")
    decide(front, Received("gw-evil", ended, {}), 0.1)
    assert front.coordinated
    assert front.dropped["not_asked"] == 1
    decide(front, Received("gw-b", ended, {}), 0.2)
    assert not front.coordinated


def test_the_done_of_the_output_ends_a_request_though_its_route_is_incomplete_by_now(front: AgentState) -> None:
    sent = only(decide(front, ASKED, 0.0), Send)
    decide(front, zero_shot_route(head=(), generation=2), 0.1)  # it came first: routes have a lane of their own
    assert next(iter(front.coordinated.values())).plan is None
    ended = done(sent.message, node="head")
    decide(front, Received("gw-a", ended.model_copy(update={"node": "encoder"}), {}), 0.2)
    decide(front, Received("gw-evil", ended, {}), 0.2)
    assert front.coordinated, "neither another node nor another device ends the request"
    decide(front, Received("gw-b", ended, {}), 0.3)
    assert not front.coordinated
    assert not all_of(decide(front, Tick(), 10.0), Reply)


def test_inputs_come_from_the_coordinator_or_from_a_node_that_is_needed(front: AgentState, back: AgentState) -> None:
    sent = only(decide(front, ASKED, 0.0), Send)
    assert decide(back, Received("gw-evil", sent.message, sent.values), 0.1) == []
    assert back.dropped["bad_envelope"] == 1
    assert not back.pending


def test_waiting_inputs_are_bounded_in_number_and_bytes(
    front: AgentState, back: AgentState, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = only(decide(front, ASKED, 0.0), Send)
    for limit, value in (("MAX_PENDING", 0), ("MAX_PENDING_BYTES", 4)):
        with monkeypatch.context() as patch:
            patch.setattr(execute, limit, value)
            refused = only(decide(back, Received("gw-a", sent.message, sent.values), 0.1), Send).message
        assert isinstance(refused, NodeFailed)
        assert refused.error.code == ErrorCode.OVERLOADED
    assert not back.pending
    assert back.pending_bytes == 0


def test_inputs_in_flight_are_bounded_in_bytes(front: AgentState, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(correlation=b"2")
    monkeypatch.setattr(coordinate, "MAX_COORDINATED_BYTES", len(asked.payload) + 1)
    assert not all_of(decide(front, ASKED, 0.0), Reply)
    body = only(decide(front, asked, 0.0), Reply).result.error
    assert body is not None
    assert body.code == ErrorCode.OVERLOADED


def test_kept_outputs_are_bounded_and_the_oldest_goes_first(front: AgentState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "MAX_KEPT", 2)
    runs = []
    for number in (b"1", b"2", b"3"):
        runs.append(only(decide(front, request(correlation=number), 0.0), Run).run)
        decide(front, Ran(runs[-1], features(), None, 0.0, 0.0), 0.1)
    assert list(front.kept) == runs[1:]
    monkeypatch.setattr(execute, "MAX_KEPT_BYTES", 0)
    run = only(decide(front, request(correlation=b"4"), 0.0), Run).run
    decide(front, Ran(run, features(), None, 0.0, 0.0), 0.1)
    assert not front.kept
    assert front.kept_bytes == 0


def test_kept_outputs_go_when_their_time_is_over_though_nothing_comes(front: AgentState) -> None:
    run = only(decide(front, ASKED, 0.0), Run).run
    decide(front, Ran(run, features(), None, 0.0, 0.0), 0.1)
    deadline_s = front.kept[run].deadline_s
    now_s = 0.1
    while front.kept and now_s < 2 * deadline_s:
        due_s = front.next_deadline_s()
        assert due_s is not None, "a tick must be due"
        now_s = max(due_s, now_s + 0.01)
        decide(front, Tick(), now_s)
    assert deadline_s <= now_s <= deadline_s + SWEEP_S
    assert front.kept_bytes == 0


def test_the_answer_follows_the_newest_attempt(front: AgentState, back: AgentState) -> None:
    asked = decide(front, ASKED, 0.0)
    old = only(asked, Send)
    image = only(decide(front, Ran(only(asked, Run).run, features(), None, 0.0, 0.0), 0.1), Send)
    newer = image.message.model_copy(update={"attempt": 3, "generation": 2})
    decide(back, Received("gw-a", newer, image.values), 0.2)
    run = only(decide(back, Received("gw-a", old.message, old.values), 0.3), Run).run
    answer = Output({"scores": np.ones(1, dtype=np.float32)}, {"label": "a cat"})
    assert only(decide(back, Ran(run, answer, None, 0.0, 0.0), 0.4), Reply).result.generation == 2


def test_a_failed_module_is_unloaded_when_unassigned_and_retried_when_assigned_again() -> None:
    state = AgentState("gw-a", PREFIX)
    decide(state, assignment(ENCODER), 0.0)
    decide(state, ModuleFailed(ENCODER.key), 0.0)
    assert not all_of(decide(state, assignment(ENCODER), 0.0), Load)  # the same assignment again
    assert only(decide(state, assignment(ENCODER, generation=2), 0.0), Load)
    decide(state, ModuleFailed(ENCODER.key), 0.0)
    assert only(decide(state, assignment(generation=3), 0.0), Unload).key == ENCODER.key
    assert not state.failed


def test_a_module_assigned_again_before_its_failure_was_known_is_retried(front: AgentState) -> None:
    decide(front, assignment(ENCODER, HEAD, generation=2), 0.0)
    decide(front, assignment(ENCODER, HEAD, generation=3), 0.1)
    assert only(decide(front, ModuleFailed(HEAD.key), 0.2), Load).assigned.spec == HEAD
    assert not all_of(decide(front, ModuleFailed(HEAD.key), 0.3), Load)
    assert front.failed == {HEAD.key}


def test_a_module_is_ready_when_its_newer_load_succeeds_after_a_late_failure_of_the_older(front: AgentState) -> None:
    decide(front, assignment(ENCODER, HEAD, generation=2), 0.0)
    decide(front, assignment(ENCODER, generation=3), 0.1)
    decide(front, assignment(ENCODER, HEAD, generation=4), 0.2)  # while the first load of it is under way
    decide(front, ModuleFailed(HEAD.key), 0.3)
    decide(front, ModuleReady(HEAD.key), 0.4)
    assert HEAD.key in front.ready
    assert not front.failed


def test_a_task_undeployed_while_the_link_was_down_is_forgotten_once_a_leader_published_its_routes(
    front: AgentState,
) -> None:
    decide(front, ControlLinkRestored(), 10.0)
    assert front.next_deadline_s() is None  # without a leader, serving goes on
    decide(front, leader(1, online=False), 11.0)
    assert front.next_deadline_s() is None
    decide(front, leader(1), 12.0)
    due_s = front.next_deadline_s()
    assert due_s is not None
    assert all_of(decide(front, Tick(), due_s), LeaveGroup)
    assert not front.routes


def test_routes_outlive_a_leader_that_connects_after_its_retained_state_was_read(front: AgentState) -> None:
    decide(front, ControlLinkRestored(), 10.0)
    decide(front, leader(1), 10.0)
    decide(front, Tick(), 10.0 + RECONNECT_S + 0.5)
    assert front.routes
    decide(front, zero_shot_route(), 10.0 + RECONNECT_S + 1.0)
    decide(front, Tick(), 99.0)
    assert front.routes


def test_a_route_republished_on_a_new_link_stays(front: AgentState) -> None:
    decide(front, ControlLinkRestored(), 10.0)
    decide(front, leader(1), 12.0)
    decide(front, zero_shot_route(), 12.1)
    assert not all_of(decide(front, Tick(), 99.0), LeaveGroup)
    assert front.routes
