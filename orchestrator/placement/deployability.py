"""Why a task can't be served, wherever its modules are placed: it is left out, and its route says the reason.

Owns the reasons that don't depend on free memory: sizes no broker passes, specs that contradict each other, modules
that devices refused too often. Knows nothing of how modules are placed.

Invariants:
- the reason is one sentence that says what to do;
- who was deployed first is served: a later task that contradicts it waits;
- a module is tried on at most ``MAX_REFUSALS`` devices at a time; it is tried again when the pause of one is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from broker.protocol.codec import MAX_MESSAGE_BYTES
from broker.protocol.errors import NoDeviceFits
from broker.protocol.specs import DeviceId, ModuleKey, TaskSpec, describe
from orchestrator.placement.routes import Term, route_of, too_large
from orchestrator.planner.placement import Bars
from orchestrator.state import State

MAX_REFUSALS = 3  # one device may be odd and two may be short of memory; beyond that the module or its spec is wrong


def why_unroutable(spec: TaskSpec) -> str | None:
    """Why no route could ever be written for a task: then no device must be told of its modules either."""
    try:
        route_of(spec, Term(0, 0), {}, {})
    except (ValueError, ArithmeticError) as error:
        return f"its route can't be written: {odd(error)}; mend its spec"
    return None


def unservable(state: State, task: TaskSpec, barred: Bars) -> str | None:
    """Why this task can't be served now, wherever its modules are placed; None if it may be."""
    return _contradiction(state, task) or _too_large(state, task) or _refused_too_often(state, task, barred)


def no_fit_reason(error: NoDeviceFits, tasks: Sequence[TaskSpec], barred: Bars) -> str:
    """Why a task found no place: what lacks, and which devices had refused.

    Args:
        error: it names a module of the task, or of one that was admitted before.
        tasks: all of these.
        barred: who refused what.
    """
    keys = {task.modules[error.module].key for task in tasks if error.module in task.modules}
    refusals = {device: why for key in keys for device, why in barred.get(key, {}).items()}
    if not refusals:
        return str(error)
    if not error.short_bytes:
        return f"no device can run {error.module}: {_listed(refusals)}; it is placed as soon as one of them can"
    return f"{error} ({_listed(refusals)})"


def odd(error: Exception) -> str:
    """What is wrong, for a person."""
    return ": ".join(describe(error.errors()[0])) if isinstance(error, ValidationError) else str(error)


def refused_too_often(key: ModuleKey, barred: Bars) -> bool:
    """Whether so many devices refused a module that no other is tried now."""
    return len(barred.get(key, ())) >= MAX_REFUSALS


_AGAIN = "mend the cause; they are tried again after a while"


def _refused_too_often(state: State, task: TaskSpec, barred: Bars) -> str | None:
    for name, module in task.modules.items():
        if not refused_too_often(module.key, barred):
            continue
        home = state.cluster.devices.get(state.standing.where.get(module.key, ""))
        if home is not None and home.may_hold and home.id not in barred[module.key]:
            continue  # it is there; only further copies were refused
        refusals = barred[module.key]
        return f"{len(refusals)} devices refused {name}, and no other is tried now: {_listed(refusals)}; {_AGAIN}"
    return None


def _contradiction(state: State, task: TaskSpec) -> str | None:
    """Two tasks describe one module differently: it can be held only one way, and who was there first is served."""
    for other in state.tasks.values():
        if other.task == task.task:
            return None
        known = {module.key: module for module in other.modules.values()}
        for name, module in task.modules.items():
            first = known.get(module.key, module)
            for field_name in ("family", "memory_bytes"):
                ours, theirs = getattr(module, field_name), getattr(first, field_name)
                if ours != theirs:
                    return (
                        f"{name} has {field_name} {ours} here and {theirs} in the task {other.task}, deployed first, "
                        "for the same weights: mend one of the two files"
                    )
    return None


def _too_large(state: State, task: TaskSpec) -> str | None:
    broker_bytes = state.link.max_packet_bytes if state.link else None
    try:
        return too_large(task, min(MAX_MESSAGE_BYTES, broker_bytes or MAX_MESSAGE_BYTES))
    except (ValueError, ArithmeticError) as error:
        return f"its sizes can't be reckoned with: {odd(error)}; mend its spec"


def _listed(refusals: Mapping[DeviceId, str]) -> str:
    return ", ".join(f"{device}: {why}" for device, why in sorted(refusals.items()))
