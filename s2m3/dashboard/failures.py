"""Failures of devices, each as one bracket: the signal, the takeover, the first answer after it.

Owns which events and answers belong to a failure. Pure: times are parameters.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from broker.protocol.reports import EventType, SystemEvent, Trace
from s2m3.dashboard.board import Board

MOST_FAILURES = 20
TAKEOVER_S = 120.0  # a later takeover belongs to no failure before it
_TAKEOVERS = frozenset({EventType.TOOK_OVER, EventType.MOVED})


class Failures:
    """The last failures, as entries of the board."""

    def __init__(self, board: Board) -> None:
        self.last_at: float | None = None
        """The time at which the last one began."""
        self._board = board
        self._number = 0
        self._open: deque[tuple[str, dict[str, Any], set[str]]] = deque(maxlen=MOST_FAILURES)

    def take(self, event: SystemEvent, users: set[str], now: float) -> dict[str, Any]:
        """Take in an event, whose module these tasks use; gives its own entry."""
        origin = (event.model_extra or {}).get("origin")
        if event.type == EventType.DEVICE_DEAD and event.device:
            self._number += 1
            self.last_at = now
            failure = {
                "device": event.device,
                "why": event.why or "",
                "at": now,
                "takeover_at": None,
                "modules": [],
                "answer_at": None,
                "answer": None,
            }
            self._open.append((f"failure/{self._number:09d}", failure, set()))
            self._board.put(f"failure/{self._number - MOST_FAILURES:09d}", None)
            self._put(self._open[-1])
        elif event.type in _TAKEOVERS and isinstance(origin, str):
            self._take_over(event, origin, users, now)
        known = event.model_dump(mode="json", exclude_none=True, include=set(SystemEvent.model_fields))
        return known | {"at": now, "origin": origin if isinstance(origin, str) else None}

    def answered(self, trace: Trace, now: float) -> None:
        """Take in the trace of a request: it may be the first answer after a takeover."""
        if trace.outcome != "answered":
            return
        for each in self._open:
            _, failure, tasks = each
            if failure["answer_at"] is None and trace.task in tasks:
                failure |= {"answer_at": now, "answer": trace.task}
                self._put(each)

    def _take_over(self, event: SystemEvent, origin: str, users: set[str], now: float) -> None:
        for each in reversed(self._open):
            _, failure, tasks = each
            if failure["device"] != origin or now - failure["at"] > TAKEOVER_S:
                continue
            failure["takeover_at"] = failure["takeover_at"] or now
            failure["modules"] = [*failure["modules"], {"module": event.module, "to": event.device}]
            tasks |= users
            self._put(each)
            return

    def _put(self, each: tuple[str, dict[str, Any], set[str]]) -> None:
        self._board.put(each[0], dict(each[1]))
