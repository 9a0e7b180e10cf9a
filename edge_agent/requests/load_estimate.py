"""How much work waits on each device, as far as this one can know. Pure.

Owns the estimate that routing and admission begin with. Of this device the queue is known: what its compute thread has
and what waits for its turn. Of another device two things are known: what it said when it last finished something of
that task for us, and what we asked of it since; the latter also tells what is still to come here. All of it is seen
from one task: turns are fair, so what other tasks have waiting delays it by no more than what it gets itself
(``turns``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from broker.protocol.specs import DeviceId, ModuleKey, NodeName, TaskName
from edge_agent.device.measurements import averaged
from edge_agent.events import NodeRun
from edge_agent.requests.fair_queue import fair_wait_s
from edge_agent.state import AgentState, Coordinated


def handed(state: AgentState, task: TaskName, run: NodeRun, key: ModuleKey, now_s: float) -> None:
    """A forward pass was handed to the compute thread, behind those before it."""
    if not state.passes:
        state.pass_began_s = now_s
    state.passes[run] = task, key
    state.turns.charge(task, state.measured_s.get(key, 0.0))


def ended(state: AgentState, run: NodeRun, compute_s: float, now_s: float, *, well: bool) -> None:
    """A forward pass ended; the next one begins. One that failed says nothing of how long the others take."""
    task, key = state.passes.pop(run, (None, ""))
    state.pass_began_s = now_s
    if task is not None:
        state.turns.charge(task, compute_s - state.measured_s.get(key, 0.0))
    if well and key in state.assigned:
        state.measured_s[key] = averaged(state.measured_s.get(key), compute_s)


def own_s(
    state: AgentState,
    now_s: float,
    *,
    task: TaskName,
    more_s: float = 0.0,
    coming_s: Mapping[TaskName, float] | None = None,
    deadline_s: float = math.inf,
) -> float:
    """Seconds until this device would begin ``more_s`` seconds of new work of a task.

    A pass that takes longer than its module's do on average counts as about to end. ``coming_s`` isn't here yet. Of the
    task's own work what has a later deadline than ``deadline_s`` comes after.
    """
    under_way = [state.measured_s.get(key, 0.0) for _, key in state.passes.values()]
    if under_way:
        under_way[0] = max(0.0, under_way[0] - (now_s - state.pass_began_s))
    waiting = dict(coming_s or {})
    for name, items in state.turns.waiting.items():
        before = [run for run, due_s in items.items() if name != task or due_s <= deadline_s]
        waiting[name] = waiting.get(name, 0.0) + _seconds(state, before)
    return sum(under_way) + fair_wait_s(waiting, task, more_s)


def queues_s(
    state: AgentState, now_s: float, *, task: TaskName, besides: Coordinated | None = None
) -> Mapping[DeviceId, float]:
    """Seconds until each device would begin new work of a task, where it is more than none.

    On another device that is what it last reported, less the time since, and what this one asked of it after that;
    but never less than all that it was asked and hasn't done: a device that became slow doesn't look free. The request
    ``besides`` doesn't count.
    """
    since: dict[DeviceId, float] = {}
    undone: dict[DeviceId, dict[TaskName, float]] = {}
    for request in state.coordinated.values():
        for name, (device, sent_s) in request.sent.items():
            if name in request.finished or request is besides or _is_here(state, request, name, device):
                continue
            seconds = _compute_s(state, request.task, (name,), device)
            tasks = undone.setdefault(device, {})
            tasks[request.task] = tasks.get(request.task, 0.0) + seconds
            if request.task == task and sent_s >= state.reported.get((device, task), (0.0, 0.0))[0]:
                since[device] = since.get(device, 0.0) + seconds
    coming_s = undone.pop(state.device, {})
    more_s = {device: _compute_s(state, task, _nodes(state, task), device) for device in (*undone, state.device)}
    waiting = {device: fair_wait_s(tasks, task, more_s[device]) for device, tasks in undone.items()}
    for (device, told_of), (at_s, queue_s) in state.reported.items():
        if told_of == task:
            expected_s = max(0.0, queue_s - (now_s - at_s)) + since.get(device, 0.0)
            waiting[device] = max(waiting.get(device, 0.0), expected_s)
    waiting[state.device] = own_s(state, now_s, task=task, more_s=more_s[state.device], coming_s=coming_s)
    return {device: seconds for device, seconds in waiting.items() if seconds > 0}


def _is_here(state: AgentState, request: Coordinated, node: NodeName, device: DeviceId) -> bool:
    """Whether it counts among what this device has to compute anyhow."""
    if device != state.device or request.plan is None:
        return False
    joining = state.joining.get(NodeRun(request.request, node, request.plan.work))
    return joining is not None and (joining.waiting or joining.running)


def _seconds(state: AgentState, runs: Iterable[NodeRun]) -> float:
    """What these waiting nodes take here."""
    joining = (state.joining[run] for run in runs)
    return sum(state.measured_s.get(each.message.plan.nodes[each.message.node].key, 0.0) for each in joining)


def _nodes(state: AgentState, task: TaskName) -> Iterable[str]:
    route = state.routes.get(task)
    return route.nodes if route else ()


def _compute_s(state: AgentState, task: TaskName, nodes: Iterable[str], device: DeviceId) -> float:
    """What a device takes for some nodes of a task: its word, in the route; of those that it can't run, nothing."""
    route = state.routes.get(task)
    able = (each for name in nodes if route and name in route.nodes for each in route.nodes[name].devices)
    return sum(each.compute_s for each in able if each.device == device)
