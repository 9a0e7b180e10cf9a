"""How much work waits on each device, as far as this one can know. Pure.

Owns the estimate that routing begins with. Of this device the queue is known: what was handed to its one compute
thread. Of another device two things are known: what it said when it last finished something for us, and what we asked
of it since.
"""

from __future__ import annotations

from collections.abc import Mapping

from broker.specs import DeviceId, ModuleKey
from edge_agent.state import AgentState, Coordinated, NodeRun


def started(state: AgentState, run: NodeRun, key: ModuleKey, now_s: float) -> None:
    """A forward pass was handed to the compute thread, behind those before it."""
    if not state.passes:
        state.pass_began_s = now_s
    state.passes[run] = key


def ended(state: AgentState, run: NodeRun, compute_s: float, now_s: float) -> None:
    """A forward pass ended; the next one begins."""
    key = state.passes.pop(run, None)
    state.pass_began_s = now_s
    if key in state.assigned:
        state.measured_s[key] = compute_s


def own_s(state: AgentState, now_s: float) -> float:
    """Seconds of work that this device was given and hasn't done.

    A pass that takes longer than the last one of its module counts as about to end.
    """
    waiting = [state.measured_s.get(key, 0.0) for key in state.passes.values()]
    if not waiting:
        return 0.0
    return max(0.0, waiting[0] - (now_s - state.pass_began_s)) + sum(waiting[1:])


def queues_s(state: AgentState, now_s: float, *, besides: Coordinated | None = None) -> Mapping[DeviceId, float]:
    """Seconds of work that wait on each device where any is known to.

    On another device that is what it last reported, less the time since, and what this one asked of it after that;
    but never less than all that it was asked and hasn't done: a device that became slow doesn't look free. The request
    ``besides`` doesn't count.
    """
    since: dict[DeviceId, float] = {}
    undone: dict[DeviceId, float] = {}
    for request in state.coordinated.values():
        for name, (device, sent_s) in request.sent.items():
            if name in request.finished or request is besides:
                continue
            seconds = _compute_s(state, request.task, name, device)
            undone[device] = undone.get(device, 0.0) + seconds
            if sent_s >= state.reported.get(device, (0.0, 0.0))[0]:
                since[device] = since.get(device, 0.0) + seconds
    waiting = dict(undone)
    for device, (at_s, queue_s) in state.reported.items():
        expected_s = max(0.0, queue_s - (now_s - at_s)) + since.get(device, 0.0)
        waiting[device] = max(undone.get(device, 0.0), expected_s)
    waiting[state.device] = own_s(state, now_s)
    return {device: seconds for device, seconds in waiting.items() if seconds > 0}


def _compute_s(state: AgentState, task: str, node: str, device: DeviceId) -> float:
    route = state.routes.get(task)
    able = route.nodes[node].devices if route and node in route.nodes else ()
    return next((each.compute_s for each in able if each.device == device), 0.0)
