"""Everything that reads a message, fed with one message after the other.

Owns the readers: every decoder, the rules of an agent, of an orchestrator and of a client, a standby's copy, the rules
of sources and of what they tell Home Assistant, and the picture that ``s2m3 status`` prints. A source takes each
payload as its own. A refusal is ``RemoteProtocolError`` or ``RequestFailed``; anything else is a bug.
Time is simulated; passes end at once, and plans are solved where they are asked for.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress

import numpy as np

from broker.pending_requests import PendingRequest, PendingRequests
from broker.protocol import topics
from broker.protocol.codec import decode_request, decode_result, decode_tensors
from broker.protocol.errors import ErrorCode, RemoteProtocolError, RequestFailed
from broker.protocol.messages import Route
from broker.protocol.reports import Standing, Summary
from broker.protocol.sources import SourceSpec, SourcesState
from broker.protocol.specs import InputSpec
from broker.protocol.tensors import unpack
from broker.transport.port import Delivery, LinkUp
from edge_agent import events as agent_events
from edge_agent import wire as agent_wire
from edge_agent.decide import decide as decide_agent
from edge_agent.events import Load, ModuleReady, Ran, Reply, Run, Send
from edge_agent.modules import Output
from edge_agent.requests.error_reply import refuse_unread
from edge_agent.state import AgentState
from orchestrator import events as orchestrator_events
from orchestrator import wire as orchestrator_wire
from orchestrator.decide import decide as decide_orchestrator
from orchestrator.events import PlanFound, RequestPlan
from orchestrator.leadership.orders import NO_ORDERS, CopiedEvent, StandbyCopy
from orchestrator.planner.solve import solve
from orchestrator.reports import Reports, When
from orchestrator.state import initial
from s2m3.cli.output import console, print_json
from s2m3.cli.status import _document, shown
from s2m3.homeassistant.discovery import Discovery
from s2m3.sources.answers import answer_of
from s2m3.sources.book import Book
from s2m3.sources.lanes import Arrival, Lanes
from s2m3.sources.lease import Term
from s2m3.sources.payload import inputs_of
from s2m3.testbed.observer import Observer
from tests.fuzz.corpus import PREFIX

REFUSALS = (RemoteProtocolError, RequestFailed)
EXPECTED = {"image": InputSpec(kind="image", bytes=1), "text": InputSpec(kind="text", bytes=1)}
CAPTIONED = EXPECTED | {"text": InputSpec(kind="text", bytes=1, default=("a cat", "a dog"))}
SHOWN = {  # what an observer subscribes to
    topics.ORCHESTRATOR_STATE,
    topics.TASK_ROUTE,
    topics.TASK_STATUS,
    topics.ORCHESTRATOR_UNANSWERED,
    topics.DEVICE_STATE,
    topics.DEVICE_ASSIGNMENT,
    topics.DEVICE_HEARTBEAT,
    topics.DEVICE_DRAIN,
    topics.DEVICE_STANDING,
    topics.DEVICE_SUMMARY,
    topics.SOURCES_STATE,
    topics.SOURCES_RUNNING,
    topics.SOURCES_SPARE,
    topics.SOURCE_ANSWER,
}
READ_BY_SOURCES = ("frigate/door/person/snapshot", "zigbee2mqtt/garden")  # topics of the recorded specs
PLAN_EVERY = 50  # of so many problems one is solved: a plan takes longer than a hundred messages
STEP_S = 0.02


class Readers:
    """All readers of one site, and their simulated time."""

    def __init__(self, observer: Observer) -> None:
        self.now_s = 0.0
        self.observer = observer
        self.agent = AgentState("gw-a", PREFIX)
        self.leader = initial(epoch=1, settle_s=0.0)
        self.reports = Reports(PREFIX)
        self.copy = StandbyCopy(NO_ORDERS, 0.0)
        self.client = PendingRequests(PREFIX, "camera", "mqtt://nowhere")
        self.discovery = Discovery(PREFIX, site=None, version="0.1.0")
        self.book = Book(PREFIX, {}, self.discovery.published)
        self.lanes = Lanes()
        self.term = Term(1).on_link(1, 0.0)
        self._problems = 0
        self._tell_leader(LinkUp(1))
        self.copy = self.copy.on_event(LinkUp(1), 0.0)
        self.client.on_link_up(0.0)

    def read(self, delivery: Delivery) -> None:
        """Let everyone read a message."""
        self.now_s += STEP_S
        for reader in (self._decoders, self._agent, self._orchestrator, self._client, self._sources, self._status):
            reader(delivery)

    def sizes(self) -> dict[str, int]:
        """The number of things that the readers keep."""
        kept = {f"agent.{name}": value for name, value in vars(self.agent).items()}
        kept |= {f"leader.{name}": value for name, value in vars(self.leader).items()}
        kept |= {f"cluster.{name}": value for name, value in vars(self.leader.cluster).items()}
        kept |= {f"copy.{name}": value for name, value in vars(self.copy).items()}
        kept |= {f"reports.{name}": value for name, value in vars(self.reports).items()}
        kept |= {f"book.{name}": value for name, value in vars(self.book).items()}
        kept |= {f"lanes.{name}": value for name, value in vars(self.lanes).items()}
        kept |= {f"discovery.{name}": value for name, value in vars(self.discovery).items()}
        return {name: len(value) for name, value in kept.items() if hasattr(value, "__len__")}

    def _decoders(self, delivery: Delivery) -> None:
        payload, content_type = delivery.payload, delivery.content_type or ""
        incoming = topics.read(PREFIX, delivery.topic, payload)
        of_json = [] if incoming is None else [incoming.decode]
        others: Sequence[Callable[[], object]] = (
            *of_json,
            lambda: decode_tensors(payload),
            lambda: unpack(payload),
            lambda: decode_request(payload, content_type, EXPECTED),
            lambda: decode_request(payload, content_type, CAPTIONED),
            lambda: decode_request(payload, "application/json", EXPECTED),
            lambda: decode_result(payload, content_type),
        )
        for decode in others:
            with suppress(*REFUSALS):
                decode()

    # --- the agent ---

    def _agent(self, delivery: Delivery) -> None:
        incoming = topics.read(PREFIX, delivery.topic, b"")
        if incoming is not None and incoming.ids.get("device", "gw-a") != "gw-a":
            return  # it doesn't subscribe to others' topics
        with suppress(*REFUSALS):
            event = agent_wire.event_of(PREFIX, delivery)
            if isinstance(event, agent_events.Requested):
                self._perform(refuse_unread(self.agent, event, self.now_s))
            if event is not None and not isinstance(event, agent_events.ConnectionEvent):
                self._tell_agent(event)
        due_s = self.agent.next_deadline_s()
        if due_s is not None and self.now_s >= due_s:
            self._tell_agent(agent_events.Tick())

    def _tell_agent(self, event: agent_events.Event) -> None:
        self._perform(decide_agent(self.agent, event, self.now_s))

    def _perform(self, actions: Sequence[agent_events.Action]) -> None:
        """Write the messages, load at once, and let passes succeed and fail in turn."""
        for action in actions:
            match action:
                case Send():
                    agent_wire.tensors_message(PREFIX, "gw-a", action, self.now_s)
                case Reply():
                    agent_wire.result_message(action, self.now_s)
                case Load(assigned):
                    self._tell_agent(ModuleReady(assigned.spec.key, compute_s=0.01))
                case Run(run):
                    output = Output({"features": np.zeros((1, 2), np.float32)}, answer={"labels": ["a cat"]})
                    failed = len(self.agent.passes) % 3 == 1
                    error = RequestFailed(ErrorCode.BAD_INPUT, "not a picture") if failed else None
                    self._tell_agent(Ran(run, None if failed else output, error, self.now_s, 0.01))

    # --- the orchestrator ---

    def _orchestrator(self, delivery: Delivery) -> None:
        with suppress(*REFUSALS):
            event = orchestrator_wire.event_of(PREFIX, delivery)
            if event is not None:
                self._tell_leader(event)
                if isinstance(event, CopiedEvent):
                    self.copy = self.copy.on_event(event, self.now_s)
        if int(self.now_s / STEP_S) % 50 == 0:
            self._tell_leader(orchestrator_events.Tick())
            for message in self.reports.sweep(self.leader, When(self.now_s, 1e9)):
                topics.read(PREFIX, message.topic, message.payload)

    def _tell_leader(self, event: orchestrator_events.Event) -> None:
        before = self.leader
        self.leader, actions = decide_orchestrator(before, event, self.now_s)
        self.reports.on_event(before, event, self.leader, actions, When(self.now_s, 1e9))
        for action in actions:
            if isinstance(action, RequestPlan):
                self._problems += 1
                if self._problems % PLAN_EVERY == 1:
                    self._tell_leader(PlanFound(action.ticket, solve(action.problem)))
            elif isinstance(action, orchestrator_events.Message):
                orchestrator_wire.outgoing_of(PREFIX, action)
            elif isinstance(action, orchestrator_events.Resign):
                self.leader = initial(epoch=self.leader.epoch + 2, settle_s=0.0, orders=self.leader.orders)
                self._tell_leader(LinkUp(int(self.now_s / STEP_S) + 2))

    # --- sources ---

    def _sources(self, delivery: Delivery) -> None:
        incoming = topics.read(PREFIX, delivery.topic, delivery.payload)
        with suppress(*REFUSALS):
            match None if incoming is None else incoming.decode():
                case SourcesState() as said:
                    self.term, _ = self.term.on_state(said, self.now_s)
                case SourceSpec() as spec if incoming is not None:
                    self.book.on_spec(incoming.ids["source"], spec)
                    self.book.choose()
                    self.lanes.run(self.book.running)
                    self.discovery.on_sources(self.book.names)
                case Standing() if incoming is not None:
                    self.discovery.on_standing(incoming.ids["device"], is_known=True)
                case Summary(version=version) if incoming is not None:
                    self.discovery.on_summary(incoming.ids["device"], version)
        self.term, _ = self.term.announcement(self.now_s)
        for topic in READ_BY_SOURCES:
            self._take(Arrival(topic, delivery.payload, delivery.content_type or "", delivery.retain))

    def _take(self, message: Arrival) -> None:
        asks = self.lanes.on_message(message, self.now_s)
        while asks:
            ask = asks.pop()
            try:
                inputs_of(ask.spec, ask.message.payload, ask.message.content_type, EXPECTED)
                error = RequestFailed(ErrorCode.OVERLOADED, "too many", retry_after_s=1.0)
            except RequestFailed as refused:
                error = refused
            ended, more = self.lanes.on_end(ask.ticket, self.now_s, wait_s=error.retry_after_s or 0.0)
            assert ended is not None
            answer_of(ended, error, at=1e9, latency_s=0.1)
            ask.spec.topic_for(ask.captures)
            asks += more

    # --- the client, and status ---

    def _status(self, delivery: Delivery) -> None:
        incoming = topics.read(PREFIX, delivery.topic, delivery.payload)
        if incoming is not None and incoming.topic in SHOWN:
            with suppress(*REFUSALS):
                self.observer._note(self.now_s, incoming)
        if int(self.now_s / STEP_S) % 500 == 0:
            with redirect_stdout(io.StringIO()):
                print_json(_document(self.observer))
                console().print(shown(self.observer))

    def _client(self, delivery: Delivery) -> None:
        with suppress(*REFUSALS):
            incoming = topics.read(PREFIX, delivery.topic, delivery.payload)
            if incoming is not None and incoming.topic is topics.TASK_ROUTE:
                request = PendingRequest("r", incoming.ids["task"], b"x", "", self.now_s, self.now_s + 9.0)
                self.client.add(request, self.now_s)
                said = incoming.decode()
                self.client.on_route(incoming.ids["task"], said if isinstance(said, Route) else None, self.now_s)
                self.client.step("r", self.now_s)
