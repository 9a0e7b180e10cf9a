"""A term of the process that runs the sources: messages in, requests and answers out.

Owns the term's one connection, which its client shares, and what is published. The rules are elsewhere: which sources
run (``book``), when a message is sent (``lanes``), what a message holds (``payload``), whether the term goes on
(``lease``).

Invariants:
- no message ends the loop: one that can't be read makes an error at the source's own topic, or a line in the log;
- an answer, or an entity of Home Assistant, whose source is gone is removed, also after a restart;
- it publishes which sources run when that changes, and over each new link.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

from broker.client import Client, Response
from broker.protocol import topics
from broker.protocol.codec import JSON, encode
from broker.protocol.errors import (
    ErrorCode,
    MessageTooLarge,
    RemoteProtocolError,
    RequestFailed,
    TransportError,
    first_line,
)
from broker.protocol.messages import Result, Route
from broker.protocol.reports import Summary
from broker.protocol.sources import (
    MAX_TOLD,
    RunningSource,
    SourceAnswer,
    SourceName,
    SourceSpec,
    SourcesRunning,
    SourcesState,
)
from broker.protocol.specs import InputSpec, TaskName
from broker.structured_log import structlog
from broker.transport.connection import Connection
from broker.transport.denials import Denials
from broker.transport.port import Delivery, Denied, Inbox, LinkDown, LinkEvent, LinkUp, MakeTransport, Outgoing
from s2m3.homeassistant.discovery import Discovery
from s2m3.sources.answers import answer_of, refusal_of
from s2m3.sources.book import Book
from s2m3.sources.files import Configuration
from s2m3.sources.lanes import Arrival, Ask, Lanes
from s2m3.sources.lease import Term, Verdict, goodbye, state_message
from s2m3.sources.payload import inputs_of
from s2m3.sources.shared_link import SharedLink

RETRY_FAILED_S = 1.0  # when something due could not be done because of a bug: not at once, for ever
CHOOSE_S = 0.1  # after a retained spec: those of a connection come together
SETTLE_S = 1.5  # a broker sends retained messages at once after the subscription; there is no end mark

_log = structlog.get_logger("sources")


@dataclass(frozen=True)
class RequestEnded:
    """A request that a message became has ended: with a response, or an error of this process."""

    ticket: int
    end: Response | RequestFailed


class Running:
    """The sources while this process leads. ``put`` takes the connection's events, ``end`` those of requests."""

    def __init__(
        self,
        connection: Connection,
        configuration: Configuration,
        *,
        epoch: int,
        make_transport: MakeTransport,
        put: Inbox,
        end: Callable[[RequestEnded], None],
    ) -> None:
        self.resigned: str | None = None
        self.heard_epoch = epoch
        self._broker = connection.url
        self._prefix = prefix = topics.prefix_of(connection.site)
        self._end = end
        self._term = Term(epoch)
        self._lanes = Lanes()
        self._expected: dict[TaskName, dict[str, InputSpec]] = {}  # of each task's route
        self._failing: dict[SourceName, str] = {}  # -> the code of its last answer's error
        self._kept: dict[str, str] = {}  # topics that the broker retains for sources -> the source, until all is read
        self._told: object = None  # the sources that this link's readers know
        self._settle_s: float | None = None
        self._choose_s: float | None = None  # when the book chooses again
        self._not_before_s = 0.0
        self._denials = Denials(prefix)
        root = configuration.homeassistant
        self._homeassistant = root and Discovery(prefix, site=connection.site, version=version("s2m3"), root=root)
        published = self._homeassistant.published if self._homeassistant else ()
        self._book = Book(prefix, configuration.sources, published)
        self._link = SharedLink(make_transport, prefix, put, partial(goodbye, prefix, epoch))
        self._client = Client(connection, client_id=connection.client_id, make_transport=self._link.make)
        self._known: set[SourceName] = set()  # of the book, when it was last followed
        self._refused: dict[SourceName, str] = {}
        own = (topics.SOURCES_STATE, topics.SOURCE_SPEC, topics.SOURCE_ANSWER)
        self._link.transport.subscribe(*(topic.filter(prefix) for topic in own))
        if self._homeassistant:
            of_devices = (topics.DEVICE_STANDING, topics.DEVICE_SUMMARY)
            self._link.transport.subscribe(
                *self._homeassistant.status_topics,
                self._homeassistant.config_filter,
                *(topic.filter(prefix) for topic in of_devices),
            )
        self._follow_book()

    @property
    def sessions(self) -> frozenset[int]:
        """The sessions of this term's connections."""
        return self._term.sessions

    def next_due_s(self) -> float | None:
        """The time of the next thing to do without an event."""
        times = (self._term.announce_s, self._settle_s, self._choose_s, self._lanes.next_due_s())
        due_s = min((time_s for time_s in times if time_s is not None), default=None)
        return None if due_s is None else max(due_s, self._not_before_s)

    def close(self) -> None:
        """Say that nobody runs the sources now, unless another process does; then disconnect."""
        if self.resigned is None and self._term.session is not None:
            self._send([goodbye(self._prefix, self._term.epoch, self._term.session)])
        self._client.close()

    def react(self, event: LinkEvent | RequestEnded | None) -> None:
        """React to an event, and to what is due."""
        try:
            self._handle(event)
            self._on_time()
        except Exception:  # noqa: BLE001 - a bug met by one message, perhaps a retained one, must not end the process
            _log.exception("event_failed", kind=type(event).__name__)
            self._not_before_s = time.monotonic() + RETRY_FAILED_S  # what is due may be what failed

    # --- events ---

    def _handle(self, event: LinkEvent | RequestEnded | None) -> None:
        now_s = time.monotonic()
        match event:
            case LinkUp(session):
                _log.info("link_up", broker=self._broker)
                self._term = self._term.on_link(session, now_s)
                self._settle_s, self._told = now_s + SETTLE_S, None
                self._book.on_link_up()
                self._announce_entities()
            case LinkDown():
                self._term = self._term.on_link(None, now_s)
                self._settle_s = None
            case Denied():
                self._on_denied(event)
            case Delivery():
                self._receive(event, now_s)
            case RequestEnded(ticket, end):
                self._finish(ticket, end, now_s)
            case _:
                pass

    def _on_time(self) -> None:
        now_s = time.monotonic()
        self._term, said = self._term.announcement(now_s)
        if said is not None:
            self._send([state_message(self._prefix, said)])
        if self._settle_s is not None and now_s >= self._settle_s:
            self._settle_s = None
            self._book.settle()
            self._follow_book()
            self._remove_stale()
        if self._choose_s is not None and now_s >= self._choose_s:
            self._choose_s = None
            self._book.choose()
            self._follow_book()
        self._ask(self._lanes.on_time(now_s))
        self._tell_running()

    def _receive(self, delivery: Delivery, now_s: float) -> None:
        incoming = topics.read(self._prefix, delivery.topic, delivery.payload)
        if incoming is None:
            self._receive_from_outside(delivery, now_s)
            return
        try:
            message = incoming.decode()
        except RemoteProtocolError as error:
            _log.warning("message_refused", topic=delivery.topic[:200], reason=str(error)[:300])
            if incoming.topic is topics.SOURCE_SPEC:
                self._on_spec(incoming.ids["source"], str(error), now_s)
            return
        match message:
            case SourcesState():
                self._on_state(message, now_s)
            case Route(task=task, inputs=inputs):
                self._expected[task] = dict(inputs)
            case _ if incoming.topic is topics.SOURCE_SPEC:
                self._on_spec(incoming.ids["source"], message if isinstance(message, SourceSpec) else None, now_s)
            case SourceAnswer() if self._settle_s is not None and delivery.retain:
                self._kept[delivery.topic] = incoming.ids["source"]
            case _ if self._homeassistant and incoming.topic is topics.DEVICE_STANDING:
                self._send(self._homeassistant.on_standing(incoming.ids["device"], is_known=bool(delivery.payload)))
            case Summary(version=told) if self._homeassistant:
                self._send(self._homeassistant.on_summary(incoming.ids["device"], told))
            case _:
                pass

    def _receive_from_outside(self, delivery: Delivery, now_s: float) -> None:
        """A message of a sensor, or of Home Assistant. An empty one clears what was retained, and asks nothing."""
        if self._homeassistant:
            if delivery.topic in self._homeassistant.status_topics and delivery.payload == b"online":
                self._announce_entities()
            if self._homeassistant.owns(delivery.topic):
                if self._settle_s is not None and delivery.payload and delivery.retain:
                    self._kept[delivery.topic] = ""
                return
        if not delivery.payload:
            return
        message = Arrival(delivery.topic, delivery.payload, delivery.content_type or "", delivery.retain)
        self._ask(self._lanes.on_message(message, now_s))

    def _on_spec(self, name: SourceName, spec: SourceSpec | str | None, now_s: float) -> None:
        self._book.on_spec(name, spec)
        self._choose_s = self._choose_s or now_s + CHOOSE_S

    def _on_denied(self, denied: Denied) -> None:
        """The broker refused a message, or a subscription: then the sources that need it say so."""
        if self._denials.is_new(denied):
            _log.error("denied_by_broker", topic=denied.topic, reason=denied.reason)
        for name, spec in self._book.running.items():
            if spec.subscribe == denied.topic:
                reason = f"the broker refuses the subscription to {denied.topic}: {denied.reason}"
                self._tell(refusal_of(name, reason, time.time()))

    def _on_state(self, said: SourcesState, now_s: float) -> None:
        self._term, verdict = self._term.on_state(said, now_s)
        if verdict is Verdict.RESIGN:
            self.heard_epoch = max(self.heard_epoch, said.epoch)
            self.resigned = f"another process runs the sources, with epoch {said.epoch}"

    # --- requests ---

    def _ask(self, asks: Sequence[Ask]) -> None:
        for ask in asks:
            try:
                expected = self._expected.get(ask.spec.task, {})
                inputs = inputs_of(ask.spec, ask.message.payload, ask.message.content_type, expected)
                future = self._client.submit(ask.spec.task, inputs, deadline_s=ask.spec.deadline_s)
            except RequestFailed as error:
                self._end(RequestEnded(ask.ticket, error))
            except Exception as error:  # noqa: BLE001 - its topic would never be asked about again
                _log.exception("request_not_sent", source=ask.spec.source)
                self._end(RequestEnded(ask.ticket, _failed(error)))
            else:
                future.add_done_callback(partial(self._note_end, ask.ticket))

    def _note_end(self, ticket: int, future: Future[Response]) -> None:
        """Called in the client's thread."""
        error = future.exception()
        self._end(RequestEnded(ticket, future.result() if error is None else _failed(error)))

    def _finish(self, ticket: int, end: Response | RequestFailed, now_s: float) -> None:
        result: Result | RequestFailed = end if isinstance(end, RequestFailed) else end.result
        error = result if isinstance(result, RequestFailed) else result.error
        wait_s = (error.retry_after_s or 0.0) if error else 0.0
        ended, asks = self._lanes.on_end(ticket, now_s, wait_s=wait_s)
        self._ask(asks)
        if ended is None:
            return
        latency_s = 0.0 if isinstance(end, RequestFailed) else end.latency_s
        answer = answer_of(ended, result, at=time.time(), latency_s=latency_s)
        self._tell(answer, ended.ask.spec.topic_for(ended.ask.captures))

    def _tell(self, answer: SourceAnswer, topic: str | None = None) -> None:
        payload = encode(answer)
        places = [topics.SOURCE_ANSWER.at(self._prefix, source=answer.source), *([topic] if topic else [])]
        self._send([Outgoing(place, payload, retain=True, content_type=JSON) for place in places])
        code = answer.error.code if answer.error else ""
        if code != self._failing.get(answer.source, ""):
            self._failing[answer.source] = code
            if answer.error:
                _log.warning("source_failed", source=answer.source, code=code, reason=answer.error.message)
            else:
                _log.info("source_answered", source=answer.source)

    # --- what runs ---

    def _follow_book(self) -> None:
        """Run the sources of the book: read their topics and routes, and tell why others don't run."""
        before = self._lanes.filters
        self._lanes.run(self._book.running)
        self._link.watch_routes(
            {topics.TASK_ROUTE.at(self._prefix, task=each.task) for each in self._book.running.values()}
        )
        if new := sorted(self._lanes.filters - before):
            self._link.transport.subscribe(*new)
        if old := sorted(before - self._lanes.filters):
            self._link.transport.unsubscribe(*old)
        names = self._book.names
        for name in sorted(self._known - names):
            self._clear(name)
        for name, reason in self._book.refused.items():
            if self._refused.get(name) != reason:
                self._tell(refusal_of(name, reason, time.time()))
        self._known, self._refused = set(names), dict(self._book.refused)
        if self._homeassistant:
            changed = self._homeassistant.on_sources(set(names))
            if self._term.session is not None:  # a new link announces all
                self._send(changed)

    def _tell_running(self) -> None:
        """Publish which sources run, unless this link's readers know it."""
        if self._term.session is None or self._told is self._book.running:
            return
        self._told = self._book.running
        specs = [spec for _, spec in sorted(self._book.running.items())]
        told = {spec.source: RunningSource(subscribe=spec.subscribe, task=spec.task) for spec in specs[:MAX_TOLD]}
        message = SourcesRunning(host=socket.gethostname(), sources=told, more=len(specs) - len(told))
        self._send([Outgoing(topics.SOURCES_RUNNING.at(self._prefix), encode(message), retain=True)])

    def _remove_stale(self) -> None:
        """Remove what the broker retains for sources and devices that are gone: they went while nobody looked."""
        for topic, source in self._kept.items():
            if source and source not in self._known:
                self._clear(source)
            elif not source and self._homeassistant:
                self._send(self._homeassistant.stale(topic))
        self._kept.clear()

    def _clear(self, source: SourceName) -> None:
        _log.info("source_removed", source=source)
        self._failing.pop(source, None)
        self._send([Outgoing(topics.SOURCE_ANSWER.at(self._prefix, source=source), b"", retain=True)])

    def _announce_entities(self) -> None:
        if self._homeassistant:
            self._send(self._homeassistant.all())

    def _send(self, messages: Sequence[Outgoing]) -> None:
        for message in messages:
            try:
                self._link.publish(message)
            except (TransportError, MessageTooLarge) as error:
                _log.warning("not_published", topic=message.topic, reason=str(error)[:300])


def _failed(error: BaseException) -> RequestFailed:
    return RequestFailed(ErrorCode.MODULE_FAILED, f"this process failed: {first_line(error)}")
