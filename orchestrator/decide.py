"""What the orchestrator does next: events in, actions out.

Owns the reconciler: ``RULES``, the only code that places, moves and withdraws. It compares what is deployed with what
devices report. Knows nothing of topics, bytes, threads or clocks: ``now_s`` comes in, in seconds of any steady clock.

Invariants:
- idempotent: the same event again gives no actions;
- the generation grows by one with each change of the placement; then all routes go out anew, before the assignments;
- nothing is placed while our link is down, nor until ``settle_s`` after it came up: retained specs, births and first
  heartbeats arrive in that time, so that a restart adopts what devices hold instead of moving it;
- what is placed stays until its device goes, refuses it, or no task needs it any more, or else a task would not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from broker.codec import MAX_MESSAGE_BYTES
from broker.errors import ErrorCode, NoDeviceFits
from broker.messages import (
    AssignedModule,
    Assignment,
    DeviceProfile,
    ErrorBody,
    OrchestratorState,
    Result,
    Route,
)
from broker.specs import DeviceId, ModuleKey, ModuleName, ModuleSpec, TaskName, TaskSpec
from broker.transport import LinkDown, LinkUp
from orchestrator import cluster as devices
from orchestrator.cluster import Cluster, ClusterEvent
from orchestrator.events import (
    Action,
    AnswerError,
    ClearRoute,
    Event,
    Note,
    OrchestratorSeen,
    PublishAssignment,
    PublishRoute,
    PublishState,
    RequestSeen,
    Resign,
    RouteSeen,
    TaskDeployed,
    TaskEvent,
    TaskInvalid,
    TaskUndeployed,
)
from orchestrator.placement import Explanation, distinct_modules, place_most
from orchestrator.routes import Term, no_route, route_of, same_way, too_large

_V = TypeVar("_V")
_REJECTED_SHOWN = 4  # other devices named in an assignment's reason; a thousand of them must still fit a message

# --- state ---


@dataclass(frozen=True)
class Facts:
    """All that the placement depends on. Equal facts are never placed twice: measured seconds drift, modules don't."""

    candidates: tuple[tuple[DeviceId, DeviceProfile], ...] = ()
    tasks: tuple[TaskSpec, ...] = ()
    barred: Mapping[ModuleKey, Mapping[DeviceId, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Standing:
    """The placement that stands, and the facts it answers."""

    facts: Facts = Facts()
    where: Mapping[ModuleKey, DeviceId] = field(default_factory=dict)
    modules: Mapping[ModuleKey, tuple[ModuleName, ModuleSpec]] = field(default_factory=dict)
    explain: Mapping[ModuleKey, Explanation] = field(default_factory=dict)
    refused: Mapping[TaskName, str] = field(default_factory=dict)

    @property
    def holdings(self) -> dict[ModuleKey, tuple[DeviceId, ModuleSpec]]:
        """What is held where: the placement's content, without names and reasons."""
        return {key: (home, self.modules[key][1]) for key, home in self.where.items()}

    def held_by(self, device: DeviceId) -> dict[ModuleKey, ModuleSpec]:
        """What this device must hold."""
        return {key: self.modules[key][1] for key, home in self.where.items() if home == device}


@dataclass(frozen=True)
class Door:
    """A task's front door: its devices, and how often these changed."""

    members: tuple[DeviceId, ...]
    group: int


@dataclass(frozen=True)
class State:
    """All that the orchestrator knows and has said. Make the first one with ``initial``."""

    epoch: int
    settle_s: float
    cluster: Cluster
    link: LinkUp | None = None
    settles_at_s: float | None = None  # until then nothing is placed
    tasks: Mapping[TaskName, TaskSpec] = field(default_factory=dict)
    invalid: Mapping[TaskName, str] = field(default_factory=dict)
    remembered: Mapping[TaskName, bool] = field(default_factory=dict)  # routes of earlier terms; whether available
    standing: Standing = Standing()
    generation: int = 0
    routes: Mapping[TaskName, Route] = field(default_factory=dict)  # as published
    assignments: Mapping[DeviceId, Assignment] = field(default_factory=dict)  # as published
    doors: Mapping[TaskName, Door] = field(default_factory=dict)  # kept for life: a group name never comes back

    @property
    def settled(self) -> bool:
        """Whether we know enough to decide."""
        return self.link is not None and self.settles_at_s is None

    @property
    def term(self) -> Term:
        """Epoch and generation."""
        return Term(self.epoch, self.generation)


def initial(*, epoch: int, heartbeat_interval_s: float = 1.0, settle_s: float = 1.5) -> State:
    """The state before anything is known."""
    return State(epoch=epoch, settle_s=settle_s, cluster=Cluster(heartbeat_interval_s))


def next_deadline_s(state: State) -> float | None:
    """When a ``Tick`` is due if nothing happens before."""
    due = (state.settles_at_s, devices.next_deadline_s(state.cluster))
    return min((at_s for at_s in due if at_s is not None), default=None)


def decide(state: State, event: Event, now_s: float) -> tuple[State, list[Action]]:
    """Take in one event; if enough is known, reconcile.

    Args:
        state: what was known.
        event: what happened.
        now_s: the steady clock.

    Returns:
        What is known now, and what to do, in this order.
    """
    if isinstance(event, RequestSeen):
        return state, _answer(state, event)
    if isinstance(event, OrchestratorSeen):
        return state, _heed(state, event.message)
    before, state = state, _absorb(state, event, now_s)
    actions: list[Action] = _tell_of_devices(before.cluster, state.cluster)
    if isinstance(event, LinkUp):
        actions += _announce(state)
    if state.settled:
        for rule in RULES:
            state, more = rule(state)
            actions += more
    return state, actions


# --- what we know ---


def _absorb(state: State, event: ClusterEvent | TaskEvent, now_s: float) -> State:
    match event:
        case LinkUp():
            state = replace(state, link=event, settles_at_s=now_s + state.settle_s)
        case LinkDown():
            state = replace(state, link=None, settles_at_s=None)
        case TaskDeployed(spec):
            tasks, invalid = {**state.tasks, spec.task: spec}, _less(state.invalid, spec.task)
            state = replace(state, tasks=tasks, invalid=invalid)
        case TaskInvalid(task, why):
            state = replace(state, tasks=_less(state.tasks, task), invalid={**state.invalid, task: why})
        case TaskUndeployed(task):
            state = replace(state, tasks=_less(state.tasks, task), invalid=_less(state.invalid, task))
        case RouteSeen(task, available):
            state = replace(state, remembered={**state.remembered, task: available})
    if isinstance(event, ClusterEvent):
        state = replace(state, cluster=devices.apply(state.cluster, event, now_s))
    if state.settles_at_s is not None and now_s >= state.settles_at_s:
        state = replace(state, settles_at_s=None)
    return state


def _less(mapping: Mapping[TaskName, _V], name: TaskName) -> Mapping[TaskName, _V]:
    return {other: value for other, value in mapping.items() if other != name}


def _tell_of_devices(before: Cluster, after: Cluster) -> list[Action]:
    notes: list[Action] = []
    for name, device in after.devices.items():
        known = before.devices.get(name)
        if known is device:
            continue
        was = (known.status, known.health, known.beating) if known else None
        if was != (device.status, device.health, device.beating):
            fields = {"device": name, "status": device.status, "health": device.health, "alive": device.alive}
            notes.append(Note("device_changed", fields))
        for key, error in device.failed.items():
            if known is None or key not in known.failed:
                notes.append(Note("module_failed", {"device": name, "module": key, "error": error}))
    return notes


# --- who leads ---


def _announce(state: State) -> list[Action]:
    """Say all again: the broker may have lost its memory."""
    return [
        *_lead(state),
        *(PublishRoute(route) for _, route in sorted(state.routes.items())),
        *(PublishAssignment(device, said) for device, said in sorted(state.assignments.items())),
    ]


def _lead(state: State) -> list[Action]:
    if state.link is None:
        return []
    return [PublishState(OrchestratorState(epoch=state.epoch, online=True, session=state.link.session))]


def _heed(state: State, seen: OrchestratorState) -> list[Action]:
    if seen.epoch > state.epoch:
        return [Resign(f"an orchestrator with epoch {seen.epoch} came after this one with epoch {state.epoch}")]
    if seen.epoch < state.epoch or not seen.online:
        return _lead(state)  # a late will, or somebody who doesn't know us yet, overwrote the truth
    return []


# --- the lobby ---


def _answer(state: State, request: RequestSeen) -> list[Action]:
    """Answer requests that no front door will; those of a pending or complete route are the agents' to answer."""
    if not state.settled:
        return []
    route = state.routes.get(request.task)
    if route is not None and route.unavailable is None:
        return []
    why = route.unavailable if route else None
    if why is None:
        deployed = ", ".join(sorted(state.routes)) or "none"
        why = f"no task is called {request.task}; deployed tasks: {deployed}; deploy it with `s2m3 deploy FILE`"
    result = Result(
        request=request.request,
        task=request.task,
        epoch=state.epoch,
        generation=state.generation,
        error=ErrorBody(code=ErrorCode.NO_ROUTE, message=why),
    )
    return [AnswerError(request.reply_to, request.correlation, result)]


# --- the reconciler's rules ---


def _place_modules(state: State) -> tuple[State, list[Action]]:
    """Place what must be placed, if any fact changed."""
    facts = _facts(state)
    if facts == state.standing.facts:
        return state, []
    standing = _place(state, facts)
    generation = state.generation + (standing.holdings != state.standing.holdings)
    notes = _tell_of_placement(state.standing, standing, generation)
    return replace(state, standing=standing, generation=generation), notes


def _publish_routes(state: State) -> tuple[State, list[Action]]:
    """Say the way of each task, where it changed."""
    actions: list[Action] = []
    routes, doors = dict(state.routes), dict(state.doors)
    for task in sorted(state.tasks.keys() | state.invalid.keys()):
        route = _route(state, task)
        door = doors.get(task, Door(route.front_door, 0))
        if door.members != route.front_door:
            door = Door(route.front_door, door.group + 1)
        route = route.model_copy(update={"group": door.group})
        if task not in routes or not same_way(routes[task], route):
            actions.append(PublishRoute(route))
            routes[task], doors[task] = route, door
    return replace(state, routes=routes, doors=doors), actions


def _publish_assignments(state: State) -> tuple[State, list[Action]]:
    """Tell each device what to hold, if that changed or if this term told it nothing yet."""
    actions: list[Action] = []
    assignments = dict(state.assignments)
    for device in sorted({alive.id for alive in state.cluster.alive()} | assignments.keys()):
        wanted = state.standing.held_by(device)
        said = assignments.get(device)
        if said is not None and {module.spec.key: module.spec for module in said.modules} == wanted:
            continue
        modules = tuple(
            AssignedModule(module=state.standing.modules[key][0], spec=spec, why=_why(state.standing.explain[key]))
            for key, spec in wanted.items()
        )
        assignments[device] = Assignment(epoch=state.epoch, generation=state.generation, modules=modules)
        actions.append(PublishAssignment(device, assignments[device]))
    return replace(state, assignments=assignments), actions


def _clear_routes_without_a_task(state: State) -> tuple[State, list[Action]]:
    """Take away the routes, ours and those of earlier terms, of tasks that are not deployed."""
    gone = sorted((state.routes.keys() | state.remembered.keys()) - state.tasks.keys() - state.invalid.keys())
    routes = {task: route for task, route in state.routes.items() if task not in gone}
    return replace(state, routes=routes, remembered={}), [ClearRoute(task) for task in gone]


Rule = Callable[[State], tuple[State, list[Action]]]
RULES: Sequence[Rule] = (_place_modules, _publish_routes, _publish_assignments, _clear_routes_without_a_task)


def _facts(state: State) -> Facts:
    alive = state.cluster.alive()
    barred: dict[ModuleKey, dict[DeviceId, str]] = {}
    for device in alive:
        for key, error in device.failed.items():
            barred.setdefault(key, {})[device.id] = f"it failed there: {error}"
    return Facts(
        candidates=tuple((device.id, device.profile) for device in alive if device.may_hold),
        tasks=tuple(task for _, task in sorted(state.tasks.items()) if _too_large(state, task) is None),
        barred=barred,
    )


def _place(state: State, facts: Facts) -> Standing:
    candidates = [state.cluster.devices[name].spec for name, _ in facts.candidates]
    standing = state.standing
    served = {task.task for task in standing.facts.tasks if task.task not in standing.refused}
    served |= {task for task, available in state.remembered.items() if available}
    placement, refusals = place_most(
        candidates, facts.tasks, keep={**_adopted(state), **standing.where}, served=served, barred=facts.barred
    )
    placed = [task for task in facts.tasks if task.task not in refusals]
    refused = {name: _refusal(error, state.tasks[name], facts) for name, error in refusals.items()}
    return Standing(facts, placement.where, distinct_modules(placed), placement.explain, refused)


def _adopted(state: State) -> dict[ModuleKey, DeviceId]:
    """Modules that live devices hold already; of several devices, one that is ready, then the first by id."""
    held = [
        (module.state != "ready", device.id, key)
        for device in state.cluster.alive()
        for key, module in device.held.items()
        if module.state in {"ready", "loading"}
    ]
    return {key: device for _, device, key in sorted(held, reverse=True)}


def _refusal(error: NoDeviceFits, task: TaskSpec, facts: Facts) -> str:
    barred = facts.barred.get(task.modules[error.module].key, {})
    failures = ", ".join(f"{device}: {why}" for device, why in sorted(barred.items()))
    if not failures:
        return str(error)
    if not error.short_bytes:
        return f"no device can run {error.module}: {failures}; mend the cause and restart that agent"
    return f"{error} ({failures})"


def _route(state: State, task: TaskName) -> Route:
    spec = state.tasks.get(task)
    if spec is None:
        return no_route(task, state.term, state.invalid[task])
    why = _too_large(state, spec) or state.standing.refused.get(task)
    if why is not None:
        return no_route(task, state.term, why)
    return route_of(spec, state.term, state.standing.where, state.cluster.devices)


def _too_large(state: State, task: TaskSpec) -> str | None:
    broker_bytes = state.link.max_packet_bytes if state.link else None
    return too_large(task, min(MAX_MESSAGE_BYTES, broker_bytes or MAX_MESSAGE_BYTES))


def _why(explanation: Explanation) -> str:
    others = [f"{device}: {reason}" for device, reason in explanation.rejected.items()]
    if len(others) > _REJECTED_SHOWN:
        others[_REJECTED_SHOWN:] = [f"and {len(others) - _REJECTED_SHOWN} more"]
    return "; ".join([explanation.why, *others])


def _tell_of_placement(before: Standing, after: Standing, generation: int) -> list[Action]:
    notes: list[Action] = []
    moved = {after.modules[key][0]: home for key, home in after.where.items() if before.where.get(key) != home}
    dropped = sorted(before.modules[key][0] for key in before.where if key not in after.where)
    if moved or dropped:
        notes.append(Note("placed", {"generation": generation, "moved": moved, "dropped": dropped}))
    for task, why in after.refused.items():
        if before.refused.get(task) != why:
            notes.append(Note("task_withdrawn", {"task": task, "why": why}))
    return notes
