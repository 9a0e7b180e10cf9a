"""The devices on which a request may still be tried, when devices that have it don't answer. Pure.

Owns the limit: a request whose pass never ends, for a bad input or a bug, occupies at most ``MOST_DEVICES``. A device
counts while a node that it has is late and a route still names it, and from then on if it says that the node hangs.
A device that dies or refuses doesn't count: others take its work. Knows nothing of times and plans.

Invariants:
- a node that is late on as many devices is only resent to those: they compute it at most once each;
- a node is never sent again to a device that said that it hangs, not even after its restart.
"""

from __future__ import annotations

from broker.protocol.messages import NodeFailed, Route
from broker.protocol.specs import DeviceId
from edge_agent.state import Coordinated

MOST_DEVICES = 2


def on_late_failure(request: Coordinated, failed: NodeFailed) -> bool:
    """Note that a device gave up a node of an earlier attempt for good; whether the request ends with that.

    A later attempt may still succeed, on another device: the first one may have had a fault of its own.
    """
    request.late.discard((failed.node, failed.device))
    request.hung.add((failed.node, failed.device))
    return len({device for _, device in request.hung}) >= MOST_DEVICES


def allowed(request: Coordinated, route: Route) -> Route:
    """The route without the devices on which this request must not be tried."""
    if not request.late and not request.hung:
        return route
    able = {(name, each.device) for name, node in route.nodes.items() for each in node.devices}
    late = {(name, device) for name, device in request.late & able if name not in request.completed}
    occupied: set[DeviceId] = {device for _, device in late | request.hung}
    is_full, tried = len(occupied) >= MOST_DEVICES, {name for name, _ in late | request.hung}
    nodes = dict(route.nodes)
    for name in tried & nodes.keys():
        devices = tuple(
            each
            for each in nodes[name].devices
            if (name, each.device) not in request.hung
            and (not is_full or each.device in occupied or (name, each.device) in request.ever_assigned)
        )
        nodes[name] = nodes[name].model_copy(update={"devices": devices})
    return route.model_copy(update={"nodes": nodes})
