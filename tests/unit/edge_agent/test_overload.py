"""Overload: which requests are refused, when, and with which answer."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from broker.protocol.errors import ErrorCode
from broker.protocol.messages import (
    ErrorBody,
    NodeFailed,
    NodeInputs,
)
from edge_agent.decide import decide
from edge_agent.events import Action, ModuleFailed, Ran, Received, Reply, Requested, Run, Send, Tick
from edge_agent.modules import Output
from edge_agent.requests import coordinate
from edge_agent.requests.error_reply import refuse_unread
from edge_agent.requests.load_estimate import waits_s
from edge_agent.state import AgentState
from tests.builders import ENCODER, agent, all_of, encoder_route, failed, requested

route = partial(encoder_route, compute_s=1.0)


def asked(task: str, number: int, deadline_s: int = 10) -> Requested:
    return requested(task, number, client=task, expiry_s=deadline_s)


def refused(actions: list[Action]) -> ErrorBody:
    (reply,) = all_of(actions, Reply)
    assert reply.result.error is not None
    return reply.result.error


@pytest.fixture
def state() -> AgentState:
    """gw-a holds the module, which takes a second, and is the front door of two tasks."""
    return agent("gw-a", ENCODER, routes=[route("greedy"), route("modest")], compute_s=1.0)


def flood(state: AgentState, task: str, count: int, now_s: float = 0.0) -> list[Action]:
    return [action for number in range(count) for action in decide(state, asked(task, number), now_s)]


def ran(state: AgentState, run: Run, now_s: float) -> list[Action]:
    output = Output({"features": np.ones(1, dtype=np.float32)})
    return decide(state, Ran(run.run, output, None, now_s - 1.0, 1.0), now_s)


def test_a_request_that_would_be_late_because_of_others_is_refused_at_once_with_when_to_come_back(
    state: AgentState,
) -> None:
    assert not all_of(flood(state, "greedy", 7), Reply)  # less than eight seconds of ten: ADMITTED_SHARE
    assert refused(decide(state, asked("greedy", 7), 0.0)).code == ErrorCode.OVERLOADED
    assert len(state.coordinated) == 7
    assert not all_of(decide(state, asked("greedy", 8, deadline_s=60), 0.0), Reply), "a request with more time may wait"
    assert refused(decide(state, asked("greedy", 9), 0.0)).retry_after_s == pytest.approx(1.0)


def test_after_the_stated_retry_time_the_same_request_is_admitted(state: AgentState) -> None:
    flood(state, "greedy", 7)
    wait_s = refused(decide(state, asked("greedy", 7), 0.0)).retry_after_s
    assert wait_s is not None
    assert not all_of(decide(state, asked("greedy", 7), wait_s), Reply)


def test_a_request_that_is_slow_by_itself_is_not_refused(state: AgentState) -> None:
    actions = decide(state, asked("greedy", 1, deadline_s=1), 0.0)
    assert all_of(actions, Run)
    assert not all_of(actions, Reply)


def test_a_task_that_floods_does_not_keep_another_out(state: AgentState) -> None:
    first = all_of(flood(state, "greedy", 9), Run)
    assert not all_of(decide(state, asked("modest", 1, deadline_s=6), 0.0), Reply), "before the greedy task's"
    order = [state.passes[run.run][0][0] for run in first]
    for position in range(3):
        first += all_of(ran(state, first[position], 1.0 + position), Run)
        order.append(state.passes[first[-1].run][0][0])
    assert "modest" in order[:4], order


def test_a_node_queued_here_counts_once_while_its_request_waits_for_a_route(state: AgentState) -> None:
    encoder = route("greedy").nodes["encoder"]
    head = encoder.model_copy(update={"needs": ("encoder",)})
    decide(state, route("greedy", generation=2, nodes={"encoder": encoder, "head": head}, output="head"), 0.0)
    flood(state, "greedy", 1)
    before = waits_s(state, 0.0, task="greedy")
    assert before == {"gw-a": pytest.approx(2.0)}
    lost = {"encoder": encoder, "head": head.model_copy(update={"devices": ()})}
    decide(state, route("greedy", generation=3, nodes=lost, output="head"), 0.0)
    assert waits_s(state, 0.0, task="greedy") == {"gw-a": pytest.approx(1.0)}, (
        "its encoder alone: its head has no device"
    )


def test_the_room_that_one_task_may_take_leaves_room_for_others(
    state: AgentState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinate, "MAX_COORDINATED", 12)
    for number in range(9):
        decide(state, asked("greedy", number, deadline_s=1000), 0.0)
    assert len(state.coordinated) == 4
    assert refused(decide(state, asked("greedy", 9, deadline_s=1000), 0.0)).code == ErrorCode.OVERLOADED
    assert not all_of(decide(state, asked("modest", 1, deadline_s=1000), 0.0), Reply)


def test_a_node_that_expires_in_the_queue_is_not_computed(state: AgentState) -> None:
    runs = all_of(flood(state, "greedy", 8), Run)
    assert len(runs) == 2, "the compute thread has one more than it computes"
    after = ran(state, runs[0], 11.0)
    assert not all_of(after, Run)
    assert state.dropped["expired"] >= 6
    assert not state.fair_queue.waiting
    assert state.queue_lengths[ENCODER.key] == 0


def inputs_for(device: str, number: int, deadline_s: float) -> Received:
    asking = agent("gw-f", routes=[route("greedy", (device,), front_door=("gw-f",))])
    (send,) = all_of(decide(asking, asked("greedy", number), 0.0), Send)
    assert isinstance(send.message, NodeInputs)
    return Received("gw-f", send.message.model_copy(update={"deadline_s": deadline_s}), send.values)


def test_a_device_refuses_work_that_it_cannot_do_in_time_and_another_may_help(state: AgentState) -> None:
    for number in range(5):
        decide(state, inputs_for("gw-a", number, 5.0), 0.0)
    (send,) = all_of(decide(state, inputs_for("gw-a", 9, 5.0), 0.0), Send)
    assert isinstance(send.message, NodeFailed)
    assert (send.message.retry, send.message.error.code) == (True, ErrorCode.OVERLOADED)
    assert send.message.error.retry_after_s == pytest.approx(5.0 + 1.0 - 5.0)
    assert state.dropped["overloaded"] == 1
    urgent = decide(state, inputs_for("gw-a", 10, 3.5), 0.0)
    assert not all_of(urgent, Send), "the earlier deadline goes first, and there is time for it"


@pytest.mark.parametrize("others", [(), ("gw-c",)], ids=["nobody-else", "a-replica"])
def test_an_overloaded_device_ends_a_request_only_when_no_other_device_could_run_it(
    others: tuple[str, ...],
) -> None:
    asking = agent("gw-a", routes=[route("greedy", ("gw-b", *others))])
    (send,) = all_of(decide(asking, asked("greedy", 1), 0.0), Send)
    full = failed(send.message, code=ErrorCode.OVERLOADED, retry_after_s=2.5)
    actions = decide(asking, Received("gw-b", full, {}), 0.1)
    if not others:
        assert refused(actions).retry_after_s == 2.5
    else:
        due_s = asking.next_deadline_s()
        assert due_s is not None
        (again,) = all_of(decide(asking, Tick(), due_s), Send)
        assert again.receiver == "gw-c"


def test_an_unloaded_module_leaves_nothing_in_the_queue(state: AgentState) -> None:
    flood(state, "greedy", 8)
    decide(state, ModuleFailed(ENCODER.key), 0.5)
    assert not state.fair_queue.waiting
    assert state.queue_lengths[ENCODER.key] == 0


def test_thousands_of_requests_leave_nothing_behind(state: AgentState) -> None:
    """Requests are answered, refused, duplicated and expire: the memory stays within its bounds."""
    now_s, under_way, kept_outputs = 0.0, 0, 0
    waiting: list[Run] = []
    for number in range(4000):
        now_s += 0.5
        task = ("greedy", "modest")[number % 2]
        waiting += all_of(decide(state, asked(task, number, deadline_s=5), now_s), Run)
        decide(state, asked(task, number, deadline_s=5), now_s)
        if number % 2 and waiting:
            waiting += all_of(ran(state, waiting.pop(0), now_s), Run)
        waiting += all_of(decide(state, Tick(), now_s), Run)
        under_way = max(under_way, len(state.coordinated) + len(state.pending))
        kept_outputs = max(kept_outputs, len(state.kept))
    assert under_way < 40
    assert 0 < kept_outputs < 40, "an output is kept no longer than a device can ask for it"
    while waiting:
        now_s += 1.0
        waiting += all_of(ran(state, waiting.pop(0), now_s), Run)
    decide(state, Tick(), now_s + 100)
    sizes = {name: len(value) for name, value in vars(state).items() if hasattr(value, "__len__")}
    kept = {
        "device",
        "prefix",
        "fence",
        "assigned",
        "ready",
        "routes",
        "route_sizes",
        "share_groups",
        "measured_s",
        "dropped",
        "latency_inflation",
    }
    assert {name: size for name, size in sizes.items() if size and name not in kept} == {}
    assert (state.coordinated_bytes, state.pending_bytes, state.kept_bytes) == (0, 0, 0)
    assert not state.fair_queue.waiting


def test_a_request_that_finds_no_room_is_refused_unread_and_its_backup_is_told(state: AgentState) -> None:
    decide(state, route("greedy", second_door=("gw-b",)), 0.0)
    damaged = replace(asked("greedy", 1), payload=b"\xff" * 1000, content_type="application/vnd.safetensors")
    reply, done = refuse_unread(state, damaged, 5.0)
    assert isinstance(reply, Reply)
    assert isinstance(done, Send)
    assert reply.result.error is not None
    assert (reply.result.error.code, reply.result.error.retry_after_s) == (ErrorCode.OVERLOADED, 1.0)
    assert (reply.reply_to, reply.correlation, reply.deadline_s) == (damaged.reply_to, damaged.correlation, 15.0)
    assert (done.receiver, done.message.request) == ("gw-b", reply.result.request)
    assert state.coordinated == {}


def test_a_backup_coordinator_without_room_and_a_request_without_reply_are_refused_in_silence(
    state: AgentState,
) -> None:
    decide(state, route("greedy", front_door=("gw-b",), second_door=("gw-a",)), 0.0)
    assert refuse_unread(state, asked("greedy", 1), 0.0) == []
    assert refuse_unread(state, replace(asked("modest", 1), reply_to="elsewhere"), 0.0) == []


def test_the_time_that_a_request_waited_unread_is_gone(state: AgentState) -> None:
    early, late = (replace(asked("modest", number), waited_s=waited_s) for number, waited_s in ((1, 4.0), (2, 10.0)))
    decide(state, early, 100.0)
    (kept,) = state.coordinated.values()
    assert kept.deadline_s == 106.0
    error = refused(decide(state, late, 100.0))
    assert (error.code, "waited 10.0 s" in error.message) == (ErrorCode.OVERLOADED, True)
