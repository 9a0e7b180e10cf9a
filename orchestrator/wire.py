"""Messages to events, and actions to messages: the orchestrator's side of ``topics.md``. Pure.

Owns the event of each topic, and the topic of each action. Doesn't know connections, and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from broker.protocol import topics
from broker.protocol.codec import JSON, RAW, encode, encode_tensors
from broker.protocol.errors import RemoteProtocolError
from broker.protocol.messages import (
    MAX_FENCE,
    DeviceState,
    Drain,
    Heartbeat,
    NodeInputs,
    OrchestratorState,
    Permit,
    Plan,
    PlannedNode,
    Quarantine,
    Route,
)
from broker.protocol.reports import TaskStatus
from broker.protocol.specs import TaskSpec
from broker.transport.port import Delivery, Outgoing
from orchestrator import events

_CHECK = "check"  # the task, the input and the use of our own requests to devices


def event_of(prefix: str, delivery: Delivery) -> events.Event | None:
    """The event of a delivered message; None when it isn't for the orchestrator.

    Raises:
        RemoteProtocolError: it breaks the contract.
    """
    if (asked := topics.asked(prefix, delivery.topic, delivery.response_topic)) is not None:
        return _request(asked, delivery)
    incoming = topics.read(prefix, delivery.topic, delivery.payload, retained=delivery.retain)
    if incoming is None or incoming.topic not in _READ:
        return None
    read = _READERS.get(incoming.topic)
    return _state(incoming) if read is None else read(incoming, retained=delivery.retain)


def clears_request(prefix: str, delivery: Delivery) -> Outgoing | None:
    """The message that clears a retained request; None for any other message. An empty one isn't kept."""
    is_kept = delivery.retain and delivery.payload
    incoming = topics.read(prefix, delivery.topic, delivery.payload) if is_kept else None
    if incoming is None or incoming.topic not in topics.REQUESTS:
        return None
    return Outgoing(delivery.topic, b"", retain=True, correlation=topics.CLEARING)


def outgoing_of(prefix: str, action: events.Message) -> Outgoing:
    """The message that carries out an action."""
    if isinstance(action, events.AnswerError):
        return Outgoing(action.reply_to, encode(action.result), correlation=action.correlation, content_type=JSON)
    if isinstance(action, events.CheckDevice):
        return _check_of(prefix, action)
    ids: dict[str, str] = {}
    match action:
        case events.PublishState(message):
            topic, payload = topics.ORCHESTRATOR_STATE, encode(message)
        case events.PublishSpec(spec):
            topic, payload, ids = topics.TASK_SPEC, encode(spec), {"task": spec.task}
        case events.PublishDrain(device):
            topic, payload, ids = topics.DEVICE_DRAIN, encode(Drain(drain=True)), {"device": device}
        case events.PublishRoute(route):
            topic, payload, ids = topics.TASK_ROUTE, encode(route), {"task": route.task}
        case events.PublishAssignment(device, assignment):
            topic, payload, ids = topics.DEVICE_ASSIGNMENT, encode(assignment), {"device": device}
        case events.Clear(topic, name):
            payload, ids = b"", {topic.fields[0]: name}
        case _:
            topic, payload, ids = _of_agents(action)
    return Outgoing(topic.at(prefix, **ids), payload, qos=topic.qos, retain=topic.retain)


def _of_agents(
    action: events.PublishQuarantine | events.PublishPermit | events.RequestRebirth,
) -> tuple[topics.Topic, bytes, dict[str, str]]:
    """The topic, the payload and the ids of a message that concerns agents, and neither tasks nor orders."""
    match action:
        case events.PublishQuarantine(message):
            return topics.ORCHESTRATOR_QUARANTINE, encode(message), {}
        case events.PublishPermit(device, epoch, request, granted):
            permit = Permit(epoch=epoch, request=request, granted=granted)
            return topics.DEVICE_PERMIT, encode(permit), {"device": device}
        case events.RequestRebirth(device):
            return topics.DEVICE_REBIRTH, b"", {"device": device}


def goodbye(prefix: str, epoch: int, session: int) -> Outgoing:
    """The message that a leader's link has ended: its will."""
    return outgoing_of(prefix, events.PublishState(OrchestratorState(epoch=epoch, online=False, session=session)))


def control_filters(prefix: str) -> tuple[str, ...]:
    """A leader's subscriptions; the last one is for the answers to our own checks."""
    return (
        *(topic.filter(prefix) for topic in CONTROL_TOPICS),
        topics.TENSORS.filter(prefix, receiver=topics.ORCHESTRATOR_ID),
    )


def standby_filters(prefix: str) -> tuple[str, ...]:
    """A standby's subscriptions."""
    return tuple(topic.filter(prefix) for topic in STANDBY_TOPICS)


def _check_of(prefix: str, check: events.CheckDevice) -> Outgoing:
    """A request for one node on one device, in a use that no module has: the device refuses it in its turn."""
    import numpy as np  # noqa: PLC0415 - 12 MB, and few orchestrators ever check a device

    planned = PlannedNode(key=check.key, needs=(_CHECK,), use=_CHECK, device=check.device)
    message = NodeInputs(
        request=check.request,
        task=_CHECK,
        node="node",
        epoch=check.fence[0],
        generation=check.fence[1],
        attempt=0,
        coordinator=topics.ORCHESTRATOR_ID,
        deadline_s=check.within_s,
        reply_to=topics.RESULTS.at(prefix, client=topics.ORCHESTRATOR_ID, request=check.request),
        plan=Plan(nodes={"node": planned}, output="node"),
        content_types={_CHECK: "application/octet-stream"},
    )
    ids = {"sender": topics.ORCHESTRATOR_ID, "receiver": check.device, "request": check.request, "node": "node"}
    payload = encode_tensors(message, {f"{_CHECK}/{RAW}": np.zeros(1, dtype=np.uint8)})
    return Outgoing(topics.TENSORS.at(prefix, **ids), payload, expiry_s=math.ceil(check.within_s))


def _request(asked: topics.Asked, delivery: Delivery) -> events.Event | None:
    if delivery.retain or delivery.correlation == topics.CLEARING:
        return None
    if asked.unanswerable is None:
        return events.RequestReceived(asked.task, asked.reply_to, delivery.correlation, delivery.payload)
    return events.RequestUnanswerable(asked.task, asked.unanswerable) if delivery.payload else None


def _spec(incoming: topics.Incoming, *, retained: bool) -> events.Event:
    task = incoming.ids["task"]
    try:
        spec = incoming.decode()
    except RemoteProtocolError as error:
        return events.TaskRejected(task, f"its spec is wrong: {error}; correct it and deploy it again")
    if not isinstance(spec, TaskSpec):
        return events.TaskUndeployed(task)
    if spec.task != task:
        why = f"its spec names the task {spec.task} and was sent to {task}; send it to tasks/{spec.task}/spec"
        return events.TaskRejected(task, why)
    return events.TaskDeployed(spec, retained=retained)


def _revision(incoming: topics.Incoming, *, retained: bool) -> events.Event:  # noqa: ARG001 - as the other readers
    task, revision = incoming.ids["task"], incoming.ids["revision"]
    try:
        spec = incoming.decode()
    except RemoteProtocolError:
        spec = None
    if not isinstance(spec, TaskSpec) or (spec.task, spec.revision) != (task, revision):
        return events.RevisionReceived(task, revision, None, is_empty=not incoming.payload)
    return events.RevisionReceived(task, revision, spec)


def _route(incoming: topics.Incoming, *, retained: bool) -> events.Event | None:
    task = incoming.ids["task"]
    if not incoming.payload:
        return None if retained else events.RouteHeard(task, 0, is_empty=True)
    try:
        route = incoming.decode()
    except RemoteProtocolError:
        route = None
    if not retained:
        epoch, generation = (route.epoch, route.generation) if isinstance(route, Route) else (MAX_FENCE, 0)
        return events.RouteHeard(task, epoch, generation, payload=incoming.payload)
    if not isinstance(route, Route):
        return events.RetainedRouteReceived(task, available=False)  # it must be overwritten or cleared all the same
    serving = {node.key: tuple(device.device for device in node.devices) for node in route.nodes.values()}
    return events.RetainedRouteReceived(task, route.unavailable is None, bool(route.front_door), serving, route.epoch)


def _leader_topic(incoming: topics.Incoming, *, retained: bool) -> events.Event | None:
    try:
        return _state(incoming) or (None if retained else events.LeaderTopicLost("it was cleared"))
    except RemoteProtocolError as error:
        return events.LeaderTopicLost(str(error))


def _quarantine(incoming: topics.Incoming, *, retained: bool) -> events.Event | None:
    said = incoming.decode()
    return events.QuarantineHeard(said if isinstance(said, Quarantine) else None, retained=retained)


def _state(incoming: topics.Incoming) -> events.Event | None:
    match incoming.decode():
        case Heartbeat() as heartbeat:
            return events.HeartbeatReceived(incoming.ids["device"], heartbeat)
        case DeviceState() as state:
            return events.DeviceStateReceived(incoming.ids["device"], state)
        case OrchestratorState() as leader:
            return leader
        case TaskStatus(revisions=revisions, revision=served, digests=digests):
            return events.RevisionsListed(incoming.ids["task"], revisions, served, digests)
    is_answer = incoming.topic is topics.TENSORS
    return events.CheckAnswered(incoming.ids["sender"], incoming.ids["request"]) if is_answer else None


def _drain(incoming: topics.Incoming, *, retained: bool) -> events.Event:
    said = incoming.decode()
    return events.DrainReceived(incoming.ids["device"], isinstance(said, Drain) and said.drain, retained=retained)


def _forget(incoming: topics.Incoming, *, retained: bool) -> events.Event:  # noqa: ARG001 - as the other readers
    return events.ForgetReceived(incoming.ids["device"])


_READERS: Mapping[topics.Topic, Callable[..., events.Event | None]] = {
    topics.TASK_SPEC: _spec,
    topics.TASK_ROUTE: _route,
    topics.TASK_REVISION: _revision,
    topics.ORCHESTRATOR_STATE: _leader_topic,
    topics.DEVICE_DRAIN: _drain,
    topics.DEVICE_FORGET: _forget,
    topics.ORCHESTRATOR_QUARANTINE: _quarantine,
}
CONTROL_TOPICS = (
    topics.DEVICE_HEARTBEAT,
    topics.DEVICE_STATE,
    topics.DEVICE_DRAIN,
    topics.DEVICE_FORGET,
    topics.TASK_SPEC,
    topics.TASK_REVISION,
    topics.ORCHESTRATOR_STATE,
    topics.ORCHESTRATOR_HEARTBEAT,
    topics.ORCHESTRATOR_QUARANTINE,
    topics.TASK_ROUTE,
)
"""The topics of the control connection."""

STANDBY_TOPICS = (
    topics.ORCHESTRATOR_STATE,
    topics.ORCHESTRATOR_HEARTBEAT,
    topics.TASK_SPEC,
    topics.TASK_REVISION,
    topics.TASK_STATUS,
    topics.DEVICE_DRAIN,
)
"""The topics of a standby: the leader's, and the operators' orders with all revisions, of which it keeps a copy."""
_READ = (*CONTROL_TOPICS, topics.TASK_STATUS, topics.TENSORS)
