"""The epochs that a leader, a standby or a reader of plans accepts.

Owns the rule. A term's epoch is one above the highest known, so a jump of a million is a mistake or a lie: accepted, it
would leave no epochs for later terms. Only a process that really leads repeats such an epoch. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.protocol.messages import MAX_EPOCH_JUMP, LeaderState

LARGEST_EPOCH = 2**52 - 1  # of any plan that is accepted
LARGEST_REPEATED = LARGEST_EPOCH // 2  # that a leader's repeated word brings: the others stay for the terms after it
ACCEPTED_AFTER = 3  # equal messages of a leader that is online: its announcement and two heartbeats


@dataclass(frozen=True)
class DoubtedLeader:
    """A leader whose epoch isn't plausible, and how often it was heard in succession."""

    epoch: int
    session: int
    times: int


def doubt(known: int, seen: LeaderState, before: DoubtedLeader | None) -> DoubtedLeader | None:
    """The doubt about a message of the leader's topics; None if its epoch is accepted beside the highest known."""
    if seen.epoch <= known + MAX_EPOCH_JUMP:
        return None
    times = before.times + 1 if before and (before.epoch, before.session) == (seen.epoch, seen.session) else 1
    if times >= ACCEPTED_AFTER and seen.online and seen.epoch <= LARGEST_REPEATED:
        return None
    return DoubtedLeader(seen.epoch, seen.session, times)


def is_stale(plan: tuple[int, int], known: tuple[int, int] | None) -> bool:
    """Whether a plan, by its epoch and generation, doesn't replace the known one.

    It is older, or of a term that no leader can have come to. A reader that knows no plan, or one of such a term, takes
    any: that term may be true, and if it is a lie, the leader overwrites it.
    """
    if plan[0] > LARGEST_EPOCH:
        return True
    if known is None or known[0] > MAX_EPOCH_JUMP:
        return False
    return plan < known or plan[0] > known[0] + MAX_EPOCH_JUMP
