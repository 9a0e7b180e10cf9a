"""Which device holds which module: the greedy rule, with sharing, and what to do when not everything fits.

Owns ``place`` (all tasks or an error) and ``place_most`` (as many tasks as fit, and why not the others). Knows nothing
of liveness, epochs or messages: devices come in as specs, and whoever is listed may be used.

Invariants:
- a module is placed once however many tasks need it, and its memory counts once;
- on no device do the modules need more than its ``memory_bytes``;
- equal arguments in any order give the equal placement: ties go to the smaller device id.

Source of the greedy rule (compute-heavy modules first, each where it costs least): "S2M3: Split-and-Share Multi-Modal
Models for Distributed Multi-Task Inference on the Edge" (ICDCS 2025).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from broker.errors import NoDeviceFits
from broker.specs import DeviceId, DeviceSpec, ModuleKey, ModuleName, ModuleSpec, TaskName, TaskSpec
from orchestrator.costs import latency_s, objective_s, source_of
from orchestrator.fleet import Fleet

Bars = Mapping[ModuleKey, Mapping[DeviceId, str]]
"""Module key to the devices that must not get it, each with the reason."""
AtHand = Mapping[ModuleKey, Collection[DeviceId]]
"""Module key to the devices that hold its weights, or have them on disk."""
AT_HAND_SHARE = 0.1
"""A device without a module's weights gets it only if its tasks' latency is better there by more than this share."""


def never() -> bool:
    """The clock of a caller who has all the time."""
    return False


@dataclass(frozen=True)
class Explanation:
    """Why a module is where it is, and for each other device why it isn't there."""

    module: ModuleName
    device: DeviceId
    why: str
    rejected: Mapping[DeviceId, str]


@dataclass(frozen=True)
class DeviceUse:
    """A device's memory in this placement."""

    used_bytes: int
    capacity_bytes: int


@dataclass(frozen=True)
class Placement:
    """Where each module is, what that costs, and why. ``unshared_bytes``: were each task to hold modules of its own."""

    where: Mapping[ModuleKey, DeviceId]
    objective_s: float
    latency_s: Mapping[TaskName, float]
    use: Mapping[DeviceId, DeviceUse]
    shared_bytes: int
    unshared_bytes: int
    explain: Mapping[ModuleKey, Explanation]


def distinct_modules(tasks: Sequence[TaskSpec]) -> dict[ModuleKey, tuple[ModuleName, ModuleSpec]]:
    """The modules that these tasks' nodes use, each once, in greedy order: flops, then memory, descending; then key.

    Where specs of one key disagree, the one that asks for most memory counts, so that no budget is exceeded.
    """
    found: dict[ModuleKey, tuple[ModuleName, ModuleSpec]] = {}
    for task in sorted(tasks, key=lambda task: task.task):
        for node in task.nodes.values():
            module = task.modules[node.module]
            known = found.get(module.key)
            if known is None or (module.memory_bytes, module.flops) > (known[1].memory_bytes, known[1].flops):
                found[module.key] = (node.module, module)
    order = sorted(found, key=lambda key: (-found[key][1].flops, -found[key][1].memory_bytes, key))
    return {key: found[key] for key in order}


def place(
    devices: Sequence[DeviceSpec] | Fleet,
    tasks: Sequence[TaskSpec],
    *,
    keep: Mapping[ModuleKey, DeviceId] | None = None,
    default_source: DeviceSpec | None = None,
    barred: Bars | None = None,
    at_hand: AtHand | None = None,
) -> Placement:
    """Place every module of every task.

    Args:
        devices: those that may hold modules.
        tasks: what to serve; names are distinct.
        keep: modules that stay where they are, if that device is listed, not barred, and still has the memory.
        default_source: where requests of a task start that names no listed source.
        barred: devices that must not get a module.
        at_hand: devices that have a module's weights; preferred unless another is better by ``AT_HAND_SHARE``.

    Raises:
        NoDeviceFits: a module finds no device with enough memory left.
    """
    board = _Board.empty(devices, tasks, default_source)
    modules = distinct_modules(tasks)
    barred = barred or {}
    for key, (name, module) in modules.items():
        home = (keep or {}).get(key)
        if home in board.devices and home not in barred.get(key, {}) and module.memory_bytes <= board.room(home):
            board.put(key, module, board.devices[home])
            board.explain[key] = Explanation(name, home, "stays where it is", {})
    for key, (name, module) in modules.items():
        if key not in board.where:
            _choose(board, key, name, module, barred=barred.get(key, {}), at_hand=(at_hand or {}).get(key, ()))
    return board.finished(modules)


def place_most(
    devices: Sequence[DeviceSpec] | Fleet,
    tasks: Sequence[TaskSpec],
    *,
    keep: Mapping[ModuleKey, DeviceId] | None = None,
    served: Collection[TaskName] = (),
    default_source: DeviceSpec | None = None,
    barred: Bars | None = None,
    at_hand: AtHand | None = None,
    enough: Callable[[], bool] = never,
) -> tuple[Placement, dict[TaskName, NoDeviceFits]]:
    """Place as many tasks as fit, and say of each other task why it doesn't.

    What is placed stays if everything fits that way; else it may move; else tasks are admitted one by one: those served
    now first, then the heavier weight, then by name. So a new task never drives out a served one. A refusal says what
    lacks beside the tasks that were admitted.

    Args:
        devices: as for ``place``.
        tasks: what would be served, if all fits.
        keep: as for ``place``.
        served: the tasks that are served now.
        default_source: as for ``place``.
        barred: as for ``place``.
        at_hand: as for ``place``.
        enough: whether the caller's time is over; it only ends the search for something better earlier.
    """

    def attempt(wanted: Sequence[TaskSpec], *ways: Mapping[ModuleKey, DeviceId]) -> Placement:
        try:
            return place(devices, wanted, keep=ways[0], default_source=default_source, barred=barred, at_hand=at_hand)
        except NoDeviceFits:
            if not ways[1:]:
                raise
            return attempt(wanted, *ways[1:])

    keep = keep or {}
    enough()
    with contextlib.suppress(NoDeviceFits):
        return attempt(tasks, keep, {}), {}
    placement = attempt([], {})
    admitted: list[TaskSpec] = []
    refused: dict[TaskName, NoDeviceFits] = {}
    waiting = sorted(tasks, key=lambda task: (task.task not in served, -task.weight, task.task))
    while waiting:  # again, until nobody was admitted: each reason is then about the placement that stands
        refused = {}
        for task in waiting:
            try:
                placement = attempt([*admitted, task], keep, {}, placement.where)
                admitted.append(task)
            except NoDeviceFits as refusal:
                refused[task.task] = refusal
        if len(refused) == len(waiting):
            break
        waiting = [task for task in waiting if task.task in refused]
    return placement, refused


@dataclass
class _Board:
    """A placement in the making."""

    devices: dict[DeviceId, DeviceSpec]  # by id, in order
    tasks: dict[TaskName, TaskSpec]  # by name, in order
    sources: dict[TaskName, DeviceSpec]
    users: dict[ModuleKey, list[TaskName]]
    used_bytes: dict[DeviceId, int]
    where: dict[ModuleKey, DeviceSpec] = field(default_factory=dict)
    explain: dict[ModuleKey, Explanation] = field(default_factory=dict)

    @classmethod
    def empty(
        cls, devices: Sequence[DeviceSpec] | Fleet, tasks: Sequence[TaskSpec], default_source: DeviceSpec | None
    ) -> _Board:
        by_id = {device.id: device for device in Fleet.of(devices).devices}
        by_name = {task.task: task for task in sorted(tasks, key=lambda task: task.task)}
        users: dict[ModuleKey, list[TaskName]] = {}
        for task in by_name.values():
            for key in sorted({task.module_of(node).key for node in task.nodes}):
                users.setdefault(key, []).append(task.task)
        sources = {name: source_of(task, by_id, default_source) for name, task in by_name.items()}
        return cls(by_id, by_name, sources, users, dict.fromkeys(by_id, 0))

    def room(self, device: DeviceId) -> int:
        """Bytes left there."""
        return self.devices[device].memory_bytes - self.used_bytes[device]

    def put(self, key: ModuleKey, module: ModuleSpec, device: DeviceSpec) -> None:
        """Place a module for good."""
        self.where[key] = device
        self.used_bytes[device.id] += module.memory_bytes

    def cost(self, key: ModuleKey, device: DeviceSpec | None) -> float:
        """The objective's share of the tasks that use this module, were it there, or nowhere. It changes no other's."""
        where = self.where if device is None else {**self.where, key: device}
        return objective_s([self.tasks[name] for name in self.users[key]], where, self.sources)

    def finished(self, modules: Mapping[ModuleKey, tuple[ModuleName, ModuleSpec]]) -> Placement:
        """The result, once every module is placed."""
        latency = {name: latency_s(task, self.where, self.sources[name]) for name, task in self.tasks.items()}
        unshared = sum(modules[key][1].memory_bytes * len(self.users[key]) for key in modules)
        return Placement(
            where={key: self.where[key].id for key in modules},
            objective_s=objective_s(self.tasks.values(), self.where, self.sources),
            latency_s=latency,
            use={name: DeviceUse(self.used_bytes[name], spec.memory_bytes) for name, spec in self.devices.items()},
            shared_bytes=sum(module.memory_bytes for _, module in modules.values()),
            unshared_bytes=unshared,
            explain={key: self.explain[key] for key in modules},
        )


def _choose(
    board: _Board,
    key: ModuleKey,
    name: ModuleName,
    module: ModuleSpec,
    *,
    barred: Mapping[DeviceId, str],
    at_hand: Collection[DeviceId],
) -> None:
    """Put the module where it adds least to the objective, and write down why there and why nowhere else."""
    rejected = {device: reason for device, reason in barred.items() if device in board.devices}
    short = {
        device: module.memory_bytes - board.room(device)
        for device in board.devices
        if device not in rejected and module.memory_bytes > board.room(device)
    }
    costs = {
        device: board.cost(key, spec)
        for device, spec in board.devices.items()
        if device not in rejected and device not in short
    }
    if not costs:
        raise NoDeviceFits(module=name, memory_bytes=module.memory_bytes, short_bytes=short)
    best = min(costs, key=lambda device: (costs[device], device))
    near = [device for device in costs if device in at_hand and costs[device] <= costs[best] * (1 + AT_HAND_SHARE)]
    best = min(near or [best], key=lambda device: (costs[device], device))
    added = max(0.0, costs[best] - board.cost(key, None))
    rejected |= {device: f"memory short by {missing} bytes" for device, missing in short.items()}
    rejected |= {device: _slower(cost - costs[best]) for device, cost in costs.items() if device != best}
    why = f"adds {added:.3g} s" + (", the least" if len(costs) > 1 else "; no other device can take it")
    board.put(key, module, board.devices[best])
    board.explain[key] = Explanation(name, best, why, dict(sorted(rejected.items())))


def _slower(by_s: float) -> str:
    return f"slower by {by_s:.3g} s" if by_s > 0 else "as fast, but later in the alphabet"
