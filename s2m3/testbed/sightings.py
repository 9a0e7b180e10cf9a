"""State messages that an observer saw, and how two of them compare: older, equal, or the answer to an order. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel

from broker.epochs import is_stale
from broker.protocol.messages import Assignment, Heartbeat, OrchestratorState, Route
from broker.protocol.specs import TaskSpec


@dataclass(frozen=True, slots=True)
class Sighting:
    """One state message that devices obey, a device's standing or a task's status, with the time it arrived here.

    A heartbeat that reports the same modules, in the same states, and the same suspects as the one before it of its
    device is kept as that earlier one, so that a long replay doesn't fill the memory.
    """

    at_s: float
    id: str  # of its device or task; "" for the orchestrator
    message: BaseModel | None  # None when its topic was cleared


def serves(route: Route, spec: TaskSpec) -> bool:
    """Whether a route is for this spec, not for an older one of the same name."""
    if route.revision is not None:
        return route.revision == spec.revision
    wanted = {name: (spec.module_of(name).key, node.needs, node.use) for name, node in spec.nodes.items()}
    given = {name: (node.key, node.needs, node.use) for name, node in route.nodes.items()}
    return given == wanted and route.wire == spec.wire


def summary_of(heartbeat: Heartbeat) -> object:
    """The part of a heartbeat that a replay looks at."""
    held = {key: (each.module, each.state, each.load_s, each.error) for key, each in heartbeat.modules.items()}
    return held, set(heartbeat.suspects), heartbeat.session, heartbeat.epoch, heartbeat.generation


def replaces_nothing(message: BaseModel, known: BaseModel | None, leader: OrchestratorState | None) -> bool:
    """Whether it is a plan that doesn't replace the known one.

    A plan of the term that the leader announces replaces one of a later term: nobody leads that, so it is a lie.
    """
    if not isinstance(message, (Route, Assignment)):
        return False
    fence = (known.epoch, known.generation) if isinstance(known, (Route, Assignment)) else None
    if leader is not None and leader.online and fence is not None and message.epoch == leader.epoch < fence[0]:
        return False
    return is_stale((message.epoch, message.generation), fence)
