"""One node that a device serves: what a test says as the orchestrator of an agent in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from broker.protocol.codec import decode, encode
from broker.protocol.messages import AssignedModule, Assignment, Heartbeat
from broker.protocol.specs import ModuleSpec
from broker.protocol.topics import DEVICE_ASSIGNMENT, DEVICE_HEARTBEAT, TASK_ROUTE
from broker.transport.port import Delivery, Outgoing, Transport
from tests.builders import able, route, route_node


def next_heartbeat(recorder: Any, prefix: str, device: str, fits: Callable[[Heartbeat], object]) -> Heartbeat:
    """A heartbeat of a device that fits; those already heard count."""
    topic = DEVICE_HEARTBEAT.at(prefix, device=device)
    found = recorder.wait_for(
        lambda event: isinstance(event, Delivery) and event.topic == topic and fits(decode(Heartbeat, event.payload))
    )
    return decode(Heartbeat, found.payload)


def is_ready(seen: Heartbeat) -> bool:
    """Whether a device has a module that is ready."""
    return any(held.state == "ready" for held in seen.modules.values())


def serve_one_node(client: Transport, recorder: Any, prefix: str, device: str, spec: ModuleSpec) -> None:
    """Assign a module to a device, as an orchestrator, with the route of a task ``t`` that has this one node."""
    next_heartbeat(recorder, prefix, device, lambda _: True)
    wanted = Assignment(epoch=1, generation=1, modules=(AssignedModule(module="y", spec=spec),))
    served = route("t", {"node": route_node(spec.key, ("image",), able(device))}, front_door=(device,))
    for topic, message in (
        (DEVICE_ASSIGNMENT.at(prefix, device=device), wanted),
        (TASK_ROUTE.at(prefix, task="t"), served),
    ):
        client.publish(Outgoing(topic, encode(message), retain=True))
    next_heartbeat(recorder, prefix, device, is_ready)
