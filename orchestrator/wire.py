"""Messages to events, actions to messages.

Owns which topic means which event and which action goes to which topic. Pure: no connection, no clock. What decides,
and when, is elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from broker.protocol.codec import JSON, decode, encode
from broker.protocol.errors import RemoteProtocolError
from broker.protocol.messages import DeviceState, Drain, Heartbeat, OrchestratorState, Route
from broker.protocol.specs import TaskSpec
from broker.protocol.topics import (
    DEVICE_ASSIGNMENT,
    DEVICE_DRAIN,
    DEVICE_HEARTBEAT,
    DEVICE_REBIRTH,
    DEVICE_STATE,
    ORCHESTRATOR_HEARTBEAT,
    ORCHESTRATOR_STATE,
    TASK_REQUESTS,
    TASK_ROUTE,
    TASK_SPEC,
    Topic,
    may_reply_to,
)
from broker.transport.port import Delivery, Outgoing
from orchestrator.events import (
    AnswerError,
    AskRebirth,
    ClearAssignment,
    ClearRoute,
    Event,
    Message,
    OrchestratorSeen,
    PublishAssignment,
    PublishDrain,
    PublishRoute,
    PublishSpec,
    PublishState,
    RequestSeen,
    RouteSeen,
    TaskDeployed,
    TaskInvalid,
    TaskUndeployed,
)
from orchestrator.membership.cluster import DeviceStateSeen, DrainSeen, HeartbeatSeen


def event_of(prefix: str, delivery: Delivery) -> Event | None:
    """What a delivered message means; None when it means nothing to the orchestrator.

    Raises:
        RemoteProtocolError: it breaks the contract.
    """
    for topic, read in _READERS.items():
        if (ids := topic.match(prefix, delivery.topic)) is not None:
            return read(prefix, ids, delivery)
    return None


def outgoing_of(prefix: str, action: Message) -> Outgoing:
    """The message that carries out an action."""
    if isinstance(action, AnswerError):
        return Outgoing(action.reply_to, encode(action.result), correlation=action.correlation, content_type=JSON)
    match action:
        case PublishState(message):
            topic, payload, ids = ORCHESTRATOR_STATE, encode(message), {}
        case PublishSpec(spec):
            topic, payload, ids = TASK_SPEC, encode(spec), {"task": spec.task}
        case PublishRoute(route):
            topic, payload, ids = TASK_ROUTE, encode(route), {"task": route.task}
        case ClearRoute(task):
            topic, payload, ids = TASK_ROUTE, b"", {"task": task}
        case PublishAssignment(device, assignment):
            topic, payload, ids = DEVICE_ASSIGNMENT, encode(assignment), {"device": device}
        case ClearAssignment(device):
            topic, payload, ids = DEVICE_ASSIGNMENT, b"", {"device": device}
        case PublishDrain(device):
            topic, payload, ids = DEVICE_DRAIN, encode(Drain(drain=True)), {"device": device}
        case AskRebirth(device):
            topic, payload, ids = DEVICE_REBIRTH, b"", {"device": device}
    return Outgoing(topic.at(prefix, **ids), payload, qos=topic.qos, retain=topic.retain)


def _heartbeat(_prefix: str, ids: Mapping[str, str], delivery: Delivery) -> Event:
    return HeartbeatSeen(ids["device"], decode(Heartbeat, delivery.payload))


def _request(prefix: str, ids: Mapping[str, str], delivery: Delivery) -> Event | None:
    reply_to = delivery.response_topic
    if delivery.retain or not reply_to or not may_reply_to(prefix, reply_to):
        return None  # nobody to answer, or a place where we must not write
    return RequestSeen(ids["task"], reply_to, delivery.correlation, delivery.payload)


def _device(_prefix: str, ids: Mapping[str, str], delivery: Delivery) -> Event | None:
    if not delivery.payload:
        return None  # an operator took the retained message away
    return DeviceStateSeen(ids["device"], decode(DeviceState, delivery.payload))


def _drain(_prefix: str, ids: Mapping[str, str], delivery: Delivery) -> Event:
    return DrainSeen(ids["device"], bool(delivery.payload) and decode(Drain, delivery.payload).drain)


def _spec(_prefix: str, ids: Mapping[str, str], delivery: Delivery) -> Event:
    task = ids["task"]
    if not delivery.payload:
        return TaskUndeployed(task)
    try:
        spec = decode(TaskSpec, delivery.payload)
    except RemoteProtocolError as error:
        return TaskInvalid(task, f"its spec is wrong: {error}; mend it and deploy it again")
    if spec.task != task:
        why = f"its spec names the task {spec.task} and was sent to {task}; send it to tasks/{spec.task}/spec"
        return TaskInvalid(task, why)
    return TaskDeployed(spec)


def _leader(_prefix: str, _ids: Mapping[str, str], delivery: Delivery) -> Event | None:
    return OrchestratorSeen(decode(OrchestratorState, delivery.payload)) if delivery.payload else None


def _route(_prefix: str, ids: Mapping[str, str], delivery: Delivery) -> Event | None:
    if not delivery.retain or not delivery.payload:
        return None  # our own words come back as we say them; only what the broker remembers is news
    try:
        route = decode(Route, delivery.payload)
    except RemoteProtocolError:
        return RouteSeen(ids["task"], available=False)  # to be overwritten or cleared all the same
    serving = {node.key: tuple(device.device for device in node.devices) for node in route.nodes.values()}
    return RouteSeen(ids["task"], route.unavailable is None, bool(route.front_door), serving)


_READERS: Mapping[Topic, Callable[[str, Mapping[str, str], Delivery], Event | None]] = {
    DEVICE_HEARTBEAT: _heartbeat,
    TASK_REQUESTS: _request,
    DEVICE_STATE: _device,
    DEVICE_DRAIN: _drain,
    TASK_SPEC: _spec,
    ORCHESTRATOR_STATE: _leader,
    ORCHESTRATOR_HEARTBEAT: _leader,
    TASK_ROUTE: _route,
}
HEARD = (
    DEVICE_HEARTBEAT,
    DEVICE_STATE,
    DEVICE_DRAIN,
    TASK_SPEC,
    ORCHESTRATOR_STATE,
    ORCHESTRATOR_HEARTBEAT,
    TASK_ROUTE,
)
"""What the control connection listens to."""
