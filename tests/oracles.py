"""Slow and simple ways to the answers that the planner finds quickly: what the tests hold it equal to.

Owns an event simulation of one request, and the search over every placement. Shares no formula with the product, but
that the search takes the cost model's word for the cost of one placement.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from broker.cost_model import latency_s, runnable, source_of
from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, ModuleSpec, NodeName, TaskSpec
from orchestrator.planner.copies import Bars
from orchestrator.planner.modules import distinct_modules

ELSEWHERE = (0.0, float("inf"))
"""Latency and bandwidth of what isn't a device: only the other end's link takes time."""


@dataclass
class Request:
    """One request on the devices that a plan has chosen: sizes in bytes, links as latency and bits per second."""

    needs: Mapping[NodeName, Sequence[str]]
    device: Mapping[NodeName, str]  # of the nodes that are placed
    compute_s: Mapping[NodeName, float]
    input_bytes: Mapping[str, int]
    sent_bytes: Mapping[NodeName, int]
    links: Mapping[str, tuple[float, float]]
    source: str
    queue_s: Mapping[str, float] = field(default_factory=dict)
    finished: Collection[NodeName] = ()

    def sent_s(self, size: int, a: str, b: str) -> float:
        """A message crosses the sender's link to the broker, then the receiver's."""
        if a == b:
            return 0.0
        (la, ba), (lb, bb) = self.links.get(a, ELSEWHERE), self.links.get(b, ELSEWHERE)
        return (la + 8 * size / ba) + (lb + 8 * size / bb)

    def finishes_s(self) -> dict[NodeName, float]:
        """The time at which each placed node is done."""
        return _Simulation(self).run()

    def awaited(self, name: NodeName) -> set[str]:
        """The inputs and the placed nodes that a node needs."""
        return {need for need in self.needs[name] if need in self.device or need not in self.needs}


class _Simulation:
    """Time goes on, event by event: messages arrive, devices start what waits there, and finish it."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.events: list[tuple[float, NodeName, str]] = []  # what arrives at a node; "" when the node is done
        self.missing = {name: request.awaited(name) for name in request.device}
        self.idle_from = {device: request.queue_s.get(device, 0.0) for device in request.device.values()}
        self.line: dict[str, set[NodeName]] = {device: set() for device in self.idle_from}
        self.done: dict[NodeName, float] = {}
        for name, device in request.device.items():
            for need in self.missing[name] - request.device.keys():
                sent_s = request.sent_s(request.input_bytes[need], request.source, device)
                heapq.heappush(self.events, (sent_s, name, need))
            if not self.missing[name]:
                self._may_start(name, 0.0)

    def run(self) -> dict[NodeName, float]:
        now_s: float | None = 0.0
        while now_s is not None:
            while self.events and self.events[0][0] == now_s:
                _, name, arrived = heapq.heappop(self.events)
                if arrived:
                    self._arrive(name, arrived, now_s)
                else:
                    self._finish(name, now_s)
            for device, waiting in self.line.items():
                if waiting and self.idle_from[device] <= now_s:
                    self._start(min(waiting, key=lambda each: (-self.request.compute_s[each], each)), device, now_s)
            times = [time_s for time_s, _, _ in self.events[:1]]
            times += [self.idle_from[device] for device, waiting in self.line.items() if waiting]
            now_s = min(times, default=None)
        return self.done

    def _arrive(self, name: NodeName, need: str, now_s: float) -> None:
        self.missing[name].remove(need)
        if not self.missing[name]:
            self._may_start(name, now_s)

    def _may_start(self, name: NodeName, now_s: float) -> None:
        if name in self.request.finished:
            self._finish(name, now_s)
        else:
            self.line[self.request.device[name]].add(name)

    def _start(self, name: NodeName, device: str, now_s: float) -> None:
        self.line[device].remove(name)
        self.idle_from[device] = now_s + self.request.compute_s[name]
        heapq.heappush(self.events, (self.idle_from[device], name, ""))

    def _finish(self, name: NodeName, now_s: float) -> None:
        self.done[name] = now_s
        for user, device in self.request.device.items():
            if name in self.missing[user]:
                sent_s = self.request.sent_s(self.request.sent_bytes[name], self.request.device[name], device)
                heapq.heappush(self.events, (now_s + sent_s, user, name))


def request_of(
    task: TaskSpec, where: Mapping[ModuleKey, DeviceSpec], source: str, devices: Sequence[DeviceSpec]
) -> Request:
    """A request of a task, whose inputs are at a source; nodes of modules that ``where`` lacks are not placed."""
    at = {name: where[task.module_of(name).key] for name in task.nodes if task.module_of(name).key in where}
    compute_s = {}
    for name, device in at.items():
        module = task.module_of(name)
        measured = [
            device.compute_s[label] for label in (module.key, task.nodes[name].module) if label in device.compute_s
        ]
        compute_s[name] = measured[0] if measured else module.flops / device.compute_flops_per_s
    share = 2 if task.wire == "float16" else 1
    return Request(
        needs={name: node.needs for name, node in task.nodes.items()},
        device={name: device.id for name, device in at.items()},
        compute_s=compute_s,
        input_bytes={name: given.bytes for name, given in task.inputs.items()},
        sent_bytes={name: (task.module_of(name).output_bytes + share - 1) // share for name in task.nodes},
        links={device.id: (device.latency_s, device.bandwidth_bits_per_s) for device in devices},
        source=source,
    )


def simulated_latency_s(
    task: TaskSpec, where: Mapping[ModuleKey, DeviceSpec], source: str, devices: Sequence[DeviceSpec]
) -> float:
    """Seconds until the answer is at the source; until the last placed node is done, while the output isn't placed."""
    request = request_of(task, where, source, devices)
    done = request.finishes_s()
    if task.output not in done:
        return max(done.values(), default=0.0)
    answer_bytes = task.module_of(task.output).output_bytes
    return done[task.output] + request.sent_s(answer_bytes, request.device[task.output], source)


def may_run(task: TaskSpec, device: DeviceSpec) -> bool:
    """Whether both allow it."""
    return device.id in (task.devices or (device.id,)) and task.task in (
        (task.task,) if device.tasks is None else device.tasks
    )


def may_hold(module: ModuleSpec, device: DeviceSpec, tasks: Iterable[TaskSpec]) -> bool:
    """Whether a device can run a copy of a module, has the memory for it, and may, for all tasks that it serves."""
    form = runnable(module, device)
    fits = form is not None and form.memory_bytes <= device.memory_bytes
    return fits and all(may_run(task, device) for task in tasks)


ENGINE_OF = {"onnx.kind": "onnx", "whisper_ctranslate2.kind": "ctranslate2"}
Copies = dict[str, dict[ModuleKey, int]]
"""For each task the number of the copy of each module that it uses, from 1."""


def size_of(module: ModuleSpec, device: DeviceSpec) -> int | None:
    """The bytes of a module on a device, by the first of its engines that has a form of it; None: it can't run it."""
    forms: dict[str, int] = {variant.engine: variant.memory_bytes for variant in module.variants}
    forms |= {"onnx": device.exports[module.key]} if module.key in device.exports else {}
    forms[ENGINE_OF.get(module.family, "torch")] = module.memory_bytes
    return next((forms[engine] for engine in device.engines if engine in forms), None)


def copies_of(devices: Sequence[DeviceSpec], tasks: Sequence[TaskSpec], *, barred: Bars | None = None) -> Copies:
    """Which copies of modules are needed, so that every task can use one where it may run."""
    largest = {key: module for key, (_, module) in distinct_modules(tasks).items()}
    groups: dict[ModuleKey, list[tuple[list[str], set[DeviceId]]]] = {}
    for task in sorted(tasks, key=lambda task: task.task):
        may = [device for device in devices if may_run(task, device)]
        for module in (largest[task.module_of(node).key] for node in task.nodes):
            bars = (barred or {}).get(module.key, {})
            sizes = [(d, size) for d in may if (size := size_of(module, d)) is not None]
            hold = {d.id for d, size in sizes if size <= d.memory_bytes and d.id not in bars}
            hold = hold or {device.id for device, _ in sizes}
            known = groups.setdefault(module.key, [])
            if any(task.task in names for names, _ in known):
                continue
            for names, able in known:
                if able & hold:
                    names.append(task.task)
                    able.intersection_update(hold)
                    break
            else:
                known.append(([task.task], hold))
    copies: Copies = {task.task: {} for task in tasks}
    for key, known in groups.items():
        for number, (names, _) in enumerate(known, start=1):
            for name in names:
                copies[name][key] = number
    return copies


def key_of(copy: tuple[ModuleKey, int]) -> ModuleKey:
    """The key that the planner gives a copy."""
    return copy[0] if copy[1] == 1 else f"{copy[0]}|{copy[1]}"


def counted_s(
    devices: Sequence[DeviceSpec], tasks: Sequence[TaskSpec], copies: Copies, where: Mapping[ModuleKey, DeviceId]
) -> float:
    """The objective, each task with the copies that it uses. (``where`` has the devices by the planner's keys.)"""
    by_id = {device.id: device for device in devices}
    return sum(
        task.weight
        * latency_s(
            task,
            {key: by_id[where[key_of((key, number))]] for key, number in copies[task.task].items()},
            source_of(task, by_id),
        )
        for task in tasks
    )


def exhaustive(
    devices: Sequence[DeviceSpec], tasks: Sequence[TaskSpec], *, barred: Bars | None = None
) -> tuple[dict[ModuleKey, DeviceId], float] | None:
    """The cheapest placement and its objective in seconds, or None when no placement fits."""
    return min(placements(devices, tasks, barred=barred), key=lambda found: found[1], default=None)


def placements(
    devices: Sequence[DeviceSpec], tasks: Sequence[TaskSpec], *, barred: Bars | None = None
) -> Iterator[tuple[dict[ModuleKey, DeviceId], float]]:
    """Every placement that fits, with its objective in seconds.

    These are up to ``len(devices)`` to the power of the number of copies: for some ten thousand, not for a fleet.
    """
    copies = copies_of(devices, tasks, barred=barred)
    modules = {key: module for key, (_, module) in distinct_modules(tasks).items()}
    able: dict[ModuleKey, dict[DeviceId, int]] = {}
    for task in tasks:
        for key, number in copies[task.task].items():
            bars = (barred or {}).get(key, {})
            allowed = [d for d in devices if may_run(task, d) and d.id not in bars]
            may = {d.id: size for d in allowed if (size := size_of(modules[key], d)) is not None}
            known = able.setdefault(key_of((key, number)), may)
            able[key_of((key, number))] = {name: bytes_ for name, bytes_ in known.items() if name in may}
    for where in _fitting(able, {device.id: device.memory_bytes for device in devices}):
        yield where, counted_s(devices, tasks, copies, where)


def _fitting(
    able: Mapping[ModuleKey, Mapping[DeviceId, int]], room: Mapping[DeviceId, int]
) -> Iterator[dict[ModuleKey, DeviceId]]:
    """Every way to put these copies on devices that may hold them and have the memory."""
    if not able:
        yield {}
        return
    key, *rest = able
    for device, size in sorted(able[key].items()):
        if size <= room[device]:
            for where in _fitting({other: able[other] for other in rest}, {**room, device: room[device] - size}):
                yield {key: device, **where}
