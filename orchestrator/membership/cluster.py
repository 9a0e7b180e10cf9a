"""The devices as the orchestrator knows them: who is there, who is late, who is gone, who holds what.

Owns what a drain, what devices say of each other, and the passing of time mean; what a device says of itself is in
``device``. Knows nothing of tasks, placement or the broker; reads no clock: ``now_s`` comes in, in seconds of any
steady clock.

Invariants:
- one missed heartbeat makes nobody dead; the detector stands still while our own link is down or our own process
  stood, and after it everybody has the full time anew, and after the link came up the time to connect as well;
- a broker that ends, or that comes back with its memory, says the wills of devices that live: what came just before our
  own link went doesn't count; nor, after it came up, does a goodbye of an old session, until a beat of another old one
  shows that the broker was there all the time;
- nor does its time pass while our own words don't come back: then it is our link that stalls, not they;
- when most devices vanish within one interval it is the network or the broker: the silent ones get more time, and more
  again when the first of them is heard; what the others left behind is placed anew only after a while;
- who is silent and accused of a timeout is dead sooner than who is only silent; who beats and is accused enough hangs;
- who died and returned is on probation (``trust``);
- who stays away is forgotten; if it beats again without a birth, it is asked for one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from broker.protocol.messages import SUSPECTED_FOR_S, DeviceState, Heartbeat
from broker.protocol.specs import DeviceId, ModuleKey
from broker.transport.port import RECONNECT_S, LinkDown, LinkUp
from orchestrator.membership.device import WILLS_S, Device, anew, beaten, not_ended, pardoned, reported, tried_again
from orchestrator.membership.flap_damping import accused, still_accused

SUSPECT_AFTER_INTERVALS = 2.0  # nothing moves yet: one late beat is no death
DEAD_AFTER_INTERVALS = 3.25  # three beats missed, and a quarter of an interval for the network's jitter
ACCUSED_DEAD_AFTER_INTERVALS = 2.25  # two beats missed, when a coordinator's call to it timed out as well
HOLD_INTERVALS = 5.0  # so much longer when most vanish at once: a switch, or a broker, is back after some seconds
HOLD_FROM = 3  # devices: two may share a plug and die together
AFTER_HOLD_INTERVALS = 1.25  # once one is heard again, the others' next beats must come in an interval and its jitter
ECHO_LATE_INTERVALS = 1.2  # of our own heartbeat; sooner than any device, accused or not, can look dead by our stall
ECHO_GIVEN_UP_S = 10.0  # far beyond what keepalive needs to see a link stall: a broker that echoes nothing stops nobody
FORGET_AFTER_S = 3600.0  # a device that is offline so long is no device of ours any more


@dataclass(frozen=True)
class DeviceStateReceived:
    """A device's birth, drain or death."""

    device: DeviceId
    message: DeviceState


@dataclass(frozen=True)
class HeartbeatReceived:
    """A device's periodic report."""

    device: DeviceId
    message: Heartbeat


@dataclass(frozen=True)
class DrainReceived:
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
class Hold:
    """Most devices said goodbye at once: what they held is placed anew only when the time is over."""

    until_s: float
    gone: frozenset[DeviceId]


@dataclass(frozen=True)
class Cluster:
    """All devices seen since the start."""

    heartbeat_interval_s: float
    own_interval_s: float = 1.0  # between the orchestrator's own heartbeats
    devices: Mapping[DeviceId, Device] = field(default_factory=dict)
    listening: bool = False  # whether our own link is up
    up_s: float = 0.0  # since when
    returning: Mapping[DeviceId, int] = field(default_factory=dict)  # not beating over our link yet -> its old session
    doubted: frozenset[DeviceId] = frozenset()  # of these, those whose goodbye may have been the broker's end
    drained: frozenset[DeviceId] = frozenset()  # by an operator, known or not
    hold: Hold | None = None
    echo_s: float | None = None  # when a word of our own last came back over this link

    def alive(self) -> list[Device]:
        """The devices to which requests may go, by id."""
        return [device for _, device in sorted(self.devices.items()) if device.alive]


MembershipEvent = DeviceStateReceived | HeartbeatReceived | DrainReceived | Overslept | Tick | LinkUp | LinkDown


def apply(cluster: Cluster, event: MembershipEvent, now_s: float) -> Cluster:
    """The cluster after this event; the detector looks at everybody too."""
    before, cluster = cluster, _heard(cluster, event, now_s)
    if _most_silent(before) and not _most_silent(cluster):
        cluster = _spared(cluster, now_s)
    if cluster.listening:
        cluster = _detect(cluster, now_s)
    return _held(_recorded(before, cluster, now_s), now_s)


def _heard(cluster: Cluster, event: MembershipEvent, now_s: float) -> Cluster:
    match event:
        case DeviceStateReceived(name, message):
            if message.status == "offline" and cluster.returning.get(name) == message.session:
                return replace(cluster, doubted=cluster.doubted | {name})
            return _with(cluster, reported(cluster.devices.get(name), name, message, now_s))
        case HeartbeatReceived(name, message):
            known = cluster.devices.get(name)
            cluster = _with(cluster, beaten(known, message, now_s, cluster.heartbeat_interval_s))
            if cluster.devices.get(name) is not known:
                cluster = _accuse(_returned(cluster, name, message.session, now_s), name, message, now_s)
        case DrainReceived(name, drain):
            drained = cluster.drained | {name} if drain else cluster.drained - {name}
            cluster = replace(cluster, drained=drained)
        case LinkUp():
            # Who is drained comes anew with the link, from the broker's memory, or else from ours (``announce``).
            cluster = replace(_all_anew(cluster, now_s), returning=_sessions(cluster), listening=True, up_s=now_s)
            cluster = replace(cluster, hold=None, drained=frozenset())
        case LinkDown():
            cluster = _unlinked(cluster, now_s) if cluster.listening else cluster
        case Overslept():
            cluster = _all_anew(cluster, now_s)
        case Tick():
            pass
    return cluster


def doubtful_since_s(cluster: Cluster, now_s: float) -> float:
    """After when wills were the broker's end, if our link ends now: nothing of ours came back from it since."""
    return max(now_s - WILLS_S, -math.inf if cluster.echo_s is None else cluster.echo_s)


def _unlinked(cluster: Cluster, now_s: float) -> Cluster:
    """After our link went: who was there then is known, for a broker may say goodbyes ahead of our link's return."""
    since_s = doubtful_since_s(cluster, now_s)
    living = {name: not_ended(device, since_s) for name, device in cluster.devices.items()}
    cluster = replace(cluster, devices=living, doubted=frozenset())
    return replace(cluster, returning=_sessions(cluster), listening=False)


def _sessions(cluster: Cluster) -> Mapping[DeviceId, int]:
    """Who is there, with their sessions; those of before our link went first."""
    now = {name: device.session for name, device in cluster.devices.items() if device.watched}
    return now if cluster.listening else {**now, **cluster.returning}


def _returned(cluster: Cluster, name: DeviceId, session: int, now_s: float) -> Cluster:
    """After a beat over this link. One of a session of before says that the broker was there all the time."""
    if cluster.returning.get(name) != session:
        returning = {other: before for other, before in cluster.returning.items() if other != name}
        return replace(cluster, returning=returning, doubted=cluster.doubted - {name})
    gone = {other: cluster.returning[other] for other in cluster.doubted - {name}}
    cluster = replace(cluster, returning={}, doubted=frozenset())
    for other, ended in gone.items():
        goodbye = DeviceState(status="offline", session=ended)
        cluster = _with(cluster, reported(cluster.devices.get(other), other, goodbye, now_s))
    return cluster


def pardon(cluster: Cluster, keys: Collection[ModuleKey]) -> Cluster:
    """With no pause left for modules whose specs were mended: what failed may well load now."""
    return replace(cluster, devices={name: pardoned(device, keys) for name, device in cluster.devices.items()})


def echoed(cluster: Cluster, now_s: float) -> Cluster:
    """After a word of our own came back: the time for which it was late didn't pass for anybody."""
    late_s = max(0.0, now_s - _stands_still_s(cluster))
    cluster = replace(cluster, echo_s=now_s)
    if not late_s or not cluster.listening:
        return cluster
    later = {
        name: replace(device, heard_s=min(now_s, device.heard_s + late_s)) if device.watched else device
        for name, device in cluster.devices.items()
    }
    return replace(cluster, devices=later)


def next_deadline_s(cluster: Cluster) -> float | None:
    """When the detector must look again, if nothing happens before."""
    if not cluster.listening:
        return None
    silent = _most_silent(cluster)
    due = [_due_s(cluster, device, most_silent=silent) for device in cluster.devices.values() if device.watched]
    due += [device.heard_s + FORGET_AFTER_S for device in cluster.devices.values() if not device.watched]
    for device in cluster.devices.values():
        due += [said.at_s + SUSPECTED_FOR_S for said in device.accusers.values()]
        due += [setback.until_s for setback in device.setbacks.values() if setback.until_s is not None]
    stands_still_s = _stands_still_s(cluster)
    due = [at_s for at_s in due if at_s <= stands_still_s]
    due += [cluster.hold.until_s] if cluster.hold else []
    due += [] if cluster.echo_s is None else [cluster.echo_s + ECHO_GIVEN_UP_S]
    return min(due, default=None)


def _with(cluster: Cluster, device: Device | None) -> Cluster:
    if device is None or cluster.devices.get(device.id) is device:
        return cluster
    return replace(cluster, devices={**cluster.devices, device.id: device})


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
        if was is not None and was.alive and not device.alive and not (just_up or name in before.returning):
            record = record.died(now_s)
        if was is not None and not was.alive and device.alive and after.listening:
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
    devices = {name: anew(device, now_s) for name, device in cluster.devices.items()}
    return replace(cluster, devices=devices, echo_s=None)


def _spared(cluster: Cluster, now_s: float) -> Cluster:
    """With time for those still silent to be heard: what kept most of them silent has just ended."""
    earliest_s = now_s - (DEAD_AFTER_INTERVALS - AFTER_HOLD_INTERVALS) * cluster.heartbeat_interval_s
    spared = {
        name: replace(device, heard_s=max(device.heard_s, earliest_s), accusers={})
        for name, device in cluster.devices.items()
        if device.watched and device.health == "suspect"
    }
    return replace(cluster, devices={**cluster.devices, **spared})


def _stands_still_s(cluster: Cluster) -> float:
    """When the detector's clock stops, unless a word of our own comes back before."""
    if cluster.echo_s is None:
        return math.inf
    return cluster.echo_s + ECHO_LATE_INTERVALS * cluster.own_interval_s


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
    reconnects_s = RECONNECT_S if device.id in cluster.returning else 0.0
    return device.heard_s + reconnects_s + intervals * cluster.heartbeat_interval_s


def _detect(cluster: Cluster, now_s: float) -> Cluster:
    """Whose time is over: pauses and suspicions, the silent, then the dead, then those that are away for long."""
    if cluster.echo_s is not None and now_s >= cluster.echo_s + ECHO_GIVEN_UP_S:
        cluster = _all_anew(cluster, now_s)
    now_s = min(now_s, _stands_still_s(cluster))
    for known in cluster.devices.values():
        device = tried_again(known, now_s)
        if (accusers := still_accused(device.accusers, now_s)) is not device.accusers:
            device = replace(device, accusers=accusers)
        if device.watched and device.health == "well" and now_s >= _due_s(cluster, device, most_silent=False):
            device = replace(device, health="suspect")
        cluster = _with(cluster, device)
    cluster = _buried(cluster, now_s)
    gone = [d.id for d in cluster.devices.values() if not d.watched and now_s >= d.heard_s + FORGET_AFTER_S]
    if not gone:
        return cluster
    return replace(cluster, devices={name: d for name, d in cluster.devices.items() if name not in gone})


def _buried(cluster: Cluster, now_s: float) -> Cluster:
    """With those dead that are silent for too long; one death may end a hold that kept others alive."""
    while True:
        silent = _most_silent(cluster)
        over = {
            name: replace(device, health="dead", beating=False, held={})
            for name, device in cluster.devices.items()
            if device.watched and device.health == "suspect" and now_s >= _due_s(cluster, device, most_silent=silent)
        }
        if not over:
            return cluster
        cluster = replace(cluster, devices={**cluster.devices, **over})
