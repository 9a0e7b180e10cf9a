"""A second front door: what it holds, when it lets go, and when it takes over."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode
from broker.protocol.messages import NodeDone, NodeInputs
from edge_agent.actions import Action, JoinGroup, LeaveGroup, Log, Reply, Run, Send
from edge_agent.decide import decide
from edge_agent.events import ModuleReady, Ran, Received, RouteCleared, Routed, Tick
from edge_agent.modules import Output
from edge_agent.requests import backup_coordinator
from edge_agent.state import AgentState
from tests.builders import ENCODER, PREFIX, agent, all_of, assigned, encoder_route, requested

REQUESTS = f"{PREFIX}/tasks/encode/requests"
route = partial(encoder_route, "encode", group=3, second_door=("gw-b",))
asked = partial(requested, "encode")


@dataclass
class Doors:
    first: AgentState
    second: AgentState


@pytest.fixture
def doors() -> Doors:
    """gw-a computes and is the front door; gw-b holds copies."""
    doors = Doors(agent("gw-a", ENCODER, compute_s=0.1), agent("gw-b"))
    for state in (doors.first, doors.second):
        decide(state, Routed(route()), 0.0)
    return doors


def answer(state: AgentState, actions: list[Action], now_s: float) -> list[Action]:
    (run,) = all_of(actions, Run)
    return decide(state, Ran(run.run, Output({"x": np.ones(1, np.float32)}, {"label": "a"}), None, now_s, 0.1), now_s)


def test_the_second_door_joins_a_share_group_of_its_own() -> None:
    state = agent("gw-b")
    assert all_of(decide(state, Routed(route()), 0.0), JoinGroup) == [JoinGroup(f"$share/encode-1-3-second/{REQUESTS}")]
    moved = decide(state, Routed(route(generation=2, group=4, front_door=("gw-b",), second_door=("gw-a",))), 1.0)
    assert [action for action in moved if isinstance(action, (JoinGroup, LeaveGroup))] == [
        JoinGroup(f"$share/encode-1-4/{REQUESTS}"),
        LeaveGroup(f"$share/encode-1-3-second/{REQUESTS}"),
    ]
    gone = decide(state, RouteCleared("encode"), 2.0)
    assert all_of(gone, LeaveGroup) == [LeaveGroup(f"$share/encode-1-4/{REQUESTS}")]
    assert not state.share_groups
    assert not state.backup_groups


def test_a_held_request_is_let_go_when_whoever_answers_says_done(doors: Doors) -> None:
    assert decide(doors.second, asked(), 0.0) == []
    assert len(doors.second.backups) == 1
    actions = answer(doors.first, decide(doors.first, asked(), 0.0), 0.1)
    assert all_of(actions, Reply)
    (done,) = all_of(actions, Send)
    assert (done.receiver, type(done.message)) == ("gw-b", NodeDone)
    assert decide(doors.second, Received("gw-a", done.message, {}), 0.2) == []
    assert not doors.second.backups
    assert doors.second.backup_bytes == 0
    assert doors.second.next_deadline_s() is None


def test_the_device_of_the_output_tells_the_second_door_though_it_is_not_the_front_door() -> None:
    front, head = agent("gw-a"), agent("gw-c", ENCODER, compute_s=0.1)
    for state in (front, head):
        decide(state, Routed(route(("gw-c",))), 0.0)
    (send,) = all_of(decide(front, asked(), 0.0), Send)
    assert isinstance(send.message, NodeInputs)
    assert send.message.second_door == ("gw-b",)
    actions = answer(head, decide(head, Received("gw-a", send.message, send.values), 0.1), 0.2)
    assert [send.receiver for send in all_of(actions, Send)] == ["gw-a", "gw-b"]


def test_an_error_ends_what_is_held_too(doors: Doors) -> None:
    empty = replace(asked(), payload=b"")
    decide(doors.second, empty, 0.0)
    actions = decide(doors.first, empty, 0.0)
    (reply,) = all_of(actions, Reply)
    assert reply.result.error is not None
    (done,) = all_of(actions, Send)
    decide(doors.second, Received("gw-a", done.message, {}), 0.1)
    assert not doors.second.backups


def test_what_nobody_answers_in_time_is_taken_over(doors: Doors) -> None:
    decide(doors.second, asked(), 0.0)
    due_s = doors.second.next_deadline_s()
    assert due_s is not None
    assert 0 < due_s <= 1.0
    assert decide(doors.second, Tick(), due_s - 0.01) == []
    actions = decide(doors.second, Tick(), due_s)
    assert [note.action for note in all_of(actions, Log)] == ["request_taken_over"]
    (send,) = all_of(actions, Send)
    assert isinstance(send.message, NodeInputs)
    assert (send.receiver, send.message.coordinator, send.message.second_door) == ("gw-a", "gw-b", ())
    assert send.message.deadline_s == pytest.approx(10.0 - due_s)
    assert send.deadline_s == pytest.approx(10.0), "it has no more time than it had"
    assert not doors.second.backups


def test_what_is_taken_over_was_admitted_before_and_is_not_turned_away(doors: Doors) -> None:
    doors.second.reported_s["gw-a", "encode"] = (0.9, 50.0)  # a queue in which this very request may stand first
    decide(doors.second, asked(), 0.0)
    due_s = doors.second.next_deadline_s()
    assert due_s is not None
    actions = decide(doors.second, Tick(), due_s)
    assert len(all_of(actions, Send)) == 1
    assert not all_of(actions, Reply)


def test_a_short_request_is_taken_over_while_half_of_its_time_is_left(doors: Doors) -> None:
    decide(doors.second, asked(expiry_s=1), 0.0)
    assert doors.second.next_deadline_s() == pytest.approx(0.5)


def test_the_death_of_the_front_door_lets_the_second_take_over_at_once(doors: Doors) -> None:
    for number in range(3):
        decide(doors.second, asked(number), 0.0)
    actions = decide(
        doors.second,
        Routed(route(("gw-c",), generation=2, group=4, front_door=("gw-c",), second_door=("gw-b",))),
        0.05,
    )
    assert [send.receiver for send in all_of(actions, Send)] == ["gw-c"] * 3
    assert not doors.second.backups
    assert len(doors.second.coordinated) == 3


def test_a_front_door_that_only_grows_lets_the_second_wait(doors: Doors) -> None:
    decide(doors.second, asked(), 0.0)
    assert not all_of(
        decide(doors.second, Routed(route(generation=2, group=4, front_door=("gw-a", "gw-c"))), 0.1), Send
    )
    assert len(doors.second.backups) == 1


def test_a_second_door_that_becomes_the_front_door_takes_over_what_it_holds(doors: Doors) -> None:
    decide(doors.second, assigned(ENCODER, generation=2), 0)
    decide(doors.second, ModuleReady(ENCODER.key), 0.0)
    decide(doors.second, asked(), 0.0)
    promoted = route(("gw-b",), generation=2, group=4, front_door=("gw-b",), second_door=())
    actions = decide(doors.second, Routed(promoted), 0.1)
    assert all_of(answer(doors.second, actions, 0.2), Reply)
    assert not doors.second.coordinated


def test_a_retry_of_what_is_held_or_taken_over_is_no_second_request(doors: Doors) -> None:
    decide(doors.second, asked(), 0.0)
    decide(doors.second, asked(), 0.1)
    assert len(doors.second.backups) == 1
    decide(doors.second, Tick(), 1.0)
    decide(doors.second, asked(), 1.1)
    assert (len(doors.second.backups), len(doors.second.coordinated)) == (0, 1)


def test_what_the_first_plan_answers_late_ends_what_was_taken_over(doors: Doors) -> None:
    actions = decide(doors.first, asked(), 0.0)
    decide(doors.second, asked(), 0.0)
    decide(doors.second, Tick(), 1.0)
    done = [send for send in all_of(answer(doors.first, actions, 1.1), Send) if send.receiver == "gw-b"]
    decide(doors.second, Received("gw-a", done[0].message, {}), 1.2)
    assert not doors.second.coordinated


def test_only_who_serves_the_task_can_end_what_is_held(doors: Doors) -> None:
    decide(doors.second, asked(), 0.0)
    (request,) = doors.second.backups
    done = NodeDone(request=request, task="encode", node="encoder", epoch=1, generation=1, attempt=0)
    decide(doors.second, Received("gw-evil", done, {}), 0.1)
    assert len(doors.second.backups) == 1
    assert doors.second.dropped["not_asked"] == 1


def test_an_undeployed_task_ends_what_is_held_with_an_error(doors: Doors) -> None:
    decide(doors.second, asked(), 0.0)
    (reply,) = all_of(decide(doors.second, RouteCleared("encode"), 0.1), Reply)
    assert reply.result.error is not None
    assert reply.result.error.code == ErrorCode.NO_ROUTE


def test_what_is_held_is_bounded_in_number_and_bytes(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup_coordinator, "MAX_BACKUPS", 3)
    for number in range(5):
        decide(doors.second, asked(number), 0.0)
    assert [backup.event.correlation for backup in doors.second.backups.values()] == [b"2", b"3", b"4"]
    assert doors.second.dropped["not_held_longer"] == 2
    monkeypatch.setattr(backup_coordinator, "MAX_BACKUP_BYTES", 35)
    decide(doors.second, asked(9, inputs={"text": RawInput(b"a longer text than those before", "text/plain")}), 0.0)
    assert doors.second.backup_bytes <= 35
    assert list(doors.second.backups.values())[-1].event.correlation == b"9"
