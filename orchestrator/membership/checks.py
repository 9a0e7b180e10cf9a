"""The orchestrator's own check of a device that one coordinator suspects.

A coordinator's word alone moves nothing: its link may be at fault, or it may lie. So the orchestrator sends the device
a request of its own: a pass of a module that the device holds, in a use that no module has. It waits in the device's
queue like any other pass, and ends with a refusal. If no answer comes in time, that counts as a second report.

Owns when to check, how long to wait, and what an answer means. Doesn't know topics; ``now_s`` comes in. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from broker.protocol.specs import DeviceId, ModuleKey, RequestId
from broker.transport.port import LinkDown, LinkUp
from orchestrator.events import CheckAnswered, CheckDevice, Event, HeartbeatReceived, Overslept
from orchestrator.membership.device import Device
from orchestrator.membership.doubts import OWN_CHECK, with_report
from orchestrator.membership.failure_detector import Cluster, stands_still_from_s

ANSWER_S = 1.0  # beside the passes that wait there
WAITING_PASSES = 3  # of the device's slowest module
LONGEST_ANSWER_S = 15.0
CHECK_EVERY_S = 5.0  # at most, of one device
MAX_CHECKS = 16  # at once: accusations cost the accuser's site no more than that


@dataclass(frozen=True)
class Check:
    """A check of one device."""

    request: RequestId
    sent_s: float
    due_s: float
    ended: bool = False  # answered or failed; kept for a while, so that the next one isn't sent at once


Checks = Mapping[DeviceId, Check]


def next_deadline_s(checks: Checks) -> float | None:
    """The time at which the next check fails if no answer comes."""
    return min((check.due_s for check in checks.values() if not check.ended), default=None)


def conclude(cluster: Cluster, checks: Checks, event: Event, now_s: float) -> tuple[Cluster, Checks]:
    """The cluster and the checks with the results up to now.

    This comes before the failure detector's event: a failed check can be what makes a silent device dead now.
    """
    if isinstance(event, LinkUp | LinkDown | Overslept):
        return cluster, {}  # the answers may be lost
    if isinstance(event, CheckAnswered) and (check := checks.get(event.device)) and check.request == event.request:
        checks = {**checks, event.device: replace(check, ended=True)}
        cluster = _with_result(cluster, event.device, None, now_s)
    for device, check in [*checks.items()] if checks else []:
        if not check.ended and now_s >= check.due_s:
            checks = {**checks, device: replace(check, ended=True)}
            if now_s <= stands_still_from_s(cluster):  # else our own link is at fault
                cluster = _with_result(cluster, device, 0.0, now_s)
        elif check.ended and now_s >= check.sent_s + CHECK_EVERY_S:
            checks = {name: other for name, other in checks.items() if name != device}
    return cluster, checks


def begin(cluster: Cluster, checks: Checks, event: Event, now_s: float) -> tuple[Checks, list[CheckDevice]]:
    """The checks, with those of the devices that a heartbeat has just accused, and the requests to send."""
    actions: list[CheckDevice] = []
    if isinstance(event, HeartbeatReceived) and event.device in cluster.accused:
        for name in sorted(cluster.accused[event.device] - checks.keys()):
            known = cluster.devices.get(name)
            if len(checks) < MAX_CHECKS and known and known.alive and known.timeout_reports.keys() - {OWN_CHECK}:
                action = _check(known, now_s)
                checks = {**checks, name: Check(action.request, now_s, now_s + action.within_s)}
                actions.append(action)
    return checks, actions


def _check(device: Device, now_s: float) -> CheckDevice:
    ready = [key for key in device.modules if device.ready(key)]
    key: ModuleKey = min(ready, key=lambda each: (device.measured.get(each, 0.0), each), default="none")
    slowest_s = max((device.measured.get(each, 0.0) for each in ready), default=0.0)
    within_s = min(LONGEST_ANSWER_S, ANSWER_S + WAITING_PASSES * slowest_s)
    return CheckDevice(device.id, f"check-{int(now_s * 1000)}", key, device.fence, within_s)


def _with_result(cluster: Cluster, name: DeviceId, since_s: float | None, now_s: float) -> Cluster:
    """The cluster with the failure of our own check as a report, or without that report."""
    device = cluster.devices.get(name)
    if device is None:
        return cluster
    reports = with_report(device.timeout_reports, OWN_CHECK, since_s, now_s)
    return (
        cluster if reports is device.timeout_reports else cluster.with_devices(replace(device, timeout_reports=reports))
    )
