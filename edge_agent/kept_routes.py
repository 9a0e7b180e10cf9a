"""The routes that an agent keeps, bounded in number and bytes: any client of an open broker may publish routes.

Owns the bounds, and the choice of the route to drop: first those that don't name this device, of these the largest.
"""

from __future__ import annotations

from broker.protocol.codec import encode
from broker.protocol.messages import Route
from broker.protocol.specs import TaskName
from edge_agent.state import AgentState

MAX_ROUTES = 2_000
MAX_ROUTE_BYTES = 4 * 1024 * 1024  # as JSON, some nine times of that in memory; the route of a usual task has 2 kB


def keep(state: AgentState, route: Route) -> list[TaskName]:
    """Keep a route, and name the tasks whose routes are too many now; they are counted as dropped."""
    state.routes[route.task] = route
    state.route_bytes = {task: size_bytes for task, size_bytes in state.route_bytes.items() if task in state.routes}
    state.route_bytes[route.task] = len(encode(route))
    excess: list[TaskName] = []
    count, total_bytes = len(state.route_bytes), sum(state.route_bytes.values())
    while count > MAX_ROUTES or total_bytes > MAX_ROUTE_BYTES:
        task = max(state.route_bytes, key=lambda task: _rank(state, task))
        total_bytes -= state.route_bytes.pop(task)
        count -= 1
        excess.append(task)
    state.dropped["excess_route"] += len(excess)
    return excess


def _rank(state: AgentState, task: TaskName) -> tuple[bool, int]:
    route = state.routes[task]
    return state.device not in (*route.front_door, *route.second_door), state.route_bytes[task]
