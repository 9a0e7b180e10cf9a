"""A fault in words: what its target did before, who noticed, what moved, and what became of the requests. Pure.

Owns these sentences; each says only what was published or answered in the replay. ``timeline`` and ``report`` own the
numbers in them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from broker.protocol.errors import named
from broker.protocol.messages import Assignment, Route
from broker.protocol.reports import TaskStatus
from s2m3.testbed.replay import timeline
from s2m3.testbed.replay.recording import FaultReport, Outcome, Recording
from s2m3.testbed.replay.scenario import BROKER, ORCHESTRATOR
from s2m3.testbed.replay.timeline import Injected
from s2m3.testbed.sightings import Sighting

_NOTICED = {
    "will": "it was announced as offline",
    "heartbeats": "its missing heartbeats were noticed",
    "timeouts": "timeouts of calls to it were noticed",
}


@dataclass(frozen=True)
class _Seen:
    """The messages and requests from a fault until the next one."""

    fault: Injected
    found: FaultReport
    until_s: float
    sightings: Sequence[Sighting]
    outcomes: Sequence[Outcome]

    @property
    def moved(self) -> list[tuple[str, str]]:
        """(module, device) for every module newly active."""
        return [(m, d) for _, d, m in timeline.moves(self.sightings, self.fault.at_s, self.until_s)]

    @property
    def copied(self) -> list[tuple[str, str]]:
        """(module, device) for every new standby copy."""
        return [(m, d) for _, d, m in timeline.copies(self.sightings, self.fault.at_s, self.until_s)]

    @property
    def refused(self) -> list[str]:
        """The modules that the target newly listed as failed, while the fault lasted."""
        refusals = timeline.refusals(self.sightings, self.fault.at_s)
        return [m for at_s, d, m in refusals if at_s < self.over_s and d == self.fault.target]

    @property
    def given(self) -> list[str]:
        """The modules that the target was newly assigned, while the fault lasted."""
        times = (self.sightings, self.fault.at_s, self.over_s)
        return [m for _, d, m in (*timeline.moves(*times), *timeline.copies(*times)) if d == self.fault.target]

    @property
    def over_s(self) -> float:
        """The end of the fault itself, whatever comes meanwhile."""
        return math.inf if self.found.over_after_s is None else self.fault.at_s + self.found.over_after_s

    @property
    def ended(self) -> list[str]:
        """The devices that went offline."""
        return timeline.gone(self.sightings, self.fault.at_s, self.until_s)

    @property
    def died(self) -> bool:
        """Whether the target went offline while the fault lasted."""
        return self.fault.target in timeline.gone(self.sightings, self.fault.at_s, self.over_s)

    @property
    def alarms(self) -> list[str]:
        """A clause for each standing of the target by which the leader told that something is wrong with it."""
        found = timeline.alarms(self.sightings, self.fault.at_s, self.until_s)
        return [f"the leader called it {each.standing}" for each in found if each.device == self.fault.target]


def explain(recording: Recording, position: int, found: FaultReport) -> str:
    """Say what a fault of a recording did: one or two sentences. ``found`` are its figures."""
    fault = recording.faults[position]
    following = recording.faults[position + 1 : position + 2]
    until_s = following[0].at_s if following else math.inf
    seen = _Seen(fault, found, until_s, recording.sightings, recording.outcomes)
    if fault.target == BROKER:
        parts = _broker(seen)
    elif fault.target == ORCHESTRATOR:
        parts = _orchestrator(seen)
    elif fault.kind in timeline.TAKES_AWAY:
        parts = _taken_away(seen)
    else:
        parts = _OTHERS[fault.kind](seen)
    return f"{_sentence(parts)} {_sentence([_requests(seen)])}"


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(part for part in parts if part)
    return f"{text[:1].upper()}{text[1:]}."


def _taken_away(seen: _Seen) -> list[str]:
    return [_duty(seen), _noticed(seen), *(_replacement(seen) if seen.found.affected else _without_duty(seen))]


def _duty(seen: _Seen) -> str:
    """The duty of the target until then."""
    active, standby = timeline.held_before(seen.sightings, seen.fault.target, seen.fault.at_s)
    if seen.found.affected:
        served = f"it served {_list(seen.found.affected)}"
        return f"{served} with {_list(active)}" if active else f"{served} as a front door"
    if active:
        return f"no task was routed to it, though it held {_list(active)}"
    return f"it served no task: it held {f'only standby copies of {_list(standby)}' if standby else 'nothing'}"


def _noticed(seen: _Seen) -> str:
    found = seen.found
    if found.detected_after_s is not None and found.detected_by is not None:
        return f"{_NOTICED[found.detected_by]} after {_s(found.detected_after_s)}"
    if found.over_after_s is not None:
        return f"it was over after {_s(found.over_after_s)}, before anybody noticed"
    return "nobody had noticed it when the replay ended"


def _replacement(seen: _Seen) -> list[str]:
    found = seen.found
    if found.replaced_after_s is None:
        return [f"what it served was not served again{_why_unavailable(seen)}"]
    source = "from copies that were ready" if found.stood_by else ""
    if not found.stood_by and found.load_s is not None:
        source = f"when modules were loaded, the slowest in {_s(found.load_s)}"
    again = f"everything was served again after {_s(found.replaced_after_s)}{source and f', {source}'}"
    first = found.first_answer_after_s
    return [again, f"the first answer came after {_s(first)}" if first is not None else "", _moves(seen)]


def _without_duty(seen: _Seen) -> list[str]:
    parts = ["so nothing had to be replaced, and no answer waited for it"]
    if seen.moved:
        parts.append(_moves(seen))
    if seen.copied:
        parts.append(f"new standby copies: {_places(seen.copied)}")
    return parts


def _orchestrator(seen: _Seen) -> list[str]:
    found = seen.found
    led = "" if found.replaced_after_s is None else f"one led again after {_s(found.replaced_after_s)}"
    if seen.fault.kind == "start":
        return [led or "none led until the replay ended"]
    told = ""
    if found.detected_after_s is not None:
        how = "its end was announced" if found.detected_by == "will" else "the standby missed its heartbeats"
        told = f"{how} after {_s(found.detected_after_s)}"
    if not led:
        led = "no other one took the lead; requests go on along the last routes"
    return [told, led, _moves(seen)]


def _broker(seen: _Seen) -> list[str]:
    found = seen.found
    if found.replaced_after_s is None:
        return ["the orchestrator and the routes were not all there again"]
    first = found.first_answer_after_s
    back = f"the orchestrator and all routes were there again after {_s(found.replaced_after_s)}"
    return [back, f"the first answer came after {_s(first)}" if first is not None else "", _moves(seen)]


def _start(seen: _Seen) -> list[str]:
    found, target = seen.found, seen.fault.target
    if found.detected_after_s is None:
        return ["it sent no heartbeat until the replay ended"]
    active, standby = timeline.held_before(seen.sightings, target, seen.until_s)
    got = [
        f"it got {_list(active)} to serve" if active else "",
        f"standby copies of {_list(standby)}" if standby else "",
    ]
    others = [(module, device) for module, device in seen.moved if device != target]
    return [
        f"its first heartbeat came after {_s(found.detected_after_s)}",
        " and ".join(filter(None, got)) or "it got nothing to hold",
        f"active elsewhere since then: {_places(others)}" if others else "",
    ]


def _drain(seen: _Seen) -> list[str]:
    if not seen.found.affected:
        return [_duty(seen), "so nothing had to move"]
    if seen.found.replaced_after_s is not None:
        return [
            _duty(seen),
            f"others serve that after {_s(seen.found.replaced_after_s)}, and it served on until then",
            _moves(seen),
        ]
    assignments = (s.message for s in seen.sightings if s.id == seen.fault.target and isinstance(s.message, Assignment))
    stays = next((each.stays for each in reversed(list(assignments)) if each.stays), None)
    return [_duty(seen), f"it serves on{f': {stays}' if stays else ''}"]


def _undrain(seen: _Seen) -> list[str]:
    return ["it may hold modules again", _moves(seen)]


def _slow(seen: _Seen) -> list[str]:
    lasted = "" if seen.found.over_after_s is None else f" for {_s(seen.found.over_after_s)}"
    return [f"it had {seen.fault.how or 'less of its time'}{lasted}", _alarms(seen), _moves(seen)]


def _hostile(seen: _Seen) -> list[str]:
    return [f"it got {seen.fault.how or 'hostile messages'}", _alarms(seen), _moves(seen)]


def _squeeze(seen: _Seen) -> list[str]:
    if seen.refused:
        return [f"it refused {_list(seen.refused)} for want of memory", _moves(seen)]
    if seen.died:
        return ["it went offline while it had so little memory", _moves(seen)]
    return [f"it had room for {seen.fault.how or 'little more'}, and refused no module", _moves(seen)]


def _stall(seen: _Seen) -> list[str]:
    if seen.refused:
        return [f"the load of {_list(seen.refused)} on it made no progress and was given up", _moves(seen)]
    if seen.given:
        return [f"it was to load {_list(seen.given)}, and that load was not given up", _moves(seen)]
    return ["it had nothing to load, so the fault did not show", _moves(seen)]


def _fill(seen: _Seen) -> list[str]:
    if seen.refused:
        return [f"it refused {_list(seen.refused)} for want of room on its disk", _moves(seen)]
    return ["it refused no module while its disk was full", _moves(seen)]


def _crash(seen: _Seen) -> list[str]:
    if not seen.ended:
        return ["the deadly request ended no agent"]
    return [f"the deadly request ended {_count(len(seen.ended), 'agent')} ({_list(seen.ended)})", _moves(seen)]


def _deploy(seen: _Seen) -> list[str]:
    name = f"revision {seen.fault.how}"
    if seen.found.replaced_after_s is not None:
        return [f"{name} was served after {_s(seen.found.replaced_after_s)}"]
    statuses = [s.message for s in seen.sightings if s.id == seen.fault.target and isinstance(s.message, TaskStatus)]
    refused = [each.candidate for each in statuses if each.candidate and each.candidate.state == "refused"]
    why = next((each.why for each in reversed(refused) if each.revision in {None, seen.fault.how} and each.why), None)
    if why is not None:
        return [f"{name} was refused, and the one before was served on: {why}"]
    until = "until the replay ended" if seen.until_s == math.inf else "before the next fault"
    return [f"{name} was not served {until}"]


_OTHERS = {
    "start": _start,
    "join": _start,
    "drain": _drain,
    "undrain": _undrain,
    "slow": _slow,
    "hostile": _hostile,
    "squeeze": _squeeze,
    "stall": _stall,
    "fill": _fill,
    "crash": _crash,
    "deploy": _deploy,
    "rollback": _deploy,
}


def _requests(seen: _Seen) -> str:
    """The ends of the requests that were under way."""
    under_way = [each for each in seen.outcomes if each.sent_s < seen.fault.at_s <= each.ended_s]
    if not under_way:
        return "no request was under way"
    ends = Counter((each.code or "error") if each.ending == "error" else each.ending for each in under_way)
    if ends["right"] == len(under_way) > 1:
        return f"{len(under_way)} requests under way: all answered"
    words = {"right": "answered", "wrong": "answered wrongly", "lost": "lost"}
    told = ", ".join(f"{number} {words.get(end, f'ended in {end}')}" for end, number in sorted(ends.items()))
    return f"{_count(len(under_way), 'request')} under way: {told}"


def _why_unavailable(seen: _Seen) -> str:
    """The last reason that a route of its tasks gave until the next fault."""
    routes = [
        s.message
        for s in seen.sightings
        if isinstance(s.message, Route) and s.id in seen.found.affected and seen.fault.at_s <= s.at_s < seen.until_s
    ]
    reasons = [route.unavailable for route in routes if route.unavailable]
    return f": {reasons[-1]}" if reasons else ""


def _alarms(seen: _Seen) -> str:
    return ", then ".join(dict.fromkeys(seen.alarms)) or "the leader saw nothing wrong with it"


def _moves(seen: _Seen) -> str:
    if seen.moved:
        return f"newly active: {_places(seen.moved)}"
    return "nothing moved" if seen.until_s == math.inf else "nothing moved before the next fault"


def _places(placed: Sequence[tuple[str, str]]) -> str:
    return _list([f"{module} on {device}" for module, device in dict.fromkeys(placed)])


def _list(names: Sequence[str]) -> str:
    return ", ".join(named(list(dict.fromkeys(names))))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _s(seconds: float) -> str:
    return f"{seconds:.2f} s"
