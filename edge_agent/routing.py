"""One device per node for one request: the least expected finish, all branches at once. Pure.

Owns the choice among replicas. Knows nothing of how requests arrive or are sent. Same input, same plan.
"""

from __future__ import annotations

from collections.abc import Mapping

from broker.messages import Plan, PlannedNode, Route, RouteDevice, RouteNode
from broker.specs import DeviceId, NodeName

_NO_LINK = RouteDevice(device="here", compute_s=0, latency_s=0, bandwidth_bits_per_s=1e12)


def choose_plan(
    route: Route,
    *,
    here: DeviceId,
    input_bytes: Mapping[NodeName, int],
    keep: Mapping[NodeName, DeviceId] | None = None,
    avoid: frozenset[DeviceId] = frozenset(),
) -> tuple[Plan, float] | None:
    """Choose a device for every node of a task.

    Nodes are taken in the order of their needs; each goes to the device where it is expected to finish first, given
    the transfers to it and what this request already put there. A node in ``keep`` stays while its device is still
    able; devices in ``avoid`` are taken only when nobody else is able.

    Returns:
        The plan and its expected seconds, or None while a node has no device.
    """
    if not route.complete or route.output is None:
        return None
    links = _links(route)
    chosen: dict[NodeName, DeviceId] = {}
    finish_s: dict[NodeName, float] = {}
    free_s: dict[DeviceId, float] = {}
    for name in route.order:
        node = route.nodes[name]
        best: tuple[float, DeviceId] | None = None
        for candidate in _candidates(node, (keep or {}).get(name), avoid):
            ready_s = 0.0
            for need in node.needs:
                if need in route.nodes:
                    sent = _transfer_s(route.nodes[need].output_bytes, chosen[need], candidate.device, links)
                    ready_s = max(ready_s, finish_s[need] + sent)
                else:
                    ready_s = max(ready_s, _transfer_s(input_bytes.get(need, 0), here, candidate.device, links))
            done_s = max(ready_s, free_s.get(candidate.device, 0.0)) + candidate.compute_s
            best = min(best or (done_s, candidate.device), (done_s, candidate.device))
        if best is None:
            return None
        finish_s[name], chosen[name] = best
        free_s[best[1]] = best[0]
    nodes = {
        name: PlannedNode(key=node.key, needs=node.needs, use=node.use, device=chosen[name])
        for name, node in route.nodes.items()
    }
    return Plan(nodes=nodes, output=route.output, wire=route.wire), finish_s[route.output]


def _candidates(node: RouteNode, kept: DeviceId | None, avoid: frozenset[DeviceId]) -> list[RouteDevice]:
    if staying := [device for device in node.devices if device.device == kept]:
        return staying
    return [device for device in node.devices if device.device not in avoid] or list(node.devices)


def _links(route: Route) -> dict[DeviceId, RouteDevice]:
    return {device.device: device for node in route.nodes.values() for device in node.devices}


def _transfer_s(size_bytes: int, a: DeviceId, b: DeviceId, links: Mapping[DeviceId, RouteDevice]) -> float:
    """Seconds from one device to another: the cost model of planning, DESIGN section 6."""
    if a == b:
        return 0.0
    link_a, link_b = links.get(a, _NO_LINK), links.get(b, _NO_LINK)
    narrow = min(link_a.bandwidth_bits_per_s, link_b.bandwidth_bits_per_s)
    return link_a.latency_s + link_b.latency_s + 8 * size_bytes / narrow
