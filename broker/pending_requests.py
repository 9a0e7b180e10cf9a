"""When a sensor's requests are sent, sent again, or given up: the rules of ``client``; pure.

Owns the questions that wait for an answer, and the routes of their tasks. Knows nothing of threads, futures and
sockets; times are seconds of a clock that never goes back.

Invariants:
- A question ends by its deadline. One whose route has no front door yet is not sent, and goes as soon as there is one.
- What was known before the link was lost is only believed until the broker could have said it again: clearing a route
  is not told to those who were away. Until then a route may be sent to, and ends nothing.
- A route is watched while somebody waits for its task, and after that only if the task is served, or was before the
  link was lost and the broker may still be told of it anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from broker.protocol.errors import ErrorCode
from broker.protocol.messages import ErrorBody, Route
from broker.protocol.specs import RequestId, TaskName
from broker.protocol.topics import RESULTS, TASK_REQUESTS
from broker.transport.port import Outgoing

ROUTE_WAIT_S = 0.7  # a retained route arrives within milliseconds of the subscription; then there is none
RETURN_WAIT_S = 6.0  # a broker that lost its memory has the routes again when the orchestrator has reconnected, too
FIRST_RETRY_S = 1.0  # doubles up to the longest
LONGEST_RETRY_S = 5.0
SOON_S = 0.1  # after "nobody subscribes", or a new front door that is about to
_MAX_DOUBLINGS = 10  # any longest retry is reached by then, and no power of two overflows


@dataclass
class Question:
    """One request that waits for its answer."""

    request: RequestId
    task: TaskName
    payload: bytes
    content_type: str
    asked_s: float
    deadline_s: float
    send_s: float = -math.inf  # when to send (again)
    attempts: int = 0


@dataclass
class _Watch:
    absent_s: float  # when having no route means that there is none
    route: Route | None = None
    confirmed: bool = False  # said on this link
    lost: bool = False  # there was a route before this link, and none on it yet


class Asking:
    """Every question of one client, and what it knows of their tasks.

    Args:
        prefix: of the site's topics.
        client_id: below which topic answers come back.
        broker: its address, for sentences.
        first_retry_s: how long to wait for an answer before the same request is sent again; this doubles each time.
    """

    def __init__(self, prefix: str, client_id: str, broker: str, *, first_retry_s: float = FIRST_RETRY_S) -> None:
        self._prefix = prefix
        self._client_id = client_id
        self._broker = broker
        self._first_retry_s = first_retry_s
        self._longest_retry_s = max(LONGEST_RETRY_S, first_retry_s)
        self._questions: dict[RequestId, Question] = {}
        self._watches: dict[TaskName, _Watch] = {}
        self._up_s: float | None = None  # since when the link is up

    @property
    def waiting(self) -> tuple[RequestId, ...]:
        """The requests that wait, in the order asked."""
        return tuple(self._questions)

    def next_s(self) -> float | None:
        """When ``forget`` or ``step`` has something to do, though nothing happens; None when never."""
        times = [min(question.send_s, question.deadline_s) for question in self._questions.values()]
        if self._up_s is not None and any(watch.route and not watch.confirmed for watch in self._watches.values()):
            times.append(self._up_s + ROUTE_WAIT_S)
        if self._up_s is not None:
            times += [watch.absent_s for watch in self._watches.values() if watch.lost]
        return min(times, default=None)

    # --- what happens ---

    def ask(self, question: Question, now_s: float) -> None:
        """A new request."""
        self._questions[question.request] = question
        self._watches.setdefault(question.task, _Watch(absent_s=now_s + ROUTE_WAIT_S))

    def link_up(self, now_s: float) -> None:
        """The link is there, and the broker says again what it keeps; what waits may have been lost on the old link."""
        self._up_s = now_s
        for watch in self._watches.values():
            watch.absent_s = now_s + (RETURN_WAIT_S if watch.route or watch.lost else ROUTE_WAIT_S)
        self._hurry(lambda _: True, now_s)

    def link_down(self) -> None:
        """The link is gone."""
        self._up_s = None
        for watch in self._watches.values():
            watch.confirmed = False

    def follow(self, task: TaskName, route: Route | None, now_s: float) -> None:
        """The broker says a task's route, or that it has none (any more)."""
        watch = self._watches.get(task)
        if watch is None:
            return  # it crossed with the end of the subscription
        known = watch.route
        if route and known and (route.epoch, route.generation) < (known.epoch, known.generation):
            return  # of a term that is over: agents don't obey it either
        watch.route, watch.confirmed, watch.lost = route, True, False
        if route is None:
            watch.absent_s = now_s + ROUTE_WAIT_S
        elif known is None or _front_door(known) != _front_door(route):
            wait_s = SOON_S if known else 0.0  # the members of a new front door are about to join
            self._hurry_task(task, now_s + wait_s)

    def undelivered(self, request: RequestId, now_s: float) -> None:
        """Nobody subscribes to what was sent; somebody is about to."""
        self._hurry(lambda question: question.request == request, now_s + SOON_S)

    def told_to_wait(self, request: RequestId, wait_s: float, now_s: float) -> None:
        """Somebody answered that the task can't be served yet, and when to ask again; a front door may come first."""
        question = self._questions[request]
        question.send_s = min(question.send_s, now_s + wait_s)

    def not_sent(self, request: RequestId, now_s: float) -> None:
        """The transport did not take what ``step`` gave."""
        question = self._questions[request]
        question.attempts -= 1
        question.send_s = now_s + SOON_S

    def end(self, request: RequestId) -> Question | None:
        """Somebody answered, failed or gave up: nothing is sent any more. None when it ended before."""
        return self._questions.pop(request, None)

    # --- what to do ---

    def forget(self, now_s: float) -> None:
        """Drop the routes that the broker did not say again on this link."""
        if self._up_s is None or now_s < self._up_s + ROUTE_WAIT_S:
            return
        for task, watch in self._watches.items():
            if watch.route and not watch.confirmed:
                watch.route, watch.lost = None, True
                self._hurry_task(task, now_s)

    def step(self, request: RequestId, now_s: float) -> Outgoing | ErrorBody | None:
        """What is due for a request: to send it (again), or to end it with this error."""
        question = self._questions[request]
        watch = self._watches[question.task]
        route = watch.route
        if now_s >= question.deadline_s:
            return ErrorBody(code=ErrorCode.DEADLINE_EXCEEDED, message=self._why_late(route))
        if route and route.unavailable and watch.confirmed:
            return ErrorBody(code=ErrorCode.NO_ROUTE, message=route.unavailable)
        if now_s < question.send_s:
            return None
        if route is None and self._up_s is not None:
            if now_s >= watch.absent_s:
                text = f"no task is called {question.task}; see `s2m3 status`, deploy it with `s2m3 deploy FILE`"
                return ErrorBody(code=ErrorCode.NO_ROUTE, message=text)
            question.send_s = watch.absent_s
        elif self._up_s is None or route is None or route.unavailable or not route.front_door:
            question.send_s = now_s + self._longest_retry_s  # the link, or the next word on the route, comes first
        else:
            return self._send(question, now_s)
        return None

    def tidy(self, now_s: float) -> frozenset[TaskName]:
        """Stop to watch what nobody asks for and nobody serves; the tasks whose routes to watch."""
        for watch in self._watches.values():
            watch.lost = watch.lost and (self._up_s is None or now_s < watch.absent_s)
        asked = {question.task for question in self._questions.values()}
        self._watches = {
            task: watch
            for task, watch in self._watches.items()
            if task in asked or watch.lost or (watch.route and not watch.route.unavailable)
        }
        return frozenset(self._watches)

    def _hurry(self, which: Callable[[Question], bool], send_s: float) -> None:
        for question in self._questions.values():
            if which(question):
                question.send_s = min(question.send_s, send_s)

    def _hurry_task(self, task: TaskName, send_s: float) -> None:
        self._hurry(lambda question: question.task == task, send_s)

    def _send(self, question: Question, now_s: float) -> Outgoing:
        doublings = min(question.attempts, _MAX_DOUBLINGS)
        question.send_s = now_s + min(self._longest_retry_s, self._first_retry_s * 2**doublings)
        question.attempts += 1
        return Outgoing(
            TASK_REQUESTS.at(self._prefix, task=question.task),
            question.payload,
            response_topic=RESULTS.at(self._prefix, client=self._client_id, request=question.request),
            correlation=question.request.encode(),
            content_type=question.content_type,
            expiry_s=max(1, math.ceil(question.deadline_s - now_s)),
            token=question.request,
        )

    def _why_late(self, route: Route | None) -> str:
        if self._up_s is None:
            return f"no connection to the broker at {self._broker}; is it running?"
        if route is None:
            return "the task's route had not arrived; allow more time, or see `s2m3 status`"
        if not route.front_door:
            return "the task's modules were still being loaded; allow more time"
        return "no answer in time; allow more time or add devices"


def _front_door(route: Route) -> tuple[int, int, bool]:
    return route.epoch, route.group, bool(route.front_door)
