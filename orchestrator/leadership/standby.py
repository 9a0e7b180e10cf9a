"""Whether anybody leads: what an orchestrator that waits for its turn makes of what it hears.

Owns when a spare takes over. Knows nothing of devices and tasks, nor of connections; ``now_s`` comes in. Pure.

Invariants:
- the leader's will, or its goodbye, ends its lead, unless our own link ends in the next moment: then it was the broker
  that ended, and said everybody's will; silence ends it only while our own link is up;
- after the link came up the leader has the time to connect as well, whatever the broker remembers of its old link;
- a late will of an earlier link of the leader changes nothing, nor does any word of an earlier epoch;
- what we said ourselves, in a term that is over, keeps nobody waiting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from broker.protocol.messages import OrchestratorState
from broker.transport.port import RECONNECT_S, LinkDown, LinkUp

LEADER_INTERVAL_S = 1.0  # between the leader's heartbeats, at most
SILENT_AFTER_INTERVALS = 3.25  # as for devices: three missed, and a quarter for the network's jitter
BROKER_ENDS_S = 1.0  # from the wills that a broker says when it ends until our own link goes: it may write a disk first
READ_RETAINED_S = 0.5  # a broker sends retained messages at once after the subscription; there is no end mark


@dataclass(frozen=True)
class Watch:
    """What is known of the leader."""

    own: frozenset[int] = frozenset()  # sessions of our links in earlier terms
    epoch: int = 0  # the highest heard
    leader: tuple[int, int] | None = None  # epoch and session
    ended: tuple[int, int] | None = None  # the leader that said last that it leads no more
    free_s: float | None = None  # since when nobody leads, by what was said
    up_s: float | None = None  # since when our link is up
    heard_s: float = 0.0  # the leader's last sign of life


def own_interval_s(heartbeat_interval_s: float) -> float:
    """Seconds between the leader's heartbeats: as fast as devices beat, to notice early that its link stalls."""
    return min(LEADER_INTERVAL_S, heartbeat_interval_s)


def observe(
    watch: Watch, event: LinkUp | LinkDown | OrchestratorState, now_s: float, *, remembered: bool = False
) -> Watch:
    """After this event; what the broker only remembers of the leader that we knew is no sign of life."""
    match event:
        case LinkUp():
            return replace(watch, up_s=now_s)
        case LinkDown():
            return replace(_not_ended(watch, now_s), up_s=None)
        case OrchestratorState(epoch=epoch) if epoch < watch.epoch:
            return watch
        case OrchestratorState(epoch=epoch, online=online, session=session):
            watch = replace(watch, epoch=epoch)
            if online and remembered and watch.leader == (epoch, session):
                return watch
            if online and session not in watch.own:
                return replace(watch, leader=(epoch, session), free_s=None, heard_s=now_s)
            return _told_of_an_end(watch, (epoch, session), now_s)


def overslept(watch: Watch, now_s: float) -> Watch:
    """After our own process stood still, and heard nothing meanwhile: what is heard next counts."""
    return watch if watch.up_s is None else replace(watch, up_s=now_s, heard_s=now_s)


def take_over_at_s(watch: Watch, read_retained_s: float = READ_RETAINED_S) -> float | None:
    """When to lead, if nothing else is heard before; None while our own link is down.

    Args:
        watch: what is known.
        read_retained_s: how long what the broker remembers may take to arrive.
    """
    if watch.up_s is None:
        return None
    if watch.leader is not None:
        if _heard_here(watch):
            return watch.heard_s + SILENT_AFTER_INTERVALS * LEADER_INTERVAL_S
        return watch.up_s + RECONNECT_S + SILENT_AFTER_INTERVALS * LEADER_INTERVAL_S
    if watch.free_s is None or watch.free_s < watch.up_s:
        return watch.up_s + read_retained_s
    return watch.free_s + (BROKER_ENDS_S if watch.ended else 0.0)


def _told_of_an_end(watch: Watch, gone: tuple[int, int], now_s: float) -> Watch:
    if watch.leader == gone and not _heard_here(watch):
        return watch  # the broker's own end may have said so
    if watch.leader is None or gone[0] > watch.leader[0] or watch.leader == gone:
        return replace(watch, leader=None, ended=watch.leader, free_s=now_s)
    return watch


def _heard_here(watch: Watch) -> bool:
    """Whether the leader gave a sign of life since our link is up."""
    return watch.up_s is not None and watch.heard_s >= watch.up_s


def _not_ended(watch: Watch, now_s: float) -> Watch:
    """With the leader whose will came just before our own link ended."""
    if watch.ended is None or watch.free_s is None or now_s - watch.free_s >= BROKER_ENDS_S:
        return watch
    return replace(watch, leader=watch.ended, ended=None, free_s=None)
