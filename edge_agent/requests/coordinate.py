"""The rules of a front door: a request's life from arrival to answer. Pure; changes the state in place.

Owns every request that this device coordinates: its inputs, its plan, which nodes have finished, when to try again.
Each request ends in exactly one answer or error from here or from its output's device, never in silence. Knows
nothing of running modules (``execute``).

Overload is answered at once: a request that is not expected to be answered before its deadline is refused with the
seconds after which it is worth another try, and no task may crowd out others (``_admit``). What was taken is finished.

A retry sends the inputs again, with a new attempt and a new plan. Agents that have already computed a node answer from
what they keep, so only the missing nodes are computed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from broker.protocol.codec import RawInput, decode_request, request_id
from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.messages import (
    MAX_DEADLINE_S,
    SUSPECTED_FOR_S,
    ErrorBody,
    NodeDone,
    NodeFailed,
    NodeInputs,
    Plan,
    Result,
    Route,
)
from broker.protocol.specs import DeviceId, NodeName, RequestId
from broker.protocol.topics import may_reply_to
from broker.transport.port import RECONNECT_S
from edge_agent.actions import Action, Log, Reply, Send, SendHeartbeat
from edge_agent.events import Requested
from edge_agent.requests.load_estimate import queues_s
from edge_agent.requests.routing import choose_plan
from edge_agent.state import (
    DEFAULT_DEADLINE_S,
    MAX_COORDINATED,
    MAX_COORDINATED_BYTES,
    AgentState,
    Coordinated,
    size_of,
)

FIRST_PATIENCE_S = 1.0  # a heartbeat, before missing nodes are sent again; doubles with each attempt: loads may be slow
PATIENCE_FACTOR = 4.0  # times the expected seconds, when that is longer: work that comes later takes its turns
REFUSED_PATIENCE_S = 0.1  # after a device said that it can't: a new route is on its way
ADMITTED_SHARE = 0.8  # of the deadline: what is expected to take longer because of others isn't begun; estimates err
NEWEST_SHARE = 0.1  # of the newest request in the average by which requests take longer than expected
MAX_STRETCH = 8.0  # of it; one request that died with a device says nothing about the others
SHORTEST_RETRY_S = 0.1  # what an overloaded device tells sensors at least


def on_request(
    state: AgentState, event: Requested, now_s: float, *, deadline_s: float | None = None
) -> Iterable[Action]:
    """A sensor asks: take the request, or say at once why not.

    Args:
        state: what is known; changed.
        event: the request.
        now_s: the time.
        deadline_s: of a request that isn't new; by default it has all its time left.
    """
    if not may_reply_to(state.prefix, event.reply_to):
        state.dropped["reply_topic"] += 1
        yield Log("request_without_reply", {"task": event.task, "reply_to": event.reply_to[:200]})
        return
    request = request_id(event.task, event.reply_to, event.correlation, event.payload)
    if request in state.coordinated:
        state.dropped["duplicate_request"] += 1
        return
    life_s = life_of(event) if deadline_s is None else deadline_s - now_s
    try:
        route, inputs = _accept(state, event)
        waiting_s = queues_s(state, now_s, task=event.task)
        choice = _choose(state, route, inputs, waiting_s)
        if deadline_s is None:  # or somebody took it in already, and may have all but done it
            _admit(waiting_s, choice, life_s, state.stretch.get(event.task, 1.0))
    except RequestFailed as error:
        told = _error(state, request, event.task, error)
        yield Reply(event.reply_to, event.correlation, told, now_s + life_s)
        yield from _tell_second_door(state, request, event.task, now_s + life_s)
        return
    taken = Coordinated(request, event.task, inputs, event.reply_to, event.correlation, now_s + life_s)
    state.coordinated[request] = taken
    state.coordinated_bytes += taken.size_bytes
    if choice and deadline_s is None:
        taken.began_s, taken.expected_s = now_s, choice[1]
    yield from _dispatch(state, taken, now_s, choice)


def on_route(state: AgentState, route: Route, now_s: float) -> Iterable[Action]:
    """The way of a task changed: requests whose plan no longer holds are sent again."""
    for request in [c for c in state.coordinated.values() if c.task == route.task]:
        if route.unavailable:
            yield from _end(state, request, RequestFailed(ErrorCode.NO_ROUTE, route.unavailable))
        elif request.plan is None or _broken(request, request.plan, route):
            yield from _dispatch(state, request, now_s, _choose_again(state, request, now_s))


def on_cleared(state: AgentState, task: str) -> Iterable[Action]:
    """A task was undeployed: its requests end."""
    for request in [c for c in state.coordinated.values() if c.task == task]:
        yield from _end(state, request, _no_task(task))


def on_link(state: AgentState, now_s: float, *, up: bool) -> Iterable[Action]:
    """Our data link went: nothing is sent again before it is back. Then all is, with the first patience.

    The broker may have been away for all: others need the time to connect, too.
    """
    if not up:
        state.blame_from_s = math.inf
    elif state.blame_from_s == math.inf:
        state.blame_from_s = now_s + RECONNECT_S
        for request in state.coordinated.values():
            request.retry_s = min(request.retry_s, now_s + REFUSED_PATIENCE_S)
            request.in_vain = request.attempt + 1
    return ()


def on_life(state: AgentState, sender: DeviceId, now_s: float) -> Iterable[Action]:
    """A device that was asked something sent anything: it lives."""
    if sender in state.heard:
        state.heard[sender] = now_s
    if state.suspects.pop(sender, None) is not None:
        yield SendHeartbeat()


def on_done(state: AgentState, sender: DeviceId, message: NodeDone, now_s: float) -> None:
    """A node finished; with the output node, the request is over. Only who was asked can say so."""
    request = state.coordinated.get(message.request)
    if request is None:
        return
    if (message.node, sender) not in request.asked:
        state.dropped["not_asked"] += 1
        return
    if request.first_fence is not None and (message.epoch, message.generation) < request.first_fence:
        state.dropped["stale_done"] += 1
        return
    planned, _ = request.sent.get(message.node, (sender, now_s))
    if sender == planned or message.node not in request.finished:
        request.finished[message.node] = sender, now_s
    if sender != state.device:
        _report(state, sender, request.task, message.queue_s, now_s)
    if message.node == request.output:
        _learn(state, request, now_s)
        _forget(state, request)


def on_failed(state: AgentState, message: NodeFailed, now_s: float) -> Iterable[Action]:
    """A node can't run there: try elsewhere, or tell the sensor."""
    request = state.coordinated.get(message.request)
    if request is None:
        return
    if message.attempt < request.attempt:
        state.dropped["stale_failure"] += 1
        return
    body = message.error
    if (message.node, message.device) not in request.asked:
        state.dropped["not_asked"] += 1
    elif message.retry and (body.code != ErrorCode.OVERLOADED or _elsewhere(state, request, message)):
        _soon_again(request, message, now_s)
    else:
        yield from _end(state, request, RequestFailed(body.code, body.message, retry_after_s=body.retry_after_s))


def on_tick(state: AgentState, now_s: float) -> Iterable[Action]:
    """Requests whose time is over end; those that wait too long are sent again; old suspicions are forgotten."""
    state.suspects = {d: at_s for d, at_s in state.suspects.items() if now_s < at_s + SUSPECTED_FOR_S}
    for request in list(state.coordinated.values()):
        if now_s >= request.deadline_s:
            _learn(state, request, now_s)
            text = f"no answer in time after {request.attempt + 1} attempts; allow more time or add devices"
            yield from _end(state, request, RequestFailed(ErrorCode.DEADLINE_EXCEEDED, text))
        elif now_s >= request.retry_s and state.blame_from_s == math.inf:
            request.retry_s = math.inf  # until our link is back
        elif now_s >= request.retry_s:
            yield from _suspect(state, request, now_s)
            yield from _dispatch(state, request, now_s, _choose_again(state, request, now_s, late=True))


def life_of(event: Requested) -> float:
    """The seconds that a request has when it arrives."""
    return min(MAX_DEADLINE_S, float(event.expiry_s or DEFAULT_DEADLINE_S))


def patience_s(expected_s: float) -> float:
    """How long to wait for what is expected to take so long."""
    return max(FIRST_PATIENCE_S, PATIENCE_FACTOR * expected_s)


def _accept(state: AgentState, event: Requested) -> tuple[Route, dict[NodeName, RawInput]]:
    """The task's route, and the inputs, if there is room for them.

    A task may hold as many requests and bytes as are left free (dynamic thresholds; Choudhury, Hahne 1998): one alone
    has half of all, and however many requests it sends, there is room for those of others.
    """
    route = state.routes.get(event.task)
    if route is None:
        raise _no_task(event.task)
    if route.unavailable:
        raise RequestFailed(ErrorCode.NO_ROUTE, route.unavailable)
    own = [request for request in state.coordinated.values() if request.task == event.task]
    if len(own) >= MAX_COORDINATED - len(state.coordinated):
        text = f"{len(own)} requests of {event.task} are in flight here already; send more slowly"
        raise RequestFailed(ErrorCode.OVERLOADED, text, retry_after_s=1.0)
    own_bytes = sum(request.size_bytes for request in own)
    if own_bytes + len(event.payload) > MAX_COORDINATED_BYTES - state.coordinated_bytes:
        text = f"the requests of {event.task} in flight here have {own_bytes} bytes already; send more slowly"
        raise RequestFailed(ErrorCode.OVERLOADED, text, retry_after_s=1.0)
    return route, decode_request(event.payload, event.content_type, route.inputs)


def _admit(
    waiting_s: Mapping[DeviceId, float], choice: tuple[Plan, float] | None, life_s: float, stretch: float
) -> None:
    """Refuse what others' work would make late. What is slow by itself, or waits for a module, may try."""
    if choice is None or not any(planned.device in waiting_s for planned in choice[0].nodes.values()):
        return
    expected_s = choice[1] * stretch
    late_s = expected_s - ADMITTED_SHARE * life_s
    if late_s > 0:
        text = f"an answer is expected after {expected_s:.1f} s and the deadline is {life_s:.1f} s; come back later"
        raise RequestFailed(ErrorCode.OVERLOADED, text, retry_after_s=max(SHORTEST_RETRY_S, round(late_s, 3)))


def _learn(state: AgentState, request: Coordinated, now_s: float) -> None:
    """How much longer requests take than expected: later work of other tasks, or devices that became slow.

    What waited for our link, or came with all that had, tells nothing of that.
    """
    if request.expected_s > 0 and request.began_s >= state.blame_from_s:
        before = state.stretch.get(request.task, 1.0)
        factor = min(MAX_STRETCH, max(1.0, (now_s - request.began_s) / request.expected_s))
        state.stretch[request.task] = before + NEWEST_SHARE * (factor - before)


def _choose(
    state: AgentState,
    route: Route,
    inputs: Mapping[NodeName, RawInput],
    waiting_s: Mapping[DeviceId, float],
    *,
    finished: Mapping[NodeName, DeviceId] | None = None,
    avoid: frozenset[DeviceId] = frozenset(),
) -> tuple[Plan, float] | None:
    sizes = {name: len(raw.data) for name, raw in inputs.items()}
    return choose_plan(route, here=state.device, input_bytes=sizes, queue_s=waiting_s, finished=finished, avoid=avoid)


def _choose_again(
    state: AgentState, request: Coordinated, now_s: float, *, late: bool = False
) -> tuple[Plan, float] | None:
    """A plan for what is still missing. What has finished stays where it is kept, while that device is able.

    What this request itself asked before counts as waiting only when it is late: it speaks against who didn't do it.
    """
    finished = {name: device for name, (device, _) in request.finished.items()}
    waiting_s = queues_s(state, now_s, task=request.task, besides=None if late else request)
    route = state.routes[request.task]
    return _choose(state, route, request.inputs, waiting_s, finished=finished, avoid=request.avoid)


def _dispatch(
    state: AgentState, request: Coordinated, now_s: float, choice: tuple[Plan, float] | None
) -> Iterable[Action]:
    """Send every input to the nodes that take it, small ones first; without a plan, wait for a complete route."""
    route = state.routes[request.task]
    if choice is None:
        request.plan, request.sent = None, {}  # nobody owes anything: what they need may never reach them
        request.retry_s = now_s + FIRST_PATIENCE_S
        return
    request.plan, expected_s = choice
    request.output = request.plan.output
    request.asked.update((name, planned.device) for name, planned in request.plan.nodes.items())
    request.sent = {name: (planned.device, now_s) for name, planned in request.plan.nodes.items()}
    planned_on = {name: planned.device for name, planned in request.plan.nodes.items()}
    request.finished = {name: kept for name, kept in request.finished.items() if kept[0] == planned_on.get(name)}
    request.attempt += 1
    request.fence = (route.epoch, route.generation)
    request.first_fence = request.first_fence or request.fence
    request.second_door = tuple(device for device in route.second_door if device != state.device)
    for device in {planned.device for planned in request.plan.nodes.values()} - {state.device}:
        state.heard.setdefault(device, -math.inf)
    request.retry_s = now_s + patience_s(expected_s) * 2 ** min(request.attempt - request.in_vain, 6)
    if request.attempt:
        yield Log("request_sent_again", {"request": request.request, "attempt": request.attempt})
    sends = (_inputs_for(state.device, request, request.plan, node=name, now_s=now_s) for name in request.plan.nodes)
    yield from sorted((send for send in sends if send), key=lambda send: sum(map(size_of, send.values.values())))


def _inputs_for(device: DeviceId, request: Coordinated, plan: Plan, *, node: NodeName, now_s: float) -> Send | None:
    taken = [need for need in plan.nodes[node].needs if need in request.inputs]
    if not taken:
        return None
    message = NodeInputs(
        request=request.request,
        task=request.task,
        node=node,
        epoch=request.fence[0],
        generation=request.fence[1],
        attempt=request.attempt,
        coordinator=device,
        deadline_s=min(MAX_DEADLINE_S, max(0.0, request.deadline_s - now_s)),
        reply_to=request.reply_to,
        correlation=request.correlation.hex(),
        plan=plan,
        content_types={name: request.inputs[name].content_type for name in taken},
        second_door=request.second_door,
    )
    values = {name: request.inputs[name] for name in taken}
    return Send(plan.nodes[node].device, message, values, request.deadline_s)


def _broken(request: Coordinated, plan: Plan, route: Route) -> bool:
    """Whether a node that is still missing was planned on a device that the route no longer names."""
    return any(
        planned.device not in {device.device for device in route.nodes[name].devices} if name in route.nodes else True
        for name, planned in plan.nodes.items()
        if not _given(request, name)
    )


def _given(request: Coordinated, node: NodeName) -> bool:
    """Whether who is asked for a node by the plan has finished it since, and thereby sent it where the plan says."""
    if node not in request.sent or node not in request.finished:
        return False
    (asked, sent_s), (device, told_s) = request.sent[node], request.finished[node]
    return device == asked and told_s >= sent_s


def _elsewhere(state: AgentState, request: Coordinated, failed: NodeFailed) -> bool:
    """Whether a device that hasn't refused yet could run this node."""
    route = state.routes.get(request.task)
    able = {each.device for each in route.nodes[failed.node].devices} if route and failed.node in route.nodes else set()
    return bool(able - request.avoid - {failed.device})


def _report(state: AgentState, sender: DeviceId, task: str, queue_s: float, now_s: float) -> None:
    """Remember how much waits on a device, as long as it can still wait."""
    state.reported[sender, task] = now_s, queue_s
    for key in [key for key, (at_s, seconds) in state.reported.items() if now_s - at_s >= seconds]:
        del state.reported[key]


def _soon_again(request: Coordinated, failed: NodeFailed, now_s: float) -> None:
    """Elsewhere, if possible, even when it was that device that had finished the node: it can't give it any more."""
    request.avoid |= {failed.device}
    if failed.node in request.finished and request.finished[failed.node][0] == failed.device:
        del request.finished[failed.node]
    pause_s = REFUSED_PATIENCE_S * 2 ** min(max(request.attempt, 0), 5)
    request.retry_s = min(request.retry_s, now_s + pause_s)


def _no_task(task: str) -> RequestFailed:
    return RequestFailed(ErrorCode.NO_ROUTE, f"the task {task} is not deployed; deploy it with `s2m3 deploy FILE`")


def _suspect(state: AgentState, request: Coordinated, now_s: float) -> Iterable[Action]:
    """Which devices to blame for a request that is late: those that had all they needed, and have kept silent since."""
    for name, (device, sent_s) in request.sent.items():
        needs = request.plan.nodes[name].needs if request.plan else ()
        nodes = [need for need in needs if need not in request.inputs]
        if device == state.device or _given(request, name) or not all(_given(request, need) for need in nodes):
            continue
        owed_s = max([sent_s, *(request.finished[need][1] for need in nodes)])
        if owed_s < state.blame_from_s:
            continue
        if now_s - owed_s >= FIRST_PATIENCE_S and state.heard.get(device, -math.inf) < owed_s:
            state.suspects[device] = now_s
            yield Log("device_suspected", {"suspect": device, "request": request.request, "node": name})
            yield SendHeartbeat()


def _end(state: AgentState, request: Coordinated, error: RequestFailed) -> Iterable[Action]:
    _forget(state, request)
    told = _error(state, request.request, request.task, error)
    yield Reply(request.reply_to, request.correlation, told, request.deadline_s)
    yield from _tell_second_door(state, request.request, request.task, request.deadline_s)


def _tell_second_door(state: AgentState, request: RequestId, task: str, deadline_s: float) -> Iterable[Send]:
    """A request ended in an error from here: nobody need take it over."""
    route = state.routes.get(task)
    if route is None or route.output is None:
        return
    done = NodeDone(
        request=request, task=task, node=route.output, epoch=route.epoch, generation=route.generation, attempt=0
    )
    for device in route.second_door:
        if device != state.device:
            yield Send(device, done, {}, deadline_s)


def _forget(state: AgentState, request: Coordinated) -> None:
    """It is over; so is listening to devices that nothing else was sent to."""
    del state.coordinated[request.request]
    state.coordinated_bytes -= request.size_bytes
    for device in {device for _, device in request.asked}:
        if not any(device == busy for other in state.coordinated.values() for busy, _ in other.sent.values()):
            state.heard.pop(device, None)


def _error(state: AgentState, request: RequestId, task: str, error: RequestFailed) -> Result:
    return Result(
        request=request,
        task=task,
        epoch=state.fence[0],
        generation=state.fence[1],
        coordinator=state.device,
        error=ErrorBody(code=error.code, message=error.message, retry_after_s=error.retry_after_s),
    )
