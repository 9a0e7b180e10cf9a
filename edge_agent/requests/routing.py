"""One device per node for one request: the least expected time to the answer, all branches at once. Pure.

Owns the choice among replicas. Knows nothing of how requests arrive or are sent, nor how queues are known (``queues``).
Same input, same plan.

What is expected is DESIGN section 6's list scheduling of one request, but for two things that only this moment knows:
each device begins with the work that already waits there, and a node that has finished costs nothing again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod

from broker.cost_model import Link, transfer_s
from broker.protocol.messages import Plan, PlannedNode, Route, RouteDevice, RouteNode
from broker.protocol.specs import DeviceId, NodeName

MAX_ENUMERATED = 64
"""Choices that are all looked at, the best being taken: some milliseconds of a small board. Beyond, greedily."""

BROKER = Link(id="", latency_s=0.0, bandwidth_bits_per_s=1e12)
"""Where a request comes from and its answer goes; also a device whose link nobody knows. Its id can't be a device's."""

Choice = Mapping[NodeName, RouteDevice]


def choose_plan(
    route: Route,
    *,
    here: DeviceId,
    input_bytes: Mapping[NodeName, int],
    queue_s: Mapping[DeviceId, float] | None = None,
    finished: Mapping[NodeName, DeviceId] | None = None,
    avoid: frozenset[DeviceId] = frozenset(),
) -> tuple[Plan, float] | None:
    """Choose a device for every node of a task, so that the answer is expected soonest.

    All choices are compared when there are at most ``MAX_ENUMERATED``; else each node in the order of needs goes where
    it helps most, given those before it. Among equal ones, the least total of the nodes' finishes, then the names.

    Args:
        route: who is able, with what it costs there.
        here: the device that has the inputs.
        input_bytes: of each input of the request.
        queue_s: seconds of work that already wait on a device; none where it isn't named.
        finished: nodes that have run for this request, and where their outputs are kept; they stay while that device
            is able.
        avoid: devices taken only when nobody else is able.

    Returns:
        The plan and its expected seconds, or None while a node has no device.
    """
    if not route.complete or route.output is None:
        return None
    done = {name: device for name, device in (finished or {}).items() if name in route.nodes}
    able = {name: _able(route.nodes[name], done.get(name), avoid) for name in route.order}
    problem = _Problem(route, here, input_bytes, queue_s or {}, done)
    if prod(len(devices) for devices in able.values()) <= MAX_ENUMERATED:
        chosen = min(_all_choices(able), key=problem.cost)
    else:
        chosen = _greedy(able, problem)
    nodes = {
        name: PlannedNode(key=node.key, needs=node.needs, use=node.use, device=chosen[name].device)
        for name, node in route.nodes.items()
    }
    return Plan(nodes=nodes, output=route.output, wire=route.wire), problem.cost(chosen)[0]


def _able(node: RouteNode, kept: DeviceId | None, avoid: frozenset[DeviceId]) -> list[RouteDevice]:
    if staying := [device for device in node.devices if device.device == kept]:
        return staying
    return [device for device in node.devices if device.device not in avoid] or list(node.devices)


def _all_choices(able: Mapping[NodeName, list[RouteDevice]]) -> Iterator[Choice]:
    for devices in product(*able.values()):
        yield dict(zip(able, devices, strict=True))


def _greedy(able: Mapping[NodeName, list[RouteDevice]], problem: _Problem) -> Choice:
    chosen: dict[NodeName, RouteDevice] = {}
    for name, devices in able.items():
        chosen[name] = min(devices, key=lambda device, name=name: problem.cost({**chosen, name: device}))  # type: ignore[misc]
    return chosen


@dataclass
class _Problem:
    """One request to be routed."""

    route: Route
    here: DeviceId
    input_bytes: Mapping[NodeName, int]
    queue_s: Mapping[DeviceId, float]
    finished: Mapping[NodeName, DeviceId]
    _links: dict[DeviceId, Link] = field(init=False)

    def __post_init__(self) -> None:
        able = (device for node in self.route.nodes.values() for device in node.devices)
        self._links = {each.device: Link(each.device, each.latency_s, each.bandwidth_bits_per_s) for each in able}
        self._links.setdefault(self.here, Link(self.here, BROKER.latency_s, BROKER.bandwidth_bits_per_s))

    def cost(self, chosen: Choice) -> tuple[float, float, list[DeviceId]]:
        """Expected seconds to the answer, the sum of all finishes, the names: the least of these is the best.

        A choice may be partial: nodes that have no device yet, and thereby what needs them, neither delay nor cost.
        """
        finish_s: dict[NodeName, float] = {}
        free_s = dict(self.queue_s)
        todo = set(chosen)
        while todo:
            start_s, minus_compute_s, name = min(
                self._earliest(name, chosen, finish_s, free_s)
                for name in todo
                if todo.isdisjoint(self.route.nodes[name].needs)
            )
            todo.remove(name)
            finish_s[name] = start_s - minus_compute_s
            if not self._is_finished(name, chosen[name]):
                free_s[chosen[name].device] = finish_s[name]
        answer_s = max(finish_s.values(), default=0.0)
        if output := chosen.get(self.route.output or ""):
            size_bytes = self.route.nodes[self.route.output or ""].output_bytes
            answer_s = finish_s[self.route.output or ""] + transfer_s(size_bytes, self._links[output.device], BROKER)
        return answer_s, sum(finish_s.values()), [device.device for device in chosen.values()]

    def _earliest(
        self, name: NodeName, chosen: Choice, finish_s: Mapping[NodeName, float], free_s: Mapping[DeviceId, float]
    ) -> tuple[float, float, NodeName]:
        """A node's start, its compute time negated, its name: the least of these goes first."""
        device = chosen[name]
        ready_s = 0.0
        for need in self.route.nodes[name].needs:
            if need in finish_s:
                sent_s = finish_s[need] + self._transfer_s(need, chosen[need].device, device.device)
            elif need in self.route.nodes:
                continue  # not chosen yet
            else:
                sent_s = self._transfer_s(need, self.here, device.device)
            ready_s = max(ready_s, sent_s)
        if self._is_finished(name, device):
            return ready_s, 0.0, name
        return max(ready_s, free_s.get(device.device, 0.0)), -device.compute_s, name

    def _transfer_s(self, need: NodeName, a: DeviceId, b: DeviceId) -> float:
        node = self.route.nodes.get(need)
        size_bytes = node.output_bytes if node else self.input_bytes.get(need, 0)
        return transfer_s(size_bytes, self._links[a], self._links[b])

    def _is_finished(self, name: NodeName, device: RouteDevice) -> bool:
        return self.finished.get(name) == device.device
