"""Further copies of a shared module: for tasks that no one device may serve together.

Owns which of its tasks a copy of a module serves, and where the copy may stand. To the planner a further copy is a
module of its own, with a key of its own. Knows nothing of costs, nor of free memory.

Invariants:
- a module has one copy, unless no device may hold it for all of its tasks. Then each task, in the order of their names,
  takes the first copy that can still serve it, else a new one;
- a copy that stands somewhere stays: a task that may run there takes it, and no other task makes it move. So a module
  may have more copies than it would have if all were placed at once;
- a copy that stays keeps its number, unless fewer copies are needed: the numbers of n copies are 1 to n;
- a task joins no copy for which one of the two would lose the last device that is always on;
- two copies of a module never stand on one device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import and_
from typing import TYPE_CHECKING

from broker.cost_model import may_run, runnable
from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, ModuleName, ModuleSpec, TaskName, TaskSpec
from orchestrator.planner.device_rows import DeviceRows, RowSet
from orchestrator.planner.modules import distinct_modules

if TYPE_CHECKING:
    from orchestrator.planner.fleet import Fleet

Bars = Mapping[ModuleKey, Mapping[DeviceId, str]]
"""Module key to the devices that must not get it, each with the reason."""
AtHand = Mapping[ModuleKey, Collection[DeviceId]]
"""Module key to the devices that hold its weights, or have them on disk."""
AT_HAND_SHARE = 0.1
"""A device without a module's weights gets the module only if that saves more than this share of the seconds that the
module's tasks take on the one device that is best for all of them. Loading costs seconds, too, and moves for a small
gain make a site restless."""
Homes = Mapping[ModuleKey, DeviceId]
"""The device of each copy. The first copy of a module has the module's own key."""
FurtherCopies = Mapping[TaskName, Mapping[ModuleKey, int]]
"""For each task the modules of which it uses a further copy, each with the copy's number, from 2."""


class FurtherCopy(ModuleSpec):
    """A further copy of a module, for some of its tasks."""

    number: int

    @cached_property
    def key(self) -> ModuleKey:
        """The key of the copy; ``original_key`` gives the module's own."""
        return copy_key(super().key, self.number)

    @property
    def measured_key(self) -> ModuleKey:
        """The module's own key: devices know no copies."""
        return original_key(self.key)


def copy_key(key: ModuleKey, number: int) -> ModuleKey:
    """The key of a module's copy; that of the first one is the module's own."""
    return key if number == 1 else f"{key}|{number}"


def original_key(copy: ModuleKey) -> ModuleKey:
    """The key of the module of which this is a copy."""
    key, _, number = copy.rpartition("|")
    return key if number.isdecimal() else copy  # a module's own key ends with a dtype or a digest


def copy_number(copy: ModuleKey) -> int:
    """The number of a copy; 1 for a module's own key."""
    _, _, number = copy.rpartition("|")
    return int(number) if number.isdecimal() else 1


def why_may_not_run(task: TaskSpec, device: DeviceSpec) -> str | None:
    """The reason why a task's nodes may not run on a device; None if they may (``cost_model.may_run``)."""
    if task.devices is not None and device.id not in task.devices:
        return f"{task.task} may only use {', '.join(task.devices)}"
    if device.tasks is not None and task.task not in device.tasks:
        return f"it may only serve {', '.join(device.tasks)}" if device.tasks else "it holds nothing"
    return None


def why_cannot_run(name: ModuleName, module: ModuleSpec, device: DeviceSpec) -> str | None:
    """The reason why no engine of a device runs a module; None if one does (``cost_model.runnable``)."""
    if runnable(module, device) is not None:
        return None
    runs = f"it runs {', '.join(device.engines) or 'no engine'}"
    if "onnx" in device.engines:
        return f"{runs} and has no export of {name} (s2m3 models export {name})"
    return f"{runs}, and {name} needs {' or '.join([module.engine, *(each.engine for each in module.variants)])}"


def with_further_copies(tasks: Sequence[TaskSpec], further: FurtherCopies) -> list[TaskSpec]:
    """The tasks, in which each further copy of a module is a module of its own."""
    return [_with_copies(task, further[task.task]) if further.get(task.task) else task for task in tasks]


def _with_copies(task: TaskSpec, numbers: Mapping[ModuleKey, int]) -> TaskSpec:
    copies = {
        name: FurtherCopy.model_construct(**dict(module), number=numbers[module.key])
        for name, module in task.modules.items()
        if module.key in numbers
    }
    return task.model_copy(update={"modules": {**task.modules, **copies}})


class Constraints:
    """Where each task may run, and where each module can."""

    def __init__(self, devices: DeviceRows, tasks: Sequence[TaskSpec]) -> None:
        self.devices = devices
        self.modules = {key: module for key, (_, module) in distinct_modules(tasks).items()}
        limited = [spec for spec in devices.specs if spec.tasks is not None]
        self.bind = (
            bool(limited)
            or any(task.devices is not None for task in tasks)
            or not all(devices.runs(module) == devices.all for module in self.modules.values())
        )
        """Whether any task may run, or any module can, only on some devices."""
        unlimited = devices.all & ~devices.set_of(spec.id for spec in limited)
        self._may_run: dict[TaskName, RowSet] = {}
        for task in tasks if self.bind else ():
            able, asked = unlimited, limited
            if task.devices is not None:
                asked = [devices.specs[devices.rows[name]] for name in task.devices if name in devices.rows]
                able = 0
            self._may_run[task.task] = able | devices.set_of(spec.id for spec in asked if may_run(task, spec))

    def may_run(self, task: TaskSpec) -> RowSet:
        """Where a task's nodes may run: ``cost_model.may_run``."""
        return self._may_run[task.task] if self.bind else self.devices.all


@dataclass
class _Copy:
    """A copy: the rows that may hold it for all tasks that it serves so far."""

    able: RowSet
    home: DeviceId | None = None
    number: int = 0  # that it has; 0: none
    tasks: list[TaskName] = field(default_factory=list)


def separate(tasks: Sequence[TaskSpec], fleet: Fleet, homes: Homes, barred: Bars) -> tuple[FurtherCopies, Homes]:
    """Which tasks use a further copy of which module, and where each copy stands.

    Args:
        tasks: with the modules' own keys; names are distinct.
        fleet: the devices that may hold modules.
        homes: where copies stand; of one module, a task takes the first of this order that it may.
        barred: devices that must not get a module.

    Returns:
        The further copies, and the homes by the keys that the copies have now.
    """
    constraints = Constraints(fleet, tasks)
    if not constraints.bind:
        return {}, homes
    standing: dict[ModuleKey, list[_Copy]] = defaultdict(list)
    for name, home in homes.items():
        if home in fleet.rows:
            standing[original_key(name)].append(_Copy(fleet.set_of([home]), home, copy_number(name)))
    further: dict[TaskName, dict[ModuleKey, int]] = {}
    stay: dict[ModuleKey, DeviceId] = {}
    for key, using in _users(tasks).items():
        copies = standing[key]
        runs, fits = fleet.runs(constraints.modules[key]), fleet.fits(constraints.modules[key])
        bars = fleet.set_of(barred.get(key, ()))
        for task in using:
            allowed = constraints.may_run(task) & runs
            _join(copies, task.task, allowed & fits & ~bars or allowed, fleet.all & ~fleet.part_time)
        for number, copy in _numbered([copy for copy in copies if copy.tasks]).items():
            if copy.home is not None:
                stay[copy_key(key, number)] = copy.home
            for name in copy.tasks if number > 1 else ():
                further.setdefault(name, {})[key] = number
    return further, stay


def _users(tasks: Sequence[TaskSpec]) -> dict[ModuleKey, list[TaskSpec]]:
    """The tasks that use each module, in the order of their names."""
    users: dict[ModuleKey, list[TaskSpec]] = defaultdict(list)
    for task in sorted(tasks, key=lambda task: task.task):
        modules = sorted(map(task.module_of, task.nodes), key=lambda module: module.memory_bytes)
        for key in dict.fromkeys(module.key for module in modules):
            users[key].append(task)
    return users


def _join(copies: list[_Copy], task: TaskName, able: RowSet, always: RowSet) -> None:
    """Let a task use the first copy that some device can hold for it, too; else a new one."""
    copy = next((copy for copy in copies if _may_join(copy.able, able, always)), None)
    if copy is None:
        copies.append(copy := _Copy(able))
    copy.able &= able
    copy.tasks.append(task)


def _may_join(copy: RowSet, task: RowSet, always: RowSet) -> bool:
    """Whether some device can hold a copy for another task, too: one that is always on, if either has such a one."""
    both = copy & task
    return bool(both & always or (both and not (copy | task) & always))


def _numbered(copies: Sequence[_Copy]) -> dict[int, _Copy]:
    """The copies of a module by number: each has the one that it had, as far as there are so many copies."""
    numbered = {copy.number: copy for copy in copies if 0 < copy.number <= len(copies)}
    free = (number for number in range(1, len(copies) + 1) if number not in numbered)
    return numbered | {next(free): copy for copy in copies if numbered.get(copy.number) is not copy}


def where_copies_may_be(tasks: Sequence[TaskSpec], devices: DeviceRows, homes: Homes) -> dict[ModuleKey, RowSet]:
    """The devices that may hold each copy, for all tasks that it serves; no copy if all may be everywhere.

    Args:
        tasks: in which each further copy is a module of its own.
        devices: those that may hold modules.
        homes: where copies stand: another copy of the same module may not be there.
    """
    constraints = Constraints(devices, tasks)
    able: dict[ModuleKey, RowSet] = {}
    copies: dict[ModuleKey, list[ModuleKey]] = defaultdict(list)
    for key, using in _users(tasks).items() if constraints.bind else ():
        able[key] = reduce(and_, map(constraints.may_run, using), devices.runs(constraints.modules[key]))
        copies[original_key(key)].append(key)
    for keys in copies.values():
        own = {key: devices.set_of([homes[key]]) for key in sorted(keys) if homes.get(key) in devices.rows}
        taken = devices.set_of(homes[key] for key in own)
        for key in (
            sorted(keys, key=lambda key: (key in own, key)) if len(keys) > 1 else ()
        ):  # those without a home first
            able[key] &= ~taken | own.get(key, 0)
            taken |= able[key]
    return able
