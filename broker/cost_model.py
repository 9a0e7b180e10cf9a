"""The cost model: how many seconds computing, sending and one whole request take.

Owns the formulas by which the orchestrator plans and each agent routes, so that both expect the same seconds. Knows
nothing of liveness, of memory, or of how a placement was found; reads no clock.

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
- a placement may be partial: a node without a device neither delays nor costs, so that unfinished placements can be
  compared.

The schedule is written once, for one placement and for many: numbers are either floats (``ONE``), or arrays with one
element a placement (``Many``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, ModuleName, ModuleSpec, NodeName, TaskName, TaskSpec

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
T = TypeVar("T", float, Floats)
T_co = TypeVar("T_co", float, Floats, covariant=True)


class Linked(Protocol[T_co]):
    """One end of a transfer: a device with its link to the broker, or as many devices as there are placements."""

    @property
    def id(self) -> object:
        """The same for the same device: an id, or an array of numbers."""

    @property
    def latency_s(self) -> T_co:
        """One way, in seconds."""

    @property
    def bandwidth_bits_per_s(self) -> T_co:
        """Bits per second, greater than 0."""


class Link(NamedTuple, Generic[T]):
    """An end of a transfer of which only the link is known."""

    id: object
    latency_s: T
    bandwidth_bits_per_s: T


OUTSIDE: Link[float] = Link(id="", latency_s=0.0, bandwidth_bits_per_s=math.inf)
"""The broker's side of every link: the source of requests that no planned device publishes, and the end of a link that
was never measured. Only the other end's link takes time. The empty id is not a valid device id."""


class Arithmetic(Protocol[T]):
    """The operations of the schedule that differ between a number and an array of numbers."""

    def latest(self, a: T, b: T, /) -> T:
        """The larger one."""

    def delayed(self, start: T, end: T, same: object, /) -> T:
        """The larger one where both are on the same device, else ``start``."""

    def unless(self, same: object, seconds: T, /) -> T:
        """0 where both ends are the same device, else ``seconds``."""

    def first(self, start_s: Sequence[T], compute_s: Sequence[T]) -> int:
        """The position of the node that goes next, of nodes in the order of their names."""


def _goes_first(start_s: T, compute_s: T, later_start_s: T, later_compute_s: T) -> Any:  # noqa: ANN401 - bool or array
    """Whether a node goes before one of a greater name: it starts earlier, or it starts then too and is not shorter."""
    return (start_s < later_start_s) | ((start_s == later_start_s) & (compute_s >= later_compute_s))


class _One:
    """Numbers are floats: one placement."""

    latest = staticmethod(max)

    def delayed(self, start: float, end: float, same: object) -> float:
        return end if same and end > start else start

    def unless(self, same: object, seconds: float) -> float:
        return 0.0 if same else seconds

    def first(self, start_s: Sequence[float], compute_s: Sequence[float]) -> int:
        best = 0
        for other in range(1, len(start_s)):
            if not _goes_first(start_s[best], compute_s[best], start_s[other], compute_s[other]):
                best = other
        return best


ONE: Arithmetic[float] = _One()


class Many:
    """Numbers are arrays, (N,) or (1,): N placements, which are scheduled in the order that the first of them has.

    ``alike`` tells which of the placements have that order; what comes out for the others is not their schedule.
    """

    def __init__(self, count: int) -> None:
        self.alike: Flags = np.ones(count, dtype=np.bool_)

    def latest(self, a: Floats, b: Floats, /) -> Floats:
        """The larger one, placement by placement."""
        return np.maximum(a, b)

    def delayed(self, start: Floats, end: Floats, same: Any, /) -> Floats:  # noqa: ANN401 - flags
        """The larger one where both are on the same device, else ``start``."""
        return np.where(same, np.maximum(start, end), start)

    def unless(self, same: Any, seconds: Floats, /) -> Floats:  # noqa: ANN401 - flags
        """0 where both ends are the same device, else ``seconds``."""
        return np.where(same, 0.0, seconds)

    def first(self, start_s: Sequence[Floats], compute_s: Sequence[Floats]) -> int:
        """The node that goes next in the first placement; those in which another one does are not alike."""
        best = ONE.first([float(start[0]) for start in start_s], [float(compute[0]) for compute in compute_s])
        for other in range(len(start_s)):
            if other < best:
                self.alike &= ~_goes_first(start_s[other], compute_s[other], start_s[best], compute_s[best])
            elif other > best:
                self.alike &= _goes_first(start_s[best], compute_s[best], start_s[other], compute_s[other])
        return best


def transfer_s(size_bytes: int, a: Linked[T], b: Linked[T], arithmetic: Arithmetic[T]) -> T:
    """Seconds to send this many bytes from one device to another."""
    same = a.id == b.id
    if same is True:
        return 0.0 * a.latency_s
    return arithmetic.unless(same, crossing_s(size_bytes, a) + crossing_s(size_bytes, b))


def crossing_s(size_bytes: int, link: Linked[T]) -> T:
    """Seconds for this many bytes on one device's link: half of a transfer between two devices."""
    return link.latency_s + 8 * size_bytes / link.bandwidth_bits_per_s


def compute_s(device: DeviceSpec, name: ModuleName, module: ModuleSpec) -> float:
    """Seconds of one forward pass: the device's measurement (by key, else by name) if there is one, else the estimate.

    Args:
        device: where it runs.
        name: the task's name of the module.
        module: its flops, and its key.
    """
    measured = device.compute_s.get(module.key) or device.compute_s.get(name)
    return measured or module.flops / device.compute_flops_per_s


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
            input_bytes: of each input.
            sent_bytes: what each node sends to another one.
            answer_bytes: what the output sends to the source.
        """
        self.names = sorted(needs)
        self.number = {name: node for node, name in enumerate(self.names)}
        self.needs = [[self.number[need] for need in needs[name] if need in needs] for name in self.names]
        self.waits_for = [frozenset(known) for known in self.needs]
        self.users = [[user for user, known in enumerate(self.needs) if node in known] for node in range(len(needs))]
        self.input_bytes = [
            [input_bytes.get(need, 0) for need in needs[name] if need not in needs] for name in self.names
        ]
        self.sent_bytes = [sent_bytes[name] for name in self.names]
        self.output, self.answer_bytes = self.number[output], answer_bytes

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

    def arrival_s(self, node: int, source: Linked[T], device: Linked[T], arithmetic: Arithmetic[T]) -> T:
        """Seconds until the node's raw inputs are on a device."""
        sent_s = [transfer_s(size, source, device, arithmetic) for size in self.input_bytes[node]]
        return reduce(arithmetic.latest, sent_s) if sent_s else 0.0 * device.latency_s

    def hop_s(self, node: int, a: Linked[T], b: Linked[T], arithmetic: Arithmetic[T]) -> T:
        """Seconds from a node's end on one device to the arrival of its output at another."""
        return transfer_s(self.sent_bytes[node], a, b, arithmetic)

    def answer_s(self, device: Linked[T], source: Linked[T], arithmetic: Arithmetic[T]) -> T:
        """Seconds from the output's end on a device to the answer at the source."""
        return transfer_s(self.answer_bytes, device, source, arithmetic)


@dataclass
class Placed(Generic[T]):
    """The nodes of a graph that have a device, and the seconds that their schedule adds up.

    ``at``: by node, what is equal for equal devices. ``arrival_s``: when its raw inputs are there. ``hop_s``: from a
    node's end to the arrival of its output at the device of another node.
    """

    at: Mapping[int, object]
    compute_s: Mapping[int, T]
    arrival_s: Mapping[int, T]
    hop_s: Callable[[int, int], T]


def placed_on(
    graph: Graph,
    devices: Mapping[int, Linked[T]],
    compute_s: Mapping[int, T],
    source: Linked[T],
    arithmetic: Arithmetic[T],
) -> Placed[T]:
    """Nodes on devices that have nothing else to do.

    Args:
        graph: the task's.
        devices: of each node that is placed.
        compute_s: of each node that is placed.
        source: where the inputs are.
        arithmetic: floats or arrays.
    """
    return Placed(
        at={node: device.id for node, device in devices.items()},
        compute_s=compute_s,
        arrival_s={node: graph.arrival_s(node, source, device, arithmetic) for node, device in devices.items()},
        hop_s=lambda need, node: graph.hop_s(need, devices[need], devices[node], arithmetic),
    )


def finish_s(
    graph: Graph,
    placed: Placed[T],
    arithmetic: Arithmetic[T],
    *,
    queue_s: Mapping[int, T] | None = None,
    finished: Collection[int] = (),
) -> dict[int, T]:
    """The second at which each placed node finishes, by node, in the order of the schedule.

    Args:
        graph: the task's.
        placed: the nodes on their devices.
        arithmetic: floats or arrays.
        queue_s: when the device of a node is free; 0 for a node that isn't named.
        finished: nodes whose outputs are on their devices already: they wait for no device and keep no device busy.
    """
    at, compute, todo = placed.at, placed.compute_s, sorted(placed.at)
    start, finish = dict(placed.arrival_s), dict[int, T]()
    for node, free in (queue_s or {}).items():
        if node not in finished:
            start[node] = arithmetic.latest(start[node], free)
    while todo:
        able = [node for node in todo if graph.waits_for[node].isdisjoint(todo)]
        node = able[0]
        if finished and (settled := [each for each in able if each in finished]):
            node = settled[0]
        elif len(able) > 1:
            node = able[arithmetic.first([start[each] for each in able], [compute[each] for each in able])]
        finish[node] = end = start[node] + compute[node]
        todo.remove(node)
        for other in () if node in finished else todo:
            if other not in finished:
                start[other] = arithmetic.delayed(start[other], end, at[other] == at[node])
        for user in graph.users[node]:
            if user in at:
                start[user] = arithmetic.latest(start[user], end + placed.hop_s(node, user))
    return finish


def latency_s(task: TaskSpec, where: Mapping[ModuleKey, DeviceSpec], source: Linked[float]) -> float:
    """Seconds from a request's start at its source to the answer there, for one request alone.

    While the output's module isn't placed, it is the time at which the last placed node finishes.

    Args:
        task: the graph.
        where: the device of each placed module.
        source: where the inputs are, and where the answer goes.
    """
    graph, devices, compute = Graph.of(task), dict[int, DeviceSpec](), dict[int, float]()
    for node, name in enumerate(graph.names):
        module = task.module_of(name)
        if module.key in where:
            devices[node] = where[module.key]
            compute[node] = compute_s(devices[node], task.nodes[name].module, module)
    finish = finish_s(graph, placed_on(graph, devices, compute, source, ONE), ONE)
    if graph.output not in finish:
        return max(finish.values(), default=0.0)
    return finish[graph.output] + graph.answer_s(devices[graph.output], source, ONE)


def source_of(
    task: TaskSpec, devices: Mapping[DeviceId, DeviceSpec], default: DeviceSpec | None = None
) -> Linked[float]:
    """Where a task's requests start: its own source if that is one of the devices, else the default, else outside."""
    return devices.get(task.source or "") or default or OUTSIDE


def objective_s(
    tasks: Iterable[TaskSpec], where: Mapping[ModuleKey, DeviceSpec], sources: Mapping[TaskName, Linked[float]]
) -> float:
    """The weighted sum of the tasks' latencies, in seconds: a placement is the better, the less this is.

    Args:
        tasks: the tasks, in any order; the sum is made in the order of their names.
        where: the device of each placed module.
        sources: where each task's requests start.
    """
    by_name = sorted(tasks, key=lambda task: task.task)
    return sum(task.weight * latency_s(task, where, sources[task.task]) for task in by_name)
