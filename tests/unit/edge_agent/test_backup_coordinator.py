"""The backup coordinator: which copies it keeps, when it drops them, and when it takes over."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode
from broker.protocol.messages import NodeDone, NodeInputs, Permit
from edge_agent.decide import decide
from edge_agent.events import (
    Action,
    JoinGroup,
    LeaveGroup,
    Log,
    ModuleReady,
    Ran,
    Received,
    Reply,
    RouteCleared,
    Run,
    Send,
    Tick,
)
from edge_agent.modules import Output
from edge_agent.requests import backup_coordinator
from edge_agent.state import AgentState
from tests.builders import ENCODER, PREFIX, agent, all_of, assignment, encoder_route, requested

REQUESTS = f"{PREFIX}/tasks/encode/requests/#"
route = partial(encoder_route, "encode", group=3, second_door=("gw-b",))
asked = partial(requested, "encode")


@dataclass
class Pair:
    front: AgentState
    backup: AgentState


@pytest.fixture
def pair() -> Pair:
    """gw-a computes and is the front door; gw-b holds copies."""
    pair = Pair(agent("gw-a", ENCODER, compute_s=0.1), agent("gw-b"))
    for state in (pair.front, pair.backup):
        decide(state, route(), 0.0)
    return pair


def answer(state: AgentState, actions: list[Action], now_s: float) -> list[Action]:
    if state.alone is not None:  # its front door may have died of it
        actions = decide(state, Permit(epoch=1, request=state.alone.run.request), now_s)
    (run,) = all_of(actions, Run)
    return decide(state, Ran(run.run, Output({"x": np.ones(1, np.float32)}, {"label": "a"}), None, now_s, 0.1), now_s)


def test_the_backup_coordinator_joins_a_share_group_of_its_own() -> None:
    state = agent("gw-b")
    assert all_of(decide(state, route(), 0.0), JoinGroup) == [JoinGroup(f"$share/encode-1-3-second/{REQUESTS}")]
    moved = decide(state, route(generation=2, group=4, front_door=("gw-b",), second_door=("gw-a",)), 1.0)
    assert [action for action in moved if isinstance(action, (JoinGroup, LeaveGroup))] == [
        JoinGroup(f"$share/encode-1-4/{REQUESTS}"),
        LeaveGroup(f"$share/encode-1-3-second/{REQUESTS}"),
    ]
    gone = decide(state, RouteCleared("encode"), 2.0)
    assert all_of(gone, LeaveGroup) == [LeaveGroup(f"$share/encode-1-4/{REQUESTS}")]
    assert not state.share_groups


def test_a_copy_is_dropped_when_the_answering_device_sends_done(pair: Pair) -> None:
    assert decide(pair.backup, asked(), 0.0) == []
    assert len(pair.backup.backups) == 1
    actions = answer(pair.front, decide(pair.front, asked(), 0.0), 0.1)
    assert all_of(actions, Reply)
    (done,) = all_of(actions, Send)
    assert (done.receiver, type(done.message)) == ("gw-b", NodeDone)
    assert decide(pair.backup, Received("gw-a", done.message, {}), 0.2) == []
    assert not pair.backup.backups
    assert pair.backup.backup_bytes == 0
    assert pair.backup.next_deadline_s() is None


def test_the_device_of_the_output_node_sends_done_to_the_backup_though_it_is_not_the_front_door() -> None:
    front, head = agent("gw-a"), agent("gw-c", ENCODER, compute_s=0.1)
    for state in (front, head):
        decide(state, route(("gw-c",)), 0.0)
    (send,) = all_of(decide(front, asked(), 0.0), Send)
    assert isinstance(send.message, NodeInputs)
    assert send.message.second_door == ("gw-b",)
    actions = answer(head, decide(head, Received("gw-a", send.message, send.values), 0.1), 0.2)
    assert [send.receiver for send in all_of(actions, Send)] == ["gw-a", "gw-b"]


def test_an_error_drops_the_copy_too(pair: Pair) -> None:
    empty = replace(asked(), payload=b"")
    decide(pair.backup, empty, 0.0)
    actions = decide(pair.front, empty, 0.0)
    (reply,) = all_of(actions, Reply)
    assert reply.result.error is not None
    (done,) = all_of(actions, Send)
    decide(pair.backup, Received("gw-a", done.message, {}), 0.1)
    assert not pair.backup.backups


def test_a_request_that_no_device_answers_in_time_is_taken_over(pair: Pair) -> None:
    decide(pair.backup, asked(), 0.0)
    due_s = pair.backup.next_deadline_s()
    assert due_s is not None
    assert 0 < due_s <= 1.0
    assert decide(pair.backup, Tick(), due_s - 0.01) == []
    actions = decide(pair.backup, Tick(), due_s)
    assert [note.action for note in all_of(actions, Log)] == ["request_taken_over"]
    (send,) = all_of(actions, Send)
    assert isinstance(send.message, NodeInputs)
    assert (send.receiver, send.message.coordinator, send.message.second_door) == ("gw-a", "gw-b", ())
    assert send.message.deadline_s == pytest.approx(10.0 - due_s)
    assert send.deadline_s == pytest.approx(10.0), "it has no more time than it had"
    assert not pair.backup.backups


def test_a_request_that_is_taken_over_is_not_refused(pair: Pair) -> None:
    pair.backup.reported_s["gw-a", ("encode", "")] = (0.9, 50.0)  # a queue in which this very request may stand first
    decide(pair.backup, asked(), 0.0)
    due_s = pair.backup.next_deadline_s()
    assert due_s is not None
    actions = decide(pair.backup, Tick(), due_s)
    assert len(all_of(actions, Send)) == 1
    assert not all_of(actions, Reply)


def test_a_short_request_is_taken_over_while_half_of_its_time_is_left(pair: Pair) -> None:
    decide(pair.backup, asked(expiry_s=1), 0.0)
    assert pair.backup.next_deadline_s() == pytest.approx(0.5)


def test_the_death_of_the_front_door_lets_the_backup_take_over_at_once(pair: Pair) -> None:
    for number in range(3):
        decide(pair.backup, asked(number), 0.0)
    actions = decide(
        pair.backup,
        route(("gw-c",), generation=2, group=4, front_door=("gw-c",), second_door=("gw-b",)),
        0.05,
    )
    assert [send.receiver for send in all_of(actions, Send)] == ["gw-c"] * 3
    assert not pair.backup.backups
    assert len(pair.backup.coordinated) == 3


def test_a_front_door_that_only_grows_lets_the_backup_wait(pair: Pair) -> None:
    decide(pair.backup, asked(), 0.0)
    assert not all_of(decide(pair.backup, route(generation=2, group=4, front_door=("gw-a", "gw-c")), 0.1), Send)
    assert len(pair.backup.backups) == 1


def test_a_backup_that_becomes_the_front_door_takes_over_its_copies(pair: Pair) -> None:
    decide(pair.backup, assignment(ENCODER, generation=2), 0)
    decide(pair.backup, ModuleReady(ENCODER.key), 0.0)
    decide(pair.backup, asked(), 0.0)
    promoted = route(("gw-b",), generation=2, group=4, front_door=("gw-b",), second_door=())
    actions = decide(pair.backup, promoted, 0.1)
    assert all_of(answer(pair.backup, actions, 0.2), Reply)
    assert not pair.backup.coordinated


def test_a_retry_of_a_copied_or_taken_over_request_is_ignored(pair: Pair) -> None:
    decide(pair.backup, asked(), 0.0)
    decide(pair.backup, asked(), 0.1)
    assert len(pair.backup.backups) == 1
    decide(pair.backup, Tick(), 1.0)
    decide(pair.backup, asked(), 1.1)
    assert (len(pair.backup.backups), len(pair.backup.coordinated)) == (0, 1)


def test_a_late_answer_under_the_first_plan_ends_a_request_that_was_taken_over(pair: Pair) -> None:
    actions = decide(pair.front, asked(), 0.0)
    decide(pair.backup, asked(), 0.0)
    decide(pair.backup, Tick(), 1.0)
    done = [send for send in all_of(answer(pair.front, actions, 1.1), Send) if send.receiver == "gw-b"]
    decide(pair.backup, Received("gw-a", done[0].message, {}), 1.2)
    assert not pair.backup.coordinated


def test_only_a_device_that_serves_the_task_can_end_a_copied_request(pair: Pair) -> None:
    decide(pair.backup, asked(), 0.0)
    (request,) = pair.backup.backups
    done = NodeDone(request=request, task="encode", node="encoder", epoch=1, generation=1, attempt=0)
    decide(pair.backup, Received("gw-evil", done, {}), 0.1)
    assert len(pair.backup.backups) == 1
    assert pair.backup.dropped["not_asked"] == 1


def test_an_undeployed_task_ends_its_copied_requests_with_an_error(pair: Pair) -> None:
    decide(pair.backup, asked(), 0.0)
    (reply,) = all_of(decide(pair.backup, RouteCleared("encode"), 0.1), Reply)
    assert reply.result.error is not None
    assert reply.result.error.code == ErrorCode.NO_ROUTE


def test_copies_are_bounded_in_number_and_bytes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup_coordinator, "MAX_BACKUPS", 3)
    for number in range(5):
        decide(pair.backup, asked(number), 0.0)
    assert [backup.event.correlation for backup in pair.backup.backups.values()] == [b"2", b"3", b"4"]
    assert pair.backup.dropped["not_held_longer"] == 2
    monkeypatch.setattr(backup_coordinator, "MAX_BACKUP_BYTES", 120)
    decide(pair.backup, asked(9, inputs={"text": RawInput(b"a longer text than those before", "text/plain")}), 0.0)
    assert pair.backup.backup_bytes <= 120
    assert list(pair.backup.backups.values())[-1].event.correlation == b"9"
