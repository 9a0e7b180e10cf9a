"""The agent's rules, event by event, without a clock, a socket or a model."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest

from broker.codec import RawInput, encode_request
from broker.errors import ErrorCode, ModuleRefused, RequestFailed
from broker.messages import (
    AssignedModule,
    Assignment,
    ErrorBody,
    NodeDone,
    NodeFailed,
    NodeInputs,
    Route,
    RouteDevice,
    RouteNode,
)
from broker.specs import InputSpec, ModuleSpec
from edge_agent.coordinate import request_id
from edge_agent.decide import decide
from edge_agent.modules import Output
from edge_agent.state import (
    Action,
    AgentState,
    Assigned,
    Beat,
    Join,
    LeaderSeen,
    Leave,
    Load,
    ModuleFailed,
    ModuleReady,
    NotReceived,
    Ran,
    Received,
    Reply,
    Requested,
    RouteCleared,
    Routed,
    Run,
    Send,
    Tick,
    Unload,
)

PREFIX = "s2m3/v1"
REPLY_TO = f"{PREFIX}/clients/camera/results/1"
A = TypeVar("A", bound=Action)


def spec(part: str) -> ModuleSpec:
    return ModuleSpec.model_validate(
        {
            "family": "test.part",
            "source": {"pip": "weights", "part": part},
            "memory_bytes": 1000,
            "flops": 1e6,
            "output_bytes": 8,
        }
    )


ENCODER, HEAD = spec("encoder"), spec("head")


def assignment(*specs: ModuleSpec, generation: int = 1, epoch: int = 1) -> Assigned:
    modules = tuple(AssignedModule(module=f"m/{s.source.part}", spec=s) for s in specs if s.source)
    return Assigned(Assignment(epoch=epoch, generation=generation, modules=modules))


def route(encoder: tuple[str, ...] = ("gw-a",), head: tuple[str, ...] = ("gw-b",), **changed: object) -> Route:
    """image -> encoder -> head (which also takes the text), with the front door where the encoder is."""

    def node(module: ModuleSpec, needs: tuple[str, ...], devices: tuple[str, ...]) -> RouteNode:
        able = tuple(RouteDevice(device=d, compute_s=0.01, latency_s=0.001, bandwidth_bits_per_s=1e8) for d in devices)
        return RouteNode(module="m/x", key=module.key, needs=needs, output_bytes=8, devices=able)

    fields: dict[str, object] = {
        "task": "zero-shot",
        "epoch": 1,
        "generation": 1,
        "group": 1,
        "inputs": {"image": InputSpec(kind="image", bytes=1000), "text": InputSpec(kind="text", bytes=10)},
        "nodes": {"encoder": node(ENCODER, ("image",), encoder), "head": node(HEAD, ("encoder", "text"), head)},
        "output": "head",
        "front_door": encoder,
    }
    return Route.model_validate(fields | changed)


def request(*, inputs: dict[str, RawInput] | None = None, **changed: object) -> Requested:
    payload, content_type = encode_request(
        inputs or {"image": RawInput(b"\x89PNG", "image/png"), "text": RawInput(b"a cat", "text/plain")}
    )
    asked = Requested("zero-shot", payload, content_type, REPLY_TO, b"1", expiry_s=10)
    return replace(asked, **changed)  # type: ignore[arg-type]


def only(actions: list[Action], kind: type[A]) -> A:
    found = [action for action in actions if isinstance(action, kind)]
    assert len(found) == 1, actions
    return found[0]


def any_of(actions: list[Action], kind: type[A]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


@pytest.fixture
def front() -> AgentState:
    """gw-a: holds the encoder, is the front door; gw-b holds the head."""
    state = AgentState("gw-a", PREFIX)
    decide(state, assignment(ENCODER), 0.0)
    decide(state, ModuleReady(ENCODER.key), 0.0)
    decide(state, Routed(route()), 0.0)
    return state


@pytest.fixture
def back() -> AgentState:
    """gw-b: holds the head."""
    state = AgentState("gw-b", PREFIX)
    decide(state, assignment(HEAD), 0.0)
    decide(state, ModuleReady(HEAD.key), 0.0)
    decide(state, Routed(route()), 0.0)
    return state


def features(value: float = 1.0) -> Output:
    return Output({"features": np.full((1, 2), value, dtype=np.float32)})


def encoded(front: AgentState) -> list[Action]:
    """A request's encoder ran on the front door."""
    run = only(decide(front, request(), 0.0), Run)
    return decide(front, Ran(run.run, features(), None, 0.0, 0.02), 0.1)


# --- assignments ---


def test_what_is_assigned_is_loaded_and_what_is_not_is_let_go_first() -> None:
    state = AgentState("gw-a", PREFIX)
    assert only(decide(state, assignment(ENCODER), 0.0), Load).assigned.spec == ENCODER
    actions = decide(state, assignment(HEAD, generation=2), 0.0)
    assert [type(action) for action in actions] == [Unload, Load, Beat]


def test_the_same_assignment_again_loads_nothing(front: AgentState) -> None:
    assert not any_of(decide(front, assignment(ENCODER), 0.0), Load)


def test_an_older_assignment_is_dropped_and_counted(front: AgentState) -> None:
    decide(front, assignment(ENCODER, generation=5), 0.0)
    assert decide(front, assignment(generation=4), 0.0) == []
    assert front.dropped["stale_assignment"] == 1
    assert ENCODER.key in front.assigned


def test_an_assignment_of_an_older_epoch_is_dropped_even_with_a_higher_generation(front: AgentState) -> None:
    decide(front, LeaderSeen(7), 0.0)
    assert decide(front, assignment(generation=99, epoch=6), 0.0) == []
    assert ENCODER.key in front.assigned


def test_a_new_leader_is_told_at_once_what_is_held(front: AgentState) -> None:
    assert decide(front, LeaderSeen(2), 0.0) == [Beat()]
    assert decide(front, LeaderSeen(2), 0.0) == []


def test_a_module_that_failed_is_reported_and_its_requests_go_back(front: AgentState) -> None:
    decide(front, ModuleFailed(ENCODER.key), 0.0)
    actions = decide(front, request(), 0.0)
    assert not any_of(actions, Run)
    assert front.coordinated  # not given up: a new route may come


# --- routes ---


def test_the_front_door_joins_its_share_group() -> None:
    state = AgentState("gw-a", PREFIX)
    assert (
        only(decide(state, Routed(route()), 0.0), Join).filter
        == f"$share/zero-shot-1-1/{PREFIX}/tasks/zero-shot/requests"
    )


def test_a_new_front_door_set_joins_the_new_group_before_leaving_the_old(front: AgentState) -> None:
    actions = decide(front, Routed(route(group=2, generation=2)), 0.0)
    assert [type(action) for action in actions] == [Join, Leave]


def test_a_device_that_is_no_front_door_any_more_leaves(front: AgentState) -> None:
    actions = decide(front, Routed(route(encoder=("gw-c",), group=2, generation=2)), 0.0)
    assert [type(action) for action in actions] == [Leave]


def test_an_older_route_is_dropped_and_counted(front: AgentState) -> None:
    decide(front, Routed(route(generation=3)), 0.0)
    assert decide(front, Routed(route(encoder=("gw-c",), generation=2)), 0.0) == []
    assert front.dropped["stale_route"] == 1


def test_an_undeployed_task_leaves_its_group_and_ends_its_requests(front: AgentState) -> None:
    decide(front, request(), 0.0)
    actions = decide(front, RouteCleared("zero-shot"), 0.0)
    assert only(actions, Leave)
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
    assert list(sent.tensors) == ["encoder/features"]


def test_the_consuming_device_joins_what_arrives_in_any_order(front: AgentState, back: AgentState) -> None:
    asked = decide(front, request(), 0.0)
    text = only(asked, Send)
    run = only(asked, Run)
    image = only(decide(front, Ran(run.run, features(), None, 0.0, 0.02), 0.1), Send)
    assert decide(back, Received(image.message, image.tensors), 0.2) == []
    joined = only(decide(back, Received(text.message, text.tensors), 0.3), Run)
    assert joined.key == HEAD.key
    assert joined.values[1] == RawInput(b"a cat", "text/plain")
    assert isinstance(joined.values[0], dict)
    assert joined.values[0]["features"].tolist() == [[1.0, 1.0]]


def answered(front: AgentState, back: AgentState) -> tuple[list[Action], list[Send]]:
    asked = decide(front, request(), 0.0)
    sends = any_of(asked, Send)
    sends += any_of(decide(front, Ran(only(asked, Run).run, features(), None, 0.0, 0.02), 0.1), Send)
    runs = [only(actions, Run) for s in sends if (actions := decide(back, Received(s.message, s.tensors), 0.2))]
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
    decide(front, Received(done.message, {}), 0.4)
    assert not front.coordinated


def test_a_tensor_output_is_answered_as_a_tensor(front: AgentState, back: AgentState) -> None:
    actions, sends = answered(front, back)
    run = (only(actions, Reply).result.request, "head")
    back.finished.clear()
    for send in sends:
        actions = decide(back, Received(send.message, send.tensors), 0.5)
    mask = np.zeros((2, 2), dtype=np.float32)
    reply = only(decide(back, Ran(run, Output({"mask": mask}), None, 0.0, 0.0), 0.6), Reply)
    assert reply.result.answer is None
    assert reply.tensors is not None
    assert reply.tensors["mask"].shape == (2, 2)


def test_a_copy_of_a_request_in_flight_is_not_run_again(front: AgentState) -> None:
    decide(front, request(), 0.0)
    assert decide(front, request(), 0.1) == []
    assert front.dropped["duplicate_request"] == 1


def test_a_retry_of_an_answered_request_is_answered_without_computing_again(
    front: AgentState, back: AgentState
) -> None:
    first, _ = answered(front, back)
    done = only(first, Send)
    decide(front, Received(done.message, {}), 0.4)
    again = decide(front, request(), 1.0)
    assert not any_of(again, Run)
    replies = [r for s in any_of(again, Send) for r in any_of(decide(back, Received(s.message, s.tensors), 1.1), Reply)]
    assert replies
    assert replies[0].result.answer == only(first, Reply).result.answer


def test_a_duplicate_message_does_not_run_a_node_twice(front: AgentState) -> None:
    asked = decide(front, request(), 0.0)
    assert only(asked, Run)
    run = front.joining[(only(asked, Run).run)]
    again = decide(front, Received(run.message, {"image/raw": np.frombuffer(b"\x89PNG", dtype=np.uint8)}), 0.1)
    assert not any_of(again, Run)


# --- failures ---


def test_a_missing_node_is_sent_to_the_device_of_the_new_route_and_finished_ones_are_not_computed_again(
    front: AgentState,
) -> None:
    encoded(front)
    moved = decide(front, Routed(route(head=("gw-c",), generation=2)), 0.5)
    assert not any_of(moved, Run)
    assert {(s.receiver, s.message.node, s.message.attempt) for s in any_of(moved, Send)} == {("gw-c", "head", 1)}
    arrays = {name for s in any_of(moved, Send) for name in s.tensors}
    assert arrays == {"encoder/features", "text/raw"}


def test_a_route_that_changes_elsewhere_sends_nothing_again(front: AgentState) -> None:
    decide(front, request(), 0.0)
    assert not any_of(decide(front, Routed(route(generation=2)), 0.1), Send)


def test_while_a_module_is_loading_requests_wait_and_then_go(front: AgentState) -> None:
    decide(front, Routed(route(head=(), generation=2)), 0.0)
    assert not any_of(decide(front, request(), 0.1), Send)
    assert any_of(decide(front, Routed(route(head=("gw-c",), generation=2)), 0.5), Send)


def test_an_unavailable_task_ends_its_requests_with_the_reason(front: AgentState) -> None:
    decide(front, request(), 0.0)
    withdrawn = Route(task="zero-shot", epoch=1, generation=2, group=1, unavailable="no device fits m/head")
    body = only(decide(front, Routed(withdrawn), 0.1), Reply).result.error
    assert body == ErrorBody(code=ErrorCode.NO_ROUTE, message="no device fits m/head")


def test_a_refusal_is_tried_again_soon_and_elsewhere(front: AgentState) -> None:
    decide(front, Routed(route(head=("gw-b", "gw-c"), generation=2)), 0.0)
    sent = only(decide(front, request(), 0.0), Send)
    assert sent.receiver == "gw-b"
    refused = NodeFailed(
        request=sent.message.request,
        task="zero-shot",
        node="head",
        epoch=1,
        generation=2,
        attempt=0,
        device="gw-b",
        retry=True,
        error=ErrorBody(code=ErrorCode.MODULE_FAILED, message="not here"),
    )
    decide(front, Received(refused, {}), 0.05)
    due_s = front.next_deadline_s()
    assert due_s is not None
    assert due_s < 1.0
    assert {s.receiver for s in any_of(decide(front, Tick(), due_s), Send)} == {"gw-c"}


def test_a_refusal_of_an_older_attempt_is_ignored(front: AgentState) -> None:
    sent = only(decide(front, request(), 0.0), Send)
    decide(front, Routed(route(head=("gw-c",), generation=2)), 0.1)
    late = NotReceived(
        "gw-a",
        NodeFailed(
            request=sent.message.request,
            task="zero-shot",
            node="head",
            epoch=1,
            generation=1,
            attempt=0,
            device="gw-b",
            retry=True,
            error=ErrorBody(code=ErrorCode.MODULE_FAILED, message="nobody"),
        ),
        1.0,
    )
    decide(front, late, 0.2)
    assert "gw-b" not in next(iter(front.coordinated.values())).avoid


def test_silence_is_answered_by_sending_again(front: AgentState) -> None:
    decide(front, request(), 0.0)
    due_s = front.next_deadline_s()
    assert due_s is not None
    assert any_of(decide(front, Tick(), due_s), Send)
    assert next(iter(front.coordinated.values())).attempt == 1


def test_the_deadline_ends_a_request_with_an_error(front: AgentState) -> None:
    decide(front, request(), 0.0)
    body = only(decide(front, Tick(), 10.0), Reply).result.error
    assert body is not None
    assert body.code == ErrorCode.DEADLINE_EXCEEDED
    assert not front.coordinated
    assert not front.joining
    assert front.join_bytes == 0


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


def test_a_module_unloaded_while_its_work_waited_is_tried_elsewhere(front: AgentState) -> None:
    run = only(decide(front, request(), 0.0), Run)
    assert not any_of(decide(front, Ran(run.run, None, ModuleRefused("gone"), 0.0, 0.0), 0.1), Reply)
    assert front.coordinated


def test_a_tensor_of_an_older_generation_is_refused_and_its_coordinator_told(
    front: AgentState, back: AgentState
) -> None:
    sent = only(decide(front, request(), 0.0), Send)
    decide(back, assignment(HEAD, generation=4), 0.0)
    failed = only(decide(back, Received(sent.message, sent.tensors), 0.1), Send)
    assert failed.receiver == "gw-a"
    assert isinstance(failed.message, NodeFailed)
    assert failed.message.retry
    assert back.dropped["stale"] == 1


def test_a_tensor_for_a_module_that_is_not_here_is_refused(front: AgentState) -> None:
    sent = only(decide(front, request(), 0.0), Send)
    stranger = AgentState("gw-b", PREFIX)
    failed = only(decide(stranger, Received(sent.message, sent.tensors), 0.1), Send)
    assert isinstance(failed.message, NodeFailed)
    assert failed.message.device == "gw-b"


def test_inputs_wait_for_a_module_that_is_still_loading(front: AgentState) -> None:
    asked = decide(front, request(), 0.0)
    sends = [only(asked, Send), only(decide(front, Ran(only(asked, Run).run, features(), None, 0, 0.02), 0.1), Send)]
    state = AgentState("gw-b", PREFIX)
    decide(state, assignment(HEAD), 0.0)
    for send in sends:
        assert not any_of(decide(state, Received(send.message, send.tensors), 0.1), Run)
    assert only(decide(state, ModuleReady(HEAD.key), 0.2), Run).key == HEAD.key


def test_a_module_runs_in_the_use_that_its_node_names(front: AgentState) -> None:
    used = route(generation=2)
    encoder = used.nodes["encoder"].model_copy(update={"use": "patch-mean"})
    decide(front, assignment(ENCODER, generation=2), 0.0)
    decide(front, Routed(used.model_copy(update={"nodes": used.nodes | {"encoder": encoder}})), 0.0)
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
    front: AgentState, change: dict[str, object], code: ErrorCode, says: str
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
    assert "8388608" in body.message


@pytest.mark.parametrize("reply_to", ["", "elsewhere/x", f"{PREFIX}/devices/gw-a/assignment", f"{PREFIX}/clients/#"])
def test_a_reply_topic_outside_the_allowed_prefix_is_refused(front: AgentState, reply_to: str) -> None:
    actions = decide(front, request(reply_to=reply_to), 0.0)
    assert not any_of(actions, Reply)
    assert not any_of(actions, Run)
    assert front.dropped["reply_topic"] == 1


def test_beyond_its_capacity_a_front_door_says_when_to_come_back(front: AgentState) -> None:
    for number in range(256):
        decide(front, request(correlation=str(number).encode() + b"x"), 0.0)
    body = only(decide(front, request(correlation=b"one-more"), 0.0), Reply).result.error
    assert body is not None
    assert body.code == ErrorCode.OVERLOADED
    assert body.retry_after_s


def test_request_ids_of_different_sensors_never_meet() -> None:
    assert request_id("a", b"1", b"") != request_id("b", b"1", b"")
    assert request_id("a", b"", b"x") == request_id("a", b"", b"x")
    assert request_id("a", b"", b"x") != request_id("a", b"", b"y")
    uuid = b"0123456789abcdef0123456789abcdef"
    assert request_id("a", uuid, b"") == uuid.decode()
