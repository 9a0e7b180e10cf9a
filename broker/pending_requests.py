"""The rules by which ``client`` sends a sensor's requests, resends them, and gives them up. Pure.

Owns the pending requests and the routes of their tasks. Doesn't know threads, futures and sockets. Times are seconds of
a clock that never goes back.

Invariants:
- A request ends by its deadline. While its route has no front door, it waits; it is sent as soon as there is one.
- Cached routes are provisional after the link was lost, until the broker could have published them again: a client that
  was away misses the clearing of a route. Requests may follow a provisional route; none fails because of it.
- A request's topic names its client, so that access rules can tell clients apart. Where the broker says that no front
  door subscribes to that topic, or forbids it, the other one is used: a front door of an older version, an older rule.
  A request that it forbids on both ends at once, and so does every request if it forbids the subscription to answers.
- A client that may not read a task's route sends its requests without one, as any other sensor does. Brokers with a
  file of access rules don't say so: where no route comes, an asked request is sent all the same.
- An asked request (``ask``) ends with the reason as soon as an attempt to connect fails, unless there was a connection
  before. Other requests wait for the broker until their deadline.
- A copy that is refused as overloaded ends a request only if all copies were: another front door may compute the first.
- A route is watched while a request for its task is pending. Afterwards it is watched only if the task is served, or
  if it was served before the link was lost and the broker may still publish its route again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from broker.epochs import is_stale
from broker.given_inputs import Given, require_all
from broker.protocol.codec import encode_request
from broker.protocol.errors import BrokerRefused, ErrorCode, NotConnected, TransportError
from broker.protocol.messages import ErrorBody, Route
from broker.protocol.specs import RequestId, TaskName
from broker.protocol.topics import CLIENT_REQUESTS, REQUESTS, RESULTS, TASK_REQUESTS, TASK_ROUTE, Topic
from broker.protocol.trace_context import Traceparent
from broker.transport.port import Outgoing

ROUTE_WAIT_S = 0.7  # a retained route arrives within milliseconds of the subscription's acknowledgement, or never
SLOW_WAIT_S = 5.0  # for the acknowledgement, on a busy machine
RETURN_WAIT_S = 6.0  # until a restarted broker has the routes again: the orchestrator must reconnect, too
FIRST_RETRY_S = 1.0  # doubles up to the longest
LONGEST_RETRY_S = 5.0
SOON_S = 0.1  # after "no subscriber", or a new front door whose members are about to subscribe
_MAX_DOUBLINGS = 10  # any longest retry is reached by then, and no power of two overflows


@dataclass
class PendingRequest:
    """One request without an answer yet. An asked one has ``given``, and its bytes when its inputs' names are known."""

    id: RequestId
    task: TaskName
    payload: bytes
    content_type: str
    created_s: float
    deadline_s: float
    next_send_s: float = -math.inf
    attempts: int = 0
    refused: int = 0  # copies that no device computes
    refusals: dict[Topic, BrokerRefused] = field(default_factory=dict)  # by the kind of the request's topic
    given: Given | None = None
    traceparent: Traceparent | None = None
    nobody: set[Topic] = field(default_factory=set)  # the kinds of topics that no client subscribed to
    failure: TransportError | None = None  # why it could not be asked


@dataclass
class _Watch:
    absent_s: float  # from then on, no route means that the task doesn't exist
    route: Route | None = None
    confirmed: bool = False  # the broker published it on this link
    lost: bool = False  # there was a route before this link, and none on it yet
    forbidden: bool = False  # the broker refused the subscription to it


class PendingRequests:
    """All pending requests of one client, and the routes of their tasks.

    ``broker`` is its address, for error messages. A request is resent after ``first_retry_s`` without an answer; this
    time doubles with each attempt.
    """

    def __init__(self, prefix: str, client_id: str, broker: str, *, first_retry_s: float = FIRST_RETRY_S) -> None:
        self._prefix = prefix
        self._client_id = client_id
        self._first_retry_s = first_retry_s
        self._longest_retry_s = max(LONGEST_RETRY_S, first_retry_s)
        self._requests: dict[RequestId, PendingRequest] = {}
        self._watches: dict[TaskName, _Watch] = {}
        self._up_s: float | None = None  # the link is up since then
        self._names_client = True  # in the topic of a request
        self._no_answers: BrokerRefused | None = None  # none can come over this link
        self._why_down = f"the broker at {broker} has not answered yet"
        self._never_up = False  # every attempt to connect would fail
        self._was_up = False
        self._gives_up = False  # asked requests don't wait for the next attempt
        self._is_absent = False  # nothing listens or answers at the broker's address
        self.answered = False  # whether an answer ever came

    @property
    def ids(self) -> tuple[RequestId, ...]:
        """The pending requests, oldest first."""
        return tuple(self._requests)

    def next_deadline_s(self) -> float | None:
        """The next time at which an action may be due; None until the next event."""
        times = [min(request.next_send_s, request.deadline_s) for request in self._requests.values()]
        if self._up_s is not None and any(watch.route and not watch.confirmed for watch in self._watches.values()):
            times.append(self._up_s + ROUTE_WAIT_S)
        if self._up_s is not None:
            times += [watch.absent_s for watch in self._watches.values() if watch.lost]
        return min(times, default=None)

    # --- events ---

    def add(self, request: PendingRequest, now_s: float) -> None:
        """Add a new request."""
        self._requests[request.id] = request
        self._watches.setdefault(request.task, _Watch(absent_s=now_s + SLOW_WAIT_S))

    def on_link_up(self, now_s: float) -> None:
        """The broker publishes its routes again; every request is due, as the old link may have lost it."""
        self._up_s, self._never_up = now_s, False
        self._was_up, self._gives_up = True, False
        for watch in self._watches.values():
            watch.absent_s = now_s + (RETURN_WAIT_S if watch.route or watch.lost else ROUTE_WAIT_S)
        self._expedite(self._requests.values(), now_s)

    def on_subscribed(self, topic: str, now_s: float) -> None:
        """The broker answered the subscription to a route: it comes now, if there is one."""
        ids = TASK_ROUTE.match(self._prefix, topic)
        watch = self._watches.get(ids["task"]) if ids else None
        if ids and watch and watch.route is None and not watch.lost:
            watch.absent_s = now_s + ROUTE_WAIT_S
            self._expedite(self._of_task(ids["task"]), watch.absent_s)

    def on_link_down(self, reason: str, *, is_final: bool, is_taken: bool = False, is_absent: bool = False) -> None:
        """There is no link: every route is provisional. A final reason ends the requests: all attempts would fail.

        Asked requests also end if there was no link before, or if another client has this client id (``is_taken``).
        """
        self._up_s, self._no_answers = None, None
        self._why_down, self._never_up = reason, is_final
        self._gives_up, self._is_absent = is_taken or not self._was_up, is_absent
        for watch in self._watches.values():
            watch.confirmed, watch.forbidden = False, False

    def on_route(self, task: TaskName, route: Route | None, now_s: float) -> None:
        """A task's route arrived, or was cleared."""
        watch = self._watches.get(task)
        if watch is None:
            return  # it crossed with the end of the subscription
        known = watch.route
        if route and is_stale(_fence(route), _fence(known) if known else None) and not _corrects(route, known):
            return
        watch.route, watch.confirmed, watch.lost = route, True, False
        if route is None:
            watch.absent_s = now_s + ROUTE_WAIT_S
        elif known is None or _front_door(known) != _front_door(route):
            wait_s = SOON_S if known else 0.0  # the members of a new front door are about to subscribe
            self._expedite(self._of_task(task), now_s + wait_s)

    def on_undelivered(self, request: RequestId, topic: str, now_s: float) -> None:
        """No front door subscribes to the task's requests; one is about to."""
        if pending := self._requests.get(request):
            pending.nobody.add(TASK_REQUESTS if CLIENT_REQUESTS.match(self._prefix, topic) is None else CLIENT_REQUESTS)
            pending.refused += 1
            self.retry_after(request, SOON_S, now_s)

    def on_topic_refused(self, topic: str, now_s: float) -> None:
        """The broker gave a request to nobody, or forbids its topic: the next attempt uses the other topic."""
        ids = CLIENT_REQUESTS.match(self._prefix, topic)
        self._names_client = ids is None
        if ids is not None and ids["request"] in self._requests:
            self.retry_after(ids["request"], SOON_S, now_s)

    def on_denied(self, topic: str, reason: str, request: RequestId | None, now_s: float) -> None:
        """The broker refused a request (with its id), or a subscription."""
        pending = self._requests.get(request or "")
        if pending is not None:
            named = CLIENT_REQUESTS.match(self._prefix, topic) is not None
            pending.refusals.setdefault(CLIENT_REQUESTS if named else TASK_REQUESTS, BrokerRefused(topic, reason))
            self._names_client = not named
            pending.refused += 1
            self._expedite([pending], now_s)
        elif topic == RESULTS.filter(self._prefix, client=self._client_id):
            self._no_answers = BrokerRefused(topic, reason, "without it this client can't read its answers: allow it")
        elif (ids := TASK_ROUTE.match(self._prefix, topic)) is not None and ids["task"] in self._watches:
            self._watches[ids["task"]].forbidden = True
            self._expedite(self._of_task(ids["task"]), now_s)

    def on_not_sent(self, request: RequestId, now_s: float) -> None:
        """The transport refused the message of ``step``."""
        pending = self._requests[request]
        pending.attempts -= 1
        pending.next_send_s = now_s + SOON_S

    def retry_after(self, request: RequestId, wait_s: float, now_s: float) -> None:
        """Resend a request after ``wait_s`` at the latest: the task can't be served yet."""
        self._expedite([self._requests[request]], now_s + wait_s)

    def is_overloaded(self, request: RequestId, wait_s: float, now_s: float) -> bool:
        """A copy was refused; whether this ends the request. If not, no further copy is sent before ``wait_s``."""
        pending = self._requests[request]
        pending.refused += 1
        pending.next_send_s = max(pending.next_send_s, now_s + wait_s)
        return pending.refused >= pending.attempts

    def remove(self, request: RequestId) -> PendingRequest | None:
        """Remove a request that was answered, failed or cancelled; None when it was removed before."""
        return self._requests.pop(request, None)

    # --- actions ---

    def drop_unconfirmed_routes(self, now_s: float) -> None:
        """Drop the routes that the broker did not publish again on this link."""
        if self._up_s is None or now_s < self._up_s + ROUTE_WAIT_S:
            return
        for task, watch in self._watches.items():
            if watch.route and not watch.confirmed:
                watch.route, watch.lost = None, True
                self._expedite(self._of_task(task), now_s)

    def step(self, request: RequestId, now_s: float) -> Outgoing | ErrorBody | None:
        """The due action for a request: the message to send, the error that ends it, or None."""
        pending = self._requests[request]
        watch = self._watches[pending.task]
        route = watch.route
        if (error := self._error_of(pending, watch, now_s)) is not None or now_s < pending.next_send_s:
            return error
        if watch.forbidden and self._up_s is not None:
            return self._send(pending, now_s)
        if route is None and self._up_s is not None:
            if now_s >= watch.absent_s:
                if pending.given and len(pending.nobody) < len(REQUESTS):
                    return self._send(pending, now_s)  # the route may be hidden
                text = f"no task is called {pending.task}; see `s2m3 status`, deploy it with `s2m3 deploy FILE`"
                return ErrorBody(code=ErrorCode.NO_ROUTE, message=text)
            pending.next_send_s = watch.absent_s
        elif self._up_s is None or route is None or route.unavailable or not route.front_door:
            pending.next_send_s = now_s + self._longest_retry_s  # the link or the next route comes first
        else:
            return self._send(pending, now_s)
        return None

    def prune_watches(self, now_s: float) -> frozenset[TaskName]:
        """Stop to watch tasks without requests that aren't served; returns the tasks whose routes to watch."""
        for watch in self._watches.values():
            watch.lost = watch.lost and (self._up_s is None or now_s < watch.absent_s)
        requested = {pending.task for pending in self._requests.values()}
        self._watches = {
            task: watch
            for task, watch in self._watches.items()
            if task in requested or watch.lost or (watch.route and not watch.route.unavailable)
        }
        return frozenset(self._watches)

    def _error_of(self, pending: PendingRequest, watch: _Watch, now_s: float) -> ErrorBody | None:
        """The error that ends a request now."""
        gives_up = self._never_up or (self._gives_up and pending.given is not None)
        pending.failure = NotConnected(self._why_down, is_absent=self._is_absent) if gives_up else self._no_answers
        why = None
        if len(pending.refusals) == len(REQUESTS):
            pending.failure = pending.refusals[CLIENT_REQUESTS]
        elif now_s >= pending.deadline_s:
            text = self._why_late(pending, watch.route)
            pending.failure = NotConnected(text, is_absent=self._is_absent) if self._up_s is None else pending.failure
            return ErrorBody(code=ErrorCode.DEADLINE_EXCEEDED, message=text)
        elif watch.route and watch.confirmed:
            why = watch.route.unavailable
        why = str(pending.failure) if pending.failure else why
        return ErrorBody(code=ErrorCode.NO_ROUTE, message=why) if why else None

    def _expedite(self, requests: Iterable[PendingRequest], send_s: float) -> None:
        for pending in requests:
            pending.next_send_s = min(pending.next_send_s, send_s)

    def _of_task(self, task: TaskName) -> list[PendingRequest]:
        return [pending for pending in self._requests.values() if pending.task == task]

    def _send(self, pending: PendingRequest, now_s: float) -> Outgoing:
        if pending.given and not pending.payload:
            route = self._watches[pending.task].route
            inputs = pending.given.place(pending.task, route.inputs if route else {})
            require_all(pending.task, inputs, route.inputs if route else {})
            pending.payload, pending.content_type = encode_request(inputs)
        doublings = min(pending.attempts, _MAX_DOUBLINGS)
        pending.next_send_s = now_s + min(self._longest_retry_s, self._first_retry_s * 2**doublings)
        pending.attempts += 1
        ids = {"client": self._client_id, "request": pending.id}
        named = CLIENT_REQUESTS.at(self._prefix, task=pending.task, **ids) if self._names_client else None
        return Outgoing(
            named or TASK_REQUESTS.at(self._prefix, task=pending.task),
            pending.payload,
            response_topic=RESULTS.at(self._prefix, **ids),
            correlation=pending.id.encode(),
            content_type=pending.content_type,
            expiry_s=max(1, math.ceil(pending.deadline_s - now_s)),
            traceparent=pending.traceparent,
            token=pending.id,
        )

    def _why_late(self, pending: PendingRequest, route: Route | None) -> str:
        if self._up_s is None:
            return f"no connection to the broker: {self._why_down}"
        if route is None and not pending.attempts:
            return "the task's route had not arrived; allow more time, or see `s2m3 status`"
        if route is not None and not route.front_door:
            return "the task's modules were still being loaded; allow more time"
        if self.answered:
            return "no answer in time; allow more time or add devices"
        answers = RESULTS.filter(self._prefix, client=self._client_id)
        return (
            f"no answer in time, and no answer has ever come to this client: an access rule of the broker may hide "
            f"{answers} from it, so allow its account to read that; otherwise allow more time or add devices"
        )


def _fence(route: Route) -> tuple[int, int]:
    return route.epoch, route.generation


def _corrects(route: Route, known: Route | None) -> bool:
    """Whether an older route is the leader's, after a lie that the task is unavailable."""
    return known is not None and bool(known.unavailable) and route.complete and route.epoch <= known.epoch


def _front_door(route: Route) -> tuple[int, int, bool]:
    return route.epoch, route.group, bool(route.front_door)
