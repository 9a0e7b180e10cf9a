"""``s2m3 bench placement --scale``: how the greedy solver's cost grows over four decades of devices and modules.

Owns the random sites and the measurement. Every device is different, sizes are those of real modules and machines, and
every task shares some of its modules. Times are processor seconds of one core, the least of some runs, so that other
programs on the machine don't count.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from time import process_time
from typing import Any, TypeVar

from broker.protocol.specs import DeviceSpec, InputSpec, ModuleSpec, NodeSpec, Source, TaskSpec
from orchestrator.planner.fleet import Fleet
from orchestrator.planner.placement import place

SEED = 2025
DECADES = ((1, 10), (10, 100), (100, 1_000), (1_000, 10_000))
"""Modules and devices."""
RUNS = 3
_INPUTS = {
    "image": InputSpec(kind="image", bytes=150_000),
    "text": InputSpec(kind="text", bytes=200),
    "audio": InputSpec(kind="audio", bytes=300_000),
}
_T = TypeVar("_T")


def site(modules: int, devices: int) -> tuple[list[DeviceSpec], list[TaskSpec]]:
    """A random site: distinct devices, and tasks of one to four encoders and a head that use all these modules."""
    chance = random.Random(SEED)  # noqa: S311 - no secret
    fleet = [
        DeviceSpec(
            id=f"device-{number:05}",
            memory_bytes=int(10 ** chance.uniform(8.7, 10.2)),  # 0.5 to 16 GB
            compute_flops_per_s=10 ** chance.uniform(10, 13),
            bandwidth_bits_per_s=10 ** chance.uniform(7, 9),
            latency_s=10 ** chance.uniform(-4, -2),
        )
        for number in range(devices)
    ]
    heads = [_module(chance, f"head-{number}", (3, 6), (0.6, 6)) for number in range(max(1, modules // 4))]
    encoders = [
        _module(chance, f"encoder-{number}", (9, 12), (7, 9.3)) for number in range(max(0, modules - len(heads)))
    ]
    unused, tasks = list(encoders), list[TaskSpec]()
    while unused or len(tasks) < len(heads):
        chosen = [unused.pop() for _ in range(min(len(unused), chance.randint(1, 3)))]
        if encoders and chance.random() < 0.5:  # noqa: PLR2004 - every second one shares another task's encoder
            chosen.append(chance.choice(encoders))
        tasks.append(_task(f"task-{len(tasks):03}", chosen, heads[len(tasks) % len(heads)], chance.choice(fleet).id))
    return fleet, tasks


def _module(chance: random.Random, part: str, flops: tuple[float, float], size: tuple[float, float]) -> ModuleSpec:
    return ModuleSpec(
        family="any.kind",
        source=Source(hub="made/up", part=part),
        memory_bytes=int(10 ** chance.uniform(*size)),
        flops=10 ** chance.uniform(*flops),
        output_bytes=int(10 ** chance.uniform(2.5, 6)),
    )


def _task(name: str, encoders: Sequence[ModuleSpec], head: ModuleSpec, source: str) -> TaskSpec:
    used = list({module.key: module for module in encoders}.values())
    kinds = list(_INPUTS)
    nodes = {
        f"encoder-{number}": NodeSpec(module=f"encoder-{number}", needs=(kinds[number % len(kinds)],))
        for number in range(len(used))
    }
    return TaskSpec(
        task=name,
        source=source,
        inputs=_INPUTS,
        nodes={**nodes, "head": NodeSpec(module="head", needs=tuple(nodes) or ("text",))},
        output="head",
        modules={**{f"encoder-{number}": module for number, module in enumerate(used)}, "head": head},
    )


def measure(modules: int, devices: int, *, runs: int = RUNS) -> dict[str, int | float]:
    """Plan one site, lose the device with most modules, plan again: the site's size, and the seconds of each step."""
    specs, tasks = site(modules, devices)
    fleet_s, fleet = _least(runs, lambda: Fleet(specs))
    greedy_s, before = _least(runs, lambda: place(fleet, tasks))
    ((lost, on_it),) = Counter(before.where.values()).most_common(1)
    left = [spec for spec in specs if spec.id != lost]
    replan_s, after = _least(runs, lambda: place(left, tasks, keep=before.where))
    return {
        "modules": len(before.where),
        "devices": devices,
        "tasks": len(tasks),
        "fleet_s": fleet_s,  # from device specs to arrays, once
        "greedy_s": greedy_s,
        "replan_s": replan_s,  # arrays included
        "lost_modules": on_it,
        "moved_modules": sum(home != after.where[key] for key, home in before.where.items()),
    }


def _least(runs: int, work: Callable[[], _T]) -> tuple[float, _T]:
    """The least processor seconds that this took, and its result."""
    taken = []
    for _ in range(runs):
        start_s = process_time()
        result = work()
        taken.append(process_time() - start_s)
    return min(taken), result


def document() -> dict[str, Any]:
    """All decades measured: the document that ``bench placement --scale --json`` prints."""
    scales = [measure(modules, devices) for modules, devices in DECADES]
    return {"seed": SEED, "runs": RUNS, "scale": scales}
