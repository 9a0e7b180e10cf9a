"""The moves from a placement to a better one that are worth making.

Owns what a move gains, what it must gain, and the memory that active copies leave. Knows nothing of when a move is
made, nor of loads.

Invariants:
- no round for less than ``GAIN_SHARE`` of its tasks' cost, and no move in it for less than ``GAIN_S``; of a short task
  a large share is enough (``least_gain_s``);
- no move from a device that is always on to one that isn't: that one gets copies beside (``preferred``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from broker.cost_model import memory_bytes, objective_s, source_of
from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, TaskSpec
from orchestrator.planner.copies import Homes
from orchestrator.planner.device_rows import sometimes_of
from orchestrator.planner.modules import distinct_modules

GAIN_SHARE = 0.15  # of the tasks' weighted seconds: measured averages waver by some ten percent under load
GAIN_S = 0.02  # weighted seconds: a wireless network's jitter is as large, and no person sees less
LARGE_SHARE = 0.25  # of a short task's seconds: two devices then also serve more requests at once ...
LEAST_GAIN_S = 0.005  # ... but below this, measured seconds say too little
Actives = Mapping[ModuleKey, tuple[DeviceId, ...]]
"""The devices with an active copy of each placed module."""


def free_bytes(tasks: Sequence[TaskSpec], actives: Actives, devices: Iterable[DeviceSpec]) -> dict[DeviceId, int]:
    """The memory that all active copies leave on each device."""
    modules, specs = distinct_modules(tasks), {device.id: device for device in devices}
    free = {name: device.memory_bytes for name, device in specs.items()}
    for key, homes in actives.items():
        for home in homes:
            if home in free:
                free[home] -= memory_bytes(modules[key][1], specs[home])
    return free


def least_gain_s(cost_s: float) -> float:
    """The gain that one move needs at least, if the tasks that use its module cost this much now."""
    return max(LEAST_GAIN_S, min(GAIN_S, LARGE_SHARE * cost_s))


class MoveCosts:
    """The cost of a placement, and of the same with some modules moved."""

    def __init__(self, devices: Iterable[DeviceSpec], tasks: Sequence[TaskSpec], where: Homes) -> None:
        self.devices = {device.id: device for device in devices}
        self.tasks, self.where = tasks, where
        self._sources = {task.task: source_of(task, self.devices) for task in tasks}
        self._users: dict[ModuleKey, list[int]] = {}
        for number, task in enumerate(tasks):
            for key in dict.fromkeys(task.module_of(node).key for node in task.nodes):
                self._users.setdefault(key, []).append(number)

    def cost_s(self, moves: Homes, *, of: Collection[ModuleKey]) -> float:
        """The objective of the tasks that use any module of ``of``, after these moves."""
        users = [self.tasks[number] for number in sorted({number for key in of for number in self._users[key]})]
        keys = {task.module_of(node).key for task in users for node in task.nodes}
        where = {key: self.devices[moves.get(key, self.where[key])] for key in keys}
        return objective_s(users, where, self._sources)

    def gain_s(self, moves: Homes) -> tuple[float, float]:
        """The gain of these moves in their tasks' objective, and the gain that they need to be made."""
        now_s = self.cost_s({}, of=moves)
        return now_s - self.cost_s(moves, of=moves), max(GAIN_SHARE * now_s, least_gain_s(now_s))

    def worthwhile(self, target: Homes, actives: Actives, doubtful: Collection[DeviceId]) -> dict[ModuleKey, DeviceId]:
        """The moves towards another placement that fit beside all active copies, and of which each gains enough."""
        modules, sometimes = distinct_modules(self.tasks), sometimes_of(self.devices.values())
        free = free_bytes(self.tasks, actives, self.devices.values())
        moves: dict[ModuleKey, DeviceId] = {}
        for key, (_, module) in modules.items():
            to = target[key]
            if to in doubtful or (to in sometimes and self.where[key] not in sometimes):
                continue  # a doubtful one may have a standby, which was placed before the doubt
            size_bytes = memory_bytes(module, self.devices[to])
            if to not in actives[key] and size_bytes <= free[to]:
                moves[key] = to
                free[to] -= size_bytes
        for key in reversed(list(moves)):
            others = {other: to for other, to in moves.items() if other != key}
            without_s = self.cost_s(others, of={key})  # not the cost now: the next round would compare with this one
            if without_s - self.cost_s(moves, of={key}) < least_gain_s(without_s):
                moves = others
        gain_s, needed_s = self.gain_s(moves) if moves else (0.0, 1.0)
        return moves if gain_s >= needed_s else {}
