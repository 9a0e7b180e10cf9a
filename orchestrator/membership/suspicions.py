"""Suspicions: what coordinators report of a device whose calls time out.

Owns the reports about one device, and how many are sufficient evidence. One report of one coordinator moves nothing,
because its own link may be at fault; two coordinators, or two calls of one, are sufficient. Doesn't know heartbeats or
placement; ``now_s`` comes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from broker.protocol.messages import SUSPECTED_FOR_S
from broker.protocol.specs import DeviceId

SUFFICIENT_TIMEOUTS = 2
SAME_CALL_S = 0.5  # two reports whose times differ by less are about the same call


@dataclass(frozen=True)
class TimeoutReport:
    """One coordinator's report: when a call timed out last, and how many calls did."""

    at_s: float
    calls: int = 1


TimeoutReports = Mapping[DeviceId, TimeoutReport]
"""The reports about one device, by coordinator."""


def with_report(known: TimeoutReports, by: DeviceId, since_s: float | None, now_s: float) -> TimeoutReports:
    """The reports after a heartbeat of one coordinator; the same object if nothing changed.

    Args:
        known: the reports so far.
        by: the coordinator.
        since_s: how long ago its last call timed out; None if it reports nothing of the device.
        now_s: now.
    """
    if since_s is None or since_s >= SUSPECTED_FOR_S:
        return {other: report for other, report in known.items() if other != by} if by in known else known
    at_s, last = now_s - since_s, known.get(by)
    if last is None:
        return {**known, by: TimeoutReport(at_s)}
    if at_s - last.at_s < SAME_CALL_S:
        return known
    return {**known, by: TimeoutReport(at_s, last.calls + 1)}


def expire_reports(known: TimeoutReports, now_s: float) -> TimeoutReports:
    """The reports without those that are too old; the same object if none is."""
    recent = {by: report for by, report in known.items() if now_s < report.at_s + SUSPECTED_FOR_S}
    return recent if len(recent) < len(known) else known


def is_unresponsive(known: TimeoutReports) -> bool:
    """Whether the reports are sufficient evidence, although the device sends heartbeats."""
    return sum(report.calls for report in known.values()) >= SUFFICIENT_TIMEOUTS
