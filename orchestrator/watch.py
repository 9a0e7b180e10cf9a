"""Whether anybody leads: what an orchestrator that waits for its turn makes of what it hears.

Owns when a spare takes over. Knows nothing of devices and tasks, nor of connections; ``now_s`` comes in. Pure.

Invariants:
- the leader's will, or its goodbye, ends its lead at once; silence ends it only while our own link is up, and after the
  link came back the leader has the full time anew;
- a late will of an earlier link of the leader changes nothing, nor does any word of an earlier epoch;
- what we said ourselves, in a term that is over, keeps nobody waiting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from broker.messages import OrchestratorState
from broker.transport import LinkDown, LinkUp

LEADER_INTERVAL_S = 1.0  # between the leader's heartbeats, at most
SILENT_AFTER_INTERVALS = 3.25  # as for devices: three missed, and a quarter for the network's jitter
READ_RETAINED_S = 0.5  # a broker sends retained messages at once after the subscription; there is no end mark


@dataclass(frozen=True)
class Watch:
    """What is known of the leader."""

    own: frozenset[int] = frozenset()  # sessions of our links in earlier terms
    epoch: int = 0  # the highest heard
    leader: tuple[int, int] | None = None  # epoch and session
    free: bool = False  # somebody said that nobody leads
    up_s: float | None = None  # since when our link is up
    heard_s: float = 0.0  # the leader's last sign of life


def own_interval_s(heartbeat_interval_s: float) -> float:
    """Seconds between the leader's heartbeats: as fast as devices beat, to notice early that its link stalls."""
    return min(LEADER_INTERVAL_S, heartbeat_interval_s)


def observe(watch: Watch, event: LinkUp | LinkDown | OrchestratorState, now_s: float) -> Watch:
    """After this event."""
    match event:
        case LinkUp():
            return replace(watch, up_s=now_s)
        case LinkDown():
            return replace(watch, up_s=None)
        case OrchestratorState(epoch=epoch) if epoch < watch.epoch:
            return watch
        case OrchestratorState(epoch=epoch, online=online, session=session):
            watch = replace(watch, epoch=epoch)
            if online and session not in watch.own:
                return replace(watch, leader=(epoch, session), free=False, heard_s=now_s)
            if watch.leader is None or epoch > watch.leader[0] or watch.leader == (epoch, session):
                return replace(watch, leader=None, free=True)
            return watch


def take_over_at_s(watch: Watch, read_retained_s: float = READ_RETAINED_S) -> float | None:
    """When to lead, if nothing else is heard before; None while our own link is down.

    Args:
        watch: what is known.
        read_retained_s: how long what the broker remembers may take to arrive.
    """
    if watch.up_s is None:
        return None
    if watch.leader is None:
        return watch.up_s if watch.free else watch.up_s + read_retained_s
    return max(watch.heard_s, watch.up_s) + SILENT_AFTER_INTERVALS * LEADER_INTERVAL_S
