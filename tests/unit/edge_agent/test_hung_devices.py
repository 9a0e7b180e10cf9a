"""A request that never ends where it runs: it occupies two devices at most, whatever times out."""

from __future__ import annotations

import pytest

from broker.protocol.errors import ErrorCode
from broker.protocol.messages import ErrorBody, NodeInputs, Route
from edge_agent.decide import decide
from edge_agent.events import Action, Received, Reply, Send, Tick
from edge_agent.requests.execute import failure
from edge_agent.requests.hung_devices import MOST_DEVICES
from edge_agent.state import AgentState
from tests.builders import able, agent, all_of, only, requested, route, route_node

OTHERS = ("gw-b", "gw-c", "gw-d", "gw-e")


def front_of(nodes: dict[str, tuple[str, ...]]) -> AgentState:
    """gw-a is the front door; each node takes the text, and the output node takes them all."""
    return agent("gw-a", routes=[route_to(nodes)])


def route_to(nodes: dict[str, tuple[str, ...]], generation: int = 1) -> Route:
    each = {name: route_node(f"key-of-{name}", ("text",), able(*devices)) for name, devices in nodes.items()}
    if len(each) > 1:
        each["z-output"] = route_node("key-of-output", tuple(each), able("gw-z"))
    return route("t", each, generation=generation)


def ask(front: AgentState) -> list[NodeInputs]:
    return inputs(decide(front, requested("t", expiry_s=3600), 0.0))


def inputs(actions: list[Action]) -> list[NodeInputs]:
    return [send.message for send in all_of(actions, Send) if isinstance(send.message, NodeInputs)]


def resent(front: AgentState, times: int = 8) -> list[NodeInputs]:
    """The inputs that are sent at the next timeouts, as nothing is ever heard."""
    sent: list[NodeInputs] = []
    for _ in range(times):
        now_s = front.next_deadline_s()
        assert now_s is not None
        sent += inputs(decide(front, Tick(), now_s))
    return sent


def devices_of(sent: list[NodeInputs]) -> set[str]:
    return {message.plan.nodes[message.node].device for message in sent}


def hangs(front: AgentState, message: NodeInputs, now_s: float, *, retry: bool = False) -> list[Action]:
    device = message.plan.nodes[message.node].device
    error = ErrorBody(code=ErrorCode.MODULE_FAILED, message=f"it hangs on {device}")
    return decide(front, Received(device, failure(message, error, retry=retry), {}), now_s)


@pytest.mark.parametrize("nodes", [{"x": OTHERS}, {"x": OTHERS, "y": OTHERS}, {"x": OTHERS[:2], "y": OTHERS[2:]}])
def test_a_request_that_is_late_everywhere_is_on_two_devices_at_most(nodes: dict[str, tuple[str, ...]]) -> None:
    front = front_of(nodes)
    sent = [*ask(front), *resent(front)]
    assert len(sent) > 2 * len(nodes), "it is resent"
    assert len(devices_of(sent)) == MOST_DEVICES


def test_a_device_that_dies_makes_room_for_another_one() -> None:
    front = front_of({"x": OTHERS})
    first, second = sorted(devices_of([*ask(front), *resent(front)]))
    living = tuple(device for device in OTHERS if device != first)
    decide(front, route_to({"x": living}, 2), front.next_deadline_s() or 0.0)
    assert devices_of(resent(front)) <= {second, *OTHERS} - {first}
    assert len(devices_of(resent(front))) == MOST_DEVICES


def test_the_second_device_that_says_it_hangs_ends_the_request_whatever_attempt_that_was() -> None:
    front = front_of({"x": OTHERS})
    (first,) = ask(front)
    second = next(message for message in resent(front, 2) if devices_of([message]) != devices_of([first]))
    resent(front, 3)
    assert hangs(front, first, 30.0) == []
    error = only(hangs(front, second, 32.0), Reply).result.error
    assert error is not None
    assert error.code == ErrorCode.MODULE_FAILED
    assert not front.coordinated


def test_a_device_that_hung_gets_the_node_never_again_though_it_is_back() -> None:
    front = front_of({"x": OTHERS[:2]})
    (first,) = ask(front)
    resent(front, 1)
    hangs(front, first, 30.0)
    assert devices_of(resent(front)).isdisjoint(devices_of([first]))


def test_refusals_dont_count() -> None:
    front = front_of({"x": OTHERS})
    (message,) = ask(front)
    seen = devices_of([message])
    for _ in OTHERS[1:]:
        assert hangs(front, message, (front.next_deadline_s() or 0.0) - 0.5, retry=True) == []
        message = resent(front, 1)[-1]
        seen |= devices_of([message])
    assert seen == set(OTHERS)
