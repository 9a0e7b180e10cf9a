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
- *may hold*: a device can take a copy of a module if the module fits into its whole memory, and all tasks that the copy
  serves may run there. A module that several tasks share has one copy, if any device may hold it for all of them.
  Otherwise it has further copies, each for some of the tasks. So it may stand wherever one of its tasks may run;
- *memory*: a module needs ``memory_bytes`` on a device, which depends on the device: its engine runs one of the
  module's variants;
- a placement may be partial: a node without a device neither delays nor costs, so that unfinished placements can be
  compared.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, ModuleName, ModuleSpec, NodeName, TaskName, TaskSpec


class Link(NamedTuple):
    """An end of a transfer of which only the link to the broker is known."""

    id: DeviceId
    latency_s: float
    bandwidth_bits_per_s: float


Linked: TypeAlias = DeviceSpec | Link
"""One end of a transfer."""
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


def memory_bytes(module: ModuleSpec, device: DeviceSpec) -> int:  # noqa: ARG001 - of the variant that its engine runs
    """The bytes that a module needs on a device. Every module has one variant, so the device makes no difference."""
    return module.memory_bytes


def may_run(task: TaskSpec, device: DeviceSpec) -> bool:
    """Whether a task's nodes may run on a device: the task's ``devices`` and the device's ``tasks`` allow it."""
    return (task.devices is None or device.id in task.devices) and (device.tasks is None or task.task in device.tasks)


def may_hold(module: ModuleSpec, device: DeviceSpec, tasks: Iterable[TaskSpec]) -> bool:
    """Whether a device can hold a copy of a module in its whole memory, and may, for all tasks that the copy serves."""
    return memory_bytes(module, device) <= device.memory_bytes and all(may_run(task, device) for task in tasks)


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

    Args:
        graph: the task's.
        devices: of each node that is placed.
        compute_s: of each node that is placed.
        source: where the inputs are.
        queue_s: when each device is free; 0 for a device that isn't named.
        finished: nodes whose outputs are on their devices already: they wait for no device and keep no device busy.
    """
    queue_s, todo = queue_s or {}, set(devices)
    start = {node: graph.arrival_s(node, source, device) for node, device in devices.items()}
    for node in todo.difference(finished):
        start[node] = max(start[node], queue_s.get(devices[node].id, 0.0))
    finish: dict[int, float] = {}
    while todo:
        able = [node for node in todo if todo.isdisjoint(graph.needs[node])]
        _, _, _, node = min([(node not in finished, start[node], -compute_s[node], node) for node in able])
        todo.remove(node)
        finish[node] = end = start[node] + compute_s[node]
        device = devices[node]
        for other in todo:
            if node in graph.needs[other]:
                start[other] = max(start[other], end + transfer_s(graph.sent_bytes[node], device, devices[other]))
            elif devices[other].id == device.id and node not in finished and other not in finished:
                start[other] = max(start[other], end)
    return finish


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
