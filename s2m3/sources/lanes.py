"""The time at which a message of a source is sent: the newest one, one at a time, and not too often. Pure.

Owns the queues: one lane for each source and concrete topic, with at most one message that waits. Doesn't know what a
message holds, clients or the broker. ``now_s`` comes in.

Invariants:
- a lane has at most one request in flight, and two requests of it begin at least ``min_interval_s`` apart;
- of several messages that can't be sent yet the newest waits; the others are counted, and never sent;
- a message that waits is sent as soon as it may be, without another message or answer of its lane;
- lanes, requests in flight and bytes are bounded, whatever is published.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.protocol.sources import SourceName, SourceSpec
from s2m3.sources.filters import captures_of

MAX_TOPICS = 1_000  # concrete topics of a source that are remembered
MAX_IN_FLIGHT = 32  # requests of a source: other messages wait, each in its lane
MAX_BYTES = 128 * 1024 * 1024  # of all messages that wait or are in flight
COPY_S = 1.0  # a broker sends a message to overlapping filters one copy after the other, at once


@dataclass(frozen=True)
class Arrival:
    """A message at a topic that a source reads."""

    topic: str
    payload: bytes
    content_type: str = ""
    retained: bool = False


@dataclass(frozen=True)
class Ask:
    """Send a request for this message. ``ticket`` names the request when it ends."""

    ticket: int
    spec: SourceSpec
    captures: tuple[str, ...]
    message: Arrival


@dataclass(frozen=True)
class Ended:
    """A request that ended, and how many messages newer ones have replaced in its lane."""

    ask: Ask
    skipped: int


@dataclass
class _Lane:
    captures: tuple[str, ...]
    waiting: Arrival | None = None
    ticket: int | None = None  # of the request in flight
    free_s: float = -math.inf  # when the next request may begin
    skipped: int = 0
    queued: bool = False  # it is in the heap, or among those that wait for another request's end


@dataclass
class _Running:
    spec: SourceSpec
    lanes: dict[str, _Lane] = field(default_factory=dict)  # by topic, the longest unused first
    in_flight: int = 0
    blocked: deque[str] = field(default_factory=deque)  # topics that wait for another request's end


class Lanes:
    """The sources that run, and their messages."""

    def __init__(self) -> None:
        self.dropped = 0
        """The number of messages for which there was no room."""
        self._running: dict[SourceName, _Running] = {}
        self._asked: dict[int, Ask] = {}  # by ticket
        self._due: list[tuple[float, SourceName, str]] = []  # a heap: lanes with a message that may not be sent yet
        self._bytes = 0
        self._tickets = 0
        self._last: tuple[Arrival, float, int] | None = None  # the last arrival, and how often it came in succession

    @property
    def filters(self) -> frozenset[str]:
        """The filters that the sources read."""
        return frozenset(each.spec.subscribe for each in self._running.values())

    def run(self, specs: Mapping[SourceName, SourceSpec]) -> None:
        """Run these sources only; what waits for one that is gone or was changed is dropped, and its answers, too."""
        for name in [name for name, each in self._running.items() if specs.get(name) != each.spec]:
            gone = self._running.pop(name)
            self._bytes -= sum(len(lane.waiting.payload) for lane in gone.lanes.values() if lane.waiting)
            for ticket in [ticket for ticket, ask in self._asked.items() if ask.spec.source == name]:
                self._bytes -= len(self._asked.pop(ticket).message.payload)
        for name, spec in specs.items():
            self._running.setdefault(name, _Running(spec))

    def on_message(self, message: Arrival, now_s: float) -> list[Ask]:
        """Take a message; returns the requests that begin now."""
        if self._is_copy(message, now_s):
            return []
        for running in self._running.values():
            if message.retained and running.spec.retained == "skip":
                continue
            captures = captures_of(running.spec.subscribe, message.topic)
            if captures is not None:
                self._keep(running, message, captures)
        return self.on_time(now_s)

    def on_end(self, ticket: int, now_s: float, *, wait_s: float = 0.0) -> tuple[Ended | None, list[Ask]]:
        """A request ended; returns it, unless its source is gone, and the requests that begin now.

        ``wait_s`` is the time for which the site asked to send nothing more.
        """
        ask = self._asked.pop(ticket, None)
        if ask is None:
            return None, []
        running, topic = self._running[ask.spec.source], ask.message.topic
        lane = running.lanes[topic]
        self._bytes -= len(ask.message.payload)
        running.in_flight -= 1
        lane.ticket, lane.free_s = None, max(lane.free_s, now_s + wait_s)
        self._queue(running, topic, lane)
        if running.blocked:
            freed = running.blocked.popleft()
            running.lanes[freed].queued = False
            self._queue(running, freed, running.lanes[freed])
        return Ended(ask, lane.skipped), self.on_time(now_s)

    def on_time(self, now_s: float) -> list[Ask]:
        """The requests that begin now."""
        begun = []
        while self._due and self._due[0][0] <= now_s:
            _, name, topic = heapq.heappop(self._due)
            running = self._running.get(name)
            lane = running.lanes.get(topic) if running else None
            if running is None or lane is None or not lane.queued:
                continue  # its source is gone
            lane.queued = False
            if lane.waiting is None or lane.ticket is not None:
                continue
            if lane.free_s > now_s:
                self._queue(running, topic, lane)
            elif running.in_flight >= MAX_IN_FLIGHT:
                lane.queued = True
                running.blocked.append(topic)
            else:
                begun.append(self._begin(running, lane, lane.waiting, now_s))
        return begun

    def next_due_s(self) -> float | None:
        """The time of the next request that may begin without another event."""
        return self._due[0][0] if self._due else None

    def _keep(self, running: _Running, message: Arrival, captures: tuple[str, ...]) -> None:
        lane = running.lanes.pop(message.topic, None)
        if lane is None:
            if len(running.lanes) >= MAX_TOPICS and not self._forget_one(running):
                self.dropped += 1
                return
            lane = _Lane(captures)
        running.lanes[message.topic] = lane  # behind the others
        if lane.waiting is not None:
            lane.skipped += 1
            self._bytes -= len(lane.waiting.payload)
            lane.waiting = None
        if self._bytes + len(message.payload) > MAX_BYTES:
            lane.skipped += 1
            self.dropped += 1
            return
        lane.waiting = message
        self._bytes += len(message.payload)
        self._queue(running, message.topic, lane)

    def _queue(self, running: _Running, topic: str, lane: _Lane) -> None:
        if lane.waiting is not None and lane.ticket is None and not lane.queued:
            lane.queued = True
            heapq.heappush(self._due, (lane.free_s, running.spec.source, topic))

    def _begin(self, running: _Running, lane: _Lane, message: Arrival, now_s: float) -> Ask:
        self._tickets += 1
        ask = Ask(self._tickets, running.spec, lane.captures, message)
        self._asked[ask.ticket] = ask
        running.in_flight += 1
        lane.ticket, lane.waiting, lane.free_s = ask.ticket, None, now_s + running.spec.min_interval_s
        return ask

    @staticmethod
    def _forget_one(running: _Running) -> bool:
        """Forget the idle lane that was unused for the longest time; False when all are in use."""
        idle = next((t for t, lane in running.lanes.items() if lane.waiting is None and lane.ticket is None), None)
        if idle is not None:
            del running.lanes[idle]
        return idle is not None

    def _is_copy(self, message: Arrival, now_s: float) -> bool:
        """Whether a broker sends a message once more, because several of our filters match its topic."""
        last, at_s, times = self._last or (None, -math.inf, 0)
        if message != last or now_s - at_s > COPY_S:
            self._last = (message, now_s, 1)
            return False
        matching = sum(captures_of(each, message.topic) is not None for each in self.filters)
        if times < matching:
            self._last = (message, at_s, times + 1)
            return True
        self._last = (message, now_s, 1)
        return False
