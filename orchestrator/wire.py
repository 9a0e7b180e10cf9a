"""Messages to events, and actions to messages: the orchestrator's side of ``topics.md``. Pure.

Owns the event of each topic, and the topic of each action. Doesn't know connections, and decides nothing.
"""

from __future__ import annotations

from broker.protocol.codec import JSON, encode
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
    Incoming,
    may_reply_to,
    read,
)
from broker.transport.port import Delivery, Outgoing
from orchestrator.events import (
    AnswerError,
    ClearAssignment,
    ClearRoute,
    Event,
    LeaderStateReceived,
    Message,
    PublishAssignment,
    PublishDrain,
    PublishRoute,
    PublishSpec,
    PublishState,
    RequestRebirth,
    RequestReceived,
    RetainedRouteReceived,
    TaskDeployed,
    TaskRejected,
    TaskUndeployed,
)
from orchestrator.membership.cluster import DeviceStateReceived, DrainReceived, HeartbeatReceived


def event_of(prefix: str, delivery: Delivery) -> Event | None:
    """The event of a delivered message; None when it isn't for the orchestrator.

    Raises:
        RemoteProtocolError: it breaks the contract.
    """
    incoming = read(prefix, delivery.topic, delivery.payload)
    if incoming is None or incoming.topic not in (*CONTROL_TOPICS, TASK_REQUESTS):
        return None
    if incoming.topic is TASK_REQUESTS:
        return _request(prefix, incoming, delivery)
    if incoming.topic is TASK_SPEC:
        return _spec(incoming)
    if incoming.topic is TASK_ROUTE:
        return _route(incoming) if delivery.retain and delivery.payload else None  # not our own one, coming back
    return _state(incoming)


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
        case RequestRebirth(device):
            topic, payload, ids = DEVICE_REBIRTH, b"", {"device": device}
    return Outgoing(topic.at(prefix, **ids), payload, qos=topic.qos, retain=topic.retain)


def _request(prefix: str, incoming: Incoming, delivery: Delivery) -> Event | None:
    reply_to = delivery.response_topic
    if delivery.retain or not reply_to or not may_reply_to(prefix, reply_to):
        return None  # there is no sensor to answer, or its answer topic is not allowed
    return RequestReceived(incoming.ids["task"], reply_to, delivery.correlation, delivery.payload)


def _spec(incoming: Incoming) -> Event:
    task = incoming.ids["task"]
    try:
        spec = incoming.decode()
    except RemoteProtocolError as error:
        return TaskRejected(task, f"its spec is wrong: {error}; correct it and deploy it again")
    if not isinstance(spec, TaskSpec):
        return TaskUndeployed(task)
    if spec.task != task:
        why = f"its spec names the task {spec.task} and was sent to {task}; send it to tasks/{spec.task}/spec"
        return TaskRejected(task, why)
    return TaskDeployed(spec)


def _route(incoming: Incoming) -> Event:
    task = incoming.ids["task"]
    try:
        route = incoming.decode()
    except RemoteProtocolError:
        route = None
    if not isinstance(route, Route):
        return RetainedRouteReceived(task, available=False)  # it must be overwritten or cleared all the same
    serving = {node.key: tuple(device.device for device in node.devices) for node in route.nodes.values()}
    return RetainedRouteReceived(task, route.unavailable is None, bool(route.front_door), serving)


def _state(incoming: Incoming) -> Event | None:
    match incoming.decode():
        case Heartbeat() as heartbeat:
            return HeartbeatReceived(incoming.ids["device"], heartbeat)
        case DeviceState() as state:
            return DeviceStateReceived(incoming.ids["device"], state)
        case OrchestratorState() as leader:
            return LeaderStateReceived(leader)
        case Drain(drain=drain):
            return DrainReceived(incoming.ids["device"], drain)
    return DrainReceived(incoming.ids["device"], drain=False) if incoming.topic is DEVICE_DRAIN else None


CONTROL_TOPICS = (
    DEVICE_HEARTBEAT,
    DEVICE_STATE,
    DEVICE_DRAIN,
    TASK_SPEC,
    ORCHESTRATOR_STATE,
    ORCHESTRATOR_HEARTBEAT,
    TASK_ROUTE,
)
"""The topics of the control connection."""
