"""The recording of a replay, and the document of its report. Data only.

Owns the JSON of a replay and the meaning of its fields:
- *sent* = *answered* + the errors + *lost*; *lost* is a request with no answer and no error by its deadline;
- *wrong* is an answer that differs from the unsplit model's in any bit; where a device runs ONNX, one with another text
  or a score beyond the exports' tolerance;
- *duplicates* are answers to requests that already had one: delivery is at least once, and the client drops them;
- latencies are those of the answers, from the request to the answer at the client, its retries included;
- of a fault, *detected*, *replaced* and *moves* are as ``timeline`` says. *first_answer* is the first right answer of a
  task that depended on the target: to a request sent after the fault, or one on whose way the target does not stand.
  Each is seconds after the fault, null where it doesn't apply or didn't happen. So is *over*, as ``timeline`` says;
- a device that is taken away while a task depends on it is *replaced* in time if that is before the fault is over;
- *explained* says the same in words (``explain``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from broker.protocol.specs import DeviceId, TaskName
from s2m3.testbed.replay.timeline import Injected, Signal
from s2m3.testbed.sightings import Sighting

Ending = Literal["right", "wrong", "error", "lost"]


@dataclass(frozen=True)
class Outcome:
    """How one request ended, as its sensor saw it. Times are seconds of the observer's clock."""

    task: TaskName
    sent_s: float
    ended_s: float
    ending: Ending
    code: str | None = None  # of an error
    sentence: str | None = None  # of an error, or what is wrong
    devices: tuple[DeviceId, ...] = ()  # its way, the coordinator among them
    attempts: int = 1

    @property
    def latency_s(self) -> float:
        """From the request to its end."""
        return self.ended_s - self.sent_s


@dataclass(frozen=True)
class FaultReport:
    """One fault and what it cost; times in seconds after it."""

    at_s: float  # after the first request
    kind: str
    target: str
    affected: Sequence[TaskName]  # the tasks that depended on the target, sorted
    over_after_s: float | None
    detected_after_s: float | None
    detected_by: Signal | None
    replaced_after_s: float | None
    first_answer_after_s: float | None
    in_flight: int  # requests sent and not ended when it came
    moves: int  # until the next fault
    load_s: float | None  # the longest loading of a newly active module until the next fault, from its assignment on
    stood_by: bool | None  # whether all modules that it served were ready elsewhere too; null if it served none
    explained: str = ""  # the same, and what became of its modules and of the requests under way, in words


@dataclass(frozen=True)
class Report:
    """The findings of one replay; the JSON document has the same fields."""

    name: str
    sent: int
    answered: int
    errors: Mapping[str, int]
    lost: int
    wrong: int
    duplicates: int
    latency_s: Mapping[str, float | None]
    faults: Sequence[FaultReport]
    moves: int
    refusals: int
    leaders: int
    seed: int
    ok: bool
    why_not: Sequence[str] = ()
    crashes: int = 0


@dataclass(frozen=True)
class Recording:
    """All that one replay recorded."""

    name: str
    seed: int
    began_s: float  # the first request
    ended_s: float
    outcomes: Sequence[Outcome]  # in the order sent
    faults: Sequence[Injected]  # in the order of time
    sightings: Sequence[Sighting]  # in the order of time; from before the load
    duplicates: int
    troubles: Sequence[str] = ()  # a fault that could not be injected, a process that ended by itself
    crashes: int = 0  # of agents, by a request
