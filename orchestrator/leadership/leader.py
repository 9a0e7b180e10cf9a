"""The leader's term: what the orchestrator publishes of it, and when it resigns.

Owns the meaning of the leader's topic, and the answer to devices that obey a later term. Doesn't know placement.

Invariants:
- only the leader's own topics make an orchestrator resign; no device can. The orchestrator announces its term again to
  a device that obeys a later one, and the device follows when no other leader objects (``edge_agent.term``);
- an epoch that isn't plausible (``epochs``) ends no term. It is logged, and overwritten;
- of two orchestrators with one epoch exactly one stays: the one with the higher session number, or the one that was
  announced if the other one wasn't yet;
- an orchestrator whose term is over resigns and waits as a standby. It leads again only with a higher epoch.
"""

from __future__ import annotations

from dataclasses import replace

from broker.epochs import doubt
from broker.protocol.messages import OrchestratorState
from orchestrator.events import Action, Event, HeartbeatReceived, Note, PublishState, Resign
from orchestrator.leadership.orders import change_of, confirm
from orchestrator.state import State

TELL_AGAIN_S = 5.0  # at most that often is the term announced to devices that obey a later one


def announce_leadership(state: State) -> list[Action]:
    """The message that this orchestrator leads; none while its link is down."""
    if state.link is None:
        return []
    change = state.orders.change if state.reconciled else state.broker_change
    said = OrchestratorState(
        epoch=state.epoch,
        online=True,
        session=state.link.session,
        change=change,
        heartbeat_interval_s=state.cluster.heartbeat_interval_s,
    )
    return [PublishState(said)]


def on_leader_state(state: State, seen: OrchestratorState) -> tuple[State, list[Action]]:
    """React to the leader's topic: to an own message, a late one, or another orchestrator's."""
    doubted = doubt(state.epoch, seen, state.doubted_leader)
    state = replace(state, doubted_leader=doubted)
    if doubted is not None:
        fields = {"epoch": seen.epoch, "own_epoch": state.epoch, "online": seen.online}
        notes: list[Action] = [Note("epoch_not_plausible", fields)] if doubted.times == 1 else []
        return state, [*notes, *announce_leadership(state)]
    if seen.epoch > state.epoch:
        why = f"an orchestrator with epoch {seen.epoch} came after this one with epoch {state.epoch}"
        return state, [Resign(why, seen.epoch)]
    own = seen.epoch == state.epoch and seen.session in state.sessions
    if state.link is not None and seen.session == state.link.session:
        state = _confirm_orders(state, seen)
    elif not state.reconciled and state.link is not None:
        state = _with_broker_change(state, state.link.session, change_of(state.orders, seen))
        if not seen.online and 0 < state.copied_epoch < seen.epoch < state.epoch:
            state = replace(state, followed_by=seen.epoch)
    if seen.epoch < state.epoch or not seen.online:
        return state, announce_leadership(state)  # a late will, or a leader that doesn't know us yet, overwrote ours
    if own or state.link is None:
        return state, []
    is_unheard = state.republish_at_s is not None and len(state.sessions) == 1  # nobody knows of this term yet
    if is_unheard or seen.session > state.link.session:
        why = f"another orchestrator leads with the same epoch {seen.epoch}"
        return state, [Resign(why, seen.epoch)]
    return state, announce_leadership(state)  # the other resigns when it receives this


def _with_broker_change(state: State, session: int, change: int) -> State:
    """The state after the broker's number was heard over our link: the will of this link will have no number."""
    if change <= state.broker_change:
        return state
    return replace(state, broker_change=change, orders=confirm(state.orders, session, change))


def _confirm_orders(state: State, own: OrchestratorState) -> State:
    """The state after our own announcement came back: the broker has all orders up to its change number."""
    if not state.reconciled or own.change != state.orders.change:
        return state
    orders = confirm(state.orders, own.session, own.change)
    return state if orders is state.orders else replace(state, orders=orders)


def tell_devices_ahead(state: State, event: Event, now_s: float) -> tuple[State, list[Action]]:
    """Announce this term again if a device reports that it obeys a later one; a device can't end a term."""
    if not isinstance(event, HeartbeatReceived) or state.link is None or event.message.epoch <= state.epoch:
        return state, []
    if state.republish_at_s is not None or now_s - state.told_term_s < TELL_AGAIN_S:
        return state, []
    fields = {"device": event.device, "obeys_epoch": event.message.epoch, "own_epoch": state.epoch}
    return replace(state, told_term_s=now_s), [Note("device_obeys_later_term", fields), *announce_leadership(state)]
