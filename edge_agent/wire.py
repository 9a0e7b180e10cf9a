"""Messages to events, and actions to messages: the agent's side of ``topics.md``. Pure.

Owns the topics that an agent reads and writes. Decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from broker.protocol import topics
from broker.protocol.codec import RAW, RawInput, decode_tensors, encode_result, encode_tensors
from broker.protocol.errors import ErrorCode, RemoteProtocolError
from broker.protocol.messages import (
    Assignment,
    DeviceState,
    ErrorBody,
    NodeInputs,
    OrchestratorState,
    Permit,
    Quarantine,
    Route,
    TensorMessage,
)
from broker.protocol.specs import ClientName, DeviceId, NodeName
from broker.protocol.tensors import Array, Tensors
from broker.transport.port import RECONNECT_S, Delivery, Denied, Outgoing, Undelivered
from edge_agent import events
from edge_agent.events import Reply, Send
from edge_agent.modules import Value
from edge_agent.requests.execute import failure

LATE_S = RECONNECT_S  # an answer may come after its deadline: the link that it waits for may be up again by then


def control_filters(prefix: str, device: DeviceId) -> tuple[str, ...]:
    """The subscriptions of the control connection."""
    return (
        topics.DEVICE_ASSIGNMENT.at(prefix, device=device),
        topics.DEVICE_STATE.at(prefix, device=device),  # our own: to correct a late will
        topics.DEVICE_REBIRTH.at(prefix, device=device),
        topics.DEVICE_PERMIT.at(prefix, device=device),
        topics.TASK_ROUTE.filter(prefix),
        topics.ORCHESTRATOR_QUARANTINE.at(prefix),
        topics.ORCHESTRATOR_STATE.at(prefix),
    )


def data_filters(prefix: str, device: DeviceId) -> tuple[str, ...]:
    """The subscriptions of the data connection, except the share groups of front doors."""
    return (topics.TENSORS.filter(prefix, receiver=device), topics.DEVICE_ECHO.at(prefix, device=device))


def event_of(
    prefix: str, delivery: Delivery, *, account: ClientName | None = None, waited_s: float = 0.0
) -> events.Event | events.ConnectionEvent | None:
    """The event of a delivered message; None when an agent ignores it, such as a cleared topic.

    Args:
        prefix: of the topics.
        delivery: the message.
        account: of a request's client; None: that which its topic names.
        waited_s: since it arrived.

    Raises:
        RemoteProtocolError: it breaks the contract.
    """
    is_clearing = delivery.correlation == topics.CLEARING and not delivery.payload
    incoming = topics.read(prefix, delivery.topic, delivery.payload, retained=delivery.retain)
    if incoming is None or is_clearing:
        _refuse_wrong_request(prefix, delivery)
        return None
    if incoming.topic is topics.DEVICE_REBIRTH:
        return events.RebirthRequested()
    if incoming.topic is topics.DEVICE_ECHO:
        return events.Echoed(delivery.payload)
    if incoming.topic is topics.TENSORS:
        return _received(incoming)
    if incoming.topic in topics.REQUESTS:
        return events.Requested(
            task=incoming.ids["task"],
            payload=delivery.payload,
            content_type=delivery.content_type or "",
            reply_to=topics.answer_topic(prefix, incoming, delivery.response_topic),
            correlation=delivery.correlation or b"",
            expiry_s=delivery.expiry_s,
            client=incoming.ids.get("client", "") if account is None else account,
            traceparent=delivery.traceparent,
            waited_s=waited_s,
        )
    return _control_event(incoming, retained=delivery.retain)


def client_of(prefix: str, topic: str) -> ClientName | None:
    """The client that a request's topic names, or an empty text; None for a topic that isn't one of requests."""
    if not topic.startswith(f"{prefix}/tasks/"):  # most topics of the data connection
        return None
    if (ids := topics.CLIENT_REQUESTS.match(prefix, topic)) is not None:
        return ids["client"]
    return None if topics.TASK_REQUESTS.match(prefix, topic) is None else ""


def _refuse_wrong_request(prefix: str, delivery: Delivery) -> None:
    """Refuse a retained request, and an unknown topic below a task's; others are of a newer version."""
    known = client_of(prefix, delivery.topic) is not None
    if known and delivery.retain:
        raise RemoteProtocolError("a retained message isn't a request: publish it without the retain flag")
    if not known and delivery.topic.startswith(f"{prefix}/tasks/") and "/requests/" in delivery.topic:
        form = "requests, or with requests/CLIENT/REQUEST, two names of 1 to 64 bytes"
        raise RemoteProtocolError(f"a request's topic ends with {form}")


def _control_event(incoming: topics.Incoming, *, retained: bool) -> events.Event | events.ConnectionEvent | None:
    try:
        message = incoming.decode()
    except RemoteProtocolError:
        if incoming.topic is not topics.DEVICE_STATE:
            raise
        message = None
    match message:
        case OrchestratorState() as leader if not retained:
            return events.LeaderAnnounced(leader)
        case Route(task=task) if task != incoming.ids["task"]:
            raise RemoteProtocolError("the route names another task than its topic")
        case DeviceState() as own if retained:
            return events.RetainedState(own)
        case Assignment() | DeviceState() | OrchestratorState() | Permit() | Quarantine() | Route() as message:
            return message
    if incoming.topic is topics.DEVICE_STATE:  # another client overwrote or cleared it: no new leader would see us
        return None if retained else events.RebirthRequested()
    return events.RouteCleared(incoming.ids["task"]) if incoming.topic is topics.TASK_ROUTE else None


def _received(incoming: topics.Incoming) -> events.Received:
    message, tensors = decode_tensors(incoming.payload)
    if (message.request, message.node) != (incoming.ids["request"], incoming.ids["node"]):
        raise RemoteProtocolError("the envelope names another request or node than the topic")
    return events.Received(incoming.ids["sender"], message, _values_of(message, tensors))


def tensors_message(prefix: str, device: DeviceId, send: Send, now_s: float) -> Outgoing:
    """Write a message to another agent. The token of node inputs is the message; ``not_received`` reads it.

    Raises:
        LocalProtocolError: its arrays can't be written.
    """
    message = send.message
    topic = topics.TENSORS.at(prefix, sender=device, receiver=send.receiver, request=message.request, node=message.node)
    token = message if isinstance(message, NodeInputs) else None
    expiry_s = max(1, math.ceil(send.deadline_s - now_s))
    return Outgoing(topic, encode_tensors(message, _arrays_of(send.values)), expiry_s=expiry_s, token=token)


def _arrays_of(values: Mapping[NodeName, Value]) -> Tensors:
    """The arrays ``need/array`` of some values; a raw input is one array of bytes."""
    arrays: dict[str, Array] = {}
    for need, value in values.items():
        named = {RAW: np.frombuffer(value.data, dtype=np.uint8)} if isinstance(value, RawInput) else value
        arrays |= {f"{need}/{name}": array for name, array in named.items()}
    return arrays


def _values_of(message: TensorMessage, tensors: Tensors) -> dict[NodeName, Value]:
    """One value per need of the arrays ``need/array``: a raw input, or the output of a node."""
    grouped: dict[NodeName, dict[str, Array]] = {}
    for name, array in tensors.items():
        need, _, part = name.partition("/")
        grouped.setdefault(need, {})[part] = array
    content_types = message.content_types if isinstance(message, NodeInputs) else {}
    return {
        need: RawInput(arrays[RAW].tobytes(), content_types[need])
        if need in content_types and RAW in arrays
        else arrays
        for need, arrays in grouped.items()
    }


def not_received(event: Undelivered | Denied, deadline_s: float) -> events.NotReceived | None:
    """The event of node inputs that no client received, or the broker refused; None for any other message."""
    message = event.token
    if not isinstance(message, NodeInputs):
        return None
    text = f"nobody receives messages for {message.plan.nodes[message.node].device}"
    if isinstance(event, Denied):
        text = f"the broker refused {event.topic}: {event.reason}"
    failed = failure(message, ErrorBody(code=ErrorCode.MODULE_FAILED, message=text), retry=True)
    return events.NotReceived(message.coordinator, failed, deadline_s)


def result_message(reply: Reply, now_s: float) -> Outgoing:
    """Write an answer."""
    payload, content_type = encode_result(reply.result, reply.tensors)
    return Outgoing(
        reply.reply_to,
        payload,
        correlation=reply.correlation or None,
        content_type=content_type,
        expiry_s=max(1, math.ceil(reply.deadline_s + LATE_S - now_s)),
        lasting=True,  # the request is over: only its sensor would resend it
    )
