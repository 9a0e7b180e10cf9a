"""Restoring messages that the broker lost, or that another client overwrote.

Owns when the operators' orders are reconciled with the broker (``leadership.orders`` has the rule), and what follows a
new link. Decides no placement.

Invariants:
- the leader's topic has a change number only when the broker has all orders up to it;
- nothing is placed, and no route published first, before the orders are reconciled.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from broker.protocol.specs import DeviceId, TaskName, TaskSpec
from broker.protocol.topics import DEVICE_DRAIN, TASK_ROUTE, TASK_SPEC
from orchestrator import events
from orchestrator.events import Action, DrainReceived, Order, RouteHeard, TaskDeployed
from orchestrator.leadership import orders
from orchestrator.leadership.leader import announce_leadership
from orchestrator.membership.failure_detector import on_event
from orchestrator.state import Moment, State

MAX_NOTED = 10_000  # names of tasks, and of devices, that come over a link and aren't known


def republish_all(state: State) -> tuple[State, list[Action]]:
    """Publish all routes and assignments again, for the broker may have lost its memory; the specs follow."""
    return state, [
        *announce_leadership(state),
        *(events.PublishRoute(route) for _, route in sorted(state.routes.items())),
        *(events.PublishAssignment(device, last) for device, last in sorted(state.assignments.items())),
    ]


def keep_orders(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Reconcile the orders with the broker after a new link, and record each change of them after that."""
    before, actions = state.orders, list[Action]()
    reconciled = state.reconciled
    if not reconciled:
        state, actions = _reconcile(state, moment.now_s)
    if state.tasks is not before.specs or state.cluster.drained != before.drained:
        kept = _record(state, state.tasks, state.cluster.drained)
        state = replace(state, orders=kept, tasks=kept.specs)
    if reconciled and state.orders.change == before.change:
        return state, actions
    return state, [*actions, *announce_leadership(state)]


def note_order(state: State, order: Order) -> State:
    """The state after an order that came before the orders are reconciled with the broker: a new one is recorded now.

    If the link or the process ends before that, the broker's copy doesn't tell whether it lost the order.
    """
    delivered, tasks, drained = state.delivered, dict(state.orders.specs), state.orders.drained
    if isinstance(order, DrainReceived):
        if order.device in drained or len(delivered.drains) < MAX_NOTED:
            delivered = replace(delivered, drains=delivered.drains | {order.device})
        drained = drained | {order.device} if order.drain else drained - {order.device}
    else:
        name = order.spec.task if isinstance(order, TaskDeployed) else order.task
        if name in tasks or name in state.tasks or len(delivered.tasks) < MAX_NOTED:
            delivered = replace(delivered, tasks=delivered.tasks | {name})
        if name in state.tasks:
            tasks[name] = state.tasks[name]
        else:
            tasks.pop(name, None)
    if isinstance(order, TaskDeployed | DrainReceived) and order.retained:
        return replace(state, delivered=delivered)
    youngest = (*delivered.youngest, *(tasks.keys() - state.orders.tasks.keys()))
    return replace(state, delivered=replace(delivered, youngest=youngest), orders=_record(state, tasks, drained))


def _record(state: State, tasks: Mapping[TaskName, TaskSpec], drained: Collection[DeviceId]) -> orders.Orders:
    session = state.link.session if state.link else None
    rejected = state.invalid.keys()
    return orders.record(state.orders, tasks, drained, epoch=state.epoch, session=session, rejected=rejected)


def _reconcile(state: State, now_s: float) -> tuple[State, list[Action]]:
    drained = state.cluster.drained & state.delivered.drains
    found = orders.reconcile(state.orders, state.broker_change, state.delivered, state.tasks, drained)
    cluster = state.cluster
    for device in sorted(found.drained ^ cluster.drained):
        cluster = on_event(cluster, DrainReceived(device, drain=device in found.drained), now_s)
    change = max(state.orders.change, state.broker_change)
    state = replace(
        state,
        cluster=cluster,
        tasks=found.tasks,
        invalid={task: why for task, why in state.invalid.items() if task in state.delivered.tasks},
        orders=replace(state.orders, change=change),
        reconciled=True,
    )
    actions: list[Action] = [
        *map(events.PublishSpec, found.specs),
        *(events.Clear(TASK_SPEC, task) for task in found.cleared_specs),
        *map(events.PublishDrain, found.drains),
        *(events.Clear(DEVICE_DRAIN, device) for device in found.cleared_drains),
    ]
    if state.link is not None:  # what came from the broker needs no confirmation by it
        broker_has = state.broker_change if actions else change
        state = replace(state, orders=orders.confirm(state.orders, state.link.session, broker_has))
    return state, actions


def restore_route(state: State, heard: RouteHeard) -> list[Action]:
    """Overwrite a route that another client published: of a task that doesn't exist, or of a later term than ours.

    Agents wouldn't obey ours before they know that the later term has no leader, so that is announced, too.
    """
    if not state.settled:
        return []
    if heard.task not in state.tasks and heard.task not in state.invalid:
        return [events.Clear(TASK_ROUTE, heard.task)]
    if heard.epoch <= state.epoch or heard.task not in state.routes:
        return []
    note = events.Note("foreign_route_overwritten", {"task": heard.task, "epoch": heard.epoch})
    return [note, *announce_leadership(state), events.PublishRoute(state.routes[heard.task])]


def without_task(state: State, task: TaskName) -> State:
    """The state without a task, valid or not."""
    tasks = {other: spec for other, spec in state.tasks.items() if other != task}
    return replace(state, tasks=tasks, invalid={other: why for other, why in state.invalid.items() if other != task})
