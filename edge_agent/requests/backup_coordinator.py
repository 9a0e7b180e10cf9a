"""The rules of a second front door: it holds each request until somebody else has answered it. Pure.

Owns the requests held. A task with ``redundancy: 2`` delivers every request to two devices, in two share groups: the
front door, which coordinates it (``coordinate``), and a second door. Whoever ends the request tells the second door
``done``. When that doesn't come in time, or a device that was the front door then is none any more, the second door
takes the request over as if it had just arrived: the death of a coordinator costs a sensor no answer, though it
publishes only once. At least once: an answer may come twice.

Invariants:
- What is held is bounded in number and bytes; the oldest goes first, and is counted.
- A request is held no longer than half of its time: whoever takes it over needs the other half.
"""

from __future__ import annotations

from collections.abc import Iterable

from broker.protocol.codec import request_id
from broker.protocol.messages import NodeDone, Route
from broker.protocol.specs import DeviceId, RequestId, TaskName
from edge_agent.actions import Action, Log
from edge_agent.events import Requested
from edge_agent.requests import coordinate
from edge_agent.requests.load_estimate import queues_s
from edge_agent.requests.routing import choose_plan
from edge_agent.state import MAX_HELD, MAX_HELD_BYTES, AgentState, Held


def on_request(state: AgentState, event: Requested, route: Route, now_s: float) -> Iterable[Action]:
    """A copy of a request arrived at this second door: hold it. One that is held already is the sensor's retry."""
    request = request_id(event.task, event.reply_to, event.correlation, event.payload)
    if request in state.held or request in state.coordinated:
        return
    life_s = coordinate.life_of(event)
    expected_s = _expected_s(state, route, now_s)
    wait_s = min(coordinate.patience_s(expected_s), life_s / 2)
    state.held[request] = Held(event, route.front_door, now_s + wait_s, now_s + life_s)
    state.held_bytes += len(event.payload)
    while state.held_bytes > MAX_HELD_BYTES or len(state.held) > MAX_HELD:
        _let_go(state, next(iter(state.held)))
        state.dropped["not_held_longer"] += 1
    yield from ()


def on_done(state: AgentState, sender: DeviceId, message: NodeDone) -> None:
    """Somebody ended a request: it is held no longer. Only who serves its task can say so."""
    held = state.held.get(message.request)
    route = state.routes.get(message.task)
    if held is None or route is None or message.task != held.event.task:
        return
    able = {each.device for node in route.nodes.values() for each in node.devices}
    if sender in able.union(route.front_door, held.front_door):
        _let_go(state, message.request)
    else:
        state.dropped["not_asked"] += 1


def on_route(state: AgentState, route: Route, now_s: float) -> Iterable[Action]:
    """A task's front door changed: what its former members may have taken with them is taken over."""
    for request, held in list(state.held.items()):
        if held.event.task == route.task and not set(held.front_door) <= set(route.front_door):
            yield from _take_over(state, request, now_s)


def on_cleared(state: AgentState, task: TaskName, now_s: float) -> Iterable[Action]:
    """A task was undeployed: the sensors that wait are told."""
    for request, held in list(state.held.items()):
        if held.event.task == task:
            yield from _take_over(state, request, now_s)


def on_tick(state: AgentState, now_s: float) -> Iterable[Action]:
    """Requests that nobody has answered in time are taken over."""
    for request, held in list(state.held.items()):
        if now_s >= held.due_s:
            yield from _take_over(state, request, now_s)


def _expected_s(state: AgentState, route: Route, now_s: float) -> float:
    """What a request of typical size takes, as far as this device knows."""
    sizes = {name: spec.bytes for name, spec in route.inputs.items()}
    choice = choose_plan(route, here=state.device, input_bytes=sizes, queue_s=queues_s(state, now_s, task=route.task))
    return choice[1] if choice else 0.0


def _take_over(state: AgentState, request: RequestId, now_s: float) -> Iterable[Action]:
    held = _let_go(state, request)
    yield Log("request_taken_over", {"request": request, "task": held.event.task})
    yield from coordinate.on_request(state, held.event, now_s, deadline_s=held.deadline_s)


def _let_go(state: AgentState, request: RequestId) -> Held:
    held = state.held.pop(request)
    state.held_bytes -= len(held.event.payload)
    return held
