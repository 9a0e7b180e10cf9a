"""The optimum of a small instance by trying every placement: slow, and simple enough to be believed.

Owns nothing but the search; its costs are those of ``costs``, one placement at a time. It shares no code with
``exact``, which the tests hold equal to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, TaskSpec
from orchestrator.planner.costs import objective_s, source_of
from orchestrator.planner.placement import Bars, distinct_modules


def exhaustive(
    devices: Sequence[DeviceSpec],
    tasks: Sequence[TaskSpec],
    *,
    default_source: DeviceSpec | None = None,
    barred: Bars | None = None,
) -> tuple[dict[ModuleKey, DeviceId], float] | None:
    """The cheapest placement and its objective in seconds, or None when no placement fits.

    It tries up to ``len(devices)`` to the power of the number of modules: for some ten thousand, not for a fleet.

    Args:
        devices: those that may hold modules.
        tasks: what to serve; names are distinct.
        default_source: where requests of a task start that names no listed source.
        barred: devices that must not get a module.
    """
    by_id = {device.id: device for device in devices}
    sources = {task.task: source_of(task, by_id, default_source) for task in tasks}
    sizes = {key: module.memory_bytes for key, (_, module) in distinct_modules(tasks).items()}
    best: tuple[dict[ModuleKey, DeviceId], float] | None = None
    for where in _fitting(by_id, sizes, barred or {}):
        cost_s = objective_s(tasks, {key: by_id[device] for key, device in where.items()}, sources)
        if best is None or cost_s < best[1]:
            best = (where, cost_s)
    return best


def _fitting(
    devices: Mapping[DeviceId, DeviceSpec], sizes: Mapping[ModuleKey, int], barred: Bars
) -> Iterator[dict[ModuleKey, DeviceId]]:
    """Every way to put these modules on devices that have the memory."""

    def further(todo: Sequence[ModuleKey], room: dict[DeviceId, int]) -> Iterator[dict[ModuleKey, DeviceId]]:
        if not todo:
            yield {}
            return
        key, *rest = todo
        for device in sorted(room):
            if sizes[key] <= room[device] and device not in barred.get(key, {}):
                for where in further(rest, {**room, device: room[device] - sizes[key]}):
                    yield {key: device, **where}

    yield from further(list(sizes), {name: device.memory_bytes for name, device in devices.items()})
