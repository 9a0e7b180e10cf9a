"""The rules of an agent for requests that may kill devices: they run alone, or not at all. Sans-I/O, deterministic.

Owns the leader's list, as this device knows it: requests and payloads in quarantine, and refused payloads. A request is
in quarantine if a device died while it was under way. Before its node is computed, this device says so in its
heartbeat, and waits for the leader's permit: so the leader knows what this device died of, whether it ever comes back
or not. Nothing else is computed meanwhile.

Invariants:
- a payload that the leader refuses is neither coordinated nor computed here;
- a request in quarantine is computed with no other one beside it;
- without a leader it waits for ``PERMIT_S`` only: requests are answered while no orchestrator is there.
"""

from __future__ import annotations

from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.messages import Quarantine
from broker.protocol.specs import RequestId
from edge_agent import term
from edge_agent.events import NodeRun
from edge_agent.state import AgentState, AloneRun

PERMIT_S = 2.0  # the longest wait for a permit: a heartbeat that was lost is sent again meanwhile
LONGEST_REFUSAL_S = 3600.0  # whatever a message says


def obey(state: AgentState, message: Quarantine, now_s: float) -> bool:
    """Follow the leader's list; whether it was followed. An older leader's isn't."""
    if not term.obey(state, message.epoch):
        state.dropped["stale_quarantine"] += 1
        return False
    state.quarantine = frozenset((*message.requests, *message.payloads))
    state.refused = {
        payload: now_s + min(LONGEST_REFUSAL_S, left_s) for payload, left_s in message.refused.items() if left_s > 0
    }
    return True


def is_quarantined(state: AgentState, request: RequestId, payload: str | None) -> bool:
    """Whether a request must run alone."""
    return request in state.quarantine or payload in state.quarantine


def refusal(state: AgentState, payload: str | None, now_s: float) -> RequestFailed | None:
    """The refusal of a request with this payload; None while it isn't refused."""
    until_s = state.refused.get(payload or "", now_s)
    if now_s >= until_s:
        return None
    text = (
        f"this payload is refused for {until_s - now_s:.0f} s: two devices died while they computed it; "
        "send another one, and report this one to the site's operator"
    )
    return RequestFailed(ErrorCode.MODULE_FAILED, text)


def begin_alone(state: AgentState, run: NodeRun, payload: str, now_s: float) -> None:
    """Keep the compute thread for this run from now on; its heartbeat asks the leader for a permit."""
    state.alone = AloneRun(run, payload, now_s + PERMIT_S)


def wait_on(state: AgentState, request: RequestId, now_s: float) -> None:
    """Wait longer for the permit: another device computes the same payload."""
    if state.alone is not None and not state.alone.begun and state.alone.run.request == request:
        state.alone = AloneRun(state.alone.run, state.alone.payload, now_s + PERMIT_S)


def may_run(state: AgentState, now_s: float, permitted: RequestId | None = None) -> NodeRun | None:
    """The run that waited for its permit, if it may be computed now."""
    alone = state.alone
    if alone is None or alone.begun or not (permitted == alone.run.request or now_s >= alone.due_s):
        return None
    state.alone = AloneRun(alone.run, alone.payload, alone.due_s, begun=True)
    return alone.run


def end_alone(state: AgentState, run: NodeRun) -> bool:
    """Give the compute thread back; whether this run had it for itself."""
    if state.alone is None or state.alone.run != run:
        return False
    state.alone = None
    return True
