"""The 95 instances: drawn with a fixed seed, written as files that ``s2m3 plan`` reads, and read back.

Owns their distribution, which is this:

- tasks: 1 to 6 different ones of the catalogue (hub and pocket), each count and each task equally likely; the weight of
  each is 0.5, 1 or 2;
- devices: 2 to 8, each count equally likely, of the ``CLASSES`` by their weights; at least one is on site;
- links: a server is behind the site's uplink (50 to 500 Mbit/s, 5 to 25 ms one way); any other device is, with equal
  chance, wired (940 Mbit/s, 0.2 ms) or on Wi-Fi (20 to 200 Mbit/s, 2 to 10 ms); rates uniform in their logarithm;
- sources: on site; in half of the instances one for all tasks, in the others drawn for each task;
- memory: in half of the draws what the class has; in the others all devices' memory is scaled down, so that together
  they have 1.05 to 1.5 times what the modules need.

A draw in which the modules can't be packed is drawn again. That is the only selection; what a solver makes of a draw
doesn't matter. A class's ``peak_flops_per_s`` is the data sheet's: cores x single-precision operations a cycle x clock.
The instances are about relative speeds, and an agent measures itself anyway. Knows nothing of solvers but ``packed``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, log
from pathlib import Path

from broker.cost_model import memory_bytes
from broker.files import load_spec
from broker.protocol.specs import DeviceSpec, FleetSpec, TaskSpec
from edge_agent import catalog
from orchestrator.planner.modules import distinct_modules
from orchestrator.planner.packing import packed
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
SUSTAINED_SHARE = 0.3
"""Of the peak, in float32 inference at batch 1: an assumption, the same for all classes."""
HEADROOM = 0.2
"""Of the memory left by the system, kept for activations: as an agent does by default."""


@dataclass(frozen=True)
class DeviceClass:
    """One kind of device: its figures, and how often it is drawn."""

    name: str
    peak_flops_per_s: float
    memory_bytes: int
    reserve_bytes: int  # the operating system's
    weight: int  # how often it is drawn, relative to the others
    remote: bool = False  # behind the site's uplink

    @property
    def compute_flops_per_s(self) -> float:
        """The operations per second that a network sustains there."""
        return self.peak_flops_per_s * SUSTAINED_SHARE

    @property
    def usable_bytes(self) -> int:
        """The memory that modules may occupy."""
        return round((self.memory_bytes - self.reserve_bytes) * (1 - HEADROOM))


GB = 10**9
CLASSES = (
    # Raspberry Pi 4 Model B, 4 GB: 4 Cortex-A72 at 1.5 GHz (raspberrypi.com, product brief), 8 operations a cycle
    # (one 128-bit fused multiply-add; measured at 7.9 a cycle: wlog.flatlib.jp, vfpbench, 2015).
    DeviceClass("pi4", 4 * 8 * 1.5e9, 4 * GB, 1 * GB, weight=2),
    # Raspberry Pi 5, 8 GB: 4 Cortex-A76 at 2.4 GHz (raspberrypi.com, product brief), 16 operations a cycle
    # (two 128-bit fused multiply-adds: Arm, Cortex-A76 Software Optimization Guide).
    DeviceClass("pi5", 4 * 16 * 2.4e9, 8 * GB, 1 * GB, weight=2),
    # NVIDIA Jetson Nano, 4 GB: 128 Maxwell cores at 921.6 MHz (Jetson Nano module data sheet; 472 GFLOP/s in float16).
    DeviceClass("jetson-nano", 128 * 2 * 921.6e6, 4 * GB, 1 * GB, weight=2),
    # NVIDIA Jetson Orin Nano, 8 GB: 1024 Ampere cores at 625 MHz (Jetson Orin Nano series data sheet).
    DeviceClass("jetson-orin", 1024 * 2 * 625e6, 8 * GB, 1 * GB, weight=2),
    # Laptop, 16 GB: AMD Ryzen 7 5800U, 8 Zen 3 cores at the base clock of 1.9 GHz (amd.com), 32 operations a cycle
    # (two 256-bit fused multiply-adds).
    DeviceClass("laptop", 8 * 32 * 1.9e9, 16 * GB, 4 * GB, weight=2),
    # Desktop with an NVIDIA GeForce RTX 3060, 12 GB: 3584 cores at 1.78 GHz boost (nvidia.com).
    DeviceClass("desktop", 3584 * 2 * 1.78e9, 12 * GB, 1 * GB, weight=1),
    # Server with an NVIDIA A100, 40 GB: 6912 cores at 1.41 GHz (A100 data sheet: 19.5 TFLOP/s in float32).
    DeviceClass("server", 6912 * 2 * 1.41e9, 40 * GB, 1 * GB, weight=1, remote=True),
)


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
        devices = instance.fleet.devices
        modules = [module for _, module in distinct_modules(instance.tasks).values()]
        sizes = [[memory_bytes(module, device) for device in devices] for module in modules]
        rooms = [device.memory_bytes for device in devices]
        if packed(sizes, rooms, [()] * len(sizes)) is not None:
            return instance


def drawable_tasks() -> list[str]:
    """The tasks of the catalogue that are drawn: embed tasks are later, and the instances stay what they were."""
    return [name for name in catalog.names() if "/embed-" not in name]


def _drawn(name: str, chance: random.Random) -> Instance:
    names = chance.sample(drawable_tasks(), chance.randint(1, MOST_TASKS))
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


def write(directory: Path) -> None:
    """Draw all instances and write each into a directory of its number."""
    for number in range(1, COUNT + 1):
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
