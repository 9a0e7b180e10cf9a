"""The failure detector: which devices are suspect or dead, from heartbeats, wills, silence and suspicions.

Owns what time, a drain, our own link and coordinators' reports mean for devices; what their own messages mean is in
``device``. Doesn't know tasks or placement; ``now_s`` is any steady clock's.

Invariants:
- the clock stands still while our link is down, our process stands still, or our own heartbeats don't come back. Then
  every device has the full time again, and after a new link also the time to connect;
- a broker that ends, or returns with its memory, publishes the wills of living devices. Wills shortly before the link's
  end are undone. After its return a will of a session from before is tentative, until a heartbeat of another such
  session shows that the broker lived all the time;
- if most devices fall silent at once, the likely cause is the network: they get more time. A device on probation counts
  for nothing there, nor does one that sent no heartbeat: what a few ids do again and again delays no other's death.
  Nor do devices that are on only sometimes; and their end puts them on no probation;
- a device's own heartbeat interval counts, if its birth has one: it says how often its heartbeats must come;
- an event that changes one device costs the same, however many there are; all are examined only when one may be due.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from heapq import nsmallest

from broker.protocol.messages import DeviceState, Heartbeat
from broker.protocol.specs import DeviceId, ModuleKey
from broker.transport.port import RECONNECT_S, LinkDown, LinkUp
from orchestrator.events import (
    DeviceStateReceived,
    DrainReceived,
    ForgetReceived,
    HeartbeatReceived,
    MembershipEvent,
    Overslept,
    Tick,
)
from orchestrator.leadership.orders import MAX_DRAINED
from orchestrator.membership import device as one_device
from orchestrator.membership.device import WILLS_S, Device, Fitness
from orchestrator.membership.doubts import with_report
from orchestrator.membership.frozen import with_fields
from orchestrator.membership.persistent_map import PersistentMap

SUSPECT_AFTER_INTERVALS = 2.0  # nothing moves yet: one late heartbeat proves no death
DEAD_AFTER_INTERVALS = 3.25  # three heartbeats missed, and a quarter of an interval for the network's jitter
SUSPECTED_DEAD_AFTER_INTERVALS = 2.25  # two heartbeats missed, and the calls of two coordinators timed out as well
MASS_SILENCE_INTERVALS = 5.0  # more time when most are silent: a switch, or a broker, is back after some seconds
MASS_FROM = 3  # devices: two may share a plug and die together
AFTER_MASS_SILENCE_INTERVALS = 1.25  # once one is heard, the others' heartbeats must come in an interval and its jitter
ECHO_LATE_INTERVALS = 1.2  # of our own heartbeat: sooner than our stalled link can make any device look dead
ECHO_GIVEN_UP_S = 10.0  # keepalive notices a stalled link much sooner; a broker that echoes nothing must not stop us
FORGET_AFTER_S = 3600.0
FORGET_AWAY_AFTER_S = 7 * 24 * 3600.0  # of a device that is on only sometimes: `s2m3 status` names it in the morning
MAX_SUSPECTS = 64  # of one coordinator that count, the latest; if more calls time out, its own link is at fault
MAX_ABSENT = 1_000  # dead and offline devices that are remembered, the latest
MAX_DEVICES = 10_000  # more births are ignored: three times the largest site that was measured
MAX_ENTRIES = 200_000  # kept of all births and heartbeats, each up to 1 kB: 200 modules of each of 1,000 devices


@dataclass(frozen=True)
class MassDeparture:
    """Most devices said goodbye at once: their modules are placed elsewhere only after ``until_s``."""

    until_s: float
    gone: frozenset[DeviceId]


@dataclass(frozen=True)
class Cluster:
    """All devices heard of since the start."""

    heartbeat_interval_s: float  # of devices that don't say theirs
    own_interval_s: float = 1.0  # between the orchestrator's own heartbeats
    devices: PersistentMap[Device] = field(default_factory=PersistentMap)
    living: int = 0  # how many devices are alive, of those that are always on
    trusted: int = 0  # how many of them are not on probation
    silent: int = 0  # how many of these are suspect
    entries: int = 0  # that are kept of all devices' births and heartbeats
    accused: Mapping[DeviceId, frozenset[DeviceId]] = field(default_factory=dict)  # by coordinator: its suspects
    examine_at_s: float = field(default=math.inf, compare=False)  # no device changes by time alone before
    listening: bool = False  # whether the orchestrator's link is up
    up_s: float = 0.0  # since when
    awaiting_first_heartbeat: Mapping[DeviceId, int] = field(default_factory=dict)  # over this link -> its last session
    witnesses: frozenset[DeviceId] = frozenset()  # devices whose sessions from before still live over this link
    tentative_wills: frozenset[DeviceId] = frozenset()  # those of them whose will may be of the broker's end
    drained: frozenset[DeviceId] = frozenset()  # by an operator, known or not
    mass_departure: MassDeparture | None = None
    echo_s: float | None = None  # when the orchestrator's own heartbeat last came back over this link

    def interval_s(self, device: Device) -> float:
        """The seconds between two heartbeats of a device."""
        return device.heartbeat_interval_s or self.heartbeat_interval_s

    def alive(self) -> Sequence[Device]:
        """The devices to which requests may go, by id."""
        return self._alive

    @cached_property
    def _alive(self) -> tuple[Device, ...]:
        return tuple(device for _, device in sorted(self.devices.items()) if device.alive)

    def with_devices(self, *devices: Device | None) -> Cluster:
        """The cluster with these devices; the same object if nothing changed."""
        changed = {new.id: new for new in devices if new is not None and self.devices.get(new.id) is not new}
        if not changed:
            return self
        known = [device for name in changed if (device := self.devices.get(name)) is not None]
        living = self.living + _living(changed.values()) - _living(known)
        trusted = self.trusted + _trusted(changed.values()) - _trusted(known)
        silent = self.silent + _silent(changed.values()) - _silent(known)
        entries = self.entries + _entries(changed.values()) - _entries(known)
        most_silent = _are_most(silent, trusted)
        due_s = min(_changes_at_s(self, device, most_silent=most_silent) for device in changed.values())
        if any(device.watched and not changed[device.id].watched for device in known):
            due_s = -math.inf  # the time at which it would have been late may be the one to forget
        return with_fields(
            self,
            devices=self.devices.changed(changed),
            living=living,
            trusted=trusted,
            silent=silent,
            entries=entries,
            examine_at_s=min(self.examine_at_s, due_s),
        )


def on_event(cluster: Cluster, event: MembershipEvent, now_s: float) -> Cluster:
    """The cluster after this event, with every device examined that may be due at this time."""
    before, cluster = cluster, _apply_event(cluster, event, now_s)
    if _most_are_silent(before) and not _most_are_silent(cluster):
        cluster = replace(_give_silent_devices_time(cluster, now_s), examine_at_s=-math.inf)
    if isinstance(event, Tick):
        cluster = replace(cluster, examine_at_s=-math.inf)
    if cluster.listening:
        cluster = _examine_devices(cluster, now_s)
    changed = cluster.devices.differences(before.devices)
    cluster = _update_records(before, cluster, changed, now_s)
    if changed:
        cluster = _begin_mass_departure(before, cluster, changed, now_s)
    return _end_mass_departure(before, cluster, now_s)


def on_own_heartbeat(cluster: Cluster, now_s: float) -> Cluster:
    """The cluster after our own heartbeat came back: the time for which it was late doesn't count for any device."""
    late_s = max(0.0, now_s - stands_still_from_s(cluster))
    cluster = replace(cluster, echo_s=now_s)
    if not late_s or not cluster.listening:
        return cluster
    watched = [device for device in cluster.devices.values() if device.watched]
    return cluster.with_devices(*(replace(known, heard_s=min(now_s, known.heard_s + late_s)) for known in watched))


def clear_backoffs(cluster: Cluster, keys: Collection[ModuleKey]) -> Cluster:
    """The cluster without the backoffs of these modules, whose specs have changed: they may load now."""
    return cluster.with_devices(
        *(
            replace(device, backoffs={key: backoff for key, backoff in device.backoffs.items() if key not in keys})
            for device in cluster.devices.values()
            if not device.backoffs.keys().isdisjoint(keys)
        )
    )


def wills_doubtful_since_s(cluster: Cluster, now_s: float) -> float:
    """The time since which wills count as the broker's own end if our link ends now: no heartbeat of ours came back."""
    return max(now_s - WILLS_S, -math.inf if cluster.echo_s is None else cluster.echo_s)


def next_deadline_s(cluster: Cluster) -> float | None:
    """The time to examine the devices if nothing happens before."""
    if not cluster.listening:
        return None
    due = [cluster.examine_at_s] if cluster.examine_at_s <= stands_still_from_s(cluster) else []
    due += [cluster.mass_departure.until_s] if cluster.mass_departure else []
    due += [] if cluster.echo_s is None else [cluster.echo_s + ECHO_GIVEN_UP_S]
    return min((at_s for at_s in due if at_s < math.inf), default=None)


# --- events ---


def _apply_event(cluster: Cluster, event: MembershipEvent, now_s: float) -> Cluster:
    match event:
        case DeviceStateReceived(name, message):
            cluster = _on_state(cluster, name, message, now_s)
        case HeartbeatReceived(name, message):
            known = cluster.devices.get(name)
            room = MAX_ENTRIES - cluster.entries
            after = one_device.on_heartbeat(known, message, now_s, cluster.heartbeat_interval_s, room=room)
            if after is not known:
                cluster = _on_first_heartbeat(cluster, name, message.session, now_s).with_devices(after)
                cluster = _on_suspicions(cluster, name, message, now_s)
        case DrainReceived(name, drain):
            cluster = _on_drain(cluster, name, drain=drain)
        case ForgetReceived(name):
            cluster = _on_forget(cluster, name)
        case LinkUp():
            # Drains come again with the link, from the broker's memory or from ours (``publish``).
            sessions = _last_sessions(cluster)
            cluster = replace(_reset_timers(cluster, now_s), awaiting_first_heartbeat=sessions, listening=True)
            cluster = replace(cluster, up_s=now_s, mass_departure=None, drained=frozenset(), witnesses=frozenset())
        case LinkDown():
            cluster = _on_link_down(cluster, now_s) if cluster.listening else cluster
        case Overslept():
            cluster = _reset_timers(cluster, now_s)
    return cluster


def _on_state(cluster: Cluster, name: DeviceId, message: DeviceState, now_s: float) -> Cluster:
    if message.status == "offline" and cluster.awaiting_first_heartbeat.get(name) == message.session:
        return replace(cluster, tentative_wills=cluster.tentative_wills | {name})
    known = cluster.devices.get(name)
    after = one_device.on_state(known, name, message, now_s)
    return cluster.with_devices(after) if _has_room(cluster, known, after) else cluster


def _on_forget(cluster: Cluster, name: DeviceId) -> Cluster:
    """The cluster without a device that is gone, and without its drain; one that is watched stays."""
    known = cluster.devices.get(name)
    return cluster if known is not None and known.watched else _on_drain(_without(cluster, [name]), name, drain=False)


def _on_drain(cluster: Cluster, name: DeviceId, *, drain: bool) -> Cluster:
    drained = cluster.drained - {name}
    if drain and (name in cluster.devices or len(drained) < MAX_DRAINED):
        drained |= {name}
    return cluster if drained == cluster.drained else replace(cluster, drained=drained)


def _has_room(cluster: Cluster, known: Device | None, after: Device | None) -> bool:
    """Whether a birth can be kept: there are not too many, and not too many names in them."""
    if after is None:
        return True
    more = one_device.entries(after) - (one_device.entries(known) if known else 0)
    is_small = more <= one_device.MIN_ENTRIES or cluster.entries + more <= MAX_ENTRIES
    return is_small and (known is not None or len(cluster.devices) < MAX_DEVICES)


def _on_link_down(cluster: Cluster, now_s: float) -> Cluster:
    """The cluster with doubtful wills undone, and with the sessions of its devices: wills may arrive before they do."""
    since_s = wills_doubtful_since_s(cluster, now_s)
    undone = [device.before_will for device in cluster.devices.values() if device.ended_s > since_s]
    cluster = replace(cluster.with_devices(*undone), tentative_wills=frozenset())
    return replace(cluster, awaiting_first_heartbeat=_last_sessions(cluster), listening=False)


def _last_sessions(cluster: Cluster) -> Mapping[DeviceId, int]:
    """The sessions of the devices that are there; while the link is down, those from before come first."""
    sessions = {name: device.session for name, device in cluster.devices.items() if device.watched}
    return sessions if cluster.listening else {**sessions, **cluster.awaiting_first_heartbeat}


def _on_first_heartbeat(cluster: Cluster, name: DeviceId, session: int, now_s: float) -> Cluster:
    """The cluster after a heartbeat over this link. Two sessions from before make the tentative wills true.

    One device's word isn't enough: it may keep its session's number on purpose.
    """
    awaited = cluster.awaiting_first_heartbeat
    if name not in awaited:
        return cluster
    is_witness = awaited[name] == session
    if not is_witness or not cluster.witnesses - {name}:
        others = {other: last for other, last in awaited.items() if other != name}
        witnesses = cluster.witnesses | {name} if is_witness else cluster.witnesses
        wills = cluster.tentative_wills - {name}
        return replace(cluster, awaiting_first_heartbeat=others, tentative_wills=wills, witnesses=witnesses)
    gone = {other: awaited[other] for other in cluster.tentative_wills - {name}}
    cluster = replace(
        cluster, awaiting_first_heartbeat={}, tentative_wills=frozenset(), examine_at_s=-math.inf
    )  # the others have no more time to connect
    ends = {other: DeviceState(status="offline", session=ended) for other, ended in gone.items()}
    return cluster.with_devices(
        *(one_device.on_state(cluster.devices.get(other), other, end, now_s) for other, end in ends.items())
    )


def _on_suspicions(cluster: Cluster, by: DeviceId, message: Heartbeat, now_s: float) -> Cluster:
    """The cluster with the timeouts that a coordinator reports; none if it isn't in good standing itself.

    ``accused`` has all devices with a report of this coordinator, so that no heartbeat looks at those of others.
    """
    before = cluster.accused.get(by, frozenset())
    if not message.suspects and not before:
        return cluster
    latest = nsmallest(MAX_SUSPECTS, message.suspects.items(), key=lambda item: (item[1], item[0]))
    suspects = dict(latest) if cluster.devices[by].fitness == Fitness.FIT else {}
    changed: list[Device] = []
    accused: set[DeviceId] = set()
    for name in sorted(before.union(suspects) - {by}):
        if (device := cluster.devices.get(name)) is not None:
            reports = with_report(device.timeout_reports, by, suspects.get(name), now_s)
            if reports is not device.timeout_reports:
                changed.append(replace(device, timeout_reports=reports))
            if by in reports:
                accused.add(name)
    if accused != before:
        others = {other: devices for other, devices in cluster.accused.items() if other != by}
        cluster = replace(cluster, accused={**others, by: frozenset(accused)} if accused else others)
    return cluster.with_devices(*changed)


def _update_records(before: Cluster, after: Cluster, changed: Sequence[DeviceId], now_s: float) -> Cluster:
    """The cluster with the deaths, returns and gaps that this event brought, and with the drained devices marked."""
    up_for_s = now_s - after.up_s
    redrained = () if after.drained is before.drained else sorted(after.drained ^ before.drained)
    marked: list[Device] = []
    for name in (*changed, *redrained):
        known, device = before.devices.get(name), after.devices.get(name)
        if device is None:
            continue
        flaps = device.flaps
        if known is not None:
            just_up = up_for_s < DEAD_AFTER_INTERVALS * after.interval_s(device)  # a broker's end kills no device
            died = known.alive and not device.alive and not just_up and name not in before.awaiting_first_heartbeat
            if died and device.always_on and not known.drained:  # an operator took it out of service first
                flaps = flaps.on_death(now_s)
            if not known.alive and device.alive and after.listening:
                flaps = flaps.on_return(now_s)
            if known.health == "well" and device.health == "suspect":
                flaps = flaps.on_gap()
        if (flaps, name in after.drained) != (device.flaps, device.drained):
            marked.append(replace(device, flaps=flaps, drained=name in after.drained))
    return after.with_devices(*marked)


# --- mass departures ---


def _begin_mass_departure(before: Cluster, after: Cluster, changed: Sequence[DeviceId], now_s: float) -> Cluster:
    """The cluster with a mass departure if one more of most devices has said goodbye."""
    gone = [name for name in changed if name in before.devices and before.devices[name].alive]
    if not after.listening or not any(
        name in after.devices and after.devices[name].status == "offline" for name in gone
    ):
        return after
    interval_s = after.heartbeat_interval_s
    offline = (device for device in after.devices.values() if device.status == "offline")
    recent = {device.id for device in offline if now_s - device.ended_s <= interval_s and _was_trusted(device)}
    if not MASS_FROM <= len(recent) > after.living:
        return after
    departure = MassDeparture(now_s + MASS_SILENCE_INTERVALS * interval_s, frozenset(recent))
    return replace(after, mass_departure=departure)


def _was_trusted(device: Device) -> bool:
    """Whether a device that said goodbye just now was alive before, not on probation, and always on."""
    before = device.before_will
    return before is not None and before.alive and before.always_on and not before.flaps.heartbeats_owed


def _end_mass_departure(before: Cluster, after: Cluster, now_s: float) -> Cluster:
    """The cluster without a mass departure whose time is over, or most of whose devices are back."""
    departure = after.mass_departure
    if departure is None or (now_s < departure.until_s and before.living >= after.living):
        return after
    back = [name for name in departure.gone if name in after.devices and after.devices[name].alive]
    over = now_s >= departure.until_s or 2 * len(back) > len(departure.gone)
    return replace(after, mass_departure=None) if over else after


# --- silence ---


def _reset_timers(cluster: Cluster, now_s: float) -> Cluster:
    cluster = cluster.with_devices(*(one_device.reset_timer(known, now_s) for known in cluster.devices.values()))
    return replace(cluster, echo_s=None)


def _give_silent_devices_time(cluster: Cluster, now_s: float) -> Cluster:
    """The cluster after a mass silence has just ended: the devices that are still silent have time to be heard."""
    silent = DEAD_AFTER_INTERVALS - AFTER_MASS_SILENCE_INTERVALS
    return cluster.with_devices(
        *(
            replace(
                device, heard_s=max(device.heard_s, now_s - silent * cluster.interval_s(device)), timeout_reports={}
            )
            for device in cluster.devices.values()
            if device.watched and device.health == "suspect"
        )
    )


def stands_still_from_s(cluster: Cluster) -> float:
    """The time at which the detector's clock stops, unless our own heartbeat comes back before."""
    return math.inf if cluster.echo_s is None else cluster.echo_s + ECHO_LATE_INTERVALS * cluster.own_interval_s


def _living(devices: Iterable[Device]) -> int:
    return sum(device.alive and device.always_on for device in devices)


def _entries(devices: Iterable[Device]) -> int:
    return sum(map(one_device.entries, devices))


def _trusted(devices: Iterable[Device]) -> int:
    return sum(map(_is_trusted, devices))


def _silent(devices: Iterable[Device]) -> int:
    return sum(_is_trusted(device) and device.health == "suspect" for device in devices)


def _is_trusted(device: Device) -> bool:
    return device.alive and device.always_on and not device.flaps.heartbeats_owed


def _are_most(silent: int, trusted: int) -> bool:
    return silent >= MASS_FROM and 2 * silent > trusted


def _most_are_silent(cluster: Cluster) -> bool:
    return _are_most(cluster.silent, cluster.trusted)


def _changes_at_s(cluster: Cluster, device: Device, *, most_silent: bool) -> float:
    """The time at which a device changes if nothing is heard before: it is late, dead or forgotten, or a doubt ends."""
    if device.watched:
        first_s = _silence_counts_at_s(cluster, device, most_silent=most_silent)
    else:
        first_s = _forgotten_at_s(device)
    return min(first_s, one_device.expires_at_s(device))


def _forgotten_at_s(device: Device) -> float:
    return device.heard_s + (FORGET_AFTER_S if device.always_on else FORGET_AWAY_AFTER_S)


def _silence_counts_at_s(cluster: Cluster, device: Device, *, most_silent: bool) -> float:
    """The time at which silence makes a well device suspect, or a suspect one dead."""
    if device.health == "well":
        intervals = SUSPECT_AFTER_INTERVALS
    elif most_silent:
        intervals = DEAD_AFTER_INTERVALS + MASS_SILENCE_INTERVALS
    else:
        intervals = SUSPECTED_DEAD_AFTER_INTERVALS if device.is_accused else DEAD_AFTER_INTERVALS
    reconnects_s = RECONNECT_S if device.id in cluster.awaiting_first_heartbeat else 0.0
    return device.heard_s + reconnects_s + intervals * cluster.interval_s(device)


def _examine_devices(cluster: Cluster, now_s: float) -> Cluster:
    """The cluster with backoffs and reports expired, silent devices suspect or dead, and long absent ones forgotten."""
    if cluster.echo_s is not None and now_s >= cluster.echo_s + ECHO_GIVEN_UP_S:
        cluster = _reset_timers(cluster, now_s)
    now_s = min(now_s, stands_still_from_s(cluster))
    if now_s < cluster.examine_at_s:
        return cluster
    cluster = cluster.with_devices(*(_examine(cluster, known, now_s) for known in cluster.devices.values()))
    cluster = _declare_dead(cluster, now_s)
    absent = sorted((_forgotten_at_s(device), device.id) for device in cluster.devices.values() if not device.watched)
    beyond = len(absent) - MAX_ABSENT
    forgotten = [name for rank, (due_s, name) in enumerate(absent) if rank < beyond or now_s >= due_s]
    cluster = _without(cluster, forgotten)
    most_silent = _most_are_silent(cluster)
    due = (_changes_at_s(cluster, device, most_silent=most_silent) for device in cluster.devices.values())
    return replace(cluster, examine_at_s=min(due, default=math.inf))


def _without(cluster: Cluster, names: Sequence[DeviceId]) -> Cluster:
    """The cluster without these devices, as far as it knows them; none of them is alive."""
    forgotten = [name for name in names if name in cluster.devices]
    if not forgotten:
        return cluster
    accused = {name: devices for name, devices in cluster.accused.items() if name not in forgotten}
    entries = cluster.entries - _entries(cluster.devices[name] for name in forgotten)
    devices = cluster.devices.without(forgotten)
    return replace(cluster, devices=devices, accused=accused, entries=entries)


def _examine(cluster: Cluster, device: Device, now_s: float) -> Device:
    device = one_device.expire(device, now_s)
    well = device.watched and device.health == "well"
    if well and now_s >= _silence_counts_at_s(cluster, device, most_silent=False):
        return replace(device, health="suspect")
    return device


def _declare_dead(cluster: Cluster, now_s: float) -> Cluster:
    """The cluster with those dead that were silent too long; one death may end a mass silence that spared others."""
    while True:
        most_silent = _most_are_silent(cluster)
        over = [
            replace(one_device.without_reports(device), health="dead")
            for device in cluster.devices.values()
            if device.watched
            and device.health == "suspect"
            and now_s >= _silence_counts_at_s(cluster, device, most_silent=most_silent)
        ]
        if not over:
            return cluster
        cluster = cluster.with_devices(*over)
