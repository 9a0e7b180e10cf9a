"""Revisions: a task's newly deployed spec is loaded beside the one that is served, and takes over when it is ready.

Owns which spec of a task is served, and the upcoming ones: deployed specs that aren't served yet. For the planner an
upcoming spec is a task of its own, which comes after all others and moves none of their modules. Pure.

Invariants:
- a spec that is served goes on until the modules of the upcoming one are ready, or until it can't be served itself. An
  upcoming spec that can't be served changes nothing;
- a task has at most one upcoming spec: the one that was deployed last;
- beside a spec with ``replace`` no older one goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from broker.protocol.specs import DeviceSpec, TaskName, TaskSpec
from orchestrator.events import Action, Note
from orchestrator.placement.deployability import is_upcoming, upcoming_name
from orchestrator.planner.refusals import NONE_CAN_RUN
from orchestrator.state import State

_REPLACE = (
    "the revision {served} is served on; `s2m3 deploy|rollback --replace` would end it first, and load this one then"
)


def served_spec(state: State, task: TaskName) -> TaskSpec:
    """The spec of a deployed task that is served now, or is to be served."""
    return state.served.get(task) or state.tasks[task]


def tasks_to_place(state: State) -> list[TaskSpec]:
    """The specs that are to be served, in the order in which they were deployed, and after them the upcoming ones.

    An upcoming one weighs less than every other task, so that it yields to each of them.
    """
    served = [served_spec(state, task) for task in state.tasks]
    if not state.served:
        return served
    weight = min(spec.weight for spec in served) / 2
    return [*served, *(_as_upcoming(state.tasks[task], weight) for task in state.served if task in state.tasks)]


def allow_upcoming(devices: Iterable[DeviceSpec], tasks: Iterable[TaskSpec]) -> list[DeviceSpec]:
    """The devices; one that may serve only some tasks may hold the modules of their upcoming specs, too."""
    names = {task.task.partition("@")[0]: task.task for task in tasks if is_upcoming(task.task)}
    if not names:
        return list(devices)
    return [
        device
        if device.tasks is None
        else device.model_copy(
            update={"tasks": (*device.tasks, *(names[task] for task in device.tasks if task in names))}
        )
        for device in devices
    ]


def with_deployed(state: State, spec: TaskSpec) -> State:
    """The state with a newly deployed spec; what its task serves now goes on until this one is ready."""
    known = state.tasks.get(spec.task)
    served = {task: older for task, older in state.served.items() if task != spec.task}
    if known is not None and not spec.replace:
        now = served_spec(state, spec.task)
        if now.revision != spec.revision and _may_go_on(state, spec.task):
            served[spec.task] = now
    tasks = {**state.tasks, spec.task: spec}
    return replace(state, tasks=tasks) if served == state.served else replace(state, tasks=tasks, served=served)


def take_over(state: State) -> tuple[State, list[Action]]:
    """Let upcoming specs take over that are ready, or whose tasks can't be served otherwise."""
    over = {task for task, older in state.served.items() if _is_over(state, task, older)}
    if not over:
        return state, []
    served = {task: older for task, older in state.served.items() if task not in over}
    notes: list[Action] = [
        Note("revision_takes_over", {"task": task, "revision": spec.revision, "from": older.revision})
        for task in sorted(over)
        if (spec := state.tasks.get(task)) is not None and spec.revision != (older := state.served[task]).revision
    ]
    return replace(state, served=served, orders=replace(state.orders, served=served)), notes


def why_refused(state: State, task: TaskName) -> str | None:
    """The reason why a task's upcoming spec can't be served beside what is served; None while it is loaded."""
    if task in state.invalid:
        return state.invalid[task]
    name, facts = upcoming_name(state.tasks[task]), state.placement.facts
    if (why := facts.unservable.get(name)) is not None:
        return why
    why = state.placement.refused.get(name)
    if why is None or why.startswith(NONE_CAN_RUN):  # more memory would not help
        return why
    has_failed = any(module.key in facts.barred for module in state.tasks[task].modules.values())
    return why if has_failed else f"{why}; {_REPLACE.format(served=state.served[task].revision)}"


def _as_upcoming(spec: TaskSpec, weight: float) -> TaskSpec:
    return spec.model_copy(update={"task": upcoming_name(spec), "weight": weight})


def _may_go_on(state: State, task: TaskName) -> bool:
    """Whether a task's spec is placed; until the site has settled, it may be."""
    return not state.settled or (task in state.placement.planned and task not in state.placement.refused)


def _is_refused(state: State, task: TaskName) -> bool:
    return task in state.placement.facts.unservable or task in state.placement.refused


def _is_over(state: State, task: TaskName, older: TaskSpec) -> bool:
    spec = state.tasks.get(task)
    if spec is None or spec.revision == older.revision:
        return True
    name, placement = upcoming_name(spec), state.placement
    if name not in placement.planned or name in placement.refused:
        return False
    return _is_refused(state, task) or is_ready(state, name, spec)


def is_ready(state: State, name: TaskName, spec: TaskSpec) -> bool:
    """Whether every module of a placed task is ready on a living device that has an active copy."""
    actives, devices = state.placement.actives_of(name), state.cluster.devices
    return all(
        any(home in devices and devices[home].serves(module.key) for home in actives.get(module.key, ()))
        for module in spec.modules.values()
    )
