"""The cost model: where a module may stand, its bytes there, and the seconds of computing, sending and whole requests.

Owns the formulas by which the orchestrator plans and each agent routes, so that both expect the same seconds. Knows
nothing of liveness, of free memory, or of how a placement was found; reads no clock.

Rules:
- times are in seconds, sizes in bytes, bandwidths in bits per second;
- *compute*: what the device measured for the module (by key, else by name), else ``flops / compute_flops_per_s``;
- *transfer* from a to b: 0 if they are one device, else ``latency_s(a) + latency_s(b) + 8 * bytes / bandwidth(a) +
  8 * bytes / bandwidth(b)``: the broker stores each message and forwards it, so both links are crossed one after the
  other;
- *sent bytes*: a node sends its module's ``output_bytes`` to other nodes, or half of them, rounded up, where its task's
  ``wire`` is float16; inputs and the answer have their full size;
- *latency* of a request that is alone on the site, by list scheduling (Graham 1969): of the nodes whose needs are
  scheduled, the one that can start first goes next (ties: the longer compute, then the smaller name). It starts when
  all that it needs has arrived and its device is free. The latency ends when the answer is at the source;
- *may run*: a task's nodes run only on a device that the task's ``devices`` and the device's ``tasks`` both allow;
- *variant*: a device runs a module by the first of its ``engines`` that can: the engine of the module's family runs its
  own weights; onnx runs the export that the device has (``exports``), which needs no download, or else the variant that
  the module lists (``variants``). The module's identity and its seconds are the same, whatever the variant;
  ``memory_bytes`` is that of the variant. A device none of whose engines can run a module never holds it;
- *may hold*: a device can take a copy of a module if it can run one in some variant, has the whole memory for it, and
  all tasks that the copy serves may run there. A module that several tasks share has one copy, if any device may hold
  it for all of them. Otherwise it has further copies, each for some of the tasks. So it may stand wherever one of its
  tasks may run;
- *memory*: a module needs ``memory_bytes`` on a device: those of the variant that the device runs;
- a placement may be partial: a node without a device neither delays nor costs, so that unfinished placements can be
  compared.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from heapq import heappop, heappush
from typing import NamedTuple, Protocol, TypeAlias

from broker.protocol.specs import (
    DeviceId,
    DeviceSpec,
    ModuleKey,
    ModuleName,
    ModuleSpec,
    NodeName,
    TaskName,
    TaskSpec,
)


class Link(NamedTuple):
    """An end of a transfer of which only the link to the broker is known."""

    id: DeviceId
    latency_s: float
    bandwidth_bits_per_s: float


Linked: TypeAlias = DeviceSpec | Link
"""One end of a transfer."""
_Start: TypeAlias = tuple[float, float, int]
"""A node that can start: from when on, minus its seconds of computing, and its number. The least one goes next."""
OUTSIDE = Link(id="", latency_s=0.0, bandwidth_bits_per_s=math.inf)
"""The broker's side of every link: the source of requests that no planned device publishes, and the end of a link that
was never measured. Only the other end's link takes time. The empty id is not a valid device id."""


def transfer_s(size_bytes: int, a: Linked, b: Linked) -> float:
    """Seconds to send this many bytes from one device to another."""
    return 0.0 if a.id == b.id else crossing_s(size_bytes, a) + crossing_s(size_bytes, b)


def crossing_s(size_bytes: int, link: Linked) -> float:
    """Seconds for this many bytes on one device's link: half of a transfer between two devices."""
    return link.latency_s + 8 * size_bytes / link.bandwidth_bits_per_s


def compute_s(device: DeviceSpec, name: ModuleName, module: ModuleSpec) -> float:
    """Seconds of one forward pass: the device's measurement (by key, else by the task's name), else the estimate."""
    measured = device.compute_s.get(module.measured_key) or device.compute_s.get(name)
    return measured or module.flops / device.compute_flops_per_s


class RunsModules(Protocol):
    """A device, as far as it says what it can run: a ``DeviceSpec``, or the profile of a birth."""

    @property
    def engines(self) -> Sequence[str]:
        """In order of preference."""

    @property
    def exports(self) -> Mapping[ModuleKey, int]:
        """The modules that its models directory holds for the engine onnx, each with its bytes in memory."""


class Runnable(NamedTuple):
    """The form in which a device runs a module: its own weights, the device's export of it, or a variant.

    ``key`` is the identity of these weights; None for an export, which only its device knows.
    """

    engine: str
    memory_bytes: int
    key: str | None


def runnable(module: ModuleSpec, device: RunsModules) -> Runnable | None:
    """The form in which a device runs a module: that of its first engine that can; None if none can."""
    for engine in device.engines:
        if engine == module.engine:
            return Runnable(engine, module.memory_bytes, module.measured_key)
        if engine == "onnx" and module.measured_key in device.exports:
            return Runnable(engine, device.exports[module.measured_key], None)
        for variant in module.variants:
            if variant.engine == engine:
                return Runnable(engine, variant.memory_bytes, variant.key)
    return None


def memory_bytes(module: ModuleSpec, device: RunsModules) -> int:
    """The bytes that a module needs on a device; those of its own weights where no engine can run it."""
    form = runnable(module, device)
    return module.memory_bytes if form is None else form.memory_bytes


def may_run(task: TaskSpec, device: DeviceSpec) -> bool:
    """Whether a task's nodes may run on a device: the task's ``devices`` and the device's ``tasks`` allow it."""
    devices, tasks = task.allowed_devices, device.allowed_tasks
    return (devices is None or device.id in devices) and (tasks is None or task.task in tasks)


class Graph:
    """A task's graph as the schedule reads it: nodes are numbers, in the order of their names."""

    def __init__(
        self,
        needs: Mapping[NodeName, Sequence[NodeName]],
        *,
        output: NodeName,
        input_bytes: Mapping[NodeName, int],
        sent_bytes: Mapping[NodeName, int],
        answer_bytes: int,
    ) -> None:
        """Number the nodes.

        Args:
            needs: for each node the nodes and inputs that it needs.
            output: the node that gives the answer.
            input_bytes: by input.
            sent_bytes: what each node sends to another one.
            answer_bytes: what the output sends to the source.
        """
        self.names = sorted(needs)
        number = {name: node for node, name in enumerate(self.names)}
        self.needs = [[number[need] for need in needs[name] if need in needs] for name in self.names]
        inputs = [[input_bytes.get(need, 0) for need in needs[name] if need not in needs] for name in self.names]
        self.input_bytes = [max(sizes, default=None) for sizes in inputs]  # of the largest, which arrives last
        self.sent_bytes = [sent_bytes[name] for name in self.names]
        self.output, self.answer_bytes = number[output], answer_bytes

    @classmethod
    def of(cls, task: TaskSpec) -> Graph:
        """The graph of a task, with its typical sizes."""
        return cls(
            {name: node.needs for name, node in task.nodes.items()},
            output=task.output,
            input_bytes={name: given.bytes for name, given in task.inputs.items()},
            sent_bytes={name: task.sent_bytes(name) for name in task.nodes},
            answer_bytes=task.module_of(task.output).output_bytes,
        )

    def arrival_s(self, node: int, source: Linked, device: Linked) -> float:
        """Seconds until all raw inputs of a node are on a device."""
        size = self.input_bytes[node]
        return 0.0 if size is None else transfer_s(size, source, device)


def finish_s(
    graph: Graph,
    devices: Mapping[int, Linked],
    compute_s: Mapping[int, float],
    source: Linked,
    *,
    queue_s: Mapping[DeviceId, float] | None = None,
    finished: Collection[int] = (),
) -> dict[int, float]:
    """The second at which each placed node finishes, by node, in the order of the schedule.

    Takes n log n steps for n nodes and needs: strangers' routes come here.

    Args:
        graph: the task's.
        devices: of each node that is placed.
        compute_s: of each node that is placed.
        source: where the inputs are.
        queue_s: when each device is free; 0 for a device that isn't named.
        finished: nodes whose outputs are on their devices already: they wait for no device and keep no device busy.
    """
    arrives_s = {node: graph.arrival_s(node, source, device) for node, device in devices.items()}
    missing = {node: {need for need in graph.needs[node] if need in devices} for node in devices}
    consumers: dict[int, list[int]] = {node: [] for node in devices}
    for node, needs in missing.items():
        for need in needs:
            consumers[need].append(node)
    queues = {device.id: _Queue((queue_s or {}).get(device.id, 0.0)) for device in devices.values()}
    kept: list[_Start] = []  # finished nodes whose needs are scheduled: they go first
    nexts: list[_Start] = []  # the next node of each queue, and entries that no longer are
    finish: dict[int, float] = {}
    able = [node for node, needs in missing.items() if not needs]
    while able or kept or nexts:
        for node in able:
            start = arrives_s[node], -compute_s[node], node
            if node in finished:
                heappush(kept, start)
            else:
                queues[devices[node].id].add(start, nexts)
        able = []
        start_s, _, node = start = heappop(kept or nexts)
        queue = queues[devices[node].id]
        if node not in finished and not queue.take(start, nexts, start_s + compute_s[node]):
            continue
        finish[node] = start_s + compute_s[node]
        for other in consumers[node]:
            sent_s = transfer_s(graph.sent_bytes[node], devices[node], devices[other])
            arrives_s[other] = max(arrives_s[other], finish[node] + sent_s)
            missing[other].remove(node)
            if not missing[other]:
                able.append(other)
    return finish


class _Queue:
    """The nodes that one device can run, of which the next one goes into a heap of all queues' next nodes."""

    def __init__(self, free_s: float) -> None:
        self._free_s = free_s
        self._here: list[tuple[float, int]] = []  # all that they need has arrived when the device is free
        self._coming: list[_Start] = []

    def add(self, start: _Start, nexts: list[_Start]) -> None:
        """Put a node into the queue."""
        heappush(self._coming, start)
        self._put_next(nexts)

    def take(self, start: _Start, nexts: list[_Start], until_s: float) -> bool:
        """Run this node until then, if it still is the next one; whether it is."""
        if self._next() != start:
            return False
        if self._here:
            heappop(self._here)
        else:
            heappop(self._coming)
        self._free_s = until_s
        self._put_next(nexts)
        return True

    def _put_next(self, nexts: list[_Start]) -> None:
        if (start := self._next()) is not None:
            heappush(nexts, start)

    def _next(self) -> _Start | None:
        while self._coming and self._coming[0][0] <= self._free_s:
            heappush(self._here, heappop(self._coming)[1:])
        if self._here:
            return self._free_s, *self._here[0]
        return self._coming[0] if self._coming else None


def answer_s(graph: Graph, finish: Mapping[int, float], devices: Mapping[int, Linked], source: Linked) -> float:
    """The second at which the answer is at the source; that of the last finish while the output isn't placed."""
    if graph.output not in finish:
        return max(finish.values(), default=0.0)
    return finish[graph.output] + transfer_s(graph.answer_bytes, devices[graph.output], source)


def latency_s(task: TaskSpec, where: Mapping[ModuleKey, DeviceSpec], source: Linked) -> float:
    """Seconds from a request's start at its source to the answer there, for one request alone.

    ``where`` is the device of each placed module. While the output's module isn't placed, the time ends when the last
    placed node finishes.
    """
    graph, devices, compute = Graph.of(task), dict[int, DeviceSpec](), dict[int, float]()
    for node, name in enumerate(graph.names):
        module = task.module_of(name)
        if module.key in where:
            devices[node] = where[module.key]
            compute[node] = compute_s(devices[node], task.nodes[name].module, module)
    return answer_s(graph, finish_s(graph, devices, compute, source), devices, source)


def source_of(task: TaskSpec, devices: Mapping[DeviceId, DeviceSpec]) -> Linked:
    """Where a task's requests start: its own source if that is one of the devices, else outside."""
    return devices.get(task.source or "", OUTSIDE)


def objective_s(
    tasks: Iterable[TaskSpec], where: Mapping[ModuleKey, DeviceSpec], sources: Mapping[TaskName, Linked]
) -> float:
    """The weighted sum of the tasks' latencies, in seconds: a placement is the better, the less this is.

    ``where`` is the device of each placed module, ``sources`` where each task's requests start. The sum doesn't depend
    on the order of the tasks.
    """
    by_name = sorted(tasks, key=lambda task: task.task)
    return sum(task.weight * latency_s(task, where, sources[task.task]) for task in by_name)
