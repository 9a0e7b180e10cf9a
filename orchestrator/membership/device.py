"""One device as the orchestrator knows it, and what its own messages change of that.

Owns what a birth, a will and a heartbeat mean for the device that sent them. Knows nothing of the other devices, of
silence, tasks or the broker; reads no clock.

Invariants:
- a late message of an older session changes nothing. Session numbers are random: only memory tells old from new;
- no late message can hide a living device for good: when the session we believe in is silent, a heartbeat newer than
  all that we heard of an earlier one, whose will we never heard, brings that one back;
- a device counts as alive only after a first heartbeat: a birth may be a retained ghost, a heartbeat can't be;
- what a device measured counts until it measures anew or starts anew, also for modules that it let go of: or a move
  that a measurement forbade would be planned again;
- a module that failed on a device is barred there while the device says so and for a while after; what failed for a
  passing cause is tried again, more and more seldom.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from broker.protocol.messages import DeviceProfile, DeviceState, Heartbeat, HeldModule
from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey
from orchestrator.membership.flap_damping import NEW, Accusers, Record, hangs

FIRST_PAUSE_S = 30.0  # a failed module's device is left alone that long; twice as long after each further failure
LONGEST_PAUSE_S = 15 * 60.0
WILLS_S = 3.0  # a broker that ends says everybody's will, may write its memory to a disk, and closes all links
_DOUBLINGS = 5  # from the first pause to beyond the longest
_PAST_SESSIONS = 8  # remembered per device; more than the broker can have under way
_ENDED = sys.maxsize  # in place of a past session's last seq: its will was heard


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
    before: Device | None = None  # as it was then
    drained: bool = False  # by an operator
    record: Record = NEW
    accusers: Accusers = field(default_factory=dict)  # whose calls to it timed out of late

    @property
    def watched(self) -> bool:
        """Whether its silence would tell something."""
        return self.status != "offline" and self.health != "dead"

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


def reported(known: Device | None, name: DeviceId, message: DeviceState, now_s: float) -> Device | None:
    """The device after its birth, drain or death; None of a device that isn't known by it either."""
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
    # What the new session holds is not known yet. If the old one lived until now, it is likely another connection of
    # the same process, and its first beat comes at once: until then it counts as holding what it held; nothing moves.
    held = {key: module for key, module in known.held.items() if known.alive and module.state == "ready"}
    return replace(born, beating=known.alive, held=held, past=_past(known))


def _ended(known: Device, session: int, now_s: float) -> Device:
    if session == known.session and known.status != "offline":
        return replace(known, status="offline", beating=False, held={}, ended_s=now_s, before=known)
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


def beaten(known: Device | None, message: Heartbeat, now_s: float, interval_s: float) -> Device | None:
    """The device after its heartbeat; the same object when that is old, or of a session that isn't believed in."""
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
        record=known.record.beat(now_s, interval_s),
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


def anew(device: Device, now_s: float) -> Device:
    """The device with the full time to be heard of."""
    return replace(device, heard_s=now_s, health="well") if device.watched else device


def not_ended(device: Device, since_s: float) -> Device:
    """The device as it was before its will, if that came after then: the broker was about to end."""
    if device.before is None or device.ended_s is None or device.ended_s <= since_s:
        return device
    return device.before


def pardoned(device: Device, keys: Collection[ModuleKey]) -> Device:
    """The device with these modules to be tried again: their specs were mended."""
    kept = {key: setback for key, setback in device.setbacks.items() if key not in keys}
    return device if len(kept) == len(device.setbacks) else replace(device, setbacks=kept)


def tried_again(device: Device, now_s: float) -> Device:
    """With the pauses ended whose time is over."""
    over = {
        key: replace(setback, until_s=None)
        for key, setback in device.setbacks.items()
        if setback.until_s is not None and now_s >= setback.until_s
    }
    return replace(device, setbacks={**device.setbacks, **over}) if over else device
