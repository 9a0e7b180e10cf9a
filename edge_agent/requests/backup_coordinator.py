"""The backup coordinator's rules: keep a copy of each request until another device has answered it. Sans-I/O.

Owns the copies. A task with ``redundancy: 2`` delivers every request to two devices, through two share groups: to a
front door, which coordinates it (``coordinate``), and to a backup coordinator (``second_door`` on the wire). The device
that ends the request sends ``done`` to the backup. If that doesn't arrive in time, or if a front door is removed
meanwhile, the backup takes the request over as if it had just arrived. So a sensor that publishes once gets its answer
although a coordinator dies. Delivery is at least once: an answer may come twice.

Invariants:
- The copies are bounded in number and bytes. The oldest of the client with most of them is dropped first, and counted.
- A copy waits for at most half of the request's time: the device that takes it over needs the other half.
"""

from __future__ import annotations

from collections import Counter

from broker.protocol.codec import request_id
from broker.protocol.messages import NodeDone, Route
from broker.protocol.reports import EventType
from broker.protocol.specs import ClientName, DeviceId, RequestId, TaskName
from edge_agent.events import Action, Log, PublishEvent, Requested
from edge_agent.requests import coordinate
from edge_agent.requests.error_reply import lifetime_s
from edge_agent.requests.load_estimate import waits_s
from edge_agent.requests.routing import choose_plan
from edge_agent.state import AgentState, BackedUp

MAX_BACKUPS = 1024
GONE, LATE = "a device left the front door", "no device answered in time"
MAX_BACKUP_BYTES = 64 * 1024 * 1024  # of their payloads and properties


def on_request(state: AgentState, event: Requested, route: Route, now_s: float) -> list[Action]:
    """Keep a copy of a request. A copy that is kept already is the sensor's retry."""
    request = request_id(event.task, event.reply_to, event.correlation, event.payload)
    if request in state.backups or request in state.coordinated:
        return []
    life_s = lifetime_s(event)
    wait_s = min(coordinate.timeout_s(_expected_s(state, route, event.client, now_s)), life_s / 2)
    state.backups[request] = BackedUp(event, route.front_door, now_s + wait_s, now_s + life_s)
    state.backup_bytes += _size_of(event)
    while state.backup_bytes > MAX_BACKUP_BYTES or len(state.backups) > MAX_BACKUPS:
        _release(state, _excess(state))
        state.dropped["not_held_longer"] += 1
    return []


def on_done(state: AgentState, sender: DeviceId, message: NodeDone) -> list[Action]:
    """Drop the copy of a request that has ended. Only devices that serve its task can end it."""
    backup = state.backups.get(message.request)
    route = state.routes.get(message.task)
    if backup is None or route is None or message.task != backup.event.task:
        return []
    able = {each.device for node in route.nodes.values() for each in node.devices}
    if sender in able.union(route.front_door, backup.front_door):
        _release(state, message.request)
    else:
        state.dropped["not_asked"] += 1
    return []


def on_route(state: AgentState, route: Route, now_s: float) -> list[Action]:
    """Take over the requests that a removed front door may have had."""
    of_task = [(name, backup) for name, backup in state.backups.items() if backup.event.task == route.task]
    requests = [name for name, backup in of_task if not set(backup.front_door) <= set(route.front_door)]
    return _take_over(state, now_s, requests, why=GONE)


def on_task_cleared(state: AgentState, task: TaskName, now_s: float) -> list[Action]:
    """Answer the requests of an undeployed task: the coordinator's rules refuse them with an error."""
    return _take_over(state, now_s, [name for name, backup in state.backups.items() if backup.event.task == task])


def on_tick(state: AgentState, now_s: float) -> list[Action]:
    """Take over the requests that no device has answered in time."""
    requests = [name for name, backup in state.backups.items() if now_s >= backup.due_s]
    return _take_over(state, now_s, requests, why=LATE)


def _excess(state: AgentState) -> RequestId:
    """The oldest copy of the client that has most of them."""
    most, _ = Counter(backup.event.client for backup in state.backups.values()).most_common(1)[0]
    return next(request for request, backup in state.backups.items() if backup.event.client == most)


def _expected_s(state: AgentState, route: Route, client: ClientName, now_s: float) -> float:
    """The expected duration of a request of typical size; 0 when it is unknown."""
    sizes = {name: spec.bytes for name, spec in route.inputs.items()}
    waiting_s = waits_s(state, now_s, task=route.task, client=client)
    choice = choose_plan(route, here=state.device, input_bytes=sizes, queue_s=waiting_s)
    return choice[1] if choice else 0.0


def _take_over(state: AgentState, now_s: float, requests: list[RequestId], why: str | None = None) -> list[Action]:
    """Coordinate requests from now on. Publish an event for each task that says ``why``, if there is a reason."""
    numbers = Counter(state.backups[request].event.task for request in requests) if why else {}
    actions: list[Action] = [
        PublishEvent(EventType.TOOK_OVER, task=task, why=why, requests=number) for task, number in numbers.items()
    ]
    for request in requests:
        backup = state.backups[request]
        actions.append(Log("request_taken_over", {"request": request, "task": backup.event.task}))
        actions += coordinate.on_request(
            state, backup.event, now_s, deadline_s=backup.deadline_s, quarantined=why == GONE
        )
        _release(state, request)
    return actions


def _release(state: AgentState, request: RequestId) -> BackedUp:
    backup = state.backups.pop(request)
    state.backup_bytes -= _size_of(backup.event)
    return backup


def _size_of(event: Requested) -> int:
    return len(event.payload) + len(event.correlation) + len(event.content_type) + len(event.reply_to)
