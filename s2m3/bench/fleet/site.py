"""The devices and tasks of a simulated site, drawn with a seed.

Owns their distribution: devices of the classes of ``bench placement``, wired; the catalogue's tasks, and beyond their
number copies, as another team would deploy them: a copy shares the encoders of its task, and has a head of its own
where the head is small.
"""

from __future__ import annotations

import random
from functools import cache

from broker.protocol.specs import DeviceSpec, ModuleKey, ModuleSpec, TaskSpec
from s2m3.bench.placement.instances import CLASSES, WIRED_BITS_PER_S, WIRED_S, drawable_tasks
from s2m3.catalogue import load_task

SEED = 2026
CACHED = 3  # modules that each device held in an earlier life
LARGEST_BYTES = 5 * 10**9  # of a module: larger ones fit few classes of devices, and small sites none
LARGEST_OWN_BYTES = 50 * 10**6  # of a copy's own head
WEIGHT = 0.01  # requests a second of each task: one copy of a module is enough for them


def draw_devices(count: int) -> list[DeviceSpec]:
    """Devices of different classes; the first one is a gateway of the site, where requests start."""
    chance = random.Random(SEED)  # noqa: S311 - no secret
    kinds = [kind for kind in CLASSES if not kind.remote]
    drawn = chance.choices(kinds, [kind.weight for kind in kinds], k=count)
    return [
        DeviceSpec(
            id=f"device-{number:05}",
            memory_bytes=kind.usable_bytes,
            compute_flops_per_s=kind.compute_flops_per_s,
            bandwidth_bits_per_s=WIRED_BITS_PER_S,
            latency_s=WIRED_S,
        )
        for number, kind in enumerate(drawn)
    ]


def draw_tasks(count: int) -> list[TaskSpec]:
    """The catalogue's tasks in turn, without those of the largest modules; from the second round on, copies of them."""
    known = _catalogue()
    return [_copy(known[number % len(known)], number) for number in range(count)]


def draw_cached(tasks: list[TaskSpec], devices: int) -> list[dict[ModuleKey, ModuleSpec]]:
    """Modules whose weights each device has on its disk."""
    chance = random.Random(f"cached/{SEED}")  # noqa: S311 - no secret
    modules = {module.key: module for task in tasks for module in task.modules.values()}
    keys = sorted(modules)
    return [{key: modules[key] for key in chance.sample(keys, min(CACHED, len(keys)))} for _ in range(devices)]


@cache
def _catalogue() -> list[TaskSpec]:
    tasks = [load_task(name) for name in drawable_tasks()]
    return [task for task in tasks if max(module.memory_bytes for module in task.modules.values()) <= LARGEST_BYTES]


def _copy(task: TaskSpec, number: int) -> TaskSpec:
    """A task under a name of its own; from the second round on it has an output module of its own, if that is small."""
    fields, copy = task.model_dump(), number // len(_catalogue())
    head = fields["modules"][task.nodes[task.output].module]
    if copy and head["source"] and head["memory_bytes"] <= LARGEST_OWN_BYTES:
        head["digest"], head["source"]["revision"] = None, f"copy-{copy}"
    return TaskSpec.model_validate(fields | {"task": f"task-{number:03}", "weight": WEIGHT})
