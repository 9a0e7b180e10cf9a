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

from broker.protocol.codec import encode
from broker.protocol.messages import MAX_FENCE, Route
from broker.protocol.specs import DeviceId, TaskName, TaskSpec
from broker.protocol.topics import DEVICE_DRAIN, TASK_ROUTE, TASK_SPEC
from orchestrator import events
from orchestrator.events import (
    Action,
    DrainReceived,
    Event,
    HeartbeatReceived,
    Order,
    RevisionReceived,
    RouteHeard,
    TaskDeployed,
)
from orchestrator.leadership import orders
from orchestrator.leadership.leader import announce_leadership
from orchestrator.membership.failure_detector import on_event
from orchestrator.state import Moment, State

LARGEST_GENERATION = MAX_FENCE // 2  # beyond which ours doesn't go: half of all numbers stay for the changes after it
BEYOND_EVERY_S = 5.0  # at most that often does a device's word let the generation grow
MAX_UNDER_WAY = 8  # routes of one task; where they don't come back, the latest are kept
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
    if not reconciled:
        state = replace(state, orders=orders.with_deployed_first(state.orders))
    if state.orders.served is not state.served:
        state = replace(state, orders=replace(state.orders, served=state.served))
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
    if isinstance(order, DrainReceived):
        delivered = replace(delivered, live_drains=delivered.live_drains | ({order.device} & delivered.drains))
    else:
        delivered = replace(delivered, live_tasks=delivered.live_tasks | ({name} & delivered.tasks))
    youngest = (*delivered.youngest, *(tasks.keys() - state.orders.tasks.keys()))
    return replace(state, delivered=replace(delivered, youngest=youngest), orders=_record(state, tasks, drained))


def note_recorded(state: State, heard: RevisionReceived) -> State:
    """The state with a revision noted that an earlier leader recorded, and that isn't in our copy of a task."""
    task, spec, delivered = heard.task, heard.spec, state.delivered
    if state.reconciled or spec is None or task not in state.orders.tasks or len(delivered.recorded) >= MAX_NOTED:
        return state
    if spec in state.orders.revisions.get(task, ()):
        return state
    return replace(state, delivered=replace(delivered, recorded=delivered.recorded | {(task, spec.revision)}))


def _record(state: State, tasks: Mapping[TaskName, TaskSpec], drained: Collection[DeviceId]) -> orders.Orders:
    session = state.link.session if state.link else None
    rejected = state.invalid.keys()
    return orders.record(state.orders, tasks, drained, epoch=state.epoch, session=session, rejected=rejected)


def _reconcile(state: State, now_s: float) -> tuple[State, list[Action]]:
    drained = state.cluster.drained & state.delivered.drains
    rejected = state.invalid.keys() & state.delivered.tasks
    if state.followed_by and not state.broker_change:
        had_settled = any(route.epoch >= state.followed_by for route in state.retained_routes.values())
        if had_settled:  # so the broker has its orders, though their number is unknown
            number = orders.next_change(state.orders, state.epoch)
            state = replace(state, broker_change=number, orders=replace(state.orders, change=number))
    found = orders.reconcile(
        state.orders, state.broker_change, state.delivered, state.tasks, drained, rejected=rejected
    )
    cluster = state.cluster
    for device in sorted(found.drained ^ cluster.drained):
        cluster = on_event(cluster, DrainReceived(device, drain=device in found.drained), now_s)
    change = max(state.orders.change, state.broker_change)
    served = {task: spec for task, spec in state.served.items() if task in found.tasks}
    state = replace(
        state,
        cluster=cluster,
        tasks=found.tasks,
        served=served if len(served) < len(state.served) else state.served,
        invalid={
            task: why
            for task, why in state.invalid.items()
            if task in state.delivered.tasks and task not in {spec.task for spec in found.specs}
        },
        orders=replace(state.orders, change=change),
        reconciled=True,
        followed_by=0,
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


def note_routes(state: State, actions: list[Action]) -> tuple[State, list[Action]]:
    """The state with the routes noted that are published now: they come back, and must not look like another client's.

    A superseded one may come back after the next one was published.
    """
    published = [action.route for action in actions if isinstance(action, events.PublishRoute)]
    if not published:
        return state, actions
    under_way = dict(state.under_way)
    for route in published:
        under_way[route.task] = (*under_way.get(route.task, ()), route)[-MAX_UNDER_WAY:]
    return replace(state, under_way=under_way), actions


def restore_route(state: State, heard: RouteHeard) -> tuple[State, list[Action]]:
    """Overwrite a route that another client published, of whatever term, generation and content.

    A route of a task that doesn't exist is cleared. A route that another client cleared is published again: no sensor
    that connects later would find the task.

    Agents wouldn't obey ours before they know that a later term has no leader, so that is announced, too. Nor would
    they obey an older generation, so ours goes beyond the other one, or a new term begins where no number is left.
    """
    state, is_ours = _without_heard(state, heard)
    if is_ours or not state.settled:
        return state, []
    is_known = heard.task in state.tasks or heard.task in state.invalid
    ours = state.routes.get(heard.task) if is_known else None
    if heard.is_empty:
        note = events.Note("cleared_route_restored", {"task": heard.task})
        return state, [note, events.PublishRoute(ours)] if ours else []
    if not is_known:
        return state, [events.Clear(TASK_ROUTE, heard.task)]
    if ours is None or _is(ours, heard):
        return state, []
    fields = {"task": heard.task, "epoch": heard.epoch, "generation": heard.generation}
    note = events.Note("foreign_route_overwritten", fields)
    if heard.epoch != state.epoch or heard.generation <= state.generation:
        term = announce_leadership(state) if heard.epoch > state.epoch else []
        return state, [note, *term, events.PublishRoute(ours)]
    state, again = _go_beyond(state, heard.generation, {heard.task}, set())
    why = f"another client published a route of generation {heard.generation}, and none is left in this term"
    return state, [note, *(again or [events.Resign(why, state.epoch)])]


def _is(route: Route, heard: RouteHeard) -> bool:
    return (route.epoch, route.generation) == (heard.epoch, heard.generation) and encode(route) == heard.payload


def _without_heard(state: State, heard: RouteHeard) -> tuple[State, bool]:
    """The state without a route of ours that has come back, and whether it is one; those before it won't come."""
    waiting = state.under_way.get(heard.task, ())
    for place, route in enumerate(waiting):
        if _is(route, heard):
            others = {task: routes for task, routes in state.under_way.items() if task != heard.task}
            left = waiting[place + 1 :]
            return replace(state, under_way={**others, heard.task: left} if left else others), True
    return state, False


def restore_assignment(state: State, event: Event, now_s: float) -> tuple[State, list[Action]]:
    """Overwrite an assignment of our term that another client published: the device obeys it, and ours looks older.

    A device's word ends no term: where no number is left, we repeat ours until the device gives the other one up.
    """
    if not isinstance(event, HeartbeatReceived) or not state.settled or event.device not in state.assignments:
        return state, []
    device, generation = state.cluster.devices.get(event.device), event.message.generation
    last = state.assignments[event.device]
    is_ours = device is None or device.fence <= (last.epoch, last.generation) or device.fence[0] != state.epoch
    is_ours |= not last.modules  # it has nothing to lose: it gives the other one up when we repeat ours
    if is_ours or now_s < state.went_beyond_s + BEYOND_EVERY_S:
        return state, []
    routes = {task for task, route in state.routes.items() if _names(route, event.device)}
    state, again = _go_beyond(state, generation, routes, {event.device})
    note = events.Note("foreign_assignment_overwritten", {"device": event.device, "generation": generation})
    return (replace(state, went_beyond_s=now_s), [note, *again]) if again else (state, [])


def _go_beyond(
    state: State, generation: int, tasks: set[TaskName], devices: set[DeviceId]
) -> tuple[State, list[Action]]:
    """Publish plans again under a generation above one that another client used; nothing if no number would be left."""
    if generation >= LARGEST_GENERATION:
        return state, []
    stamp = {"generation": max(state.generation, generation) + 1}
    routes = {task: state.routes[task].model_copy(update=stamp) for task in sorted(tasks)}
    assignments = {device: state.assignments[device].model_copy(update=stamp) for device in sorted(devices)}
    state = replace(
        state,
        generation=stamp["generation"],
        routes={**state.routes, **routes},
        assignments={**state.assignments, **assignments},
    )
    return state, [
        *(events.PublishRoute(route) for route in routes.values()),
        *(events.PublishAssignment(device, again) for device, again in assignments.items()),
    ]


def _names(route: Route, device: DeviceId) -> bool:
    return any(able.device == device for node in route.nodes.values() for able in node.devices)


def without_task(state: State, task: TaskName) -> State:
    """The state without a task, valid or not."""
    tasks = {other: spec for other, spec in state.tasks.items() if other != task}
    served = {other: spec for other, spec in state.served.items() if other != task}
    invalid = {other: why for other, why in state.invalid.items() if other != task}
    return replace(
        state, tasks=tasks, served=served if len(served) < len(state.served) else state.served, invalid=invalid
    )
