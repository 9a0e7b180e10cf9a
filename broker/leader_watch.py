"""A standby's view of the leader, of orchestrators or of another kind of process: when it takes over.

Owns the rule of the takeover. Doesn't know what is led, nor connections; ``now_s`` comes in. Pure.

Invariants:
- the leader's will, or its goodbye, ends its lead, unless the standby's own link ends in the next moment: then a broker
  that stopped published all wills. Silence ends it only while the standby's own link is up;
- after a new link the leader also has the time to connect, whatever the broker retained of its old link;
- a late will of an earlier link of the leader changes nothing, and neither does a message of an earlier epoch;
- messages that this process published in a term that is over make no standby wait;
- a message whose epoch isn't plausible (``epochs``) changes nothing, unless a leader repeats it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from broker.epochs import DoubtedLeader, doubt
from broker.protocol.messages import LeaderState
from broker.transport.port import RECONNECT_S, LinkDown, LinkUp

LEADER_INTERVAL_S = 1.0  # between the leader's heartbeats, at most
SILENT_AFTER_INTERVALS = 3.25  # as for devices: three missed, and a quarter for the network's jitter
BROKER_ENDS_S = 1.0  # from a stopping broker's wills until our own link goes: it may write a disk first
READ_RETAINED_S = 0.5  # a broker sends retained messages at once after the subscription; there is no end mark


@dataclass(frozen=True)
class LeaderWatch:
    """A standby's knowledge of the leader."""

    own: frozenset[int] = frozenset()  # sessions of our links in earlier terms
    stored: int = 0  # the highest epoch in our own state directory, if we have one
    epoch: int = 0  # the highest heard and accepted
    doubted: DoubtedLeader | None = None  # the last message whose epoch isn't accepted
    doubted_s: float = -math.inf  # when such a message last named a leader: if it leads, it repeats the epoch in time
    leader: tuple[int, int] | None = None  # epoch and session
    ended: tuple[int, int] | None = None  # the last leader whose will or goodbye came
    free_s: float | None = None  # since when nobody leads, by those messages
    up_s: float | None = None  # since when our link is up
    heard_s: float = 0.0  # the leader's last sign of life

    @property
    def heard_over_this_link(self) -> bool:
        """Whether the leader was heard since our link is up."""
        return self.up_s is not None and self.heard_s >= self.up_s


def leader_interval_s(heartbeat_interval_s: float) -> float:
    """Seconds between the leader's heartbeats: at most the devices' interval, so that a stalled link shows early."""
    return min(LEADER_INTERVAL_S, heartbeat_interval_s)


def on_event(
    watch: LeaderWatch, event: LinkUp | LinkDown | LeaderState, now_s: float, *, retained: bool = False
) -> LeaderWatch:
    """The view after this event; a retained message of the known leader doesn't count as a sign of life."""
    match event:
        case LinkUp():
            return replace(watch, up_s=now_s)
        case LinkDown():
            return replace(_undo_will(watch, now_s), up_s=None)
        case LeaderState(epoch=epoch) if epoch < watch.epoch:
            return watch
        case LeaderState(online=online):
            doubted = doubt(max(watch.stored, watch.epoch), event, watch.doubted)
            watch = replace(watch, doubted=doubted)
            if doubted is not None:
                return replace(watch, doubted_s=now_s) if online else watch
            return _on_leader(watch, event, now_s, retained=retained)


def _on_leader(watch: LeaderWatch, said: LeaderState, now_s: float, *, retained: bool) -> LeaderWatch:
    watch = replace(watch, epoch=said.epoch)
    if said.online and retained and watch.leader == (said.epoch, said.session):
        return watch
    if said.online and said.session not in watch.own:
        return replace(watch, leader=(said.epoch, said.session), free_s=None, heard_s=now_s)
    return _on_leader_end(watch, (said.epoch, said.session), now_s)


def reset_timer(watch: LeaderWatch, now_s: float) -> LeaderWatch:
    """The view after our own process stood still: the leader has the full time again."""
    return watch if watch.up_s is None else replace(watch, up_s=now_s, heard_s=now_s)


def take_over_at_s(watch: LeaderWatch, read_retained_s: float = READ_RETAINED_S) -> float | None:
    """The time to take over if nothing else is heard before; None while our own link is down.

    The broker's retained messages may take ``read_retained_s`` to arrive.
    """
    if watch.up_s is None:
        return None
    if watch.leader is not None:
        since_s = watch.heard_s if watch.heard_over_this_link else watch.up_s + RECONNECT_S
        return since_s + SILENT_AFTER_INTERVALS * LEADER_INTERVAL_S
    repeated_by_s = watch.doubted_s + SILENT_AFTER_INTERVALS * LEADER_INTERVAL_S
    if watch.free_s is None or watch.free_s < watch.up_s:
        return max(watch.up_s + read_retained_s, repeated_by_s)
    return max(watch.free_s + (BROKER_ENDS_S if watch.ended else 0.0), repeated_by_s)


def _on_leader_end(watch: LeaderWatch, gone: tuple[int, int], now_s: float) -> LeaderWatch:
    if watch.leader == gone and not watch.heard_over_this_link:
        return watch  # it may be the will of the broker's own end
    if watch.leader is None or gone[0] > watch.leader[0] or watch.leader == gone:
        return replace(watch, leader=None, ended=watch.leader, free_s=now_s)
    return watch


def _undo_will(watch: LeaderWatch, now_s: float) -> LeaderWatch:
    """The view with the leader back whose will came just before our own link ended."""
    if watch.ended is None or watch.free_s is None or now_s - watch.free_s >= BROKER_ENDS_S:
        return watch
    return replace(watch, leader=watch.ended, ended=None, free_s=None)
