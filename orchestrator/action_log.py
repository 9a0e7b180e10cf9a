"""The log lines of the orchestrator's actions. Owns their words; decides nothing."""

from __future__ import annotations

import structlog

from broker.protocol.messages import Route
from broker.protocol.specs import TaskSpec
from orchestrator import events
from orchestrator.events import Action

_log = structlog.get_logger("orchestrator")


def log_action(action: Action) -> None:
    """Log what this action does; nothing for actions that others log."""
    match action:
        case events.PublishState(message):
            _log.info("state", epoch=message.epoch, online=message.online)
        case events.PublishRoute(route):
            _log.info("route", task=route.task, generation=route.generation, **_summary(route))
        case events.PublishSpec(TaskSpec(task=name)) | events.PublishDrain(name):
            _log.info("order_restored", order=type(action).__name__, name=name)
        case events.Clear(topic, name):
            _log.info("topic_cleared", topic=topic.template, name=name)
        case events.PublishAssignment(device, assignment):
            names = {role: [m.module for m in assignment.modules if m.role == role] for role in ("active", "standby")}
            _log.info("assignment", device=device, generation=assignment.generation, **names)
        case events.AnswerError(reply_to, _, result):
            _log.debug("request_refused", task=result.task, request=result.request, reply_to=reply_to)
        case events.Resign(why, _):
            _log.warning("resigning", why=why)
        case events.Note(event, fields):
            _log.info(event, **fields)


def _summary(route: Route) -> dict[str, object]:
    if route.unavailable is not None:
        return {"unavailable": route.unavailable}
    nodes = {name: [device.device for device in node.devices] for name, node in route.nodes.items()}
    return {"nodes": nodes, "front_door": list(route.front_door), "group": route.group, "complete": route.complete}
