"""Who leads: what the orchestrator says of its term, and when it must leave.

Owns the meaning of the leader's topic and of the term that devices report. Knows nothing of placement.

Invariants:
- of two orchestrators with one epoch exactly one stays: the one with the higher session number;
- whoever finds that its term was led before, or is over, resigns: it becomes a spare, and the next time that it leads
  it takes a higher epoch, which everybody obeys.
"""

from __future__ import annotations

from dataclasses import replace

from broker.protocol.messages import Heartbeat, OrchestratorState
from broker.protocol.specs import DeviceId
from orchestrator.events import Action, PublishState, Resign
from orchestrator.state import State


def lead(state: State) -> list[Action]:
    """Say that we lead."""
    if state.link is None:
        return []
    return [PublishState(OrchestratorState(epoch=state.epoch, online=True, session=state.link.session))]


def heed(state: State, seen: OrchestratorState) -> tuple[State, list[Action]]:
    """What the leader's topic says: our own words, late ones, or those of another."""
    if seen.epoch > state.epoch:
        why = f"an orchestrator with epoch {seen.epoch} came after this one with epoch {state.epoch}"
        return state, [Resign(why, seen.epoch)]
    ours = seen.epoch == state.epoch and seen.session in state.sessions
    if ours and seen.session != state.sessions[-1]:
        state = replace(state, broker_kept_memory=True)
    if seen.epoch < state.epoch or not seen.online:
        return state, lead(state)  # a late will, or somebody who doesn't know us yet, overwrote the truth
    if ours or state.link is None:
        return state, []
    if seen.session > state.link.session:
        why = f"another orchestrator leads with the same epoch {seen.epoch}, and it came later"
        return state, [Resign(why, seen.epoch)]
    return state, lead(state)  # it resigns when it hears us


def obeys_another(state: State, device: DeviceId, beat: Heartbeat) -> list[Action]:
    """Resign if a device obeys a term that this orchestrator didn't reach: it would refuse all that we say."""
    if (beat.epoch, beat.generation) <= (state.epoch, state.generation):
        return []
    why = (
        f"device {device} obeys epoch {beat.epoch}, generation {beat.generation}, and this orchestrator is at epoch "
        f"{state.epoch}, generation {state.generation}: it leads again with an epoch above both, unless another does"
    )
    return [Resign(why, beat.epoch)]
