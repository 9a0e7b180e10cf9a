"""Doubts about a device that sends heartbeats: calls to it time out, or it died and returned lately (flap damping).

Owns both records and their rules. The reports of one coordinator move nothing, because its own link may be at fault, or
it may lie: two coordinators, or one and the orchestrator's own check (``checks``), are sufficient evidence. A device
that returned is on probation, and longer after each further death. Doesn't know heartbeats or placement; ``now_s``
comes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from broker.protocol.messages import SUSPECTED_FOR_S
from broker.protocol.specs import DeviceId

SUFFICIENT_REPORTS = 2  # of different coordinators
OWN_CHECK = "the orchestrator"  # as a coordinator: its own check failed; no device can have such an id
MAX_REPORTS = 16  # kept of one device, the latest: two are sufficient
SAME_CALL_S = 0.5  # two reports whose times differ by less are about the same call
PROBATION_HEARTBEATS = 5  # without a gap: a box with flickering power, or short of memory, dies sooner
_DOUBLINGS = 6  # each further death doubles the probation, up to 320 heartbeats
FORGIVE_AFTER_S = 600.0  # a device that lived this long since its return begins a new record


@dataclass(frozen=True)
class TimeoutReport:
    """One coordinator's report: when a call timed out last."""

    at_s: float


TimeoutReports = Mapping[DeviceId, TimeoutReport]
"""The reports about one device, by coordinator."""


def with_report(known: TimeoutReports, by: DeviceId, since_s: float | None, now_s: float) -> TimeoutReports:
    """The reports after a coordinator's heartbeat; the same object if nothing changed.

    ``since_s`` is how long ago its last call timed out; None if it reports nothing of the device.
    """
    if since_s is None or since_s >= SUSPECTED_FOR_S:
        return {other: report for other, report in known.items() if other != by} if by in known else known
    at_s, last = now_s - since_s, known.get(by)
    if last is not None and at_s - last.at_s < SAME_CALL_S:
        return known
    others = {other: report for other, report in known.items() if other != by}
    if len(others) >= MAX_REPORTS:
        del others[min(others, key=lambda other: (others[other].at_s, other))]
    return {**others, by: TimeoutReport(at_s)}


@dataclass(frozen=True)
class FlapRecord:
    """How often a device died lately, and how many heartbeats remain of its probation."""

    deaths: int = 0
    heartbeats_owed: int = 0
    returned_s: float = 0.0
    counted_s: float = 0.0  # when the last heartbeat of the probation was counted

    def on_death(self, now_s: float) -> FlapRecord:
        """The record after one more death."""
        return replace(self, deaths=1 if now_s - self.returned_s >= FORGIVE_AFTER_S else self.deaths + 1)

    def on_return(self, now_s: float) -> FlapRecord:
        """The record of a device that is alive again: on probation if it had died."""
        return replace(self, returned_s=now_s, heartbeats_owed=self._probation)

    def on_heartbeat(self, now_s: float, interval_s: float) -> FlapRecord:
        """The record after a heartbeat; one that comes early, to report news, doesn't count."""
        if not self.heartbeats_owed or now_s - self.counted_s < interval_s / 2:
            return self
        return replace(self, heartbeats_owed=self.heartbeats_owed - 1, counted_s=now_s)

    def on_gap(self) -> FlapRecord:
        """The record after a late heartbeat: a probation starts again."""
        return replace(self, heartbeats_owed=self._probation) if self.heartbeats_owed else self

    @property
    def why(self) -> str:
        """The reason of the probation, with its end."""
        return f"it died and came back, and is on probation until {self._probation} heartbeats came without a gap"

    @property
    def _probation(self) -> int:
        return PROBATION_HEARTBEATS << min(self.deaths - 1, _DOUBLINGS) if self.deaths else 0
