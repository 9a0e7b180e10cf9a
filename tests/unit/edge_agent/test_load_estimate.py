"""The estimate of the waiting work on each device; requests go to the device where they wait least."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.messages import Assignment, NodeDone, NodeInputs
from edge_agent.decide import decide
from edge_agent.events import Action, Ran, Received, Reply, Run, Send, Tick, Unload
from edge_agent.modules import Output
from edge_agent.requests.load_estimate import own_wait_s, waits_s
from edge_agent.state import AgentState
from tests.builders import ENCODER, agent, done, encoder_route, requested

FAR = ("gw-b", "gw-c")


def front(devices: tuple[str, ...], compute_s: float = 1.0) -> AgentState:
    """The front door, which holds the encoder where it is among these devices."""
    holds = [ENCODER] if "gw-a" in devices else []
    return agent("gw-a", *holds, routes=[encoder_route("encode", devices, compute_s=compute_s)])


def waiting(state: AgentState, now_s: float) -> Mapping[str, float]:
    return waits_s(state, now_s, task="encode")


def ask(state: AgentState, number: int, now_s: float) -> list[Action]:
    return decide(state, requested("encode", number, expiry_s=60), now_s)


def receivers(actions: list[Action]) -> list[str]:
    return [action.receiver for action in actions if isinstance(action, Send)]


def sent(actions: list[Action]) -> NodeInputs:
    (message,) = [action.message for action in actions if isinstance(action, Send)]
    assert isinstance(message, NodeInputs)
    return message


def the_run(actions: list[Action]) -> Run:
    (run,) = [action for action in actions if isinstance(action, Run)]
    return run


def refusals(actions: list[Action]) -> list[Reply]:
    return [action for action in actions if isinstance(action, Reply) and action.result.error is not None]


def features() -> Output:
    return Output({"features": np.ones((1, 2), dtype=np.float32)})


def test_requests_alternate_between_equal_replicas_while_no_node_has_finished() -> None:
    state = front(FAR)
    assert [receivers(ask(state, number, 0.0)) for number in range(4)] == [["gw-b"], ["gw-c"], ["gw-b"], ["gw-c"]]


def test_a_reported_queue_counts_until_its_time_has_passed() -> None:
    state = front(FAR)
    message = sent(ask(state, 1, 0.0))
    decide(state, Received("gw-b", done(message, queue_s=5.0), {}), 1.0)
    assert waiting(state, 1.0) == {"gw-b": 5.0}
    assert waiting(state, 3.0) == {"gw-b": pytest.approx(3.0)}
    assert waiting(state, 6.5) == {}
    assert receivers(ask(state, 2, 3.0)) == ["gw-c"]


def test_work_assigned_after_a_report_adds_to_it() -> None:
    state = front(("gw-b",))
    first, second = sent(ask(state, 1, 0.0)), sent(ask(state, 2, 0.5))
    decide(state, Received("gw-b", done(first, queue_s=4.0), {}), 1.0)  # the second is among these 4 s
    ask(state, 3, 2.0)
    assert waiting(state, 2.0) == {"gw-b": pytest.approx(4.0 - 1.0 + 1.0)}
    decide(state, Received("gw-b", done(second, queue_s=3.0), {}), 3.0)
    assert waiting(state, 3.0) == {"gw-b": pytest.approx(3.0)}


def test_a_device_with_unfinished_work_never_looks_free() -> None:
    state = front(("gw-b",))
    for number in range(3):
        ask(state, number, 0.0)
    assert waiting(state, 0.9) == {"gw-b": pytest.approx(3.0)}
    decide(state, Received("gw-b", done(sent(ask(state, 9, 0.9)), queue_s=0.0), {}), 0.95)
    assert waiting(state, 0.95) == {"gw-b": pytest.approx(3.0)}


def test_an_ended_request_does_not_count() -> None:
    state = front(("gw-b",))
    ask(state, 1, 0.0)
    decide(state, Tick(), 61.0)  # its deadline
    assert waiting(state, 61.0) == {}


def test_a_late_request_goes_to_another_replica() -> None:
    state = front(FAR, compute_s=0.1)
    assert receivers(ask(state, 1, 0.0)) == ["gw-b"]
    late_s = state.next_deadline_s()
    assert late_s is not None
    assert receivers(decide(state, Tick(), late_s)) == ["gw-c"]


def test_a_request_whose_route_changes_does_not_run_from_its_own_work() -> None:
    state = front(("gw-b", "gw-d"))
    assert receivers(ask(state, 1, 0.0)) == ["gw-b"]
    state.coordinated[next(iter(state.coordinated))].plan = None  # as while no device was able
    assert receivers(decide(state, encoder_route("encode", FAR, generation=2), 0.1)) == ["gw-b"]


def test_the_own_queue_is_the_submitted_work_less_the_time_since_it_began() -> None:
    state = front(("gw-a",))
    first = the_run(ask(state, 1, 0.0))
    decide(state, Ran(first.run, features(), None, 0.0, 2.0), 2.0)
    assert own_wait_s(state, 2.0, task="encode") == 0
    second = the_run(ask(state, 2, 10.0))
    ask(state, 3, 10.5)
    assert own_wait_s(state, 10.5, task="encode") == pytest.approx(1.5 + 2.0)
    assert own_wait_s(state, 13.0, task="encode") == pytest.approx(2.0)  # the first is overdue
    decide(state, Ran(second.run, features(), None, 0.0, 3.0), 13.0)
    assert own_wait_s(state, 13.0, task="encode") == pytest.approx(2.2)  # on average; the newest counts a fifth
    assert waiting(state, 14.0) == {"gw-a": pytest.approx(1.2)}


def test_one_slow_pass_causes_no_refusals() -> None:
    """All requests that waited for a broker arrive at once, and are decoded during the first pass."""
    state = front(("gw-a",), compute_s=0.02)
    for number in range(2):
        decide(state, Ran(the_run(ask(state, number, number)).run, features(), None, 0.0, 0.02), number + 0.02)
    slow = the_run(ask(state, 100, 10.0))
    for number in range(101, 150):
        assert not refusals(ask(state, number, 10.0))
    decide(state, Ran(slow.run, features(), None, 10.0, 0.5), 10.5)
    for number in range(150, 200):
        assert not refusals(ask(state, number, 10.5))


def test_a_done_message_reports_the_remaining_queue() -> None:
    asking, working = front(("gw-b",)), agent("gw-b", ENCODER)
    runs: list[Action] = []
    for number in range(3):
        message = next(action for action in ask(asking, number, 0.0) if isinstance(action, Send))
        runs += decide(working, Received("gw-a", message.message, message.values), 0.0)
    assert [type(run) for run in runs] == [Run, Run], "the third one waits in the queue"
    told = [
        action.message
        for action in decide(working, Ran(the_run(runs[:1]).run, features(), None, 0.0, 0.7), 0.7)
        if isinstance(action, Send) and isinstance(action.message, NodeDone)
    ]
    assert [message.queue_s for message in told] == [pytest.approx(1.4)]


def test_a_failed_pass_is_not_measured() -> None:
    state = front(("gw-a",))
    decide(state, Ran(the_run(ask(state, 1, 0.0)).run, features(), None, 0.0, 2.0), 2.0)
    bad = RequestFailed(ErrorCode.BAD_INPUT, "no picture")
    decide(state, Ran(the_run(ask(state, 2, 3.0)).run, None, bad, 3.0, 0.001), 3.0)
    assert state.measured_s == {ENCODER.key: 2.0}


def test_a_node_that_took_a_kept_output_is_not_measured() -> None:
    state = front(("gw-a",))
    decide(state, Ran(the_run(ask(state, 1, 0.0)).run, features(), None, 0.0, 2.0), 2.0)
    decide(state, Ran(the_run(ask(state, 2, 3.0)).run, features(), None, 3.0, 0.001, cached=True), 3.0)
    assert state.measured_s == {ENCODER.key: 2.0}


def test_an_unloaded_module_leaves_no_measurement() -> None:
    state = front(("gw-a",))
    decide(state, Ran(the_run(ask(state, 1, 0.0)).run, features(), None, 0.0, 2.0), 2.0)
    assert state.measured_s == {ENCODER.key: 2.0}
    actions = decide(state, Assignment(epoch=1, generation=2), 3.0)
    assert any(isinstance(action, Unload) for action in actions)
    assert state.measured_s == {}
