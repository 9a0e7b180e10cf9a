"""The 95 instances: drawn with a fixed seed, written as files that ``s2m3 plan`` reads, and read back.

Owns their distribution, which is this:

- tasks: 1 to 6 different ones of the catalogue (hub and pocket), each count and each task equally likely; the weight of
  each is 0.5, 1 or 2;
- devices: 2 to 8, each count equally likely, of the ``classes`` by their weights; at least one is on site;
- links: a server is behind the site's uplink (50 to 500 Mbit/s, 5 to 25 ms one way); any other device is, with equal
  chance, wired (940 Mbit/s, 0.2 ms) or on Wi-Fi (20 to 200 Mbit/s, 2 to 10 ms); rates uniform in their logarithm;
- sources: on site; in half of the instances one for all tasks, in the others drawn for each task;
- memory: in half of the draws what the class has; in the others all devices' memory is scaled down, so that together
  they have 1.05 to 1.5 times what the modules need.

A draw in which the modules can't be packed is drawn again. That is the only selection; what a solver makes of a draw
doesn't matter. Knows nothing of solvers but ``fits``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, log
from pathlib import Path

from broker.files import load_spec
from broker.protocol.specs import DeviceSpec, FleetSpec, TaskSpec
from edge_agent import catalog
from orchestrator.planner.cp_sat_model import fits
from orchestrator.planner.placement import distinct_modules
from s2m3.bench.placement.classes import CLASSES
from s2m3.catalogue import TaskList, TaskUse, load_task, load_tasks

COUNT = 95
SEED = "2025"
MOST_TASKS = 6
DEVICES = (2, 8)
WEIGHTS = (0.5, 1.0, 2.0)
TIGHT = (1.05, 1.5)
WIRED_BITS_PER_S, WIRED_S = 940e6, 0.0002
WIFI_BITS_PER_S, WIFI_S = (20e6, 200e6), (0.002, 0.01)
UPLINK_BITS_PER_S, UPLINK_S = (50e6, 500e6), (0.005, 0.025)
FLEET_FILE, TASKS_FILE = "fleet.yaml", "tasks.yaml"


@dataclass(frozen=True)
class Instance:
    """One fleet and what it is to serve."""

    name: str
    fleet: FleetSpec
    uses: TaskList
    tasks: tuple[TaskSpec, ...]
    tight: bool


def draw(number: int, *, seed: str = SEED) -> Instance:
    """The instance of this number; the same for ever, as long as the catalogue and the classes stay."""
    chance = random.Random(f"{seed}/{number}")  # noqa: S311 - no secret
    while True:
        instance = _drawn(f"{number:03}", chance)
        sizes = [module.memory_bytes for _, module in distinct_modules(instance.tasks).values()]
        if fits(sizes, [device.memory_bytes for device in instance.fleet.devices]):
            return instance


def _drawn(name: str, chance: random.Random) -> Instance:
    names = chance.sample(catalog.names(), chance.randint(1, MOST_TASKS))
    specs = [_known(task) for task in names]
    tight = chance.random() < 0.5  # noqa: PLR2004 - half of them
    devices = _devices(chance)
    if tight:
        needed = sum(module.memory_bytes for _, module in distinct_modules(specs).values())
        scale = needed * _between(chance, TIGHT) / sum(device.memory_bytes for device in devices)
        tight = scale < 1
        if tight:
            devices = [d.model_copy(update={"memory_bytes": round(d.memory_bytes * scale)}) for d in devices]
    on_site = [device.id for device in devices if not device.id.startswith("server")]
    home = chance.choice(on_site)
    alike = chance.random() < 0.5  # noqa: PLR2004 - half of them
    uses = TaskList(
        tasks=tuple(
            TaskUse(task=task, source=home if alike else chance.choice(on_site), weight=chance.choice(WEIGHTS))
            for task in names
        )
    )
    tasks = tuple(use.applied(spec) for use, spec in zip(uses.tasks, specs, strict=True))
    return Instance(name, FleetSpec(source=home, devices=tuple(devices)), uses, tasks, tight)


_known = cache(load_task)  # the same 28 tasks again and again


def _devices(chance: random.Random) -> list[DeviceSpec]:
    weights = [kind.weight for kind in CLASSES]
    count = chance.randint(*DEVICES)
    kinds = chance.choices(CLASSES, weights, k=count)
    while all(kind.remote for kind in kinds):
        kinds = chance.choices(CLASSES, weights, k=count)
    devices = []
    for position, kind in enumerate(kinds):
        bits_per_s, latency_s = WIRED_BITS_PER_S, WIRED_S
        if kind.remote:
            bits_per_s, latency_s = _between(chance, UPLINK_BITS_PER_S), _between(chance, UPLINK_S)
        elif chance.random() < 0.5:  # noqa: PLR2004 - half of them
            bits_per_s, latency_s = _between(chance, WIFI_BITS_PER_S), _between(chance, WIFI_S)
        devices.append(
            DeviceSpec(
                id=f"{kind.name}-{position + 1}",
                memory_bytes=kind.usable_bytes,
                compute_flops_per_s=kind.compute_flops_per_s,
                bandwidth_bits_per_s=float(f"{bits_per_s:.3g}"),
                latency_s=float(f"{latency_s:.3g}"),
            )
        )
    return devices


def _between(chance: random.Random, bounds: tuple[float, float]) -> float:
    return exp(chance.uniform(log(bounds[0]), log(bounds[1])))


def texts(instance: Instance) -> dict[str, str]:
    """The instance as files: name to content."""
    kind = "memory scaled down to 1.05 to 1.5 times the need" if instance.tight else "memory as the classes have it"
    fleet = [f"# Instance {instance.name}: {kind}", f"source: {instance.fleet.source}", "devices:"]
    fleet += [
        f"  - {{id: {d.id}, memory_bytes: {d.memory_bytes}, compute_flops_per_s: {d.compute_flops_per_s!r}, "
        f"bandwidth_bits_per_s: {d.bandwidth_bits_per_s!r}, latency_s: {d.latency_s!r}}}"
        for d in instance.fleet.devices
    ]
    tasks = ["tasks:"]
    tasks += [f"  - {{task: {u.task}, source: {u.source}, weight: {u.weight!r}}}" for u in instance.uses.tasks]
    return {FLEET_FILE: "\n".join(fleet) + "\n", TASKS_FILE: "\n".join(tasks) + "\n"}


def write(directory: Path, *, count: int = COUNT) -> None:
    """Draw all instances and write each into a directory of its number."""
    for number in range(1, count + 1):
        instance = draw(number)
        folder = directory / instance.name
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts(instance).items():
            (folder / name).write_text(text, encoding="utf-8")


def read(directory: Path) -> Sequence[tuple[str, FleetSpec, tuple[TaskSpec, ...]]]:
    """The instances below a directory, by name.

    Raises:
        BadFile: one of their files is wrong.
    """
    return [
        (
            path.parent.name,
            load_spec(path, FleetSpec),
            tuple(each.spec for each in load_tasks(path.parent / TASKS_FILE)),
        )
        for path in sorted(directory.glob(f"*/{FLEET_FILE}"))
    ]
