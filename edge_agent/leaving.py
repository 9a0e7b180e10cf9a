"""The rules of an agent that computes nothing more, as a pass hangs or broke its accelerator: it leaves. Sans-I/O.

Owns the order: the share groups first, so that no further request comes; then the nodes that wait here go back to their
coordinators, which choose other devices. What this device coordinates goes on until the process restarts.
"""

from __future__ import annotations

from broker.protocol.reports import EventType
from edge_agent.events import Action, LeaveGroup, PassIsLost, PublishEvent, Restarting
from edge_agent.requests import coordinate, execute
from edge_agent.state import AgentState


def on_pass_lost(state: AgentState, event: PassIsLost, now_s: float) -> list[Action]:
    """Leave the share groups, and hold no module any more."""
    state.leaving = True
    keys = {state.passes[run].key for run in event.runs if run in state.passes}
    module = next((state.assigned[key].module for key in keys if key in state.assigned), None)
    why = f"its accelerator fails ({event.broken})" if event.broken else "a pass hangs"
    told = PublishEvent(EventType.MODULE_FAILED, module=module, why=f"{why}, so {state.device} restarts")
    groups = [*state.share_groups.values(), *state.leave_at_s]
    state.share_groups, state.leave_at_s = {}, {}
    state.assigned, state.ready, state.failed, state.loading = {}, set(), set(), {}
    return [told, *(LeaveGroup(group) for group in groups), *execute.on_pass_lost(state, event, now_s)]


def on_restarting(state: AgentState, _: Restarting, now_s: float) -> list[Action]:
    """End the requests that this device still coordinates with an error: their sensors may ask again."""
    return coordinate.give_up(state, now_s)
