"""The routes that an agent keeps, bounded in number and bytes: any client of an open broker may publish routes.

Owns the bounds, and the choice of the route to drop: first those that don't name this device, of these the largest.
"""

from __future__ import annotations

from broker.protocol.codec import encode
from broker.protocol.messages import Route
from broker.protocol.specs import MAX_TASKS, MAX_TASKS_BYTES, TaskName
from edge_agent.state import AgentState

MAX_ROUTES = MAX_TASKS
MAX_ROUTE_BYTES = MAX_TASKS_BYTES  # as JSON, some nine times of that in memory


def keep(state: AgentState, route: Route) -> list[TaskName]:
    """Keep a route, and name the tasks whose routes are too many now; they are counted as dropped."""
    forget(state, route.task)
    is_own = state.device in route.front_door or state.device in route.second_door
    state.routes[route.task] = route
    state.route_sizes[route.task] = is_own, len(encode(route))
    state.routes_bytes += state.route_sizes[route.task][1]
    if not _are_too_many(state):
        return []
    excess: list[TaskName] = []
    for task in sorted(state.routes, key=lambda task: _rank(state, task)):
        _forget_size(state, task)
        excess.append(task)
        if not _are_too_many(state):
            break
    state.dropped["excess_route"] += len(excess)
    return excess


def forget(state: AgentState, task: TaskName) -> None:
    """Drop the route of a task, if there is one."""
    state.routes.pop(task, None)
    _forget_size(state, task)


def _forget_size(state: AgentState, task: TaskName) -> None:
    state.routes_bytes -= state.route_sizes.pop(task, (False, 0))[1]


def _are_too_many(state: AgentState) -> bool:
    return len(state.route_sizes) > MAX_ROUTES or state.routes_bytes > MAX_ROUTE_BYTES


def _rank(state: AgentState, task: TaskName) -> tuple[bool, int]:
    """The least rank is dropped first."""
    is_own, size_bytes = state.route_sizes[task]
    return is_own, -size_bytes
