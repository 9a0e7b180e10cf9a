"""The estimate of the work that waits on each device, with which routing and admission begin. Pure.

The queue of this device is known: the passes of its compute thread and the nodes in the fair queue. Of another device
two things are known: its last report for this flow, and what this coordinator has assigned to it since. Nodes that are
assigned to this device but whose inputs are still on their way count here, too. Every estimate is made for one flow, a
task of one client: the queue is fair, so the work of other clients and tasks delays it by no more than the time that it
gets itself (``fair_queue``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from broker.protocol.specs import ClientName, DeviceId, NodeName, TaskName
from edge_agent.device.measurements import averaged
from edge_agent.events import NodeRun, Ran
from edge_agent.requests.fair_queue import Flow, fair_wait_s
from edge_agent.state import AgentState, Coordinated, Submitted


def on_pass_submitted(state: AgentState, run: NodeRun, submitted: Submitted, now_s: float) -> None:
    """Record a node behind those that the compute thread already has."""
    if not state.passes:
        state.pass_began_s = now_s
    state.passes[run] = submitted
    task, client = submitted.flow
    state.fair_queue.charge(task, submitted.charged_s, client=client)


def on_pass_ended(state: AgentState, ran: Ran, now_s: float) -> None:
    """Record that a node's forward pass ended and the next one begins; the node pays its share of the pass.

    A failed pass says nothing about the others' time, nor does a node that took a kept output.
    """
    submitted = state.passes.pop(ran.run, None)
    state.pass_began_s = now_s
    if submitted is None:
        return
    own_s, key = ran.compute_s / ran.batch, submitted.key
    task, client = submitted.flow
    state.fair_queue.charge(task, own_s - submitted.charged_s, client=client)
    if ran.output is not None and not ran.cached and key in state.assigned:
        state.measured_s[key] = averaged(state.measured_s.get(key), own_s, 1 / ran.batch)


def submitted_s(state: AgentState, now_s: float, *, without: int | None = None) -> float:
    """Seconds until the compute thread has computed all that it has, but for the group ``without``.

    A pass that takes longer than usual counts as about to end.
    """
    groups_s: dict[int, float] = {}
    for each in state.passes.values():
        if each.group != without:
            groups_s[each.group] = groups_s.get(each.group, 0.0) + state.measured_s.get(each.key, 0.0)
    if not groups_s:
        return 0.0
    first_s, *others_s = groups_s.values()
    return max(0.0, first_s - (now_s - state.pass_began_s)) + sum(others_s)


def own_wait_s(
    state: AgentState,
    now_s: float,
    *,
    task: TaskName,
    client: ClientName = "",
    new_work_s: float = 0.0,
    arriving_s: Mapping[Flow, float] | None = None,
    deadline_s: float = math.inf,
) -> float:
    """Seconds until this device would begin ``new_work_s`` seconds of new work of a task for a client.

    ``arriving_s`` is the work of each flow whose inputs are on their way. Waiting work of the same flow with a deadline
    later than ``deadline_s`` comes after the new work.
    """
    if not (state.passes or state.fair_queue.waiting or arriving_s):
        return 0.0
    flow = task, client
    waiting_s = dict(arriving_s or {})
    for name, clients in state.fair_queue.waiting.items():
        for other, items in clients.items():
            is_own = (name, other) == flow
            before = (state.pending[run].key for run, due_s in items.items() if not is_own or due_s <= deadline_s)
            seconds = sum(state.measured_s.get(key, 0.0) for key in before)
            waiting_s[name, other] = waiting_s.get((name, other), 0.0) + seconds
    return submitted_s(state, now_s) + fair_wait_s(waiting_s, flow, new_work_s)


def waits_s(
    state: AgentState, now_s: float, *, task: TaskName, client: ClientName = "", without: Coordinated | None = None
) -> Mapping[DeviceId, float]:
    """Seconds until each device would begin new work of a task for a client; idle devices are left out.

    For another device this is its last report, less the time since, plus the work assigned to it after the report. It
    is never less than all its unfinished work of this coordinator, so that a device that became slow doesn't look free.
    The request ``without`` doesn't count.
    """
    flow = task, client
    since_report_s: dict[DeviceId, float] = {}
    unfinished_s: dict[DeviceId, dict[Flow, float]] = {}
    for request in state.coordinated.values():
        for name, (device, sent_s) in request.current_assignees.items():
            if name in request.completed or request is without or _is_queued_here(state, request, name, device):
                continue
            seconds = _compute_s(state, request.task, (name,), device)
            flows = unfinished_s.setdefault(device, {})
            flows[request.flow] = flows.get(request.flow, 0.0) + seconds
            if request.flow == flow and sent_s >= state.reported_s.get((device, flow), (0.0, 0.0))[0]:
                since_report_s[device] = since_report_s.get(device, 0.0) + seconds
    arriving_s = unfinished_s.pop(state.device, {})
    nodes = state.routes[task].nodes if task in state.routes else ()
    new_work_s = {device: _compute_s(state, task, nodes, device) for device in (*unfinished_s, state.device)}
    waiting_s = {device: fair_wait_s(flows, flow, new_work_s[device]) for device, flows in unfinished_s.items()}
    for (device, reported), (at_s, queue_s) in state.reported_s.items():
        if reported == flow:
            expected_s = max(0.0, queue_s - (now_s - at_s)) + since_report_s.get(device, 0.0)
            waiting_s[device] = max(waiting_s.get(device, 0.0), expected_s)
    own_new_s = new_work_s[state.device]
    waiting_s[state.device] = own_wait_s(
        state, now_s, task=task, client=client, new_work_s=own_new_s, arriving_s=arriving_s
    )
    return {device: seconds for device, seconds in waiting_s.items() if seconds > 0}


def _is_queued_here(state: AgentState, request: Coordinated, node: NodeName, device: DeviceId) -> bool:
    """Whether a node of a coordinated request already counts among this device's own queue."""
    if device != state.device or request.plan is None:
        return False
    pending = state.pending.get(NodeRun(request.request, node, request.plan.work))
    return pending is not None and (pending.waiting or pending.running)


def _compute_s(state: AgentState, task: TaskName, nodes: Iterable[NodeName], device: DeviceId) -> float:
    """Seconds that a device takes for some nodes of a task, by the route; 0 for nodes that it can't run."""
    known = state.routes[task].compute_s if task in state.routes else {}
    return sum(known.get((name, device), 0.0) for name in nodes)
