"""The error that ends a request, for its sensor and for its backup coordinators. Sans-I/O, deterministic.

Owns the refusal of a request that finds no room: it is made from the topic and the properties. Knows nothing of plans.
"""

from __future__ import annotations

from broker.protocol.codec import request_id
from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.messages import MAX_DEADLINE_S, ErrorBody, NodeDone, Result
from broker.protocol.specs import DeviceId, TaskName
from broker.protocol.topics import may_reply_to
from edge_agent.events import Action, Reply, Requested, Send
from edge_agent.state import AgentState, Coordinated

DEFAULT_DEADLINE_S = 30.0  # for a sensor that sets no Message Expiry
REFUSED_RETRY_AFTER_S = 1.0  # in the refusal of a request for which there is no room


def lifetime_s(event: Requested) -> float:
    """The seconds that a request has left when it is read."""
    return max(0.0, min(MAX_DEADLINE_S, float(event.expiry_s or DEFAULT_DEADLINE_S)) - event.waited_s)


def error_reply(state: AgentState, request: Coordinated, error: RequestFailed) -> list[Action]:
    """Answer a request with an error, and tell its backup coordinators that it has ended."""
    route = state.routes.get(request.task)
    result = Result(
        request=request.request,
        task=request.task,
        epoch=state.fence[0],
        generation=state.fence[1],
        revision=route.revision if route else None,
        coordinator=state.device,
        error=ErrorBody(code=error.code, message=error.message, retry_after_s=error.retry_after_s),
    )
    actions: list[Action] = [Reply(request.reply_to, request.correlation, result, request.deadline_s)]
    if route is None or route.output is None:
        return actions
    done = NodeDone(
        request=request.request,
        task=request.task,
        node=route.output,
        epoch=route.epoch,
        generation=route.generation,
        attempt=0,
        revision=route.revision,
    )
    return actions + [Send(each, done, {}, request.deadline_s) for each in other_backups(state, request.task)]


def refuse_unread(state: AgentState, event: Requested, now_s: float) -> list[Action]:
    """Refuse a request that finds no room, before its payload is read. A backup coordinator only loses its copy.

    It reads the routes and changes nothing, so the network's thread may call it.
    """
    route = state.routes.get(event.task)
    is_backup = route is not None and state.device in route.second_door and state.device not in route.front_door
    if is_backup or not may_reply_to(state.prefix, event.reply_to):
        return []
    name = request_id(event.task, event.reply_to, event.correlation, event.payload)
    refused = Coordinated(name, event.task, {}, event.reply_to, event.correlation, now_s + lifetime_s(event))
    return error_reply(state, refused, no_room(f"too many requests wait at {state.device} already"))


def no_room(problem: str) -> RequestFailed:
    """The refusal of a request because of others."""
    text = f"{problem}; send more slowly"
    return RequestFailed(ErrorCode.OVERLOADED, text, retry_after_s=REFUSED_RETRY_AFTER_S)


def other_backups(state: AgentState, task: TaskName) -> tuple[DeviceId, ...]:
    """The backup coordinators of a task without this device."""
    route = state.routes.get(task)
    return tuple(device for device in route.second_door if device != state.device) if route else ()
