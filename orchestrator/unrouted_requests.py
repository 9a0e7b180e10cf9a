"""Unrouted requests: the orchestrator's error replies to requests that no front door takes.

Owns when it answers, and the sentences. Changes nothing. Doesn't know topics or connections. Agents answer a request
whose task has a front door; so nothing is answered before the broker's retained routes had time to arrive.
"""

from __future__ import annotations

import math
import re

from broker.leader_watch import READ_RETAINED_S
from broker.protocol.codec import request_id
from broker.protocol.errors import ErrorCode
from broker.protocol.messages import ErrorBody, Result, Route
from broker.protocol.specs import TaskName
from orchestrator.events import Action, AnswerError, RequestReceived
from orchestrator.placement.revisions import served_spec
from orchestrator.state import State

RETRY_LOADING_S = 1.0
_NOT_IN_IDS = re.compile(r"[^a-z0-9]")


def answer_unrouted(state: State, request: RequestReceived, now_s: float) -> list[Action]:
    """The error reply to a request, if the orchestrator must answer it."""
    refusal = _refusal(state, request.task, now_s)
    if refusal is None:
        return []
    reason, sentence, retry_after_s = refusal
    result = Result(
        request=request_id(request.task, request.reply_to, request.correlation or b"", request.payload),
        task=request.task,
        epoch=state.epoch,
        generation=state.generation,
        revision=served_spec(state, request.task).revision if request.task in state.tasks else None,
        error=ErrorBody(code=ErrorCode.NO_ROUTE, message=sentence, retry_after_s=retry_after_s),
    )
    return [AnswerError(request.reply_to, request.correlation, result, reason)]


def _refusal(state: State, task: TaskName, now_s: float) -> tuple[str, str, float | None] | None:
    """The reason, as a word and as a sentence, and the seconds after which to try again; None without a refusal."""
    route = state.routes.get(task)
    doors = [known.front_door for known in (route, state.retained_routes.get(task)) if known is not None]
    still_read = state.settles_at_s is not None and now_s < state.cluster.up_s + READ_RETAINED_S
    if state.link is None or still_read or any(doors):
        return None
    if state.settles_at_s is not None:
        left_s = max(1, math.ceil(state.settle_s if state.reads_again else state.settles_at_s - now_s))
        return "starting", "the orchestrator has just started; try again", float(left_s)
    if route is None:
        if task in state.tasks:
            return "planning", "its placement is being planned; try again", RETRY_LOADING_S
        deployed = ", ".join(sorted(state.routes)) or "none"
        meant = "-".join(_NOT_IN_IDS.split(task.lower()))
        hint = f"write {meant}" if meant in state.routes else "deploy it with `s2m3 deploy FILE`"
        sentence = f"no task is called {task}; deployed tasks: {deployed}; {hint}"
        return "unknown", sentence, None
    if route.unavailable is None:
        return "loading", f"its modules are being loaded: {_loading(state, route)}; try again", RETRY_LOADING_S
    return "unavailable", route.unavailable, None


def _loading(state: State, route: Route) -> str:
    """The devices that load modules of a route, as a phrase."""
    waits: dict[str, set[str]] = {}
    for node in route.nodes.values():
        if not node.devices:
            waits.setdefault(state.placement.where.get(node.key, "a device"), set()).add(node.module)
    return ", ".join(f"{device} loads {' and '.join(sorted(modules))}" for device, modules in sorted(waits.items()))
