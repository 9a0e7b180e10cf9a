"""From what happened to the report: counts, percentiles, what each fault cost, and whether the expectations hold. Pure.

Owns the rules; ``recording`` has the meaning of each figure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from broker.protocol.specs import DeviceId, TaskName
from s2m3.testbed.percentiles import percentiles
from s2m3.testbed.replay import timeline
from s2m3.testbed.replay.explain import explain
from s2m3.testbed.replay.recording import FaultReport, Outcome, Recording, Report
from s2m3.testbed.replay.scenario import Expect
from s2m3.testbed.replay.timeline import Injected

MOST_SHOWN = 300  # characters of a request's sentence: an answer may be a long list
SAME_MOMENT_S = 1.0  # faults so close to each other are one
REPLACED_KINDS = timeline.TAKES_AWAY | {"drain"}  # after which another device must serve
QUIET_KINDS = frozenset(
    {"start", "join", "hostile", "undrain", "squeeze", "slow", "stall", "fill", "crash", "deploy", "rollback"}
)  # no answer has to wait because of these


def report(recording: Recording, expect: Expect) -> Report:
    """The report of a recording."""
    outcomes = recording.outcomes
    endings = Counter(outcome.ending for outcome in outcomes)
    errors = Counter(outcome.code for outcome in outcomes if outcome.ending == "error" and outcome.code)
    answered = [outcome for outcome in outcomes if outcome.ending in {"right", "wrong"}]
    latencies = [outcome.latency_s for outcome in answered]
    found = Report(
        name=recording.name,
        sent=len(outcomes),
        answered=len(answered),
        errors=dict(sorted(errors.items())),
        lost=endings["lost"],
        wrong=endings["wrong"],
        duplicates=recording.duplicates,
        latency_s=percentiles(latencies, 50, 95, 99),
        faults=[_fault(recording, position) for position in range(len(recording.faults))],
        moves=len(timeline.moves(recording.sightings, recording.began_s, math.inf)),
        refusals=len(timeline.refusals(recording.sightings, recording.began_s)),
        leaders=len(timeline.leaders(recording.sightings, recording.began_s)),
        crashes=recording.crashes,
        seed=recording.seed,
        ok=True,
    )
    why_not = [*recording.troubles, *_broken(found, recording, expect)]
    return replace(found, ok=not why_not, why_not=why_not)


def _broken(found: Report, recording: Recording, expect: Expect) -> list[str]:
    counted = {
        "lost": found.lost,
        "wrong": found.wrong,
        "errors": sum(found.errors.values()),
        "moves": found.moves,
        "refusals": found.refusals,
        "leaders": found.leaders,
        "crashes": found.crashes,
    }
    most = {"lost": expect.lost, "wrong": expect.wrong, "errors": expect.errors, "moves": expect.moves}
    most["crashes"] = expect.crashes
    least = {"errors": expect.errors_at_least, "refusals": expect.refusals_at_least, "leaders": expect.leaders_at_least}
    broken = [
        f"{name}: {counted[name]}, expected at most {limit}{_first_of(name, recording.outcomes)}"
        for name, limit in most.items()
        if limit is not None and counted[name] > limit
    ]
    broken += [
        f"{name}: {counted[name]}, expected at least {limit}" for name, limit in least.items() if counted[name] < limit
    ]
    if expect.error_codes is not None:
        other = sorted(found.errors.keys() - set(expect.error_codes))
        broken += [f"{code}: {found.errors[code]}, expected none of this code" for code in other]
    if expect.replaced:
        broken += _unreplaced(found.faults)
    broken += [
        f"{device} was {standing.standing}: {standing.why}"
        for standing in timeline.alarms(recording.sightings, recording.began_s)
        if (device := standing.device) in (expect.no_alarm or ())
    ]
    for device in expect.used or ():
        broken += _unused(recording, device)
    if expect.served_at_end:
        last = {outcome.task: outcome for outcome in recording.outcomes}
        unserved = sorted(task for task, outcome in last.items() if outcome.ending != "right")
        broken += [f"the last request for {task} was not answered" for task in unserved]
    return broken


def _first_of(name: str, outcomes: Sequence[Outcome]) -> str:
    """The first of these requests, for people: its task and its sentence."""
    ending = {"errors": "error"}.get(name, name)
    first = next((each for each in outcomes if each.ending == ending and each.sentence), None)
    sentence = f"{first.task}: {first.sentence}" if first else ""
    long = len(sentence) > MOST_SHOWN
    return f"; the first: {sentence[:MOST_SHOWN]}{' ...' * long}" if first else ""


def _unused(recording: Recording, device: DeviceId) -> list[str]:
    """A sentence for each time in which a device was there, and computed for no answer."""
    off = [fault for fault in recording.faults if fault.target == device and fault.kind in timeline.TAKES_AWAY]
    since_s, unused = recording.began_s, list[str]()
    for until_s, back_s in [*((each.at_s, timeline.over_s(each, off)) for each in off), (math.inf, None)]:
        used = any(
            outcome.ending == "right" and device in outcome.devices and since_s <= outcome.sent_s < until_s
            for outcome in recording.outcomes
        )
        if not used:
            unused.append(f"{device} computed for no answer from {since_s - recording.began_s:.1f} s on")
        if back_s is None:
            break
        since_s = back_s
    return unused


def _unreplaced(faults: Sequence[FaultReport]) -> list[str]:
    """A sentence for each device or leader that was not replaced in time, or for a replay that took none away."""
    judged = [fault for fault in faults if fault.kind in REPLACED_KINDS and fault.affected]
    late = [
        f"{fault.kind} of {fault.target} at {fault.at_s:.1f} s: not replaced"
        + ("" if fault.over_after_s is None else f" before it was over after {fault.over_after_s:.1f} s")
        for fault in judged
        if fault.replaced_after_s is None
        or (fault.over_after_s is not None and fault.replaced_after_s >= fault.over_after_s)
    ]
    return late if judged else ["replaced: no fault took away a device that served, or the orchestrator"]


def _fault(recording: Recording, position: int) -> FaultReport:
    fault = recording.faults[position]
    following = recording.faults[position + 1 : position + 2]
    until_s = following[0].at_s if following else math.inf
    seen = timeline.look_at(fault, recording.sightings)

    def after(at_s: float | None) -> float | None:
        return None if at_s is None else at_s - fault.at_s

    found = FaultReport(
        at_s=fault.at_s - recording.began_s,
        kind=fault.kind,
        target=fault.target,
        affected=sorted(seen.affected),
        over_after_s=after(timeline.over_s(fault, recording.faults)),
        detected_after_s=after(seen.detected_s),
        detected_by=seen.detected_by,
        replaced_after_s=after(seen.replaced_s),
        first_answer_after_s=after(_first_answer_s(recording, fault, seen.affected)),
        in_flight=sum(outcome.sent_s < fault.at_s <= outcome.ended_s for outcome in recording.outcomes),
        moves=len(timeline.moves(recording.sightings, fault.at_s, until_s)),
        load_s=timeline.load_s(recording.sightings, fault.at_s, until_s),
        stood_by=timeline.stood_by(recording.sightings, fault.target, fault.at_s, _hit(recording, fault)),
    )
    return replace(found, explained=explain(recording, position, found))


def _hit(recording: Recording, fault: Injected) -> dict[DeviceId, float]:
    """The time at which each device was last hit by a fault, until this one or in the same moment."""
    hits = (each for each in recording.faults if each.kind in timeline.TAKES_AWAY)
    return {each.target: each.at_s for each in hits if each.at_s <= fault.at_s + SAME_MOMENT_S}


def _first_answer_s(recording: Recording, fault: Injected, affected: frozenset[TaskName]) -> float | None:
    if fault.kind in QUIET_KINDS:
        return None
    times = [
        outcome.ended_s
        for outcome in recording.outcomes
        if outcome.ending == "right"
        and outcome.task in affected
        and outcome.ended_s >= fault.at_s
        and (outcome.sent_s >= fault.at_s or fault.target not in outcome.devices)
    ]
    return min(times, default=None)
