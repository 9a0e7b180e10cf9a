"""The admission of a request: whether it is expected to be answered before its deadline. Pure.

Owns the refusal of a request that others' work would make late, and what is learned of how estimates err.
"""

from __future__ import annotations

from collections.abc import Mapping

from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.specs import DeviceId
from edge_agent.requests.routing import PlanAndTime
from edge_agent.state import AgentState, Coordinated

ADMITTED_SHARE = 0.8  # of the deadline that an estimate may fill when others' work is part of it; estimates err
NEWEST_SHARE = 0.1  # of the newest request in a task's latency inflation
MAX_LATENCY_INFLATION = 8.0  # of one request; one that died with a device says nothing about the others
MIN_RETRY_AFTER_S = 0.1  # in an ``overloaded`` answer


def admit(waiting_s: Mapping[DeviceId, float], choice: PlanAndTime | None, life_s: float, inflation: float) -> None:
    """Refuse a request that others would make late. One that is late by itself, or waits for a module, is admitted."""
    if choice is None or not any(planned.device in waiting_s for planned in choice[0].nodes.values()):
        return
    expected_s = choice[1] * inflation
    late_s = expected_s - ADMITTED_SHARE * life_s
    if late_s > 0:
        text = f"an answer is expected after {expected_s:.1f} s and the deadline is {life_s:.1f} s; come back later"
        raise RequestFailed(ErrorCode.OVERLOADED, text, retry_after_s=max(MIN_RETRY_AFTER_S, round(late_s, 3)))


def update_latency_inflation(state: AgentState, request: Coordinated, now_s: float) -> None:
    """Learn how much longer requests take than expected: later work of other tasks, or devices that became slow.

    A request that waited for our own link, or arrived in the burst after it, says nothing about that.
    """
    if request.expected_s > 0 and request.began_s >= state.suspect_only_after_s:
        known = state.latency_inflation.get(request.task, 1.0)
        newest = min(MAX_LATENCY_INFLATION, max(1.0, (now_s - request.began_s) / request.expected_s))
        state.latency_inflation[request.task] = known + NEWEST_SHARE * (newest - known)
