"""Deployability: reasons why a task can't be served, wherever its modules are placed. Its route gives the reason.

Owns the reasons that don't depend on free memory: sizes that no broker passes, specs that contradict each other,
modules that devices refused too often. Doesn't know how modules are placed.

Invariants:
- the reason is one sentence that says what to do;
- the task that was deployed first is served: a later task that contradicts it waits;
- a module is tried on at most ``MAX_REFUSALS`` devices at a time, and again when a backoff is over. Only a device that
  was assigned the module in this term can refuse it for others: a lie about any other module harms its device only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pydantic import ValidationError

from broker.message_sizes import why_too_large
from broker.protocol.errors import by_reason
from broker.protocol.sentences import describe
from broker.protocol.sizes import show_sizes
from broker.protocol.specs import (
    MAX_TASKS,
    MAX_TASKS_BYTES,
    DeviceId,
    ModuleKey,
    ModuleSpec,
    TaskName,
    TaskSpec,
)
from orchestrator.membership.deadly_loads import ENOUGH
from orchestrator.membership.device import Device, Fitness
from orchestrator.placement.routes import build_route
from orchestrator.planner.copies import Bars
from orchestrator.planner.refusals import FAILED
from orchestrator.state import State

MAX_REFUSALS = 3  # one device may be odd and two may be short of memory; beyond that the module or its spec is wrong
_COVERED = ("prepare", "labels")  # what the task file says of an ONNX file; a stated digest covers it
_RETRY = "remove the cause; they are tried again after a while"


class Described(NamedTuple):
    """A module or a variant of it, as a task describes it."""

    task: TaskName
    fields: Mapping[str, object]


def upcoming_name(spec: TaskSpec) -> TaskName:
    """The name by which a planner knows a spec that isn't served yet. No deployed task can have such a name."""
    return f"{spec.task}@{spec.revision}"


def is_upcoming(name: TaskName) -> bool:
    """Whether this is the name of a spec that isn't served yet."""
    return "@" in name


def is_revision_of(name: TaskName, task: TaskName) -> bool:
    """Whether this is the name of an upcoming spec of a task."""
    return name.startswith(f"{task}@")


Disputed = Mapping[tuple[ModuleKey, str], Described]
"""Modules that tasks describe differently: by key and engine of a variant, which is empty for the module itself."""


def why_unroutable(spec: TaskSpec) -> str | None:
    """The reason why no route can ever be written for a task; None if one can. No device may get its modules then."""
    try:
        build_route(spec, (0, 0), {}, {})
    except (ValueError, ArithmeticError) as error:
        return f"its route can't be written: {describe_error(error)}; correct its spec"
    return None


def why_too_many(state: State, spec: TaskSpec) -> str | None:
    """The reason why a spec can't be kept beside those of the other tasks; None if it can."""
    others = [known for name, known in state.tasks.items() if name != spec.task]
    if len(others) >= MAX_TASKS:
        return f"{len(others)} tasks are deployed, the most that a site may have; undeploy one"
    size_bytes = sum(known.size_bytes for known in others)
    if size_bytes + spec.size_bytes > MAX_TASKS_BYTES:
        own, others_together, most = show_sizes(spec.size_bytes, size_bytes, MAX_TASKS_BYTES)
        return (
            f"its spec has {own}, those of the other tasks {others_together}, and together they may have {most}; make "
            "it smaller, or undeploy a task"
        )
    return None


def why_unservable(state: State, task: TaskSpec, refusals: Bars, disputed: Disputed) -> str | None:
    """The reason why this task can't be served now, wherever its modules are placed; None if it may be."""
    return (
        _contradiction(task, disputed)
        or _oversize(state, task)
        or _deadly_load(state, task)
        or _refusals(state, task, refusals)
    )


def disputed_modules(tasks: Iterable[TaskSpec]) -> Disputed:
    """The modules, and variants of modules, that tasks describe differently, as the first of these tasks has them."""
    first: dict[tuple[ModuleKey, str], Described] = {}
    disputed: dict[tuple[ModuleKey, str], Described] = {}
    for task in tasks:
        for module in task.modules.values():
            for engine, fields in _described(module).items():
                known = first.setdefault((module.key, engine), Described(task.task, fields))
                if fields != known.fields:
                    disputed[module.key, engine] = known
    return disputed


def _described(module: ModuleSpec) -> dict[str, Mapping[str, object]]:
    """The fields that must be equal in all tasks: of the module, and of each variant, by its engine."""
    own = {name: getattr(module, name) for name in ("family", "memory_bytes", *_COVERED)}
    return {"": own, **{variant.engine: dict(variant) for variant in module.variants}}


def describe_error(error: Exception) -> str:
    """The error for a person: of a validation error the first field and its problem."""
    return ": ".join(describe(error.errors()[0])) if isinstance(error, ValidationError) else str(error)


def refusals_of(devices: Iterable[Device]) -> Bars:
    """By module the devices that failed to load it when they were assigned it, each with the error."""
    found: dict[ModuleKey, dict[DeviceId, str]] = {}
    for device in devices:
        for key, error in device.barred.items() if device.backoffs else ():
            if key in device.backoffs and device.backoffs[key].assigned:
                found.setdefault(key, {})[device.id] = f"{FAILED}: {error}"
    return found


def refused_too_often(refusals: Bars) -> list[ModuleKey]:
    """The modules that so many devices refused that no other is tried now."""
    return [key for key, devices in refusals.items() if len(devices) >= MAX_REFUSALS]


def _refusals(state: State, task: TaskSpec, refusals: Bars) -> str | None:
    refused = set(refused_too_often(refusals))
    for name, module in task.modules.items():
        if module.key not in refused:
            continue
        by = refusals[module.key]
        home = state.cluster.devices.get(state.placement.where.get(module.key, ""))
        if home is not None and home.fitness > Fitness.DRAINING and home.id not in by:
            continue  # it has an active copy; only further copies were refused
        return f"{len(by)} devices refused {name}, and no other is tried now: {by_reason(by)}; {_RETRY}"
    return None


def _deadly_load(state: State, task: TaskSpec) -> str | None:
    """The module whose loads ended so many processes that no other device may try it, and that none has ready."""
    for name, module in task.modules.items() if state.load_deaths else ():
        deaths = state.load_deaths.get(module.key, {})
        if len(deaths) < ENOUGH or any(device.serves(module.key) for device in state.cluster.alive()):
            continue
        return (
            f"{len(deaths)} devices died while they loaded {name} ({', '.join(sorted(deaths))}), and no other tries it "
            "now: check its weights and its memory_bytes; it is tried again after ten minutes"
        )
    return None


def _contradiction(task: TaskSpec, disputed: Disputed) -> str | None:
    """Which earlier task describes a shared module differently: the module can be loaded only one way."""
    for name, module in task.modules.items() if disputed else ():
        for engine, fields in _described(module).items():
            if (first := disputed.get((module.key, engine))) is None or first.task == task.task:
                continue
            for field_name, theirs in first.fields.items():
                if (ours := fields[field_name]) != theirs:
                    whose = f"{name}'s {engine} variant" if engine else name
                    if field_name in _COVERED:
                        is_older = is_revision_of(task.task, first.task)
                        where = "the revision that is served" if is_older else f"the task {first.task}, deployed first"
                        return (
                            f"{whose} has another {field_name} here than in {where}, for the same digest, which covers "
                            "it: remove digest, or write the new one, which the agent's log has after a load without it"
                        )
                    if is_revision_of(task.task, first.task):
                        return (
                            f"{whose} has {field_name} {ours} here and {theirs} in the revision that is served, for "
                            "the same weights: if these changed, state a digest or a source revision; else deploy with "
                            "--replace"
                        )
                    return (
                        f"{whose} has {field_name} {ours} here and {theirs} in the task {first.task}, deployed first, "
                        "for the same weights: correct one of the two files"
                    )
    return None


def _oversize(state: State, task: TaskSpec) -> str | None:
    try:
        return why_too_large(task, state.link.max_packet_bytes if state.link else None)
    except (ValueError, ArithmeticError) as error:
        return f"its sizes can't be computed: {describe_error(error)}; correct its spec"
