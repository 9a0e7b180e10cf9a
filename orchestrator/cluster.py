"""The devices as the orchestrator knows them: who is there, who is late, who is gone, who holds what.

Owns what a birth, a drain, a will, a heartbeat and the passing of time mean. Knows nothing of tasks, placement or the
broker; reads no clock: ``now_s`` comes in, in seconds of any steady clock.

Invariants:
- a late message of an older session changes nothing. Session numbers are random: only memory tells old from new;
- no late message can hide a living device for good: when the session we believe in is silent, a heartbeat newer than
  all that we heard of an earlier one, whose will we never heard, brings that one back;
- one missed heartbeat makes nobody dead; the detector stands still while our own link is down, and after it everybody
  has the full time anew;
- a device counts as alive only after a first heartbeat: a birth may be a retained ghost, a heartbeat can't be;
- what a device measured counts until it measures anew or starts anew, also for modules that it let go of: or a move
  that a measurement forbade would be planned again;
- a module that failed on a device is barred there while the device says so and for a while after; what failed for a
  passing cause is tried again, more and more seldom;
- who said goodbye and stays away is forgotten. Who merely fell silent is not: only the known profile lets a heartbeat
  bring it back.
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

SUSPECT_AFTER_INTERVALS = 2.0  # nothing moves yet: one late beat is no death
DEAD_AFTER_INTERVALS = 3.25  # three beats missed, and a quarter of an interval for the network's jitter
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

    @property
    def alive(self) -> bool:
        """Whether requests may go there: online, draining or suspect, but neither offline nor dead."""
        return self.status != "offline" and self.health != "dead" and self.beating

    @property
    def may_hold(self) -> bool:
        """Whether modules may be placed there."""
        return self.alive and self.status == "online"

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
class Cluster:
    """All devices seen since the start."""

    heartbeat_interval_s: float
    devices: Mapping[DeviceId, Device] = field(default_factory=dict)
    listening: bool = False  # whether our own link is up

    def alive(self) -> list[Device]:
        """The devices to which requests may go, by id."""
        return [device for _, device in sorted(self.devices.items()) if device.alive]


ClusterEvent = DeviceStateSeen | HeartbeatSeen | Tick | LinkUp | LinkDown


def apply(cluster: Cluster, event: ClusterEvent, now_s: float) -> Cluster:
    """The cluster after this event; the detector looks at everybody too."""
    match event:
        case DeviceStateSeen(name, message):
            cluster = _with(cluster, _reported(cluster.devices.get(name), name, message, now_s))
        case HeartbeatSeen(name, message):
            cluster = _with(cluster, _beaten(cluster.devices.get(name), message, now_s))
        case LinkUp():
            anew = {name: _anew(device, now_s) for name, device in cluster.devices.items()}
            cluster = replace(cluster, devices=anew, listening=True)
        case LinkDown():
            cluster = replace(cluster, listening=False)
        case Tick():
            pass
    return _detect(cluster, now_s) if cluster.listening else cluster


def next_deadline_s(cluster: Cluster) -> float | None:
    """When the detector must look again, if nothing happens before."""
    if not cluster.listening:
        return None
    due = [_due_s(cluster, device) for device in cluster.devices.values() if _watched(device)]
    due += [device.heard_s + FORGET_AFTER_S for device in cluster.devices.values() if device.status == "offline"]
    for device in cluster.devices.values():
        due += [setback.until_s for setback in device.setbacks.values() if setback.until_s is not None]
    return min(due, default=None)


def _with(cluster: Cluster, device: Device | None) -> Cluster:
    if device is None or cluster.devices.get(device.id) is device:
        return cluster
    return replace(cluster, devices={**cluster.devices, device.id: device})


def _reported(known: Device | None, name: DeviceId, message: DeviceState, now_s: float) -> Device | None:
    if message.status == "offline":
        return _ended(known, message.session) if known else None
    profile = message.profile or (known.profile if known else None)
    if profile is None:
        return known
    born = Device(name, message.session, message.status, profile, now_s)
    if known is None:
        return born
    if message.session == known.session:
        return _repeated(known, message, profile)
    if message.session in known.past:
        return known
    # What the new session holds is not known yet. If the old one lived until now, nothing moves before its first beat.
    return replace(born, beating=known.alive, past=_past(known))


def _ended(known: Device, session: int) -> Device:
    if session == known.session and known.status != "offline":
        return replace(known, status="offline", beating=False, held={})
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
        known = Device(known.id, message.session, "online", known.profile, now_s, past=past)
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


def _anew(device: Device, now_s: float) -> Device:
    return replace(device, heard_s=now_s, health="well") if _watched(device) else device


def _watched(device: Device) -> bool:
    return device.status != "offline" and device.health != "dead"


def _due_s(cluster: Cluster, device: Device) -> float:
    """When silence makes a well device suspect, or a suspect one dead."""
    intervals = SUSPECT_AFTER_INTERVALS if device.health == "well" else DEAD_AFTER_INTERVALS
    return device.heard_s + intervals * cluster.heartbeat_interval_s


def _detect(cluster: Cluster, now_s: float) -> Cluster:
    for known in cluster.devices.values():
        device = _tried_again(known, now_s)
        if device.status == "offline" and now_s >= device.heard_s + FORGET_AFTER_S:
            left = {name: other for name, other in cluster.devices.items() if name != device.id}
            cluster = replace(cluster, devices=left)
            continue
        if _watched(device) and device.health == "well" and now_s >= _due_s(cluster, device):
            device = replace(device, health="suspect")
        if _watched(device) and device.health == "suspect" and now_s >= _due_s(cluster, device):
            device = replace(device, health="dead", beating=False, held={})
        cluster = _with(cluster, device)
    return cluster


def _tried_again(device: Device, now_s: float) -> Device:
    """With the pauses ended whose time is over."""
    over = {
        key: replace(setback, until_s=None)
        for key, setback in device.setbacks.items()
        if setback.until_s is not None and now_s >= setback.until_s
    }
    return replace(device, setbacks={**device.setbacks, **over}) if over else device
