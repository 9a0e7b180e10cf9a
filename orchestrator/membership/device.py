"""One device as the orchestrator knows it, and how the device's own messages change that.

Owns the meaning of a birth, a will and a heartbeat for their sender, and what a device may be used for (``Fitness``).
Doesn't know other devices, silence, tasks or the broker; ``now_s`` comes in.

Invariants:
- a late message of an older session changes nothing. Session numbers are random: only memory tells old from new. But if
  the current session is silent, a new heartbeat of an earlier one whose will never came makes that one current again;
- a device counts as alive only after a heartbeat: a retained birth may be stale, a heartbeat is never retained;
- measured seconds count until the device measures again or restarts, also for modules that it has unloaded;
- a module that failed on a device is barred there while the device reports the failure, and for a backoff after that.
  It says something about the module itself only if the device was assigned it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from itertools import islice
from typing import Any, Literal, TypeVar

from broker.protocol.engines import ENGINES
from broker.protocol.messages import SUSPECTED_FOR_S, Alone, DeviceProfile, DeviceState, Heartbeat, HeldModule
from broker.protocol.specs import Availability, DeviceId, DeviceSpec, ModuleKey, TaskName
from orchestrator.membership.doubts import SUFFICIENT_REPORTS, FlapRecord, TimeoutReports
from orchestrator.membership.frozen import with_fields

FIRST_BACKOFF_S = 30.0  # after a module's first failure on a device; doubles with each further failure
LONGEST_BACKOFF_S = 15 * 60.0
WILLS_S = 3.0  # from the wills that a stopping broker publishes until it closes all links: it may write a disk first
MAX_MODULES = 1_000  # kept of a heartbeat: the most that an assignment has
MAX_CACHED = 2_000  # other modules of a heartbeat that are kept
MIN_ENTRIES = 64  # of a heartbeat that are kept, however much the other devices report
_DOUBLINGS = 5  # from the first backoff to beyond the longest
_PAST_SESSIONS = 8  # remembered per device; more than the broker can have under way
_ENDED = sys.maxsize  # instead of a past session's last seq: its will came
T = TypeVar("T")
Status = Literal["online", "draining", "offline"]


class Fitness(IntEnum):
    """The uses of a device; each level allows what the lower ones do."""

    ABSENT = 0  # nothing: offline, dead, or without a heartbeat yet
    DRAINING = 1  # it serves its modules until they have moved away
    UNRESPONSIVE = 2  # it sends heartbeats, and calls to it time out: it serves what no other device can
    DOUBTFUL = 3  # late, or on probation: it keeps its modules, and gets more only if nothing else fits
    FIT = 4  # everything


@dataclass(frozen=True)
class Backoff:
    """A module that failed on a device: the failures in this session, and until when it isn't tried there again."""

    error: str
    failures: int
    until_s: float | None  # None: the backoff is over
    assigned: bool = False  # whether the device was assigned the module: only then other devices need know of it


@dataclass(frozen=True)
class Device:
    """The last messages of one device, and what the failure detector makes of them."""

    id: DeviceId
    session: int
    status: Status
    profile: DeviceProfile
    heard_s: float  # when its last sign of life came
    health: Literal["well", "suspect", "dead"] = "well"
    confirmed: bool = False  # whether a heartbeat came since its birth
    seq: int = -1
    fence: tuple[int, int] = (0, 0)  # epoch and generation of the assignment that it obeys
    modules: Mapping[ModuleKey, HeldModule] = field(default_factory=dict)  # as it reports them
    cached: frozenset[ModuleKey] = frozenset()  # other modules whose weights are on its disk
    measured: Mapping[ModuleKey, float] = field(default_factory=dict)  # seconds of a pass, in this session
    backoffs: Mapping[ModuleKey, Backoff] = field(default_factory=dict)
    past_sessions: Mapping[int, int] = field(default_factory=dict)  # -> the last seq heard; see `_after_low_number`
    ended_s: float = -math.inf  # when its will or goodbye came
    before_will: Device | None = None  # the device as it was then
    drained: bool = False  # by an operator
    tasks: tuple[TaskName, ...] | None = None  # those that it may serve; None: all
    availability: Availability = "always"
    heartbeat_interval_s: float | None = None  # by its birth; None: the one that the orchestrator expects
    ignores_unknown: bool = False  # whether it ignores fields that it doesn't know: its birth has ``about``
    flaps: FlapRecord = field(default_factory=FlapRecord)
    timeout_reports: TimeoutReports = field(default_factory=dict)
    alone: Alone | None = None  # the request in quarantine that it computes, or asks to compute

    @property
    def watched(self) -> bool:
        """Whether the failure detector waits for its heartbeats."""
        return self.status != "offline" and self.health != "dead"

    @property
    def always_on(self) -> bool:
        """Whether its end is a failure; a device that is on only sometimes may go."""
        return self.availability == "always"

    @property
    def draining(self) -> bool:
        """Whether its modules must move away."""
        return self.drained or self.status == "draining"

    @property
    def unresponsive(self) -> bool:
        """Whether it sends heartbeats and calls to it time out."""
        return self.health == "well" and self.is_accused

    @property
    def is_accused(self) -> bool:
        """Whether there is sufficient evidence that calls to it time out."""
        return len(self.timeout_reports) >= SUFFICIENT_REPORTS

    @cached_property
    def fitness(self) -> Fitness:
        """The uses that it has now."""
        if not self.watched or not self.confirmed:
            return Fitness.ABSENT
        if self.draining:
            return Fitness.DRAINING
        if self.unresponsive:
            return Fitness.UNRESPONSIVE
        return Fitness.DOUBTFUL if self.health == "suspect" or self.flaps.heartbeats_owed else Fitness.FIT

    @property
    def alive(self) -> bool:
        """Whether requests may go there."""
        return self.fitness > Fitness.ABSENT

    @property
    def doubt(self) -> str | None:
        """The reason why a living device should get no module that another can take; None if it is fit."""
        if self.fitness == Fitness.FIT:
            return None
        if self.fitness == Fitness.DOUBTFUL:
            return "its heartbeats are late" if self.health == "suspect" else self.flaps.why
        return {Fitness.DRAINING: "it is being drained", Fitness.UNRESPONSIVE: "calls to it time out"}.get(self.fitness)

    @property
    def absence(self) -> str | None:
        """The reason why it can hold nothing now; None if it is alive."""
        if self.alive:
            return None
        if not self.always_on and not self.watched:
            return "it is away: it is on only sometimes"
        if self.status == "offline":
            return "it is offline"
        return "it is dead: its heartbeats ended" if self.health == "dead" else "it hasn't sent a heartbeat yet"

    def ready(self, key: ModuleKey) -> bool:
        """Whether it reports the module as loaded."""
        return key in self.modules and self.modules[key].state == "ready"

    def serves(self, key: ModuleKey) -> bool:
        """Whether it can run the module for a request now."""
        return self.alive and self.ready(key) and key not in self.barred

    def keeps(self, key: ModuleKey) -> bool:
        """Whether it serves the module, and no other device need take over from it."""
        return self.fitness > Fitness.UNRESPONSIVE and self.serves(key)

    @cached_property
    def held(self) -> dict[ModuleKey, tuple[str, str | None]]:
        """The modules that it reports, each with its state and error."""
        return {key: (module.state, module.error) for key, module in self.modules.items()}

    @cached_property
    def failed(self) -> dict[ModuleKey, str]:
        """The modules that its latest heartbeat reports as failed, each with the error."""
        return {key: m.error or "no reason given" for key, m in self.modules.items() if m.state == "failed"}

    @cached_property
    def barred(self) -> dict[ModuleKey, str]:
        """The modules that must not be placed there now, each with the error."""
        waiting = {key: backoff.error for key, backoff in self.backoffs.items() if backoff.until_s is not None}
        return waiting | self.failed

    @cached_property
    def offered(self) -> DeviceProfile:
        """Its profile, in which each export that is loaded has the bytes that it really needs."""
        exports = self.profile.exports
        larger = {
            key: module.memory_bytes
            for key, module in (self.modules.items() if exports else ())
            if module.state == "ready" and module.memory_bytes > exports.get(key, math.inf)
        }
        return self.profile.model_copy(update={"exports": {**exports, **larger}}) if larger else self.profile

    @cached_property
    def spec(self) -> DeviceSpec:
        """The device as planning sees it, with the seconds that it measured."""
        profile: dict[str, Any] = dict(self.offered)
        profile |= {"tasks": self.tasks, "availability": self.availability}
        profile["engines"] = tuple(engine for engine in self.offered.engines if engine in ENGINES)
        return DeviceSpec(id=self.id, compute_s=dict(self.measured), **profile)


def is_like(device: Device, known: Device) -> bool:
    """Whether two versions of a device are equal for placement and routes, but for measured seconds."""
    return (
        device.fitness == known.fitness
        and device.held == known.held
        and device.backoffs == known.backoffs
        and (device.offered, device.tasks, device.availability) == (known.offered, known.tasks, known.availability)
        and (device.status, device.health, device.drained) == (known.status, known.health, known.drained)
    )


def on_state(known: Device | None, name: DeviceId, message: DeviceState, now_s: float) -> Device | None:
    """The device after its birth, drain or will; None if it stays unknown."""
    if message.status == "offline":
        return _on_will(known, message.session, now_s) if known else None
    profile = message.profile or (known.profile if known else None)
    if profile is None:
        return known
    given = message if known is None or message.profile else known
    limits: dict[str, Any] = {"tasks": given.tasks, "availability": given.availability}
    limits["heartbeat_interval_s"] = given.heartbeat_interval_s
    if message.profile is not None:
        limits["ignores_unknown"] = message.about is not None
    if known is None:
        return Device(name, message.session, message.status, profile, now_s, **limits)
    if message.session == known.session:
        # A device that drains or is gone leaves; only a new session brings it back.
        after = replace(known, status=message.status, profile=profile, **limits)
        return after if known.status == "online" and after != known else known
    if message.session in known.past_sessions:
        return known
    return replace(_with_new_session(known, message.session, message.status, profile, now_s), **limits)


def _with_new_session(known: Device, session: int, status: Status, profile: DeviceProfile, now_s: float) -> Device:
    """The device in another session, of which nothing is known before its first heartbeat.

    If the old session lived until now, this is probably another connection of the same process. So until the first
    heartbeat, which comes at once, all that was reported stays, but for modules that were not ready, and nothing moves.
    """
    last = _ENDED if known.status == "offline" else known.seq
    past = [(other, seq) for other, seq in known.past_sessions.items() if other not in {session, known.session}]
    return replace(
        known,
        session=session,
        status=status,
        profile=profile,
        heard_s=now_s,
        health="well",
        confirmed=known.alive,
        seq=-1,
        fence=(0, 0),
        modules={key: module for key, module in known.modules.items() if module.state in {"ready", "failed"}},
        past_sessions=dict([*past, (known.session, last)][-_PAST_SESSIONS:]),
        ended_s=-math.inf,
        before_will=None,
        timeout_reports={},
        alone=None,
    )


def _on_will(known: Device, session: int, now_s: float) -> Device:
    if session == known.session:
        if known.status == "offline":
            return known
        return replace(without_reports(known), status="offline", ended_s=now_s, before_will=known)
    if known.past_sessions.get(session, _ENDED) != _ENDED:
        return replace(known, past_sessions={**known.past_sessions, session: _ENDED})
    return known


def without_reports(device: Device) -> Device:
    """A device that is gone, without what it reported: strangers that come and go must not fill our memory."""
    backoffs = {key: backoff for key, backoff in device.backoffs.items() if backoff.assigned}
    return replace(device, confirmed=False, modules={}, cached=frozenset(), measured={}, backoffs=backoffs)


def entries(device: Device) -> int:
    """The number of tasks, exports, modules and failures that are kept of a device's messages."""
    reported = len(device.modules) + len(device.cached) + len(device.measured) + len(device.backoffs)
    return reported + len(device.tasks or ()) + len(device.profile.exports)


def on_heartbeat(
    known: Device | None, message: Heartbeat, now_s: float, interval_s: float, *, room: int = sys.maxsize
) -> Device | None:
    """The device after its heartbeat; the same object if the heartbeat is old or of an outdated session.

    ``interval_s`` counts if its birth has none. ``room`` is how many entries more may be kept of it. It keeps as many
    as before in any case.
    """
    if known is None:
        return None
    if message.session != known.session:
        if known.alive or message.seq <= known.past_sessions.get(message.session, _ENDED):
            return known
        known = _with_new_session(known, message.session, "online", known.profile, now_s)
    if known.status == "offline":
        return known
    if message.seq <= known.seq:
        known, goes_on = _after_low_number(known, message.seq)
        if not goes_on:
            return known
    is_first = known.seq < 0  # of its session: it replaces all that was known of the one before
    most = max(MIN_ENTRIES, len(known.modules) + len(known.cached), room // 2)  # a measured one is kept twice
    modules = _first(message.modules, min(MAX_MODULES, most))
    cached = _first(message.cached, min(MAX_CACHED, most - len(modules)))
    measured = {key: cached_s for key, cached_s in cached.items() if cached_s}
    measured |= {key: module.compute_s for key, module in modules.items() if module.compute_s}
    too_many = len(known.measured) > min(MAX_MODULES + MAX_CACHED, 2 * most)
    earlier = {} if is_first or too_many else known.measured
    after = with_fields(
        known,
        heard_s=now_s,
        health="well",
        confirmed=True,
        seq=message.seq,
        fence=(message.epoch, message.generation),
        modules=modules,
        cached=frozenset(cached.keys() - modules.keys()),
        measured={**earlier, **measured},
        alone=message.alone,
        flaps=known.flaps.on_heartbeat(now_s, known.heartbeat_interval_s or interval_s),
    )
    failed, known_failed = after.failed, known.failed
    backoffs = {
        key: backoff
        for key, backoff in known.backoffs.items()
        if not after.ready(key) and (key in failed or not is_first)
    }
    for key in [key for key in failed if key not in known_failed]:
        failures = backoffs[key].failures + 1 if key in backoffs else 1
        wait_s = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures - 1, _DOUBLINGS))
        backoffs[key] = Backoff(failed[key], failures, now_s + wait_s)
    backoffs = _most_important(backoffs, MAX_MODULES)
    after = after if backoffs == after.backoffs else replace(after, backoffs=backoffs)
    return _with_known_spec(known, after)


def _with_known_spec(known: Device, after: Device) -> Device:
    """The device with the spec that planning has had made of it before, as far as that is still the same.

    Each plan asks for the specs of all devices: to make those of 3,000 again takes 80 ms (measured on 2026-11-27).
    """
    if "spec" in vars(known) and (after.measured, after.offered) == (known.measured, known.offered):
        vars(after)["spec"] = known.spec
    return after


def _after_low_number(known: Device, seq: int) -> tuple[Device, bool]:
    """The device after a heartbeat of its session with a lower number than the last one, and whether it counts.

    A repeated heartbeat proves nothing. But if the session is dead, and two come whose numbers grow, then the highest
    number was another client's.
    """
    if known.health != "dead":
        return known, False
    last = known.past_sessions.get(known.session)
    others = {session: at for session, at in known.past_sessions.items() if session != known.session}
    if last is None or seq <= last:
        return replace(known, past_sessions={**others, known.session: seq}), False
    return replace(known, past_sessions=others), True


def _most_important(backoffs: dict[ModuleKey, Backoff], most: int) -> dict[ModuleKey, Backoff]:
    """As many of these backoffs as are kept: those of assigned modules first, then the latest."""
    beyond = len(backoffs) - most
    if beyond <= 0:
        return backoffs
    dropped = set(islice((key for key, backoff in backoffs.items() if not backoff.assigned), beyond))
    return {key: backoff for key, backoff in backoffs.items() if key not in dropped}


def with_assigned(device: Device, assigned: Collection[ModuleKey]) -> Device:
    """The device with the failures marked that are of modules assigned to it."""
    marked = {
        key: replace(backoff, assigned=True)
        for key, backoff in device.backoffs.items()
        if not backoff.assigned and key in device.failed and key in assigned
    }
    return replace(device, backoffs={**device.backoffs, **marked}) if marked else device


def _first(reported: Mapping[ModuleKey, T], most: int) -> Mapping[ModuleKey, T]:
    """The first of these entries, as many as are kept."""
    return reported if len(reported) <= most else dict(islice(reported.items(), most))


def reset_timer(device: Device, now_s: float) -> Device:
    """The device with the full time until its silence counts."""
    return replace(device, heard_s=now_s, health="well") if device.watched else device


def expires_at_s(device: Device) -> float:
    """The time at which ``expire`` next changes the device."""
    if not device.timeout_reports and not device.backoffs:
        return math.inf
    due = [report.at_s + SUSPECTED_FOR_S for report in device.timeout_reports.values()]
    due += [backoff.until_s for backoff in device.backoffs.values() if backoff.until_s is not None]
    return min(due, default=math.inf)


def expire(device: Device, now_s: float) -> Device:
    """The device without timeout reports that are too old, and with backoffs ended; their failures stay counted."""
    if device.before_will is None and not device.backoffs and not device.timeout_reports:
        return device
    over = {
        key: replace(backoff, until_s=None)
        for key, backoff in device.backoffs.items()
        if backoff.until_s is not None and now_s >= backoff.until_s
    }
    reports = {by: r for by, r in device.timeout_reports.items() if now_s < r.at_s + SUSPECTED_FOR_S}
    if device.before_will is not None and now_s > device.ended_s + WILLS_S:
        device = replace(device, before_will=None)  # the will is true
    if not over and len(reports) == len(device.timeout_reports):
        return device
    return replace(device, backoffs={**device.backoffs, **over}, timeout_reports=reports)
