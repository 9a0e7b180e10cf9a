"""Flap damping: a device that died and returned is on probation, and longer after each further death.

Owns the record of a device's deaths and its rules. Doesn't know silence or placement; ``now_s`` comes in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

PROBATION_HEARTBEATS = 5  # without a gap: a box with flickering power, or short of memory, dies sooner
_DOUBLINGS = 6  # each further death doubles the probation, up to 320 heartbeats
FORGIVE_AFTER_S = 600.0  # a device that lived this long since its return begins a new record


@dataclass(frozen=True)
class FlapRecord:
    """How often a device died lately, and how many heartbeats remain of its probation."""

    deaths: int = 0
    heartbeats_owed: int = 0
    returned_s: float = 0.0
    counted_s: float = 0.0  # when the last heartbeat of the probation was counted

    def on_death(self, now_s: float) -> FlapRecord:
        """The record after one more death."""
        deaths = 1 if now_s - self.returned_s >= FORGIVE_AFTER_S else self.deaths + 1
        return replace(self, deaths=deaths)

    def on_return(self, now_s: float) -> FlapRecord:
        """The record of a device that is alive again: on probation if it had died."""
        return replace(self, returned_s=now_s, heartbeats_owed=self._probation)

    def on_heartbeat(self, now_s: float, interval_s: float) -> FlapRecord:
        """The record after a heartbeat; one that comes early, to report news, doesn't count."""
        if not self.heartbeats_owed or now_s - self.counted_s < interval_s / 2:
            return self
        return replace(self, heartbeats_owed=self.heartbeats_owed - 1, counted_s=now_s)

    def on_gap(self) -> FlapRecord:
        """The record after a late heartbeat: a probation starts again."""
        return replace(self, heartbeats_owed=self._probation) if self.heartbeats_owed else self

    @property
    def _probation(self) -> int:
        return PROBATION_HEARTBEATS << min(self.deaths - 1, _DOUBLINGS) if self.deaths else 0


NO_FLAPS = FlapRecord()
