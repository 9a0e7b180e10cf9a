"""The term that an agent obeys: the leader's epoch.

Owns the rules by which an agent changes it. It obeys the highest epoch at once, and of one term the highest
generation, with three exceptions, so that no absurd number captures a device:

- an epoch that jumps by more than ``MAX_EPOCH_JUMP`` over the known one isn't obeyed;
- an assignment that the leader of its term doesn't know is given up (``is_given_up``);
- an epoch that no leader stands up for is given up. If a leader announces another term, and nobody opposes it for
  ``CONFIRM_S``, the device obeys that term, lower or higher. A living leader opposes at once.

Doesn't know modules; ``now_s`` comes in.
"""

from __future__ import annotations

from broker.protocol.messages import MAX_EPOCH_JUMP, OrchestratorState
from broker.transport.port import RECONNECT_S
from edge_agent.events import Action, LeaderAnnounced, Log, ReadRetained, SendHeartbeat
from edge_agent.state import AgentState, Contested, Fence

CONFIRM_S = RECONNECT_S + 2.0  # for a leader to be heard again: its topic may be the broker's memory of a dead one


def on_leader(state: AgentState, event: OrchestratorState, now_s: float) -> list[Action]:
    """Report at once to a new leader which modules are held. A leader that is online publishes all its routes."""
    notes = _compare_intervals(state, event)
    if event.online and state.unconfirmed_tasks and state.confirm_by_s is None:
        state.confirm_by_s = now_s + CONFIRM_S
    if event.epoch <= state.epoch or not is_plausible(state, event.epoch):
        return notes
    state.epoch = event.epoch
    return [*notes, SendHeartbeat()]


def _compare_intervals(state: AgentState, leader: OrchestratorState) -> list[Action]:
    """Say once that the leader expects heartbeats at another interval; the one of the device's own file counts."""
    if not leader.online or leader.epoch < state.epoch:
        return []
    own_s, expected_s = state.heartbeat_interval_s, leader.heartbeat_interval_s
    before, state.expected_interval_s = state.expected_interval_s, None if expected_s == own_s else expected_s
    if state.expected_interval_s in {None, before}:
        return []
    return [Log("heartbeat_interval_differs", {"own_s": own_s, "expected_s": expected_s, "counts": "own_s"})]


def on_leader_announced(state: AgentState, event: LeaderAnnounced, now_s: float) -> list[Action]:
    """As ``on_leader``; and note a leader of another term, which is obeyed if nobody opposes it."""
    actions, said, contested = on_leader(state, event.message, now_s), event.message, state.contested
    if said.epoch == state.epoch:
        state.contested = None
    elif not said.online:
        state.contested = None if contested and contested.epoch == said.epoch else contested
    elif contested is None or contested.epoch != said.epoch:
        state.contested = Contested(said.epoch, now_s + CONFIRM_S)
    return actions


def obey(state: AgentState, epoch: int) -> bool:
    """Whether to obey an assignment or a route of this epoch, by the epochs alone; a higher one begins its term."""
    if not is_plausible(state, epoch):
        return False
    state.epoch = max(state.epoch, epoch)
    return epoch == state.epoch


def is_given_up(state: AgentState, fence: Fence, now_s: float) -> bool:
    """Whether to obey an assignment of an older generation than the one that is obeyed, in the same term.

    A leader repeats its latest assignment while the device reports another one. If an older one is repeated for
    ``CONFIRM_S``, and the newer one isn't heard again, the newer one is a stranger's.
    """
    if fence >= state.fence or fence[0] != state.fence[0] or fence[0] != state.epoch:
        state.repeated = None
        return False
    if state.repeated is None or state.repeated[0] != fence:
        state.repeated = fence, now_s
        return False
    return now_s >= state.repeated[1] + CONFIRM_S


def on_tick(state: AgentState, now_s: float) -> list[Action]:
    """Obey the contested term if nobody opposed it, and read again what the broker retains of it."""
    if state.contested is None or now_s < state.contested.due_s:
        return []
    before, state.epoch, state.contested = state.epoch, state.contested.epoch, None
    if state.fence[0] > state.epoch:
        state.fence = (0, 0)
    later = {task: route for task, route in state.routes.items() if route.epoch > state.epoch}
    state.routes |= {task: route.model_copy(update={"epoch": 0, "generation": 0}) for task, route in later.items()}
    for request in state.coordinated.values():
        if request.first_fence is not None and request.first_fence[0] > state.epoch:
            request.first_fence = (0, 0)
    state.unconfirmed_tasks, state.confirm_by_s = set(state.routes), now_s + CONFIRM_S
    return [Log("term_changed", {"epoch": state.epoch, "before": before}), ReadRetained(), SendHeartbeat()]


def is_plausible(state: AgentState, epoch: int) -> bool:
    """Whether a leader can have come to this epoch; counts it as dropped if not."""
    if epoch <= state.epoch + MAX_EPOCH_JUMP:
        return True
    state.dropped["implausible_epoch"] += 1
    return False
