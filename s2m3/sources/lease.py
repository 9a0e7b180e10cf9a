"""The term of the process that runs the sources: when it announces it, and when it resigns. Pure.

Owns the leader's side; ``broker.leader_watch`` owns the spare's. Doesn't know sources.

Invariants:
- only ``sources/state`` ends a term: a higher epoch, or the same one of a process with a higher session number;
- a late will, or the message of a process that doesn't know this term, is overwritten;
- an epoch that isn't plausible ends no term, unless a leader repeats it (``broker.epochs``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto

from broker.epochs import DoubtedLeader, doubt
from broker.leader_watch import LEADER_INTERVAL_S
from broker.protocol.codec import encode
from broker.protocol.sources import SourcesState
from broker.protocol.topics import SOURCES_STATE
from broker.transport.port import Outgoing


class Verdict(Enum):
    """The consequence of a message about the term."""

    NOTHING = auto()
    ANNOUNCE = auto()
    RESIGN = auto()


@dataclass(frozen=True)
class Term:
    """A term of this process, its connections' sessions, and when it announces itself next."""

    epoch: int
    sessions: frozenset[int] = frozenset()
    session: int | None = None  # None while the link is down
    doubted: DoubtedLeader | None = None
    announce_s: float | None = None

    def on_link(self, session: int | None, now_s: float) -> Term:
        """The term after the link came up with a session, or went down."""
        known = self.sessions if session is None else self.sessions | {session}
        return replace(self, session=session, sessions=known, announce_s=None if session is None else now_s)

    def on_state(self, said: SourcesState, now_s: float) -> tuple[Term, Verdict]:
        """React to a message at ``sources/state``."""
        doubted = doubt(self.epoch, said, self.doubted)
        term = replace(self, doubted=doubted)
        own = said.epoch == self.epoch and said.session in self.sessions
        if self.session is None or (own and said.online and said.session == self.session):
            return term, Verdict.NOTHING
        is_later = said.epoch == self.epoch and said.online and not own and said.session > self.session
        if doubted is None and (said.epoch > self.epoch or is_later):
            return term, Verdict.RESIGN
        return replace(term, announce_s=now_s), Verdict.ANNOUNCE

    def announcement(self, now_s: float) -> tuple[Term, SourcesState | None]:
        """The message that this process runs the sources, if it is due: once a second while the link is up."""
        if self.session is None or self.announce_s is None or now_s < self.announce_s:
            return self, None
        said = SourcesState(epoch=self.epoch, online=True, session=self.session)
        return replace(self, announce_s=now_s + LEADER_INTERVAL_S), said


def state_message(prefix: str, said: SourcesState) -> Outgoing:
    """The retained message about a term."""
    return Outgoing(SOURCES_STATE.at(prefix), encode(said), retain=True)


def goodbye(prefix: str, epoch: int, session: int) -> Outgoing:
    """The message that a term's connection has ended: its will."""
    return state_message(prefix, SourcesState(epoch=epoch, online=False, session=session))
