"""How far a device that is alive may be relied on: probation after its return, and what others say of it.

Owns the two records and their rules. Knows nothing of messages' bytes, of silence or of placement; ``now_s`` comes in.

Invariants:
- a device is on probation only after a death that we heard of, longer after each further one: so one that dies and
  returns every few seconds soon moves nothing any more;
- one report of one coordinator moves nothing: its own link may be at fault. Two coordinators, or one that met it
  twice, have a point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from broker.protocol.messages import SUSPECTED_FOR_S
from broker.protocol.specs import DeviceId

PROBATION_BEATS = 5  # heartbeats without a gap: a box whose power flickers, or that is short of memory, dies sooner
_DOUBLINGS = 6  # each further death doubles it, up to 320 beats
FORGIVE_AFTER_S = 600.0  # alive so long since its return: that death was its own affair
ENOUGH_ACCUSERS = 2
SAME_CALL_S = 0.5  # what moved by less than that is the same report, its seconds counted anew


@dataclass(frozen=True)
class Record:
    """How often a device died of late, and how many good beats it still owes."""

    deaths: int = 0
    to_prove: int = 0
    back_s: float = 0.0  # when it last returned
    proved_s: float = 0.0  # when its last good beat was counted

    def died(self, now_s: float) -> Record:
        """After one more death."""
        deaths = 1 if now_s - self.back_s >= FORGIVE_AFTER_S else self.deaths + 1
        return replace(self, deaths=deaths)

    def returned(self, now_s: float) -> Record:
        """Alive again; on probation if it had died."""
        return replace(self, back_s=now_s, to_prove=self._owed)

    def beat(self, now_s: float, interval_s: float) -> Record:
        """After one more good heartbeat; those that come between the regular ones, to report news, prove nothing."""
        if not self.to_prove or now_s - self.proved_s < interval_s / 2:
            return self
        return replace(self, to_prove=self.to_prove - 1, proved_s=now_s)

    def late(self) -> Record:
        """After a gap: it begins to prove itself anew."""
        return replace(self, to_prove=self._owed) if self.to_prove else self

    @property
    def _owed(self) -> int:
        if not self.deaths:
            return 0
        return PROBATION_BEATS << min(self.deaths - 1, _DOUBLINGS)


NEW = Record()


@dataclass(frozen=True)
class Accusation:
    """What one coordinator says of a device: when a call to it timed out last, and how many did."""

    at_s: float
    times: int = 1


Accusers = Mapping[DeviceId, Accusation]


def accused(known: Accusers, by: DeviceId, since_s: float | None, now_s: float) -> Accusers:
    """The accusations after a report of one coordinator.

    Args:
        known: those before.
        by: the coordinator.
        since_s: how long ago its last call timed out; None when it says nothing of the device, or took it back.
        now_s: now.
    """
    if since_s is None or since_s >= SUSPECTED_FOR_S:
        return {other: said for other, said in known.items() if other != by} if by in known else known
    at_s, before = now_s - since_s, known.get(by)
    if before is None:
        return {**known, by: Accusation(at_s)}
    if at_s - before.at_s < SAME_CALL_S:
        return known
    return {**known, by: Accusation(at_s, before.times + 1)}


def still_accused(known: Accusers, now_s: float) -> Accusers:
    """The accusations that aren't over."""
    if all(now_s < said.at_s + SUSPECTED_FOR_S for said in known.values()):
        return known
    return {by: said for by, said in known.items() if now_s < said.at_s + SUSPECTED_FOR_S}


def hangs(known: Accusers) -> bool:
    """Whether a device that beats well must be taken for hung all the same."""
    return sum(said.times for said in known.values()) >= ENOUGH_ACCUSERS
