"""The leader's term: what the orchestrator publishes of it, and when it resigns.

Owns the meaning of the leader's topic and of the terms that devices report. Doesn't know placement.

Invariants:
- of two orchestrators with one epoch exactly one stays: the one with the higher session number;
- an orchestrator whose term is over, or was led by another before, resigns and becomes a standby orchestrator. It leads
  again only with a higher epoch, which every device obeys.
"""

from __future__ import annotations

from dataclasses import replace

from broker.protocol.messages import Heartbeat, OrchestratorState
from broker.protocol.specs import DeviceId
from orchestrator.events import Action, PublishState, Resign
from orchestrator.state import State


def announce_leadership(state: State) -> list[Action]:
    """The message that this orchestrator leads; none while its link is down."""
    if state.link is None:
        return []
    return [PublishState(OrchestratorState(epoch=state.epoch, online=True, session=state.link.session))]


def on_leader_state(state: State, seen: OrchestratorState) -> tuple[State, list[Action]]:
    """React to the leader's topic: to an own message, a late one, or another orchestrator's."""
    if seen.epoch > state.epoch:
        why = f"an orchestrator with epoch {seen.epoch} came after this one with epoch {state.epoch}"
        return state, [Resign(why, seen.epoch)]
    own = seen.epoch == state.epoch and seen.session in state.sessions
    if own and seen.session != state.sessions[-1]:
        state = replace(state, broker_kept_memory=True)
    if seen.epoch < state.epoch or not seen.online:
        return state, announce_leadership(state)  # a late will, or a leader that doesn't know us yet, overwrote ours
    if own or state.link is None:
        return state, []
    if seen.session > state.link.session:
        why = f"another orchestrator leads with the same epoch {seen.epoch}, and it came later"
        return state, [Resign(why, seen.epoch)]
    return state, announce_leadership(state)  # the other resigns when it receives this


def resign_if_outrun(state: State, device: DeviceId, heartbeat: Heartbeat) -> list[Action]:
    """Resign if a device obeys a term that this orchestrator didn't reach: the device would refuse its messages."""
    if (heartbeat.epoch, heartbeat.generation) <= (state.epoch, state.generation):
        return []
    why = (
        f"device {device} obeys epoch {heartbeat.epoch}, generation {heartbeat.generation}, and this orchestrator is "
        f"at epoch {state.epoch}, generation {state.generation}: it leads again with an epoch above both, unless "
        "another does"
    )
    return [Resign(why, heartbeat.epoch)]
