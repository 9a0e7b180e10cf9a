"""One device per node for one request: the least expected time to the answer, all branches at once. Pure.

Owns the choice among replicas. Knows nothing of how requests arrive or are sent, nor how queues are estimated
(``load_estimate``). Same input, same plan.

The expected time is the cost model's, with two things that only this moment knows: each device begins with the work
that already waits there, and a node that has finished costs nothing again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from math import prod
from operator import itemgetter

from broker.cost_model import OUTSIDE, Graph, Link, answer_s, finish_s
from broker.protocol.messages import Plan, Route, RouteDevice, RouteNode
from broker.protocol.specs import DeviceId, NodeName

PlanAndTime = tuple[Plan, float]
"""A plan and the expected seconds to its answer."""

MAX_ENUMERATED = 64
"""Up to so many choices are all compared. Beyond, one node after the other."""
MAX_STEPS = 10_000
"""A plan looks at so many nodes and needs in all, counted again for each schedule: 40 ms of a desktop's core."""

Choice = Mapping[NodeName, RouteDevice]
Cost = tuple[float, float, list[DeviceId]]
"""Expected seconds to the answer, the sum of all finishes, the devices: the least of these is the best."""


def choose_plan(
    route: Route,
    *,
    here: DeviceId,
    input_bytes: Mapping[NodeName, int],
    queue_s: Mapping[DeviceId, float] | None = None,
    finished: Mapping[NodeName, DeviceId] | None = None,
    avoid: frozenset[DeviceId] = frozenset(),
) -> PlanAndTime | None:
    """Choose a device for every node of a task, so that the answer is expected soonest.

    All choices are compared when there are at most ``MAX_ENUMERATED``; else each node in the order of needs goes where
    it helps most, given those before it. Where that takes more than ``MAX_STEPS``, each goes where the orchestrator's
    plan has it. Among equal ones, the least total of the nodes' finishes, then the names.
    None while a node has no device.

    Args:
        route: the devices that are able, with their seconds and links.
        here: the device that has the inputs.
        input_bytes: of each input of the request.
        queue_s: seconds of work that already waits on a device; 0 for a device that isn't named.
        finished: nodes that have run, and which device keeps their outputs; they stay while that device is able.
        avoid: devices that are taken only when no other is able.
    """
    if not route.complete or route.output is None:
        return None
    done = {name: device for name, device in (finished or {}).items() if name in route.nodes}
    able = {name: _able(route.nodes[name], done.get(name), avoid) for name in route.order}
    cost = _cost_function(route, here, input_bytes, queue_s or {}, done)
    size = len(able) + sum(len(node.needs) for node in route.nodes.values())
    choices = prod(len(devices) for devices in able.values())
    if 1 < choices <= min(MAX_ENUMERATED, MAX_STEPS // size):
        options = (dict(zip(able, devices, strict=True)) for devices in product(*able.values()))
        least, chosen = min(((cost(each), each) for each in options), key=itemgetter(0))
        return _plan_of(route, chosen), least[0]
    if choices > 1 and sum(map(len, able.values())) * size <= MAX_STEPS:
        chosen = _greedy(able, cost)
    else:
        chosen = {name: devices[0] for name, devices in able.items()}
    return _plan_of(route, chosen), cost(chosen)[0]


def _plan_of(route: Route, chosen: Choice) -> Plan:
    return route.plan_on({name: device.device for name, device in chosen.items()})


def _able(node: RouteNode, kept: DeviceId | None, avoid: frozenset[DeviceId]) -> list[RouteDevice]:
    if staying := [device for device in node.devices if device.device == kept]:
        return staying
    return [device for device in node.devices if device.device not in avoid] or list(node.devices)


def _greedy(able: Mapping[NodeName, list[RouteDevice]], cost: Callable[[Choice], Cost]) -> dict[NodeName, RouteDevice]:
    chosen: dict[NodeName, RouteDevice] = {}
    for name, devices in able.items():
        chosen[name] = min(devices, key=lambda device, name=name: cost({**chosen, name: device}))  # type: ignore[misc]
    return chosen


def _cost_function(
    route: Route,
    here: DeviceId,
    input_bytes: Mapping[NodeName, int],
    queue_s: Mapping[DeviceId, float],
    finished: Mapping[NodeName, DeviceId],
) -> Callable[[Choice], Cost]:
    """The cost of a request's choices. They may be partial: nodes without a device neither delay nor cost."""
    sent_bytes = {name: node.output_bytes for name, node in route.nodes.items()}
    answer_bytes = sent_bytes[route.output or ""]  # of a float16 wire the route names half; the answer is full
    graph = Graph(
        {name: node.needs for name, node in route.nodes.items()},
        output=route.output or "",
        input_bytes=input_bytes,
        sent_bytes=sent_bytes,
        answer_bytes=2 * answer_bytes if route.wire == "float16" else answer_bytes,
    )
    able = (device for node in route.nodes.values() for device in node.devices)
    links = {each.device: Link(each.device, each.latency_s, each.bandwidth_bits_per_s) for each in able}
    sender = links.get(here, Link(here, OUTSIDE.latency_s, OUTSIDE.bandwidth_bits_per_s))

    def cost(chosen: Choice) -> Cost:
        devices = {node: chosen[name] for node, name in enumerate(graph.names) if name in chosen}
        at = {node: links[device.device] for node, device in devices.items()}
        done = {node for node, link in at.items() if finished.get(graph.names[node]) == link.id}
        compute_s = {node: 0.0 if node in done else device.compute_s for node, device in devices.items()}
        finish = finish_s(graph, at, compute_s, sender, queue_s=queue_s, finished=done)
        names = [device.device for device in chosen.values()]
        return answer_s(graph, finish, at, OUTSIDE), sum(finish.values()), names

    return cost
