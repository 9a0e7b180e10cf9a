"""Further copies of modules in the memory that a placement leaves: loaded standbys first, then active replicas.

Owns which module gets a second copy, and where. Knows nothing of liveness, of messages, or of loaded modules; it never
changes ``where``, the copies that planning counts.

Invariants:
- active copies, standbys and replicas together never need more than a device's ``memory_bytes``: spares take only the
  memory that is left, so no task loses its place to them;
- no device holds two copies of a module, and each holds only copies for tasks that may run there;
- equal arguments give equal spares, and spares that come back as ``kept`` are chosen again, so that the choice settles;
- a replica is a standby that also works: a module with replicas needs no standby beside them;
- copies on devices that are on only sometimes are replicas beside all that: the other devices get the spares that they
  would have without them. There are those that make tasks faster (``preferred``), those that exist while there is room,
  and one of each module that has no other spare.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from broker.cost_model import compute_s, memory_bytes, objective_s, source_of
from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, TaskSpec
from orchestrator.planner.copies import AT_HAND_SHARE, AtHand, Bars, original_key, where_copies_may_be
from orchestrator.planner.device_rows import DeviceRows, sometimes_of
from orchestrator.planner.modules import distinct_modules

EXPECTED_LOAD_BYTES_PER_S = 100e6  # of a load that was never measured: the speed of a gateway's SD card
UTILISATION = 0.7
"""The share of its time that a copy may be busy: at it, requests wait 2.3 times as long as they compute (M/M/1)."""
KEEP_FACTOR = 2.0  # another module takes a standby's memory only if it is so many times as urgent
KEEP_REPLICA_FACTOR = 1.25  # a replica is given up only if the rate is so far below the one that called for it
_COMPARED = 16  # devices with an exact cost for each standby: the fastest, beside those that have the weights


@dataclass(frozen=True)
class Spares:
    """Copies beyond the one that planning counts: ``standby`` are loaded and wait, ``replicas`` serve as well."""

    standby: Mapping[ModuleKey, tuple[DeviceId, ...]] = field(default_factory=dict)
    replicas: Mapping[ModuleKey, tuple[DeviceId, ...]] = field(default_factory=dict)

    def of(self, key: ModuleKey) -> tuple[DeviceId, ...]:
        """The devices with a spare copy of this module: replicas, then standbys."""
        return (*self.replicas.get(key, ()), *self.standby.get(key, ()))


NO_SPARES = Spares()


def blast_radius(tasks: int, memory_bytes: int, load_s: float | None = None) -> float:
    """The gain of a standby per byte: tasks that stop without the module x seconds to load it / bytes.

    Without a measured ``load_s``, the seconds that a slow disk would need.
    """
    return tasks * (load_s or memory_bytes / EXPECTED_LOAD_BYTES_PER_S) / memory_bytes


def spares(
    devices: Sequence[DeviceSpec],
    tasks: Sequence[TaskSpec],
    where: Mapping[ModuleKey, DeviceId],
    *,
    load_s: Mapping[ModuleKey, float] | None = None,
    barred: Bars | None = None,
    at_hand: AtHand | None = None,
    kept: Spares = NO_SPARES,
    pinned: Mapping[ModuleKey, DeviceId] | None = None,
    preferred: Mapping[ModuleKey, DeviceId] | None = None,
    only: AtHand | None = None,
) -> Spares:
    """Choose standbys, then replicas, for the memory that a placement leaves.

    Standbys go by blast radius, one a module, to the device where the tasks would be served best if the active copy's
    device died. A module gets replicas while its rate is above ``UTILISATION`` of the rate that its active copies can
    serve; a standby that is there already becomes one.

    Args:
        devices: those that may hold modules.
        tasks: the tasks that are placed, in which each further copy (``copies``) is a module of its own; their weights
            are requests per second.
        where: the active copy of each module, and of each further one.
        load_s: measured seconds to load.
        barred: devices that must not get a module.
        at_hand: devices that have a module's weights; preferred unless another is better by ``AT_HAND_SHARE``.
        kept: the spares so far; they stay unless a much more urgent module needs the memory.
        pinned: standbys that are needed because a copy will move there; left out only if there is no memory.
        preferred: copies that make tasks faster, on devices that are on only sometimes.
        only: if given, a module's spares may be only on the devices that it names, but for pinned ones.
    """
    if only is not None:
        devices = _concerned(devices, tasks, where, {*(pinned or {}).values()}.union(*only.values()))
    selection = _SpareSelection(devices, tasks, where, barred=barred or {}, at_hand=at_hand or {}, kept=kept, only=only)
    for key, device in (pinned or {}).items():
        if key in selection.modules and selection.may_take(key, device, pinned=True):
            selection.add_standby(key, device)
    by_urgency = selection.by_urgency(load_s or {})
    selection.add_sometimes(preferred or {}, by_urgency)
    for key in by_urgency:
        selection.choose_standby(key)
    for key in selection.modules:
        while selection.overloaded(key) and selection.add_replica(key, pinned=(pinned or {}).get(key)):
            pass
    selection.add_last_sometimes(by_urgency)
    replicas = {key: (*selection.replicas[key], *selection.sometimes[key]) for key in selection.modules}
    return Spares(
        standby={key: tuple(chosen) for key, chosen in selection.standby.items() if chosen},
        replicas={key: chosen for key, chosen in replicas.items() if chosen},
    )


def _concerned(
    devices: Sequence[DeviceSpec],
    tasks: Iterable[TaskSpec],
    where: Mapping[ModuleKey, DeviceId],
    able: Collection[DeviceId],
) -> list[DeviceSpec]:
    """The devices on which the choice depends where only these may have spares: of 3,000 some tens.

    Those that serve only some tasks count (they may make further copies), and one that is always on: without any, those
    that are on only sometimes are like others.
    """
    names = {*where.values(), *able, *(task.source for task in tasks)}
    names |= {spec.id for spec in devices if spec.tasks is not None}
    names |= {*islice((spec.id for spec in devices if spec.availability == "always"), 1)}
    return [spec for spec in devices if spec.id in names]


class _SpareSelection:
    """The spares that are chosen so far, with the memory that is left."""

    def __init__(
        self,
        devices: Sequence[DeviceSpec],
        tasks: Sequence[TaskSpec],
        where: Mapping[ModuleKey, DeviceId],
        *,
        barred: Bars,
        at_hand: AtHand,
        kept: Spares,
        only: AtHand | None,
    ) -> None:
        fastest_first = sorted(devices, key=lambda device: (-device.compute_flops_per_s, device.id))
        self.devices = {device.id: device for device in fastest_first}
        modules = distinct_modules(tasks)
        self.modules = {key: module for key, module in modules.items() if where.get(key) in self.devices}
        self.where = {key: self.devices[where[key]] for key in self.modules}
        self.standby: dict[ModuleKey, list[DeviceId]] = defaultdict(list)
        self.replicas: dict[ModuleKey, list[DeviceId]] = defaultdict(list)
        self.sometimes: dict[ModuleKey, list[DeviceId]] = defaultdict(list)  # replicas on devices that are on sometimes
        self._part_time = sometimes_of(devices)
        rows = DeviceRows(devices)
        self._rows, self._may_be = rows.rows, where_copies_may_be(tasks, rows, where)
        self._barred, self._at_hand, self._kept, self._only = barred, at_hand, kept, only
        self._users: dict[ModuleKey, list[TaskSpec]] = defaultdict(list)
        self._rate: dict[ModuleKey, float] = defaultdict(float)
        for task in sorted(tasks, key=lambda task: task.task):
            keys = [task.module_of(node).key for node in task.nodes]
            for key in keys:
                self._rate[key] += task.weight
            for key in dict.fromkeys(keys):
                self._users[key].append(task)
        self._sources = {task.task: source_of(task, self.devices) for task in tasks}
        self._room = {name: device.memory_bytes for name, device in self.devices.items()}
        self._copies: dict[ModuleKey, set[DeviceId]] = defaultdict(set)
        self._busy = dict.fromkeys(self.devices, 0.0)
        for key, device in self.where.items():
            self._put(key, device.id)
            self._busy[device.id] += self._rate[key] * self._seconds(key, device.id)

    def _put(self, key: ModuleKey, device: DeviceId) -> None:
        """Take the memory of one more copy."""
        self._copies[key].add(device)
        self._room[device] -= memory_bytes(self.modules[key][1], self.devices[device])

    def add_standby(self, key: ModuleKey, device: DeviceId) -> None:
        """Put a standby there."""
        self._put(key, device)
        self.standby[key].append(device)

    def add_sometimes(self, preferred: Mapping[ModuleKey, DeviceId], keys: Sequence[ModuleKey]) -> None:
        """Put the preferred copies on devices that are on only sometimes, then keep those that exist."""
        for key, device in preferred.items():
            if key in self.modules and device in self._part_time and self.may_take(key, device):
                self._add_sometimes(key, device)
        for key in keys if self._part_time else ():
            for device in sorted(self._part_time):
                exists = self._only is not None or device in self._kept.of(key)
                if exists and self.may_take(key, device):
                    self._add_sometimes(key, device)

    def add_last_sometimes(self, keys: Sequence[ModuleKey]) -> None:
        """Put a copy of each module that has no spare on a device that is on only sometimes, where there is room."""
        for key in keys if self._part_time else ():
            able = [device for device in self._part_time if self.may_take(key, device)]
            if able and not (self.standby[key] or self.replicas[key] or self.sometimes[key]):
                self._add_sometimes(key, min(able, key=lambda device: (self._cost(key, device), device)))

    def _add_sometimes(self, key: ModuleKey, device: DeviceId) -> None:
        self._put(key, device)
        self.sometimes[key].append(device)

    def may_take(self, key: ModuleKey, device: DeviceId, *, pinned: bool = False) -> bool:
        """Whether one more copy may be there."""
        return (
            device in self._room
            and memory_bytes(self.modules[key][1], self.devices[device]) <= self._room[device]
            and device not in self._copies[key]
            and device not in self._barred.get(original_key(key), {})
            and (key not in self._may_be or bool(self._may_be[key] >> self._rows[device] & 1))
            and (pinned or self._only is None or device in self._only.get(original_key(key), ()))
        )

    def by_urgency(self, load_s: Mapping[ModuleKey, float]) -> list[ModuleKey]:
        """The modules, the one that most deserves a standby first."""
        urgency = {
            key: blast_radius(len(self._users[key]), module.memory_bytes, load_s.get(original_key(key)))
            * (KEEP_FACTOR if self._kept.of(key) else 1.0)
            for key, (_, module) in self.modules.items()
        }
        return sorted(urgency, key=lambda key: (-urgency[key], key))

    def choose_standby(self, key: ModuleKey) -> None:
        """Give a module its one standby, if any device can take it; beside a pinned copy only one that is there."""
        kept = self._always(device for device in self._kept.of(key) if self.may_take(key, device))
        able = kept[:1] or ([] if self.standby[key] else self._worth_comparing(key))
        if able:
            self.add_standby(key, min(able, key=lambda device: (self._cost(key, device), device)))

    def overloaded(self, key: ModuleKey) -> bool:
        """Whether a module's rate is too much for its active copies."""
        active = [self.where[key].id, *self.replicas[key]]
        may_do_per_s = sum(UTILISATION / self._seconds(key, device) for device in active)
        had_more = len(self._always(self._kept.replicas.get(key, ()))) >= len(active)
        return self._rate[key] * (KEEP_REPLICA_FACTOR if had_more else 1.0) > may_do_per_s

    def add_replica(self, key: ModuleKey, *, pinned: DeviceId | None) -> bool:
        """Make the standby a replica, else put a new one where there is most time left; whether that could be done."""
        waiting = [device for device in self.standby[key] if device != pinned]
        kept = self._always(device for device in self._kept.replicas.get(key, ()) if self.may_take(key, device))
        able = waiting or kept or self._always(device for device in self.devices if self.may_take(key, device))
        if not able:
            return False
        chosen = min(
            able, key=lambda device: (self._busy[device] + self._rate[key] * self._seconds(key, device), device)
        )
        if chosen in waiting:
            self.standby[key].remove(chosen)
        else:
            self._put(key, chosen)
        self.replicas[key].append(chosen)
        share = self._rate[key] / (1 + len(self.replicas[key]))
        self._busy[chosen] += share * self._seconds(key, chosen)
        return True

    def _worth_comparing(self, key: ModuleKey) -> list[DeviceId]:
        always = (device for device in self.devices if device not in self._part_time)
        fastest = islice((device for device in always if self.may_take(key, device)), _COMPARED)
        near = sorted(device for device in self._at_hand.get(original_key(key), ()) if self.may_take(key, device))
        return list(dict.fromkeys([*fastest, *self._always(near)]))

    def _always(self, devices: Iterable[DeviceId]) -> list[DeviceId]:
        """Those of the devices that are always on."""
        return [device for device in devices if device not in self._part_time]

    def _cost(self, key: ModuleKey, device: DeviceId) -> float:
        """The cost of the tasks that use a module, if it were on this device alone; less where its weights are."""
        moved = {**self.where, key: self.devices[device]}
        seconds = objective_s(self._users[key], moved, self._sources)
        return seconds if device in self._at_hand.get(original_key(key), ()) else seconds * (1 + AT_HAND_SHARE)

    def _seconds(self, key: ModuleKey, device: DeviceId) -> float:
        name, module = self.modules[key]
        return compute_s(self.devices[device], name, module)
