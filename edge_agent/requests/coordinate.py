"""The coordinator's rules: the life of a request from its arrival to its answer. Sans-I/O, deterministic.

Owns every request that this device coordinates: its inputs, its plan, its completed nodes and the time of its next
attempt. Knows nothing about running modules (``execute``).

Invariants:
- A request ends with exactly one answer or error, from here or from the device of its output node; never in silence.
- A request that is not expected to be answered before its deadline is refused at once, with the seconds after which a
  retry may succeed. An admitted request is finished. No task crowds out the others (``_accept``, ``admission``).
- A retry sends the inputs again under a new plan. Devices that have already computed a node answer from the outputs
  that they keep, so only the missing nodes are computed again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from broker.protocol.codec import RawInput, decode_request, inputs_digest, request_id
from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.messages import (
    MAX_DEADLINE_S,
    SUSPECTED_FOR_S,
    NodeDone,
    NodeFailed,
    NodeInputs,
    Plan,
    Route,
)
from broker.protocol.sizes import show_bytes
from broker.protocol.specs import MAX_TASKS, DeviceId, NodeName, TaskName
from broker.protocol.topics import may_reply_to
from broker.transport.port import RECONNECT_S
from edge_agent.events import Action, DataLinkChanged, Log, Requested, Send, SendHeartbeat
from edge_agent.requests.admission import admit, update_latency_inflation
from edge_agent.requests.error_reply import error_reply, lifetime_s, no_room, other_backups
from edge_agent.requests.fair_queue import Flow
from edge_agent.requests.hung_devices import allowed, on_late_failure
from edge_agent.requests.load_estimate import waits_s
from edge_agent.requests.quarantine import is_quarantined, refusal
from edge_agent.requests.routing import PlanAndTime, choose_plan
from edge_agent.requests.traces import on_ended
from edge_agent.state import AgentState, Coordinated, size_of

MAX_COORDINATED = 384  # requests; a task may hold as many of them as are left free, a client alone a third
MAX_COORDINATED_BYTES = 256 * 1024 * 1024  # of their inputs, kept until the answer is delivered; shared the same way
MAX_REPORTED = 4096  # queues of other devices, by task
FIRST_TIMEOUT_S = 1.0  # a heartbeat; doubles with each attempt, as loading a module may be slow
TIMEOUT_FACTOR = 4.0  # times the expected seconds, when that is longer: later work takes its share meanwhile
REFUSED_BACKOFF_S = 0.1  # after a device refused: a new route is on its way


def on_request(
    state: AgentState, event: Requested, now_s: float, *, deadline_s: float | None = None, quarantined: bool = False
) -> list[Action]:
    """Coordinate a request, or refuse it at once with the reason.

    A backup coordinator takes over a request with the ``deadline_s`` that it has left; it was admitted before. It is
    ``quarantined`` if the coordinator before may have died of it.
    """
    if not may_reply_to(state.prefix, event.reply_to):
        state.dropped["reply_topic"] += 1
        reason = "response_topic_not_allowed" if event.reply_to else "no_response_topic"
        if (event.task, reason) in state.warned or len(state.warned) >= MAX_TASKS:
            return []
        state.warned.add((event.task, reason))
        fields: dict[str, object] = {"task": event.task, "reason": reason, "reply_to": event.reply_to[:200]}
        return [Log("request_without_reply", fields)]
    name = request_id(event.task, event.reply_to, event.correlation, event.payload)
    if name in state.coordinated:
        state.dropped["duplicate_request"] += 1
        return []
    is_new = deadline_s is None
    ends_s = now_s + lifetime_s(event) if deadline_s is None else deadline_s
    request = Coordinated(
        name, event.task, {}, event.reply_to, event.correlation, ends_s, event.client, event.traceparent
    )
    request.arrived_s = ends_s - lifetime_s(event) - event.waited_s
    state.counters.count_request(event.task)
    try:
        if is_new and ends_s <= now_s:
            raise no_room(f"it waited {event.waited_s:.1f} s at {state.device}, longer than it had")
        request.inputs = _accept(state, event)
        request.sent, request.revision = (event.payload, event.content_type), state.routes[event.task].revision
        request.payload = inputs_digest(request.inputs)
        if refused := refusal(state, request.payload, now_s):
            raise refused
        request.quarantined = quarantined or is_quarantined(state, name, request.payload)
        waiting_s = waits_s(state, now_s, task=event.task, client=event.client)
        choice = _choose(state, request, waiting_s)
        if is_new:
            admit(waiting_s, choice, ends_s - now_s, state.latency_inflation.get(event.task, 1.0))
    except RequestFailed as error:
        return [*error_reply(state, request, error), *on_ended(state, request, error.code, now_s)]
    state.coordinated[name] = request
    state.coordinated_bytes += request.size_bytes
    if choice and is_new:
        request.began_s, request.expected_s = now_s, choice[1]
    return _dispatch(state, request, now_s, choice)


def on_route(state: AgentState, route: Route, now_s: float) -> list[Action]:
    """Resend the requests of a task whose plan no longer holds under its new route."""
    actions: list[Action] = []
    for request in _requests_of(state, route.task):
        if route.unavailable:
            actions += _end(state, request, RequestFailed(ErrorCode.NO_ROUTE, route.unavailable), now_s)
        elif request.plan is None or _is_broken(request, request.plan, route):
            if request.revision == route.revision:  # else the device may only have unloaded the revision before
                request.quarantined |= request.plan is not None  # one that computed it may have died of it
            actions += _send_again(state, request, now_s)
    return actions


def on_refused(state: AgentState, now_s: float) -> list[Action]:
    """End the requests whose payloads are refused from now on."""
    refused = [(request, refusal(state, request.payload, now_s)) for request in state.coordinated.values()]
    return [action for request, error in refused if error for action in _end(state, request, error, now_s)]


def on_task_cleared(state: AgentState, task: TaskName, now_s: float) -> list[Action]:
    """End the requests of an undeployed task with an error."""
    return [action for request in _requests_of(state, task) for action in _end(state, request, _no_task(task), now_s)]


def on_data_link(state: AgentState, event: DataLinkChanged, now_s: float) -> list[Action]:
    """Resend nothing while our data link is down, and everything, with the first timeout, once it is up.

    The broker may have been away for all devices. The others need the time to reconnect, too.
    """
    if not event.up:
        state.suspect_only_after_s = math.inf
    elif state.suspect_only_after_s == math.inf:
        state.suspect_only_after_s = now_s + RECONNECT_S
        for request in state.coordinated.values():
            request.retry_at_s = min(request.retry_at_s, now_s + REFUSED_BACKOFF_S)
            request.attempts_lost_to_own_link = request.attempt + 1
    return []


def on_activity(state: AgentState, sender: DeviceId, now_s: float) -> list[Action]:
    """Clear the suspicion against a device that sent anything."""
    if sender in state.last_heard_s:
        state.last_heard_s[sender] = now_s
    return [SendHeartbeat()] if state.suspects.pop(sender, None) is not None else []


def on_done(state: AgentState, sender: DeviceId, message: NodeDone, now_s: float) -> list[Action]:
    """Record a completed node. The output node ends the request. Only a device that was assigned the node counts."""
    request = state.coordinated.get(message.request)
    if request is None:
        return []
    if (message.node, sender) not in request.ever_assigned:
        state.dropped["not_asked"] += 1
        return []
    if request.first_fence is not None and (message.epoch, message.generation) < request.first_fence:
        state.dropped["stale_done"] += 1
        return []
    assignee, _ = request.current_assignees.get(message.node, (sender, now_s))
    if sender == assignee or message.node not in request.completed:
        request.completed[message.node] = sender, now_s
        request.reports[message.node] = message
    if sender != state.device:
        _record_queue(state, sender, request.flow, message.queue_s, now_s)
    if message.node == request.output:
        update_latency_inflation(state, request, now_s)
        _forget(state, request)
        return on_ended(state, request, None, now_s)
    return []


def on_failed(state: AgentState, sender: DeviceId, message: NodeFailed, now_s: float) -> list[Action]:
    """Retry a node that a device can't run, or send the error to the sensor.

    Where the sender isn't that device, nobody received the node's inputs: the device may have died of earlier ones.
    """
    request = state.coordinated.get(message.request)
    if request is None:
        return []
    body = message.error
    request.quarantined |= sender != message.device or message.quarantined
    if (message.node, message.device) not in request.ever_assigned:
        state.dropped["not_asked"] += 1
    elif message.attempt < request.attempt and (message.retry or not on_late_failure(request, message)):
        state.dropped["stale_failure"] += 1
    elif message.retry and (body.code != ErrorCode.OVERLOADED or _has_alternative(state, request, message)):
        _schedule_retry(request, message, now_s)
    else:
        return _end(state, request, RequestFailed(body.code, body.message, retry_after_s=body.retry_after_s), now_s)
    return []


def on_tick(state: AgentState, now_s: float) -> list[Action]:
    """End requests at their deadline, resend those that time out, and drop old suspicions."""
    state.suspects = {d: at_s for d, at_s in state.suspects.items() if now_s < at_s + SUSPECTED_FOR_S}
    actions: list[Action] = []
    for request in list(state.coordinated.values()):
        if now_s >= request.deadline_s:
            update_latency_inflation(state, request, now_s)
            text = f"no answer in time after {request.attempt + 1} attempts; allow more time or add devices"
            actions += _end(state, request, RequestFailed(ErrorCode.DEADLINE_EXCEEDED, text), now_s)
        elif now_s >= request.retry_at_s and state.suspect_only_after_s == math.inf:
            request.retry_at_s = math.inf  # until our link is up
        elif now_s >= request.retry_at_s:
            overdue = _overdue(state, request, now_s)
            request.late |= {(node, device) for node, device, _ in overdue}
            actions += _suspect_silent_devices(state, request, overdue, now_s)
            actions += _send_again(state, request, now_s, late=True)
    return actions


def give_up(state: AgentState, now_s: float) -> list[Action]:
    """End all requests with an error: this process ends."""
    error = no_room(f"{state.device} restarts")
    return [action for request in list(state.coordinated.values()) for action in _end(state, request, error, now_s)]


def timeout_s(expected_s: float) -> float:
    """The seconds after which an attempt with this expected duration times out."""
    return max(FIRST_TIMEOUT_S, TIMEOUT_FACTOR * expected_s)


def _requests_of(state: AgentState, task: TaskName) -> list[Coordinated]:
    return [request for request in state.coordinated.values() if request.task == task]


def _accept(state: AgentState, event: Requested) -> dict[NodeName, RawInput]:
    """The request's inputs. ``RequestFailed`` when there is no route, no room, or a bad input.

    A task may hold as many requests and bytes as are left free (dynamic thresholds; Choudhury, Hahne 1998). One task
    alone gets half of the room, and however many requests it sends, some room is left for the others. In the same way a
    client may hold as many of a task's requests as the task has room for: a third of all room alone.
    """
    route = state.routes.get(event.task)
    if route is None:
        raise _no_task(event.task)
    if route.unavailable:
        raise RequestFailed(ErrorCode.NO_ROUTE, route.unavailable)
    free = MAX_COORDINATED - len(state.coordinated), MAX_COORDINATED_BYTES - state.coordinated_bytes
    own = _requests_of(state, event.task)
    free = _require_room(own, event, free, f"requests of {event.task}")
    own = [request for request in own if request.client == event.client]
    _require_room(own, event, free, f"requests of {event.task} by {event.client or 'clients without a name'}")
    return decode_request(event.payload, event.content_type, route.inputs)


def _require_room(requests: list[Coordinated], event: Requested, free: tuple[int, int], what: str) -> tuple[int, int]:
    """Refuse a request if such requests fill the number and the bytes that are free; what they leave of both."""
    count, size_bytes = len(requests), sum(request.size_bytes for request in requests)
    if count >= free[0] or size_bytes + len(event.payload) > free[1]:
        raise no_room(f"{count} {what}, {show_bytes(size_bytes)}, are in flight here already")
    return free[0] - count, free[1] - size_bytes


def _choose(state: AgentState, request: Coordinated, waiting_s: Mapping[DeviceId, float]) -> PlanAndTime | None:
    """A plan for the missing nodes and its expected seconds. Completed nodes stay on their device while it is able."""
    return choose_plan(
        allowed(request, state.routes[request.task]),
        here=state.device,
        input_bytes={name: len(raw.data) for name, raw in request.inputs.items()},
        queue_s=waiting_s,
        finished={name: device for name, (device, _) in request.completed.items()},
        avoid=request.avoid,
    )


def _send_again(state: AgentState, request: Coordinated, now_s: float, *, late: bool = False) -> list[Action]:
    """Send a request again under a new plan. If it is late, its own unfinished work counts as a queue."""
    try:
        _follow_revision(state, request)
    except RequestFailed as error:
        return _end(state, request, error, now_s)
    without = None if late else request
    waiting_s = waits_s(state, now_s, task=request.task, client=request.client, without=without)
    return _dispatch(state, request, now_s, _choose(state, request, waiting_s))


def _follow_revision(state: AgentState, request: Coordinated) -> None:
    """Restart a request, whole, if its task is served by another revision now: no answer is made of two.

    Raises:
        RequestFailed: this revision can't take its inputs.
    """
    route = state.routes[request.task]
    if request.revision == route.revision:
        return
    before = request.size_bytes
    request.inputs = decode_request(*request.sent, route.inputs)
    state.coordinated_bytes += request.size_bytes - before
    request.payload, request.revision = inputs_digest(request.inputs), route.revision
    request.completed, request.reports, request.first_fence = {}, {}, None
    request.avoid, request.late, request.hung = frozenset(), set(), set()


def _dispatch(state: AgentState, request: Coordinated, now_s: float, choice: PlanAndTime | None) -> list[Action]:
    """Send every input to the nodes that take it, small ones first; without a plan, wait for a complete route."""
    if choice is None:
        request.plan, request.current_assignees = None, {}  # what a node needs may never reach it: no device is late
        request.retry_at_s = now_s + FIRST_TIMEOUT_S
        return []
    route = state.routes[request.task]
    request.plan, expected_s = choice
    request.output = request.plan.output
    planned_on = {name: planned.device for name, planned in request.plan.nodes.items()}
    request.ever_assigned.update(planned_on.items())
    request.current_assignees = {name: (device, now_s) for name, device in planned_on.items()}
    request.completed = {name: kept for name, kept in request.completed.items() if kept[0] == planned_on.get(name)}
    request.attempt += 1
    request.fence = (route.epoch, route.generation)
    request.first_fence = request.first_fence or request.fence
    for device in set(planned_on.values()) - {state.device}:
        state.last_heard_s.setdefault(device, -math.inf)
    doublings = min(request.attempt - request.attempts_lost_to_own_link, 6)
    request.retry_at_s = now_s + timeout_s(expected_s) * 2**doublings
    sends = [send for name in planned_on if (send := _inputs_for(state, request, request.plan, name, now_s))]
    sends.sort(key=lambda send: sum(map(size_of, send.values.values())))
    if not request.attempt:
        return [*sends]
    return [Log("request_sent_again", {"request": request.request, "attempt": request.attempt}), *sends]


def _inputs_for(state: AgentState, request: Coordinated, plan: Plan, node: NodeName, now_s: float) -> Send | None:
    values = {need: request.inputs[need] for need in plan.nodes[node].needs if need in request.inputs}
    if not values:
        return None
    message = NodeInputs(
        request=request.request,
        task=request.task,
        node=node,
        epoch=request.fence[0],
        generation=request.fence[1],
        attempt=request.attempt,
        revision=plan.revision,
        coordinator=state.device,
        deadline_s=min(MAX_DEADLINE_S, max(0.0, request.deadline_s - now_s)),
        reply_to=request.reply_to,
        client=request.client,
        correlation=request.correlation.hex(),
        plan=plan,
        content_types={name: raw.content_type for name, raw in values.items()},
        second_door=other_backups(state, request.task),
        payload=request.payload,
        quarantined=request.quarantined,
    )
    return Send(plan.nodes[node].device, message, values, request.deadline_s)


def _is_broken(request: Coordinated, plan: Plan, route: Route) -> bool:
    """Whether a missing node was planned with a module, or on a device, that the route no longer names for it."""
    return any(
        name not in route.nodes
        or planned.key != route.nodes[name].key
        or planned.device not in {each.device for each in route.nodes[name].devices}
        for name, planned in plan.nodes.items()
        if not _delivered(request, name)
    )


def _delivered(request: Coordinated, node: NodeName) -> bool:
    """Whether the current assignee completed a node under this plan, and so sent the output where the plan says."""
    if node not in request.current_assignees or node not in request.completed:
        return False
    (assignee, sent_s), (device, done_s) = request.current_assignees[node], request.completed[node]
    return device == assignee and done_s >= sent_s


def _has_alternative(state: AgentState, request: Coordinated, failed: NodeFailed) -> bool:
    """Whether a device that hasn't refused yet could run this node."""
    route = state.routes.get(request.task)
    able = {each.device for each in route.nodes[failed.node].devices} if route and failed.node in route.nodes else set()
    return bool(able - request.avoid - {failed.device})


def _record_queue(state: AgentState, sender: DeviceId, flow: Flow, queue_s: float, now_s: float) -> None:
    """Remember a device's reported queue, as long as it can still be there; of too many the latest reports."""
    state.reported_s.pop((sender, flow), None)
    state.reported_s[sender, flow] = now_s, queue_s
    state.reported_s = {key: (at_s, s) for key, (at_s, s) in state.reported_s.items() if now_s - at_s < s}
    if len(state.reported_s) > MAX_REPORTED:
        del state.reported_s[next(iter(state.reported_s))]


def _schedule_retry(request: Coordinated, failed: NodeFailed, now_s: float) -> None:
    """Retry soon, on another device if possible. What the failed device has completed can't be had from it any more."""
    request.avoid |= {failed.device}
    request.late.discard((failed.node, failed.device))
    if request.current_assignees.get(failed.node, (None, 0.0))[0] == failed.device:
        del request.current_assignees[failed.node]  # it isn't late
    if request.completed.get(failed.node, (None, 0.0))[0] == failed.device:
        del request.completed[failed.node]
    backoff_s = REFUSED_BACKOFF_S * 2 ** min(max(request.attempt, 0), 5)
    request.retry_at_s = min(request.retry_at_s, now_s + backoff_s)


def _no_task(task: TaskName) -> RequestFailed:
    return RequestFailed(ErrorCode.NO_ROUTE, f"the task {task} is not deployed; deploy it with `s2m3 deploy FILE`")


def _overdue(state: AgentState, request: Coordinated, now_s: float) -> list[tuple[NodeName, DeviceId, float]]:
    """The late nodes, each with its device and the time since when it should have all inputs."""
    overdue: list[tuple[NodeName, DeviceId, float]] = []
    for name, (device, sent_s) in request.current_assignees.items():
        needs = request.plan.nodes[name].needs if request.plan else ()
        nodes = [need for need in needs if need not in request.inputs]
        if _delivered(request, name) or not all(_delivered(request, need) for need in nodes):
            continue
        due_from_s = max([sent_s, *(request.completed[need][1] for need in nodes)])
        if due_from_s >= state.suspect_only_after_s and now_s - due_from_s >= FIRST_TIMEOUT_S:
            overdue.append((name, device, due_from_s))
    return overdue


def _suspect_silent_devices(
    state: AgentState, request: Coordinated, overdue: list[tuple[NodeName, DeviceId, float]], now_s: float
) -> list[Action]:
    """Suspect the devices of overdue nodes that have sent nothing since."""
    actions: list[Action] = []
    for name, device, due_from_s in overdue:
        if device != state.device and state.last_heard_s.get(device, -math.inf) < due_from_s:
            state.suspects[device] = now_s
            fields: dict[str, object] = {"suspect": device, "request": request.request, "node": name}
            actions += [Log("device_suspected", fields), SendHeartbeat()]
    return actions


def _end(state: AgentState, request: Coordinated, error: RequestFailed, now_s: float) -> list[Action]:
    """End a request with an error; it is forgotten once its answer is made."""
    actions = [*error_reply(state, request, error), *on_ended(state, request, error.code, now_s)]
    _forget(state, request)
    return actions


def _forget(state: AgentState, request: Coordinated) -> None:
    """Drop a request, and the last signs of life of devices that have no other work of ours."""
    del state.coordinated[request.request]
    state.coordinated_bytes -= request.size_bytes
    busy = {device for other in state.coordinated.values() for device, _ in other.current_assignees.values()}
    for device in {device for _, device in request.ever_assigned} - busy:
        state.last_heard_s.pop(device, None)
