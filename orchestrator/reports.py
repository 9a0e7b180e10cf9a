"""The leader's reports: what it thinks of each device, each task's status and revisions, and its events. Pure.

Owns their messages, and the memory of what was published. It compares the states before and after an event; no rule of
``decide`` depends on it.

Invariants:
- a standing is published when it changes, and a task's status at most at each ``sweep``; both again over a new link;
- once the orders are reconciled, the broker retains the last revisions of each task, and no others;
- a heartbeat that changes nothing costs the same, however many devices and tasks there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from pydantic import BaseModel

from broker.protocol import topics
from broker.protocol.codec import encode
from broker.protocol.errors import MessageTooLarge
from broker.protocol.messages import SUSPECTED_FOR_S
from broker.protocol.reports import (
    MAX_UNKNOWN_TASKS,
    UNDELIVERED,
    Candidate,
    EventType,
    Standing,
    SystemEvent,
    TaskStatus,
    UnansweredRequests,
)
from broker.protocol.sizes import show_sizes
from broker.protocol.specs import DeviceId, TaskName, TaskSpec
from broker.transport.port import LinkUp, Outgoing
from orchestrator import events
from orchestrator.membership.device import Device, Fitness
from orchestrator.placement import first_loads, revisions
from orchestrator.placement.drain import waits_for
from orchestrator.placement.reconcile import TOOK_OVER
from orchestrator.state import State

MAX_HEARD = 20_000  # revisions at the broker: twice those of the most tasks; more are cleared after the next link
_PASSING = {"loading", "planning", "starting", "unavailable"}  # reasons that the log has already, as a task's state
Name = Literal["online", "suspect", "unresponsive", "dead", "away", "probation", "draining", "drained"]
EVENT_OF: Final[Mapping[Name, EventType]] = {
    "online": EventType.DEVICE_ONLINE,
    "probation": EventType.DEVICE_ONLINE,
    "suspect": EventType.DEVICE_SUSPECT,
    "unresponsive": EventType.DEVICE_SUSPECT,
    "dead": EventType.DEVICE_DEAD,
    "away": EventType.DEVICE_AWAY,
    "draining": EventType.DEVICE_DRAINING,
    "drained": EventType.DEVICE_DRAINED,
}


class When(NamedTuple):
    """A moment, on the loop's clock and in seconds since 1970."""

    now_s: float
    at: float

    def to_people(self, time_s: float) -> float:
        """A time on the loop's clock, in seconds since 1970."""
        return self.at + time_s - self.now_s


class Opinion(NamedTuple):
    """A standing without its times; ``until_s`` is on the loop's clock."""

    standing: Name
    why: str
    until_s: float | None = None


class Reports:
    """The reports of one term.

    Args:
        prefix: in front of all topics.
        too_large: the topics whose last message the broker doesn't take; it changes meanwhile.
    """

    def __init__(self, prefix: str, too_large: Mapping[str, MessageTooLarge] = {}) -> None:
        self._prefix = prefix
        self._too_large = too_large
        self._standings: dict[DeviceId, Standing] = {}
        self._statuses: dict[TaskName, TaskStatus | None] = {}  # as published; None: not over this link
        self._heard: dict[tuple[TaskName, str], int | None] = {}  # what revisions' topics have; None: no right spec
        self._kept: object = None  # the revisions whose topics the broker has right; None: look again
        self._unanswerable: dict[TaskName, Counter[str]] = {}
        self._unknown: dict[str, Counter[str]] = {}  # as _unanswerable, of names that no deployed task has
        self._unknown_told: UnansweredRequests | None = None  # over this link
        self._unwarned: list[tuple[str, str]] = []
        self._unpublished: set[DeviceId] = set()  # over this link

    def on_event(
        self, before: State, event: events.Event, after: State, actions: Sequence[events.Action], when: When
    ) -> list[Outgoing]:
        """The reports after ``decide`` has handled an event."""
        if isinstance(event, LinkUp):
            self._unpublished, self._statuses = set(self._standings), dict.fromkeys(self._statuses)
            self._heard, self._kept, self._unknown_told = {}, None, None
        if isinstance(event, events.RequestUnanswerable):
            self._count(after, event.task, event.reason)
        if isinstance(event, events.RevisionReceived):
            self._on_revision(event)
        for action in actions:
            if isinstance(action, events.AnswerError):
                self._count(after, action.result.task, action.reason)
        if after.link is None:
            return []
        changed = after.cluster.devices.differences(before.cluster.devices)
        happened = [*_leader_events(event, after), *_task_events(before, after, actions), *_forgotten(actions)]
        happened += _placement_events(before, after) if before.placement is not after.placement else []
        told = [self._message(topics.ORCHESTRATOR_EVENTS, SystemEvent(at=when.at, **fields)) for fields in happened]
        return [*self._on_withdrawn(actions), *self._on_devices(after, changed, when), *told]

    def sweep(self, state: State, when: When) -> list[Outgoing]:
        """The reports of all other changes; the leader calls this once in each interval of its heartbeats."""
        if state.link is None:
            return []
        devices = state.cluster.devices
        return [
            *self._on_devices(state, sorted(devices.keys() | self._standings.keys()), when),
            *self._on_unknown(state),  # before the statuses, which may count more then
            *self._on_revisions(state),  # likewise: they list the revisions
            *self._on_tasks(state),
        ]

    def take_warnings(self) -> list[tuple[str, str]]:
        """The tasks and reasons of requests that could not be answered and are new since the last call."""
        taken, self._unwarned = self._unwarned, []
        return taken

    def _count(self, state: State, task: str, reason: str) -> None:
        """Count a request that couldn't be answered. Anyone may invent names: of those only some are kept.

        Until the deployed tasks are known, a reason that passes says nothing of its name.
        """
        is_known = task in state.tasks or task in state.invalid
        if not is_known and reason in _PASSING:
            return
        counts = self._unanswerable if is_known else self._unknown
        if not is_known and task not in counts and len(counts) >= MAX_UNKNOWN_TASKS:
            task = ""
        counted = counts.setdefault(task, Counter())
        if reason not in counted and (reason not in _PASSING):
            self._unwarned.append((task, reason))
        counted[reason] += 1

    def _on_unknown(self, state: State) -> list[Outgoing]:
        """Publish the names that no task has, once the tasks are known. A task takes the counts of its name."""
        if not state.settled:
            return []
        for task in sorted(self._unknown.keys() & (state.tasks.keys() | state.invalid.keys())):
            self._unanswerable.setdefault(task, Counter()).update(self._unknown.pop(task))
        message = UnansweredRequests(unanswerable={task: dict(each) for task, each in sorted(self._unknown.items())})
        if message == self._unknown_told:
            return []
        self._unknown_told = message
        topic = topics.ORCHESTRATOR_UNANSWERED
        return [self._message(topic, message) if self._unknown else self._cleared(topic)]

    def _on_devices(self, state: State, names: Iterable[DeviceId], when: When) -> list[Outgoing]:
        told: list[Outgoing] = []
        for name in names:
            device, last = state.cluster.devices.get(name), self._standings.get(name)
            if device is None:
                told += [self._cleared(topics.DEVICE_STANDING, device=name)] if self._standings.pop(name, None) else []
                continue
            opinion = self._delivered(device, opinion_of(state, device, when.now_s)) or _opinion_before(last, when)
            if opinion is None or not (name in self._unpublished or _differs(state, last, opinion, when)):
                continue
            is_new = last is None or last.standing != opinion.standing
            message = self._standings[name] = Standing(
                device=name,
                standing=opinion.standing,
                since=when.at if last is None or is_new else last.since,
                until=None if opinion.until_s is None else round(when.to_people(opinion.until_s), 3),
                why=opinion.why,
            )
            self._unpublished.discard(name)
            told.append(self._message(topics.DEVICE_STANDING, message, device=name))
            if is_new:
                happened = SystemEvent(type=EVENT_OF[opinion.standing], at=when.at, device=name, why=opinion.why)
                told.append(self._message(topics.ORCHESTRATOR_EVENTS, happened))
        return told

    def _delivered(self, device: Device, opinion: Opinion | None) -> Opinion | None:
        """The opinion; of a device that is online and can't get its assignment, why."""
        if not self._too_large or opinion is None or opinion.standing != "online":
            return opinion
        lost = self._too_large.get(topics.DEVICE_ASSIGNMENT.at(self._prefix, device=device.id))
        if lost is None:
            return opinion
        size, limit = show_sizes(lost.size_bytes, lost.limit_bytes)
        fix = "undeploy a task, add a device, or raise the broker's limit (Mosquitto: max_packet_size)"
        return opinion._replace(why=f"{UNDELIVERED}: it has {size}, and a message there at most {limit}; {fix}")

    def _on_tasks(self, state: State) -> list[Outgoing]:
        if not state.reconciled:
            return []  # a task that is undeployed would have a status, and no later leader would know of that
        told: list[Outgoing] = []
        known = state.tasks.keys() | state.invalid.keys()
        for task in sorted(known):
            route = state.routes.get(task)
            status = TaskStatus(
                task=task,
                revision=route.revision if route is not None and route.complete else None,
                candidate=_candidate_of(state, task),
                revisions=tuple(spec.revision for spec in state.orders.revisions.get(task, ())),
                unanswerable=dict(sorted(self._unanswerable.get(task, {}).items())),
                digests=(digests := first_loads.of_task(state, task)),
                other_digests={
                    name: state.other_digests[name].found for name in digests if name in state.other_digests
                },
            )
            if self._statuses.get(task) != status:
                self._statuses[task] = status
                told.append(self._message(topics.TASK_STATUS, status, task=task))
        return [*told, *(self._without_status(task) for task in sorted(self._statuses.keys() - known))]

    def _on_withdrawn(self, actions: Iterable[events.Action]) -> list[Outgoing]:
        """Clear the status with the route, perhaps of an earlier leader: no later one would know that it is there."""
        clears = (action for action in actions if isinstance(action, events.Clear))
        return [self._without_status(each.name) for each in clears if each.topic is topics.TASK_ROUTE]

    def _without_status(self, task: TaskName) -> Outgoing:
        self._statuses.pop(task, None)
        self._unanswerable.pop(task, None)
        return self._cleared(topics.TASK_STATUS, task=task)

    def _on_revision(self, event: events.RevisionReceived) -> None:
        """Note what a revision's topic has now: the broker's memory, our own message, or another client's."""
        name = (event.task, event.revision)
        is_known = name in self._heard
        self._heard.pop(name, None)
        if not event.is_empty and (is_known or len(self._heard) < MAX_HEARD):
            self._heard[name] = None if event.spec is None else _fingerprint(event.spec)
        self._kept = None

    def _on_revisions(self, state: State) -> list[Outgoing]:
        """Publish the specs of revisions that the broker lacks, and clear the other revisions that it has."""
        if not state.reconciled or self._kept is state.orders.revisions:
            return []
        kept = {(spec.task, spec.revision): spec for last in state.orders.revisions.values() for spec in last}
        right = {name: _fingerprint(spec) for name, spec in kept.items()}
        told = [
            self._message(topics.TASK_REVISION, kept[task, revision], task=task, revision=revision)
            for task, revision in sorted(kept)
            if self._heard.get((task, revision)) != right[task, revision]
        ]
        told += [
            self._cleared(topics.TASK_REVISION, task=task, revision=revision)
            for task, revision in sorted(self._heard.keys() - kept.keys())
        ]
        self._heard, self._kept = dict(right), state.orders.revisions
        return told

    def _message(self, topic: topics.Topic, message: BaseModel, **ids: str) -> Outgoing:
        return Outgoing(topic.at(self._prefix, **ids), encode(message), qos=topic.qos, retain=topic.retain)

    def _cleared(self, topic: topics.Topic, **ids: str) -> Outgoing:
        return Outgoing(topic.at(self._prefix, **ids), b"", qos=topic.qos, retain=topic.retain)


def _fingerprint(spec: TaskSpec) -> int:
    """The fields of a spec that aren't in the name of its revision, as a number."""
    return hash((spec.description, spec.replace))


def opinion_of(state: State, device: Device, now_s: float) -> Opinion | None:
    """The leader's opinion of a device; None of one whose first heartbeat is still on its way.

    Neither the end of a device that is on only sometimes nor its silence before is an alarm.
    """
    is_late = now_s - device.heard_s > state.cluster.interval_s(device)
    if not device.always_on and (is_late or not device.watched):
        return None if device.watched else Opinion("away", "it is on only sometimes")
    if not device.watched:
        silent = f"no heartbeat came for {max(0.0, now_s - device.heard_s):.0f} s"
        return Opinion("dead", "its connection ended" if device.status == "offline" else silent)
    if device.health == "suspect":
        return Opinion("suspect", "its heartbeats are late")
    if not device.confirmed:
        return None
    if device.fitness == Fitness.DRAINING:
        return _drain_of(state, device)
    return _doubts_about(state, device, now_s) or Opinion("online", "its heartbeats arrive")


def _doubts_about(state: State, device: Device, now_s: float) -> Opinion | None:
    if device.unresponsive:
        until_s = max(report.at_s for report in device.timeout_reports.values()) + SUSPECTED_FOR_S
        return Opinion("unresponsive", f"calls to it time out at {', '.join(sorted(device.timeout_reports))}", until_s)
    if owed := device.flaps.heartbeats_owed:
        until_s = now_s + owed * state.cluster.interval_s(device)
        times = f"{device.flaps.deaths} times" if device.flaps.deaths > 1 else "once"
        return Opinion("probation", f"it died {times} lately, and came back", until_s)
    return None


def _drain_of(state: State, device: Device) -> Opinion:
    by = "an operator drains it" if device.drained else "it is about to end"
    if stays := state.drain_attempt.stays.get(device.id) if state.drain_attempt else None:
        return Opinion("draining", f"{by}; {stays}")
    if waits := waits_for(state, device.id):
        return Opinion("draining", f"{by}; {waits}")
    is_empty = not device.modules and device.id not in state.placement.roles
    return Opinion("drained" if is_empty else "draining", by)


def _opinion_before(last: Standing | None, when: When) -> Opinion | None:
    if last is None:
        return None
    return Opinion(last.standing, last.why, None if last.until is None else when.now_s + last.until - when.at)


def _differs(state: State, last: Standing | None, opinion: Opinion, when: When) -> bool:
    """Whether an opinion is news. The end of a probation moves a little with each heartbeat, which isn't."""
    if last is None or (last.standing, last.until is None) != (opinion.standing, opinion.until_s is None):
        return True
    if last.standing == "dead":  # the seconds of its silence grow
        return False
    if last.why != opinion.why:
        return True
    if last.until is None or opinion.until_s is None:
        return False
    device = state.cluster.devices[last.device]
    return abs(when.to_people(opinion.until_s) - last.until) > 2 * state.cluster.interval_s(device)


def _candidate_of(state: State, task: TaskName) -> Candidate | None:
    """The spec of a task that takes over when it is ready; None without one."""
    if task not in state.tasks or (task not in state.served and task not in state.invalid):
        return None
    why = revisions.why_refused(state, task)
    revision = None if task in state.invalid else state.tasks[task].revision
    return Candidate(revision=revision, state="loading" if why is None else "refused", why=why)


# --- events: their fields but for the time ---


def _leader_events(event: events.Event, after: State) -> list[dict[str, object]]:
    is_first = isinstance(event, LinkUp) and len(after.sessions) == 1
    return [{"type": EventType.LEADER_CHANGED, "epoch": after.epoch}] if is_first else []


def _task_events(before: State, after: State, actions: Iterable[events.Action]) -> list[dict[str, object]]:
    happened: list[dict[str, object]] = []
    if before.tasks is not after.tasks:
        for task, spec in after.tasks.items():
            known = before.tasks.get(task)
            if known is not spec and (known is None or known.revision != spec.revision):
                happened.append({"type": EventType.TASK_DEPLOYED, "task": task, "revision": spec.revision})
    for action in actions:
        if not isinstance(action, events.PublishRoute):
            continue
        route, last = action.route, before.routes.get(action.route.task)
        if (why := route.unavailable) and (last is None or last.unavailable != why):
            happened.append({"type": EventType.TASK_UNAVAILABLE, "task": route.task, "why": why})
        if route.complete and last is not None and last.revision != route.revision:
            happened.append({"type": EventType.REVISION_SERVED, "task": route.task, "revision": route.revision})
    return [*happened, *_refused_revisions(before, after)]


def _forgotten(actions: Iterable[events.Action]) -> list[dict[str, object]]:
    notes = [each for each in actions if isinstance(each, events.Note) and each.event == "device_forgotten"]
    why = "an operator had it forgotten"
    return [{"type": EventType.DEVICE_FORGOTTEN, "device": note.fields["device"], "why": why} for note in notes]


def _refused_revisions(before: State, after: State) -> list[dict[str, object]]:
    """The revisions that can't be served beside those that are, and weren't refused before."""
    if before.placement is after.placement and before.invalid is after.invalid:
        return []
    happened: list[dict[str, object]] = []
    for task in sorted(after.served.keys() | (after.invalid.keys() & after.tasks.keys())):
        now, then = _candidate_of(after, task), _candidate_of(before, task)
        if now is not None and now.state == "refused" and now != then:
            fields = {"task": task, "revision": now.revision, "why": now.why}
            happened.append({"type": EventType.REVISION_REFUSED, **{k: v for k, v in fields.items() if v is not None}})
    return happened


def _placement_events(before: State, after: State) -> list[dict[str, object]]:
    happened: list[dict[str, object]] = []
    for key, home in after.placement.where.items():
        origin = before.placement.where.get(key)
        if origin == home:
            continue
        module, why = after.placement.modules[key][0], after.placement.why.get(key, "")
        if origin is None:
            happened.append({"type": EventType.PLACED, "module": module, "device": home, "why": why})
            continue
        kind = EventType.TOOK_OVER if why.startswith(TOOK_OVER) else EventType.MOVED
        happened.append({"type": kind, "module": module, "device": home, "origin": origin, "why": why})
    return happened
