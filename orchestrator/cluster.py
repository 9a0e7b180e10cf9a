"""The devices as the orchestrator knows them: who is there, who is late, who is gone, who holds what.

Owns what a birth, a drain, a will, a heartbeat and the passing of time mean. Knows nothing of tasks, placement or the
broker; reads no clock: ``now_s`` comes in, in seconds of any steady clock.

Invariants:
- a late message of an older session changes nothing. Session numbers are random: only memory tells old from new;
- no late message can hide a living device for good: when the session we believe in is silent, a heartbeat newer than
  all that we heard of an earlier one, whose will we never heard, brings that one back;
- one missed heartbeat makes nobody dead; the detector stands still while our own link is down or our own process
  stood, and after it everybody has the full time anew;
- when most devices vanish within one interval it is the network or the broker: the silent ones get more time, and what
  the others left behind is placed anew only after a while;
- who is silent and accused of a timeout is dead sooner than who is only silent; who beats and is accused enough hangs;
- who died and returned is on probation (``trust``);
- a device counts as alive only after a first heartbeat: a birth may be a retained ghost, a heartbeat can't be;
- what a device measured counts until it measures anew or starts anew, also for modules that it let go of: or a move
  that a measurement forbade would be planned again;
- a module that failed on a device is barred there while the device says so and for a while after; what failed for a
  passing cause is tried again, more and more seldom;
- who stays away is forgotten; if it beats again without a birth, it is asked for one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from broker.messages import DeviceProfile, DeviceState, Heartbeat, HeldModule
from broker.specs import DeviceId, DeviceSpec, ModuleKey
from broker.transport import LinkDown, LinkUp
from orchestrator.trust import ACCUSED_FOR_S, NEW, Accusers, Record, accused, hangs, still_accused

SUSPECT_AFTER_INTERVALS = 2.0  # nothing moves yet: one late beat is no death
DEAD_AFTER_INTERVALS = 3.25  # three beats missed, and a quarter of an interval for the network's jitter
ACCUSED_DEAD_AFTER_INTERVALS = 2.25  # two beats missed, when a coordinator's call to it timed out as well
HOLD_INTERVALS = 5.0  # so much longer when most vanish at once: a switch, or a broker, is back after some seconds
HOLD_FROM = 3  # devices: two may share a plug and die together
FIRST_PAUSE_S = 30.0  # a failed module's device is left alone that long; twice as long after each further failure
LONGEST_PAUSE_S = 15 * 60.0
_DOUBLINGS = 5  # from the first pause to beyond the longest
FORGET_AFTER_S = 3600.0  # a device that is offline so long is no device of ours any more
_PAST_SESSIONS = 8  # remembered per device; more than the broker can have under way
_ENDED = sys.maxsize  # in place of a past session's last seq: its will was heard


@dataclass(frozen=True)
class DeviceStateSeen:
    """A device's birth, drain or death."""

    device: DeviceId
    message: DeviceState


@dataclass(frozen=True)
class HeartbeatSeen:
    """A device's periodic report."""

    device: DeviceId
    message: Heartbeat


@dataclass(frozen=True)
class DrainSeen:
    """An operator takes a device out of service, or puts it back."""

    device: DeviceId
    drain: bool


@dataclass(frozen=True)
class Overslept:
    """Our own process stood still, and heard nothing meanwhile."""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class Setback:
    """A module that failed on a device: how often in this session, and until when it isn't tried there again."""

    error: str
    times: int
    until_s: float | None  # None: that time is over


@dataclass(frozen=True)
class Device:
    """One device: what it said last, when, and what that makes of it."""

    id: DeviceId
    session: int
    status: Literal["online", "draining", "offline"]
    profile: DeviceProfile
    heard_s: float  # when it last gave a sign of life
    health: Literal["well", "suspect", "dead"] = "well"
    beating: bool = False  # whether a heartbeat came since it was last gone
    seq: int = -1
    fence: tuple[int, int] = (0, 0)  # epoch and generation of the assignment that it says it obeys
    held: Mapping[ModuleKey, HeldModule] = field(default_factory=dict)
    cached: frozenset[ModuleKey] = frozenset()  # what it doesn't hold, with the weights on its disk
    measured: Mapping[ModuleKey, float] = field(default_factory=dict)  # seconds of a pass, of this session
    setbacks: Mapping[ModuleKey, Setback] = field(default_factory=dict)
    past: Mapping[int, int] = field(default_factory=dict)  # earlier sessions, each with the last seq heard
    ended_s: float | None = None  # when its will, or goodbye, was heard
    drained: bool = False  # by an operator
    record: Record = NEW
    accusers: Accusers = field(default_factory=dict)  # whose calls to it timed out of late

    @property
    def alive(self) -> bool:
        """Whether requests may go there: online, draining or suspect, but neither offline nor dead."""
        return self.status != "offline" and self.health != "dead" and self.beating

    @property
    def may_hold(self) -> bool:
        """Whether modules may be placed there."""
        return self.alive and not self.draining

    @property
    def draining(self) -> bool:
        """Whether it is to be emptied."""
        return self.drained or self.status == "draining"

    @property
    def hung(self) -> bool:
        """Whether it beats well and yet doesn't answer."""
        return self.health == "well" and hangs(self.accusers)

    @property
    def doubt(self) -> str | None:
        """Why it should get no further modules while others can take them."""
        if self.draining:
            return "it is being drained"
        if self.health == "suspect":
            return "its heartbeats are late"
        if self.hung:
            return "calls to it time out"
        return "it died and came back a moment ago" if self.record.to_prove else None

    def ready(self, key: ModuleKey) -> bool:
        """Whether it reports the module as loaded."""
        return key in self.held and self.held[key].state == "ready"

    @property
    def failed(self) -> dict[ModuleKey, str]:
        """What its latest heartbeat lists as failed, each with what it says."""
        return {key: module.error or "no reason given" for key, module in self.held.items() if module.state == "failed"}

    @property
    def barred(self) -> dict[ModuleKey, str]:
        """The modules that must not be placed there now, each with what went wrong."""
        pausing = {key: setback.error for key, setback in self.setbacks.items() if setback.until_s is not None}
        return pausing | self.failed

    @cached_property
    def spec(self) -> DeviceSpec:
        """The device as planning sees it, with the seconds that it measured."""
        return DeviceSpec(id=self.id, compute_s=dict(self.measured), **self.profile.model_dump())


@dataclass(frozen=True)
class Hold:
    """Most devices said goodbye at once: what they held is placed anew only when the time is over."""

    until_s: float
    gone: frozenset[DeviceId]


@dataclass(frozen=True)
class Cluster:
    """All devices seen since the start."""

    heartbeat_interval_s: float
    devices: Mapping[DeviceId, Device] = field(default_factory=dict)
    listening: bool = False  # whether our own link is up
    up_s: float = 0.0  # since when
    drained: frozenset[DeviceId] = frozenset()  # by an operator, known or not
    hold: Hold | None = None

    def alive(self) -> list[Device]:
        """The devices to which requests may go, by id."""
        return [device for _, device in sorted(self.devices.items()) if device.alive]


ClusterEvent = DeviceStateSeen | HeartbeatSeen | DrainSeen | Overslept | Tick | LinkUp | LinkDown


def apply(cluster: Cluster, event: ClusterEvent, now_s: float) -> Cluster:
    """The cluster after this event; the detector looks at everybody too."""
    before = cluster
    match event:
        case DeviceStateSeen(name, message):
            cluster = _with(cluster, _reported(cluster.devices.get(name), name, message, now_s))
        case HeartbeatSeen(name, message):
            known = cluster.devices.get(name)
            cluster = _with(cluster, _beaten(known, message, now_s))
            if cluster.devices.get(name) is not known:
                cluster = _accuse(cluster, name, message, now_s)
        case DrainSeen(name, drain):
            drained = cluster.drained | {name} if drain else cluster.drained - {name}
            cluster = replace(cluster, drained=drained)
        case LinkUp():
            cluster = replace(_all_anew(cluster, now_s), listening=True, up_s=now_s, hold=None)
        case LinkDown():
            cluster = replace(cluster, listening=False)
        case Overslept():
            cluster = _all_anew(cluster, now_s)
        case Tick():
            pass
    if cluster.listening:
        cluster = _detect(cluster, now_s)
    return _held(_recorded(before, cluster, now_s), now_s)


def next_deadline_s(cluster: Cluster) -> float | None:
    """When the detector must look again, if nothing happens before."""
    if not cluster.listening:
        return None
    silent = _most_silent(cluster)
    due = [_due_s(cluster, device, most_silent=silent) for device in cluster.devices.values() if _watched(device)]
    due += [device.heard_s + FORGET_AFTER_S for device in cluster.devices.values() if not _watched(device)]
    due += [cluster.hold.until_s] if cluster.hold else []
    for device in cluster.devices.values():
        due += [said.at_s + ACCUSED_FOR_S for said in device.accusers.values()]
        due += [setback.until_s for setback in device.setbacks.values() if setback.until_s is not None]
    return min(due, default=None)


def _with(cluster: Cluster, device: Device | None) -> Cluster:
    if device is None or cluster.devices.get(device.id) is device:
        return cluster
    return replace(cluster, devices={**cluster.devices, device.id: device})


def _reported(known: Device | None, name: DeviceId, message: DeviceState, now_s: float) -> Device | None:
    if message.status == "offline":
        return _ended(known, message.session, now_s) if known else None
    profile = message.profile or (known.profile if known else None)
    if profile is None:
        return known
    record = known.record if known else NEW
    born = Device(name, message.session, message.status, profile, now_s, record=record)
    if known is None:
        return born
    if message.session == known.session:
        return _repeated(known, message, profile)
    if message.session in known.past:
        return known
    # What the new session holds is not known yet. If the old one lived until now, nothing moves before its first beat.
    return replace(born, beating=known.alive, past=_past(known))


def _ended(known: Device, session: int, now_s: float) -> Device:
    if session == known.session and known.status != "offline":
        return replace(known, status="offline", beating=False, held={}, ended_s=now_s)
    if known.past.get(session, _ENDED) != _ENDED:
        return replace(known, past={**known.past, session: _ENDED})
    return known


def _past(known: Device) -> dict[int, int]:
    """The earlier sessions, with the current one put to them."""
    last = _ENDED if known.status == "offline" else known.seq
    earlier = [(session, seq) for session, seq in known.past.items() if session != known.session]
    return dict([*earlier, (known.session, last)][-_PAST_SESSIONS:])


def _repeated(known: Device, message: DeviceState, profile: DeviceProfile) -> Device:
    if known.status != "online" or (known.status, known.profile) == (message.status, profile):
        return known  # who drains or is gone leaves; only a new session comes back
    return replace(known, status=message.status, profile=profile)


def _beaten(known: Device | None, message: Heartbeat, now_s: float) -> Device | None:
    if known is None:
        return None
    if message.session != known.session:
        if known.alive or message.seq <= known.past.get(message.session, _ENDED):
            return known
        past = {session: seq for session, seq in _past(known).items() if session != message.session}
        known = Device(known.id, message.session, "online", known.profile, now_s, past=past, record=known.record)
    if known.status == "offline" or message.seq <= known.seq:
        return known
    beating = replace(
        known,
        heard_s=now_s,
        health="well",
        beating=True,
        seq=message.seq,
        fence=(message.epoch, message.generation),
        held=message.modules,
        cached=frozenset(message.cached.keys() - message.modules.keys()),
        measured=_measured(known, message),
        record=known.record.beat(),
    )
    return replace(beating, setbacks=_setbacks(known, beating, now_s))


def _measured(known: Device, message: Heartbeat) -> Mapping[ModuleKey, float]:
    """The seconds reported now, over those reported before: what is let go of keeps its last measurement."""
    seconds = {key: cached_s for key, cached_s in message.cached.items() if cached_s}
    seconds |= {key: module.compute_s for key, module in message.modules.items() if module.compute_s}
    return {**known.measured, **seconds}


def _setbacks(before: Device, after: Device, now_s: float) -> Mapping[ModuleKey, Setback]:
    """The failures to remember: what is ready starts anew, what is newly listed counts once more."""
    setbacks = {key: setback for key, setback in before.setbacks.items() if not after.ready(key)}
    listed = before.failed
    for key, error in after.failed.items():
        if key not in listed:
            times = setbacks[key].times + 1 if key in setbacks else 1
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(times - 1, _DOUBLINGS))
            setbacks[key] = Setback(error, times, now_s + pause_s)
    return setbacks


def _accuse(cluster: Cluster, by: DeviceId, message: Heartbeat, now_s: float) -> Cluster:
    """Take in whose calls timed out, by their coordinator."""
    for device in list(cluster.devices.values()):
        if device.id != by:
            accusers = accused(device.accusers, by, message.suspects.get(device.id), now_s)
            if accusers is not device.accusers:
                cluster = _with(cluster, replace(device, accusers=accusers))
    return cluster


def _recorded(before: Cluster, after: Cluster, now_s: float) -> Cluster:
    """With the deaths and returns that this event brought, and who is drained."""
    just_up = now_s - after.up_s < DEAD_AFTER_INTERVALS * after.heartbeat_interval_s  # a broker's end kills nobody
    for name, device in after.devices.items():
        was, record = before.devices.get(name), device.record
        if was is not None and was.alive and not device.alive and not just_up:
            record = record.died(now_s)
        if was is not None and not was.alive and device.alive:
            record = record.returned(now_s)
        if was is not None and was.health == "well" and device.health == "suspect":
            record = record.late()
        if (record, name in after.drained) != (device.record, device.drained):
            after = _with(after, replace(device, record=record, drained=name in after.drained))
    return after if before.devices is after.devices else _hold_on(before, after, now_s)


def _hold_on(before: Cluster, after: Cluster, now_s: float) -> Cluster:
    """With the hold that begins when one more of most devices says goodbye."""
    ended = [
        name
        for name, device in after.devices.items()
        if device.status == "offline" and (was := before.devices.get(name)) is not None and was.alive
    ]
    if not ended or not after.listening:
        return after
    interval_s = after.heartbeat_interval_s
    lately = {
        name
        for name, device in after.devices.items()
        if device.status == "offline" and device.ended_s is not None and now_s - device.ended_s <= interval_s
    }
    if not _most(len(lately), len(after.alive()) + len(lately)):
        return after
    return replace(after, hold=Hold(now_s + HOLD_INTERVALS * interval_s, frozenset(lately)))


def _held(cluster: Cluster, now_s: float) -> Cluster:
    """Without a hold that is over: its time is, or most of its devices are back."""
    hold = cluster.hold
    if hold is None:
        return cluster
    away = [name for name in hold.gone if name not in cluster.devices or not cluster.devices[name].alive]
    over = now_s >= hold.until_s or 2 * len(away) < len(hold.gone)
    return replace(cluster, hold=None) if over else cluster


def _most(some: int, of: int) -> bool:
    return some >= HOLD_FROM and 2 * some > of


def _all_anew(cluster: Cluster, now_s: float) -> Cluster:
    return replace(cluster, devices={name: _anew(device, now_s) for name, device in cluster.devices.items()})


def _anew(device: Device, now_s: float) -> Device:
    return replace(device, heard_s=now_s, health="well") if _watched(device) else device


def _watched(device: Device) -> bool:
    return device.status != "offline" and device.health != "dead"


def _most_silent(cluster: Cluster) -> bool:
    alive = [device for device in cluster.devices.values() if device.alive]
    return _most(sum(device.health == "suspect" for device in alive), len(alive))


def _due_s(cluster: Cluster, device: Device, *, most_silent: bool) -> float:
    """When silence makes a well device suspect, or a suspect one dead."""
    if device.health == "well":
        intervals = SUSPECT_AFTER_INTERVALS
    elif most_silent:
        intervals = DEAD_AFTER_INTERVALS + HOLD_INTERVALS
    else:
        intervals = ACCUSED_DEAD_AFTER_INTERVALS if device.accusers else DEAD_AFTER_INTERVALS
    return device.heard_s + intervals * cluster.heartbeat_interval_s


def _detect(cluster: Cluster, now_s: float) -> Cluster:
    """Who is suspect, then who is dead, until nothing changes: one death may end a hold that kept others alive."""
    for known in cluster.devices.values():
        device = _tried_again(known, now_s)
        device = (
            replace(device, accusers=accusers) if (accusers := _accusers(device, now_s)) != device.accusers else device
        )
        if not _watched(device) and now_s >= device.heard_s + FORGET_AFTER_S:
            left = {name: other for name, other in cluster.devices.items() if name != device.id}
            cluster = replace(cluster, devices=left)
            continue
        if _watched(device) and device.health == "well" and now_s >= _due_s(cluster, device, most_silent=False):
            device = replace(device, health="suspect")
        cluster = _with(cluster, device)
    while silent_ones := [
        device.id for device in cluster.devices.values() if device.health == "suspect" and _watched(device)
    ]:
        silent = _most_silent(cluster)
        over = [name for name in silent_ones if now_s >= _due_s(cluster, cluster.devices[name], most_silent=silent)]
        if not over:
            break
        gone = {name: replace(cluster.devices[name], health="dead", beating=False, held={}) for name in over}
        cluster = replace(cluster, devices={**cluster.devices, **gone})
    return cluster


def _accusers(device: Device, now_s: float) -> Accusers:
    return still_accused(device.accusers, now_s)


def _tried_again(device: Device, now_s: float) -> Device:
    """With the pauses ended whose time is over."""
    over = {
        key: replace(setback, until_s=None)
        for key, setback in device.setbacks.items()
        if setback.until_s is not None and now_s >= setback.until_s
    }
    return replace(device, setbacks={**device.setbacks, **over}) if over else device
