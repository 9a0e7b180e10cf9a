"""The way of complete nodes from the fair queue to the compute thread. Pure.

Owns when a node is submitted, and with which others (``batching``). Knows neither messages nor outputs.

Invariants:
- The compute thread has at most one more group of nodes than it computes. The other nodes wait in the fair queue.
- A node that can't be computed before its deadline is not begun.
- A node in quarantine is submitted when nothing else is computed, and with a permit.
"""

from __future__ import annotations

from broker.protocol.specs import RequestId
from edge_agent.events import Action, NodeRun, Run, SendHeartbeat
from edge_agent.requests import batching, quarantine
from edge_agent.requests.load_estimate import on_pass_submitted
from edge_agent.state import AgentState, PendingNode, Submitted


def next_passes(state: AgentState, now_s: float) -> list[Action]:
    """Submit the next nodes to the compute thread; drop those whose deadline has passed before they cost anything.

    A node in quarantine waits until the thread is idle, and then for its permit.
    """
    actions: list[Action] = []
    while state.alone is None:
        for run, pending in batching.joining(state, now_s):
            actions.append(_submit(state, run, pending, now_s, joins=True))
        if not batching.has_room(state) or not (taken := state.fair_queue.take()):
            break
        run = taken[1]
        pending = state.pending[run]
        pending.waiting = False
        payload = pending.message.payload
        if now_s >= pending.deadline_s:
            state.dropped["expired"] += 1
            drop_pending(state, run)
        elif payload is None or not batching.is_quarantined(state, run, pending):
            actions.append(_submit(state, run, pending, now_s))
        elif state.passes:
            pending.waiting = True
            state.fair_queue.add(pending.flow[0], run, pending.deadline_s, client=pending.flow[1])
            break
        else:
            pending.running = True
            quarantine.begin_alone(state, run, payload, now_s)
            actions.append(SendHeartbeat())
    return actions


def alone(state: AgentState, now_s: float, permitted: RequestId | None = None) -> list[Action]:
    """Submit the pass in quarantine, if its permit came, or if none comes."""
    run = quarantine.may_run(state, now_s, permitted)
    if run is None:
        return []
    pending = state.pending.get(run)
    if pending is not None:
        return [_submit(state, run, pending, now_s)]
    quarantine.end_alone(state, run)
    return [SendHeartbeat(), *next_passes(state, now_s)]


def _submit(state: AgentState, run: NodeRun, pending: PendingNode, now_s: float, *, joins: bool = False) -> Run:
    """Submit a node: in a group of its own, or in the last one."""
    pending.waiting, pending.running = False, True
    state.groups += not joins
    plan = pending.message.plan
    planned = plan.nodes[run.node]
    charged_s = state.measured_s.get(planned.key, 0.0)
    submitted = Submitted(pending.flow, planned.key, planned.use, state.groups, pending.deadline_s, charged_s)
    on_pass_submitted(state, run, submitted, now_s)
    values = tuple(pending.values[need] for need in planned.needs)
    wire = plan.wire if plan.consumers(run.node) else "float32"
    answers = run.node == plan.output
    payload = pending.message.payload
    form = plan.answer if answers else None
    return Run(run, planned.key, values, pending.deadline_s, planned.use, wire, answers, form, payload, state.groups)


def drop_pending(state: AgentState, run: NodeRun) -> None:
    """Forget a node, whether it waits or is computed."""
    if pending := state.pending.pop(run, None):
        size_bytes = pending.size_bytes + pending.message_bytes
        state.pending_bytes -= size_bytes
        state.pending_of[pending.sender] -= 1
        state.pending_bytes_of[pending.sender] -= size_bytes
        if not state.pending_of[pending.sender]:
            del state.pending_of[pending.sender], state.pending_bytes_of[pending.sender]
        state.fair_queue.discard(pending.flow[0], run, client=pending.flow[1])
