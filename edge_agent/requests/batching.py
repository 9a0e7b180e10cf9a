"""Which waiting nodes are computed together in one forward pass. Pure.

Owns the rules by which nodes join a group that is submitted to the compute thread. Knows no arrays: the runner splits a
group by the shapes of its prepared inputs.

Invariants:
- A node alone never waits for others. A group is open only while the compute thread computes an earlier one.
- The nodes of a group are of one module and one use whose pass takes a batch, and at most ``AgentState.batch``.
- They join in the order of the fair queue, and each pays its share of the pass.
- No node joins if then, by the measured seconds of a node, a member of the group would miss its deadline.
- A node in quarantine is in no group with others.
"""

from __future__ import annotations

from collections.abc import Iterator

from edge_agent.events import NodeRun
from edge_agent.requests import quarantine
from edge_agent.requests.load_estimate import submitted_s
from edge_agent.state import AgentState, PendingNode

MAX_SUBMITTED = 2  # groups: one is computed, and the next one is ready when that ends


def has_room(state: AgentState) -> bool:
    """Whether the compute thread takes another group."""
    return len({each.group for each in state.passes.values()}) < MAX_SUBMITTED


def joining(state: AgentState, now_s: float) -> Iterator[tuple[NodeRun, PendingNode]]:
    """Remove the nodes from the fair queue that join the last group. The caller submits each at once."""
    submitted = list(state.passes.values())
    if state.batch == 1 or not submitted or submitted[0].group == submitted[-1].group:
        return
    last = submitted[-1]
    members = [each for each in submitted if each.group == last.group]
    if last.use not in state.batched.get(last.key, ()) or len(members) >= state.batch:
        return

    def fits(run: NodeRun) -> bool:
        pending = state.pending[run]
        alike = pending.key == last.key and pending.use == last.use
        return alike and now_s < pending.deadline_s and not is_quarantined(state, run, pending)

    begins_s, own_s = now_s + submitted_s(state, now_s, without=last.group), state.measured_s.get(last.key, 0.0)
    count, earliest_s = len(members), min(each.deadline_s for each in members)
    for task, client, run, deadline_s in state.fair_queue.company(fits):
        if begins_s + (count + 1) * own_s > min(earliest_s, deadline_s):
            continue
        count, earliest_s = count + 1, min(earliest_s, deadline_s)
        state.fair_queue.discard(task, run, client=client)
        yield run, state.pending[run]
        if count == state.batch:
            return


def is_quarantined(state: AgentState, run: NodeRun, pending: PendingNode) -> bool:
    """Whether a node must be computed alone."""
    payload = pending.message.payload
    return payload is not None and (
        pending.message.quarantined or quarantine.is_quarantined(state, run.request, payload)
    )
