"""The orchestrator's loop against agents that are only their messages: in memory, and over both real brokers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.leader_watch import LEADER_INTERVAL_S, SILENT_AFTER_INTERVALS
from broker.protocol import topics
from broker.protocol.codec import JSON, decode, encode
from broker.protocol.errors import BadFile, RemoteProtocolError
from broker.protocol.messages import (
    Assignment,
    DeviceState,
    Drain,
    Heartbeat,
    HeldModule,
    OrchestratorState,
    Result,
    Route,
)
from broker.protocol.reports import SystemEvent
from broker.protocol.specs import ModuleSpec, TaskSpec
from broker.transport.connection import Connection, parse_url
from broker.transport.memory import MemoryBroker
from broker.transport.paho import MqttTransport
from broker.transport.port import (
    Delivery,
    Inbox,
    LinkDown,
    LinkEvent,
    LinkUp,
    MakeTransport,
    Outgoing,
    Transport,
    WillFor,
)
from broker.transport.refusals import read_again
from orchestrator import decide as deciding
from orchestrator.__main__ import main
from orchestrator.decide import decide
from orchestrator.events import (
    Action,
    Event,
    HeartbeatReceived,
    MessagesRefused,
    Overslept,
    RevisionReceived,
    TaskDeployed,
    TaskRejected,
)
from orchestrator.leadership import leader_files
from orchestrator.leadership.leader_files import LeaderFiles, StoredOrders
from orchestrator.leadership.orders import Orders
from orchestrator.service import Orchestrator
from orchestrator.state import Pace, State
from tests.builders import InlinePlanner, chain, module, profile
from tests.full_mailboxes import FullMailboxes
from tests.patience import until

NEVER_SILENT_S = 60.0  # the longest heartbeat interval: three of them are more than any test takes
UNHURRIED = Pace(calm_s=600.0, review_s=600.0)  # without spares and planned moves
VISION = module("vision", memory_bytes=60)
TASK = chain("classify", VISION, image_bytes=1000)
PROFILE = profile()


class World:
    """One broker, its orchestrators, agents, and a client that receives all."""

    def __init__(self, connect: MakeTransport, prefix: str, recorder: Any, folder: Path, patience_s: float) -> None:
        self.connect = connect
        self.site = prefix
        self.prefix = topics.prefix_of(prefix)
        self.folder = folder
        self.patience_s = patience_s
        self.made: list[str] = []  # client ids, in order
        self.orchestrators: list[tuple[Orchestrator, threading.Thread]] = []
        self.opened: list[Transport] = []
        self.heard = recorder
        self.listener = self.open("listener", recorder, f"{self.prefix}/#")
        recorder.wait_for(LinkUp)

    def open(self, name: str, inbox: Inbox, *filters: str, will: WillFor | None = None) -> Transport:
        transport = self._make(client_id=f"{self.site}-{name}", inbox=inbox, will=will)
        self.opened.append(transport)
        transport.subscribe(*filters)
        transport.start()
        return transport

    def lead(self, **options: Any) -> Orchestrator:
        settings: dict[str, Any] = {
            "settle_s": 0.05,
            "heartbeat_interval_s": NEVER_SILENT_S,
            "pace": UNHURRIED,
            "make_planner": InlinePlanner,
        } | options
        orchestrator = Orchestrator(Connection(site=self.site), self.folder, make_transport=self._make, **settings)
        thread = threading.Thread(target=orchestrator.run, name="orchestrator")
        self.orchestrators.append((orchestrator, thread))
        thread.start()
        return orchestrator

    def _make(self, connection: Connection | None = None, *, client_id: str, **options: Any) -> Transport:
        self.made.append(client_id)
        return self.connect(connection or Connection(), client_id=client_id, **options)

    def say(self, topic: topics.Topic, payload: bytes, **ids: str) -> None:
        self.listener.publish(Outgoing(topic.at(self.prefix, **ids), payload, topic.qos, topic.retain))

    def deploy(self, spec: TaskSpec = TASK) -> None:
        self.say(topics.TASK_SPEC, encode(spec), task=spec.task)

    def hear(self, topic: topics.Topic, fits: Callable[[Any], bool]) -> Any:
        """Wait for a message of this topic that fits, those already heard included; the message."""
        found: list[Any] = []

        def wanted(event: object) -> bool:
            if not isinstance(event, Delivery) or topic.match(self.prefix, event.topic) is None or not event.payload:
                return False
            assert topic.message is not None
            try:
                message = decode(topic.message, event.payload)
            except RemoteProtocolError:
                return False  # a test's own lie, coming back
            if fits(message):
                found.append(message)
            return fits(message)

        self.heard.wait_for(wanted)
        return found[0]

    def hear_cleared(self, topic: topics.Topic, **ids: str) -> None:
        name = topic.at(self.prefix, **ids)
        self.heard.wait_for(lambda event: isinstance(event, Delivery) and event.topic == name and not event.payload)

    def hear_route(self, fits: Callable[[Route], bool]) -> Route:
        route = self.hear(topics.TASK_ROUTE, fits)
        assert isinstance(route, Route)
        return route

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something that no message announces."""
        until(holds, self.patience_s)

    def routes(self) -> list[Route]:
        """All routes heard so far, in order."""
        heard = [event for event in self.heard.deliveries if topics.TASK_ROUTE.match(self.prefix, event.topic)]
        return [decode(Route, event.payload) for event in heard if event.payload]

    def stop(self, orchestrator: Orchestrator) -> None:
        (thread,) = [thread for known, thread in self.orchestrators if known is orchestrator]
        orchestrator.stop()
        thread.join(self.patience_s)
        assert not thread.is_alive()

    def close(self) -> None:
        for orchestrator, _ in self.orchestrators:
            self.stop(orchestrator)
        for transport in self.opened:
            transport.close()


class Agent:
    """A device that publishes an agent's messages, and loads modules when the test wants it."""

    def __init__(self, world: World, name: str, recorder: Any, *, memory_bytes: int = 100) -> None:
        self.world = world
        self.name = name
        self.heard = recorder
        self.session = 0
        self.seq = 0
        self.profile = PROFILE.model_copy(update={"memory_bytes": memory_bytes})
        assigned = topics.DEVICE_ASSIGNMENT.at(world.prefix, device=name)
        self.transport = world.open(name, recorder, assigned, will=self._will)
        self.birth()

    def birth(self) -> None:
        self.session = self.heard.wait_for(LinkUp).session
        self._say(topics.DEVICE_STATE, DeviceState(status="online", session=self.session, profile=self.profile))
        self.heartbeat()

    def heartbeat(self, *held: ModuleSpec, state: Any = "ready", compute_s: float | None = None) -> None:
        self.seq += 1
        modules = {
            spec.key: HeldModule(module="vision", state=state, error="no weights", compute_s=compute_s) for spec in held
        }
        told = [decode(Assignment, event.payload) for event in self.heard.deliveries if event.payload]
        epoch, generation = max(((said.epoch, said.generation) for said in told), default=(0, 0))
        heartbeat = Heartbeat(session=self.session, seq=self.seq, epoch=epoch, generation=generation, modules=modules)
        self._say(topics.DEVICE_HEARTBEAT, heartbeat)

    def assigned(self, fits: Callable[[Assignment], bool]) -> Assignment:
        found = self.heard.wait_for(
            lambda event: isinstance(event, Delivery) and fits(decode(Assignment, event.payload))
        )
        return decode(Assignment, found.payload)

    def die(self, *, after: Agent | None = None) -> None:
        """As a will says it; where given, it is heard after all that another agent said before."""
        self._say(topics.DEVICE_STATE, DeviceState(status="offline", session=self.session), after or self)

    def _say(self, topic: topics.Topic, message: Any, by: Agent | None = None) -> None:
        name = topic.at(self.world.prefix, device=self.name)
        (by or self).transport.publish(Outgoing(name, encode(message), topic.qos, topic.retain))

    def _will(self, session: int) -> Outgoing:
        name = topics.DEVICE_STATE.at(self.world.prefix, device=self.name)
        return Outgoing(name, encode(DeviceState(status="offline", session=session)), retain=True)


@pytest.fixture
def memory_broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def build(
    unique_prefix: str, recorder: Any, tmp_path: Path, patience_s: float
) -> Iterator[Callable[[MakeTransport], World]]:
    worlds: list[World] = []

    def make(connect: MakeTransport) -> World:
        worlds.append(World(connect, unique_prefix, recorder, tmp_path, patience_s))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


@pytest.fixture
def memory(build: Callable[[MakeTransport], World], memory_broker: MemoryBroker) -> World:
    return build(memory_broker.connect)


@pytest.fixture(params=["memory", "mosquitto", "mosquitto_tls", "embedded"])
def world(
    request: pytest.FixtureRequest, build: Callable[[MakeTransport], World], memory_broker: MemoryBroker
) -> World:
    if request.param == "memory":
        return build(memory_broker.connect)
    real = str(request.getfixturevalue(f"{request.param}_url"))

    def make(_connection: Connection, **options: Any) -> Transport:
        return MqttTransport(parse_url(real), **options)

    return build(make)


MakeRecorder = Callable[[], Any]


def settles_after(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let an orchestrator settle only after it has heard of these devices, tasks and revisions, however long it takes.

    A product gives them 1.5 s, over each link and when it reads again; tests give them less, and not all machines do.
    """
    settle, heard = deciding._settle, set[str]()

    def hear(state: State, event: Event, now_s: float) -> tuple[State, list[Action]]:
        match event:
            case MessagesRefused():
                heard.clear()
            case (
                HeartbeatReceived(device=name)
                | TaskDeployed(spec=TaskSpec(task=name))
                | RevisionReceived(revision=name)
            ):
                heard.add(name)
        return decide(state, event, now_s)

    monkeypatch.setattr("orchestrator.service.decide", hear)
    monkeypatch.setattr(
        deciding, "_settle", lambda state, now_s: settle(state, now_s) if heard >= set(names) else state
    )


def test_a_task_is_served_moves_when_its_device_dies_and_is_unavailable_when_no_device_is_left(
    world: World, make_recorder: MakeRecorder
) -> None:
    a, b = Agent(world, "a", make_recorder()), Agent(world, "b", make_recorder())
    world.deploy()
    world.lead()
    assert world.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online).epoch == 1
    a.heartbeat()
    b.heartbeat()  # heartbeats are not retained: these are the first that the orchestrator can hear

    told = a.assigned(lambda said: bool(said.modules))
    assert [module.module for module in told.modules] == ["vision"]
    assert told.modules[0].spec == VISION
    assert world.hear_route(lambda route: route.generation == told.generation).front_door == ()
    a.heartbeat(VISION)
    assert world.hear_route(lambda route: route.complete).front_door == ("a",)

    a.die()
    assert b.assigned(lambda said: bool(said.modules)).generation == told.generation + 1
    b.heartbeat(VISION)
    assert world.hear_route(lambda route: route.front_door == ("b",)).complete
    b.die()
    gone = world.hear_route(lambda route: route.unavailable is not None and route.generation > told.generation + 1)
    assert "there are no devices" in str(gone.unavailable)


def test_a_restarted_orchestrator_has_a_higher_epoch_adopts_what_is_held_and_clears_what_is_forgotten(
    world: World, make_recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten = Route(task="forgotten", epoch=1, generation=1, group=0, unavailable="long ago")
    world.say(topics.TASK_ROUTE, encode(forgotten), task="forgotten")
    world.deploy()
    first = world.lead()
    world.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online)
    a, b = Agent(world, "a", make_recorder()), Agent(world, "b", make_recorder())
    a.assigned(lambda said: bool(said.modules))
    a.heartbeat(VISION)
    world.hear_route(lambda route: route.complete)
    world.hear_cleared(topics.TASK_ROUTE, task="forgotten")
    world.stop(first)
    assert not world.hear(topics.ORCHESTRATOR_STATE, lambda said: not said.online).online

    settles_after(monkeypatch, "a", "b")
    world.lead()
    assert world.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online and said.epoch > 1).epoch == 2
    b.heartbeat(VISION)
    a.heartbeat()
    route = world.hear_route(lambda route: route.epoch == 2)
    assert route.front_door == ("b",)
    assert a.assigned(lambda said: said.epoch == 2).modules == ()


def test_a_standby_serves_in_the_answer_to_the_will_and_a_move_is_made_after_its_copy_is_ready(
    world: World, make_recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.placement.rebalance.RECONNECT_S", 0.2)  # nobody else is to connect
    a, b = Agent(world, "a", make_recorder()), Agent(world, "b", make_recorder())
    world.deploy(TASK.model_copy(update={"weight": 0.1}))  # a pass takes a second: one copy is enough
    world.lead(pace=Pace(calm_s=0.05, review_s=0.2))
    world.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online)
    a.heartbeat()
    a.assigned(lambda said: bool(said.modules))
    a.heartbeat(VISION)
    b.heartbeat()

    # 1. the standby
    (spare,) = b.assigned(lambda said: bool(said.modules)).modules
    assert (spare.role, spare.why) == ("standby", "takes over at once if a dies")
    b.heartbeat(VISION)
    a.die(after=b)
    assert world.hear_route(lambda route: route.front_door == ("b",)).complete
    assert b.assigned(lambda said: [held.role for held in said.modules] == ["active"]).modules[0].why == (
        "took over from a, which is gone"
    )

    # 2. a planned move: b reports that it is slow, and c could do better
    b.heartbeat(VISION, compute_s=5.0)
    c = Agent(world, "c", make_recorder())
    assert [coming.role for coming in c.assigned(lambda said: bool(said.modules)).modules] == ["standby"]
    c.heartbeat(VISION)
    moved = world.hear_route(lambda route: route.front_door == ("c",))
    assert moved.complete
    assert all(route.complete for route in world.routes() if route.generation > 1), "there was no gap"


def test_the_epoch_goes_on_from_what_the_broker_remembers_when_the_disk_is_lost(world: World) -> None:
    world.say(topics.ORCHESTRATOR_STATE, encode(OrchestratorState(epoch=41, online=False, session=5)))
    world.lead()
    world.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online and said.epoch == 42)
    assert (world.folder / "epoch").read_text() == "42\n"


def test_the_epoch_goes_on_from_the_disk_when_the_broker_has_forgotten(memory: World) -> None:
    (memory.folder / "epoch").write_text("9\n")
    memory.lead()
    memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online and said.epoch == 10)


def test_a_standby_takes_over_when_the_leaders_will_comes_and_the_old_leader_waits_when_it_is_back(
    memory: World, memory_broker: MemoryBroker
) -> None:
    first = memory.lead()
    memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online)
    (control,) = [name for name in memory.made if name.endswith(".control")]
    with capture_logs() as log:
        second = memory.lead()
        memory.until(lambda: any(line["event"] == "waiting_as_standby" for line in log))

    # 1. the leader is cut off: the spare leads at once, with a higher epoch; the other believes that it still does
    with memory_broker.partitioned(control):
        memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online and said.epoch == 2)
        assert first.resigned is None
        heard = len(memory.heard.deliveries)

    # 2. the old one comes back: it says nothing in its old term, and waits
    memory.until(lambda: first.resigned is not None)
    assert first.resigned == "an orchestrator with epoch 2 came after this one with epoch 1"
    state = topics.ORCHESTRATOR_STATE.at(memory.prefix)
    later = [
        decode(OrchestratorState, event.payload) for event in memory.heard.deliveries[heard:] if event.topic == state
    ]
    assert {said.epoch for said in later} <= {2}
    assert memory_broker.retained[state].payload == encode(
        memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online and said.epoch == 2)
    )

    # 3. the second ends: the first leads again
    memory.stop(second)
    memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online and said.epoch == 3)
    assert first.resigned is None


def test_a_killed_orchestrators_will_says_that_it_is_offline(memory: World, memory_broker: MemoryBroker) -> None:
    memory.lead()
    session = memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online).session
    memory_broker.crash(memory.made[-1])
    gone = memory.hear(topics.ORCHESTRATOR_STATE, lambda said: not said.online)
    assert (gone.epoch, gone.session) == (1, session)


def test_a_broker_that_lost_everything_gets_everything_again(
    memory: World, memory_broker: MemoryBroker, make_recorder: MakeRecorder
) -> None:
    memory.deploy()
    memory.lead()
    memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online)
    a = Agent(memory, "a", make_recorder())
    told = a.assigned(lambda said: bool(said.modules))
    a.heartbeat(VISION)
    memory.hear_route(lambda route: route.complete)
    memory.heard.clear()
    a.heard.clear()
    memory_broker.restart()
    a.birth()
    a.heartbeat(VISION)
    assert memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online).epoch == 1
    assert memory.hear_route(lambda route: route.complete).generation == told.generation
    assert a.assigned(lambda said: bool(said.modules)).generation == told.generation


def test_a_bug_met_by_one_message_is_logged_and_the_orchestrator_goes_on(
    memory: World, make_recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumbles(state: State, event: Event, now_s: float) -> tuple[State, list[Action]]:
        if isinstance(event, TaskDeployed) and event.spec.task == "cursed":
            raise ZeroDivisionError
        return decide(state, event, now_s)

    monkeypatch.setattr("orchestrator.service.decide", stumbles)
    memory.deploy(TASK.model_copy(update={"task": "cursed"}))
    memory.deploy()
    orchestrator = memory.lead()
    memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online)
    a = Agent(memory, "a", make_recorder())
    assert a.assigned(lambda said: bool(said.modules)).modules[0].spec == VISION
    with capture_logs() as log:
        memory.deploy(TASK.model_copy(update={"task": "cursed"}))
        memory.deploy(TASK.model_copy(update={"task": "next"}))
        memory.hear(topics.TASK_ROUTE, lambda said: said.task == "next")
        memory.stop(orchestrator)
    assert [(line["kind"], line["exc_info"]) for line in log if line["event"] == "event_failed"] == [
        ("TaskDeployed", True)
    ]
    assert log[-1]["internal_errors"] == 2


@pytest.mark.parametrize("device", ["a", "stranger"])
def test_a_heartbeat_with_a_later_epoch_makes_no_leader_resign(
    memory: World, make_recorder: MakeRecorder, device: str
) -> None:
    leading = memory.lead()
    memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online)
    a = Agent(memory, "a", make_recorder())
    memory.heard.clear()
    for seq in range(5):
        obeyed = Heartbeat(session=a.session, seq=99 + seq, epoch=7 + seq, generation=3)
        memory.say(topics.DEVICE_HEARTBEAT, encode(obeyed), device=device)
    assert memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online).epoch == 1, "it announces its term again"
    memory.deploy()
    assert memory.hear_route(lambda route: route.task == "classify").epoch == 1
    assert leading.resigned is None


def test_a_forged_later_term_costs_one_silence_of_its_leader(memory: World) -> None:
    memory.lead()
    memory.hear(topics.ORCHESTRATOR_STATE, partial(leads, 1))
    began_s = time.monotonic()
    memory.say(topics.ORCHESTRATOR_STATE, encode(OrchestratorState(epoch=2, online=True, session=5)))
    memory.hear(topics.ORCHESTRATOR_STATE, partial(leads, 3))
    silence_s = SILENT_AFTER_INTERVALS * LEADER_INTERVAL_S
    assert time.monotonic() - began_s > silence_s - 0.1
    memory.deploy()
    memory.hear_route(partial(routes_in, 3, "classify"))


def test_no_death_of_a_device_looks_like_a_process_that_stood_still(memory: World, make_recorder: MakeRecorder) -> None:
    with capture_logs() as logged:
        memory.lead()
        memory.hear(topics.ORCHESTRATOR_STATE, partial(leads, 1))
        a, b = Agent(memory, "a", make_recorder()), Agent(memory, "b", make_recorder())
        a.die()
        b.heartbeat()
        memory.hear(topics.DEVICE_STANDING, lambda said: (said.device, said.standing) == ("a", "dead"))
    assert [entry["event"] for entry in logged if entry["event"] == "overslept"] == []


ABSURD = ("9" * 4300, str(2**53 - 1), str(2**60), "-1", '"7"', "true", "1e308")


def leads(term: int, heard: OrchestratorState) -> bool:
    return heard.online and heard.epoch == term


def routes_in(term: int, task: str, route: Route) -> bool:
    return (route.task, route.epoch) == (task, term)


@pytest.mark.parametrize("epoch", ABSURD)
@pytest.mark.parametrize("online", ["true", "false"])
def test_no_retained_state_stops_a_start_or_the_next_one(memory: World, epoch: str, online: str) -> None:
    said = f'{{"epoch": {epoch}, "online": {online}, "session": 5}}'.encode()
    memory.say(topics.ORCHESTRATOR_STATE, said)
    for term in (1, 2):
        leading = memory.lead()
        memory.hear(topics.ORCHESTRATOR_STATE, partial(leads, term))
        memory.say(topics.ORCHESTRATOR_STATE, said)
        memory.deploy(TASK.model_copy(update={"task": f"fence-{term}"}))
        memory.hear_route(partial(routes_in, term, f"fence-{term}"))
        assert leading.resigned is None
        memory.stop(leading)
        memory.say(topics.ORCHESTRATOR_STATE, said)


@pytest.mark.parametrize(
    "content", ["", "seven", "\0\0\0\0", "9" * 4300, str(2**53 - 1), str(2**52 - 1), "-3", "1.5", "ä"]
)
def test_a_damaged_epoch_file_is_set_aside_and_the_epoch_goes_on_from_the_broker(memory: World, content: str) -> None:
    (memory.folder / "epoch").write_text(content, encoding="utf-8")
    memory.say(topics.ORCHESTRATOR_STATE, encode(OrchestratorState(epoch=41, online=False, session=5)))
    with capture_logs() as log:
        memory.lead()
        memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online and said.epoch == 42)
    (line,) = [line for line in log if line["event"] == "damaged_file_set_aside"]
    assert line["file"] == str(memory.folder / "epoch")
    assert (memory.folder / "epoch.damaged").read_text(encoding="utf-8") == content
    assert (memory.folder / "epoch").read_text(encoding="utf-8") == "42\n"


def test_a_task_undeployed_while_the_control_link_was_down_is_taken_away(
    memory: World, memory_broker: MemoryBroker, make_recorder: MakeRecorder
) -> None:
    memory.deploy()
    memory.lead()
    memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online)
    a = Agent(memory, "a", make_recorder())
    a.assigned(lambda said: bool(said.modules))
    a.heartbeat(VISION)
    memory.hear_route(lambda route: route.complete)
    with memory_broker.partitioned(memory.made[-2]):
        memory.hear(topics.ORCHESTRATOR_STATE, lambda said: not said.online)
        memory.say(topics.TASK_SPEC, b"", task="classify")
    memory.hear_cleared(topics.TASK_ROUTE, task="classify")
    assert a.assigned(lambda said: not said.modules).generation > 1


def test_a_broker_that_lost_its_memory_is_given_the_specs_back(memory: World, memory_broker: MemoryBroker) -> None:
    memory.deploy()
    memory.lead()
    memory.hear_route(lambda route: route.unavailable is not None)
    memory.heard.clear()
    memory_broker.restart()
    assert memory.hear(topics.TASK_SPEC, lambda spec: spec.task == "classify") == TASK


def test_tasks_that_are_deployed_at_once_are_stored_together_and_none_has_a_route_before(
    memory: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write waits for the disk: a hundred of them, one after the other, held up the first routes for seconds."""
    writes, missing = list[Orders](), list[str]()
    store = LeaderFiles.store_orders

    def counted(files: LeaderFiles, orders: Orders) -> None:
        store(files, orders)
        writes.append(orders)

    def look(event: LinkEvent) -> None:
        if isinstance(event, Delivery) and event.payload:
            task = decode(Route, event.payload).task
            missing.extend([task] if task not in (memory.folder / "tasks.json").read_text() else [])

    monkeypatch.setattr(LeaderFiles, "store_orders", counted)
    monkeypatch.setattr(leader_files, "WRITE_EVERY_S", 0.5)
    memory.open("looks", look, topics.TASK_ROUTE.filter(memory.prefix))
    first = memory.lead()
    memory.deploy(TASK.model_copy(update={"task": "first"}))
    memory.hear_route(lambda route: route.task == "first")
    before, began_s = len(writes), time.monotonic()
    for number in range(100):
        memory.deploy(TASK.model_copy(update={"task": f"t{number:02}"}))
    memory.hear_route(lambda route: route.task == "t99")
    assert len(writes) - before <= 10 + (time.monotonic() - began_s) / leader_files.WRITE_EVERY_S
    memory.deploy(TASK.model_copy(update={"task": "last"}))
    memory.until(lambda: "last" in (first._state.tasks if first._state else ()))
    memory.stop(first)
    assert "last" in writes[-1].tasks
    assert not missing


def test_tasks_outlive_the_ends_of_broker_and_orchestrator_in_the_same_moment(
    memory: World, memory_broker: MemoryBroker
) -> None:
    memory.deploy()
    memory.lead()
    memory.hear_route(lambda route: route.unavailable is not None)
    with memory_broker.partitioned(memory.made[-1]), memory_broker.partitioned(memory.made[-2]):
        memory_broker.restart()
        memory.heard.clear()
        memory.lead()
        assert memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online).epoch == 2
        assert memory.hear(topics.TASK_SPEC, lambda spec: spec.task == "classify") == TASK
        assert memory.hear_route(lambda route: route.epoch == 2).task == "classify"


@pytest.mark.parametrize("led", [True, False])
def test_an_undeployed_task_does_not_come_back_after_restarts(
    memory: World, memory_broker: MemoryBroker, *, led: bool
) -> None:
    memory.deploy()
    first = memory.lead()
    memory.hear_route(lambda route: route.unavailable is not None)
    if not led:
        memory.stop(first)
    memory.say(topics.TASK_SPEC, b"", task="classify")
    if led:
        memory.hear_cleared(topics.TASK_ROUTE, task="classify")
        memory.stop(first)
    memory_broker.restart(keep_retained=not led)
    memory.heard.clear()
    memory.deploy(TASK.model_copy(update={"task": "fence"}))
    memory.lead()
    memory.hear_route(lambda route: route.epoch == 2 and route.task == "fence")
    if not led:
        memory.hear_cleared(topics.TASK_ROUTE, task="classify")
    heard = [event for event in memory.heard.deliveries if event.topic.endswith("/tasks/classify/spec")]
    assert not [event for event in heard if event.payload]


@pytest.mark.parametrize("stored", ["of another site", "of an earlier term", "damaged"])
def test_stored_tasks_of_another_site_or_an_earlier_term_and_damaged_ones_are_left_out(
    memory: World, memory_broker: MemoryBroker, stored: str
) -> None:
    memory.deploy()
    first = memory.lead()
    memory.hear_route(lambda route: route.unavailable is not None)
    memory.stop(first)
    file = memory.folder / "tasks.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    del content["crc32"]
    assert [task["spec"]["task"] for task in content["tasks"]] == ["classify"]
    if stored == "damaged":
        file.write_text('{"tasks": [', encoding="utf-8")
    elif stored == "of another site":
        file.write_text(json.dumps(content | {"prefix": "another/site"}), encoding="utf-8")
    else:  # as earlier versions stored them
        old = {"epoch": 0, "broker": "mqtt://unused", "prefix": memory.prefix, "tasks": [TASK.model_dump(mode="json")]}
        file.write_text(json.dumps(old), encoding="utf-8")
    memory_broker.restart()
    memory.heard.clear()
    memory.deploy(TASK.model_copy(update={"task": "fence"}))
    memory.lead()
    memory.hear_route(lambda route: route.epoch == 2 and route.task == "fence")
    assert not [event for event in memory.heard.deliveries if event.topic.endswith("/tasks/classify/spec")]


def test_orders_outlive_the_ends_of_broker_leader_and_disk_by_the_standbys_copy(
    memory: World, memory_broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.leader_watch.RECONNECT_S", 0.5)  # the leader won't connect in time
    memory.deploy()
    first = memory.lead()
    memory.hear_route(lambda route: route.unavailable is not None)
    memory.folder = tmp_path / "standby"
    spare = memory.lead()
    memory.until((memory.folder / "tasks.json").exists)
    memory.say(topics.DEVICE_DRAIN, encode(Drain(drain=True)), device="gw-z")
    memory.deploy(TASK.model_copy(update={"task": "second"}))
    memory.hear_route(lambda route: route.task == "second")
    memory.until(lambda: "second" in (memory.folder / "tasks.json").read_text(encoding="utf-8"))
    with ExitStack() as stack:
        leader, _, _ = memory.made[1].rpartition(".")
        for name in {name for name in memory.made if name.startswith(leader)}:
            stack.enter_context(memory_broker.partitioned(name))  # the leader is gone
        memory_broker.restart()
        memory.heard.clear()
        memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online and said.epoch == 2)
        memory.hear(topics.TASK_SPEC, lambda spec: spec.task == "classify")
        memory.hear(topics.TASK_SPEC, lambda spec: spec.task == "second")
        assert memory.hear(topics.DEVICE_DRAIN, lambda said: said.drain)
        memory.stop(spare)
    memory.stop(first)


def test_a_spare_leads_again_if_the_leader_that_came_first_to_a_broker_without_memory_lacks_its_orders(
    memory: World, memory_broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.leadership.orders.LACKS_AFTER_S", 0.3)
    memory.deploy()
    stale = memory.lead()
    memory.hear_route(lambda route: route.unavailable is not None)
    memory.stop(stale)
    stale_folder, memory.folder = memory.folder, tmp_path / "newer"
    newer = memory.lead()
    memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online and said.epoch == 2)
    memory.say(topics.TASK_SPEC, b"", task="classify")
    memory.deploy(TASK.model_copy(update={"task": "second"}))
    memory.hear_route(lambda route: route.task == "second")
    with ExitStack() as stack:
        for name in {name for name in memory.made if name.startswith(memory.made[-1].rpartition(".")[0])}:
            stack.enter_context(memory_broker.partitioned(name))
        memory_broker.restart()
        memory.heard.clear()
        (stale_folder / "epoch").write_text("5\n", encoding="utf-8")
        memory.folder = stale_folder
        memory.lead()
        memory.hear(topics.TASK_SPEC, lambda spec: spec.task == "classify")
    memory.until(lambda: newer.resigned is not None)
    memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online and said.epoch == 7)
    memory.hear(topics.TASK_SPEC, lambda spec: spec.task == "second")
    memory.hear_cleared(topics.TASK_SPEC, task="classify")


def test_a_spare_stores_the_leaders_epoch(memory: World, tmp_path: Path) -> None:
    memory.lead()
    memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online)
    memory.folder = tmp_path / "spare"
    memory.lead()
    memory.until((memory.folder / "epoch").exists)
    assert (memory.folder / "epoch").read_text(encoding="utf-8") == "1\n"


def test_what_waited_for_the_disk_when_a_link_ended_is_not_said_over_the_next_one(
    memory: World, memory_broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.deploy()
    leader = memory.lead()
    memory.hear_route(lambda route: route.unavailable is not None)
    is_slow, update = threading.Event(), StoredOrders.update

    def wait(stored: StoredOrders, orders: Orders, *, at_once: bool = False) -> bool:
        return not is_slow.is_set() and update(stored, orders, at_once=at_once)

    monkeypatch.setattr(StoredOrders, "update", wait)
    is_slow.set()
    memory.deploy(TASK.model_copy(update={"task": "second"}))
    memory.until(lambda: "second" in (leader._state.tasks if leader._state else ()))
    memory.heard.clear()
    memory_broker.restart()
    memory.until(lambda: leader._state is not None and leader._state.link is not None and not leader._state.settled)
    is_slow.clear()
    memory.hear(topics.TASK_SPEC, lambda spec: spec.task == "second")
    topic = topics.ORCHESTRATOR_STATE.at(memory.prefix)
    said = [decode(OrchestratorState, each.payload) for each in memory.heard.deliveries if each.topic == topic]
    assert said[0].change == 0, "the broker that lost its memory has no number"


def test_what_was_decided_over_a_link_that_has_ended_is_not_said_over_the_next_one(
    memory: World, memory_broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume = threading.Event()

    def pauses(state: State, event: Event, now_s: float) -> tuple[State, list[Action]]:
        if isinstance(event, TaskDeployed) and event.spec.task == "second":
            resume.wait(memory.patience_s)
        return decide(state, event, now_s)

    monkeypatch.setattr("orchestrator.service.decide", pauses)
    monkeypatch.setattr(leader_files, "WRITE_EVERY_S", 0.0)
    memory.deploy()
    memory.lead()
    memory.hear_route(lambda route: route.unavailable is not None)
    memory.deploy(TASK.model_copy(update={"task": "second"}))
    memory.heard.clear()
    memory_broker.restart()  # the orchestrator has read neither the end of its link nor the next one
    resume.set()
    memory.hear(topics.TASK_SPEC, lambda spec: spec.task == "classify")
    memory.hear(topics.TASK_SPEC, lambda spec: spec.task == "second")


REPORTED_S = 0.2  # a task's status and revisions are published with the leader's heartbeats


def revision(number: int) -> TaskSpec:
    return TASK.model_copy(update={"weight": float(number)})


def weighs(number: int) -> Callable[[TaskSpec], bool]:
    return lambda spec: spec.weight == number


def test_the_last_five_revisions_are_on_the_broker_and_outlive_the_leader(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.lead(heartbeat_interval_s=REPORTED_S)
    world.deploy(revision(1))
    world.hear(topics.TASK_REVISION, weighs(1))
    for number in range(2, 7):
        world.deploy(revision(number))
    world.hear_cleared(topics.TASK_REVISION, task="classify", revision=revision(1).revision)
    newest_first = tuple(revision(number).revision for number in (6, 5, 4, 3, 2))
    world.hear(topics.TASK_STATUS, lambda said: said.revisions == newest_first)
    world.stop(first)
    world.heard.clear()
    settles_after(monkeypatch, *newest_first)
    later = world.lead(heartbeat_interval_s=REPORTED_S)
    world.deploy(revision(7))
    world.hear(topics.TASK_STATUS, lambda said: said.revisions == (revision(7).revision, *newest_first[:4]))
    world.hear_cleared(topics.TASK_REVISION, task="classify", revision=revision(2).revision)
    again = [event.topic for event in world.heard.deliveries if "/revisions/" in event.topic and event.payload]
    assert again == [topics.TASK_REVISION.at(world.prefix, task="classify", revision=revision(7).revision)]
    world.say(topics.TASK_SPEC, b"", task="classify")
    for number in (3, 4, 5, 6, 7):
        world.hear_cleared(topics.TASK_REVISION, task="classify", revision=revision(number).revision)
    world.stop(later)


def test_a_new_spare_knows_the_revisions_that_are_older_than_itself(
    memory: World, memory_broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.leader_watch.RECONNECT_S", 0.5)  # the leader ended: it won't connect
    first = memory.lead(heartbeat_interval_s=REPORTED_S)
    memory.deploy(revision(1))
    memory.hear(topics.TASK_REVISION, weighs(1))
    memory.deploy(revision(2))
    memory.deploy(revision(3))
    newest_first = tuple(revision(number).revision for number in (3, 2, 1))
    memory.hear(topics.TASK_STATUS, lambda said: said.revisions == newest_first)
    memory.folder = tmp_path / "spare"
    spare = memory.lead(heartbeat_interval_s=REPORTED_S)

    def stored() -> bool:
        file = memory.folder / "tasks.json"
        return file.exists() and len(json.loads(file.read_text(encoding="utf-8"))["revisions"]["classify"]) == 3

    memory.until(stored)
    memory.stop(first)
    memory_broker.restart()  # it loses its memory
    memory.heard.clear()
    memory.hear(topics.TASK_STATUS, lambda said: said.revisions == newest_first)
    for number in (1, 2, 3):
        memory.hear(topics.TASK_REVISION, weighs(number))
    memory.stop(spare)


def test_a_silent_device_is_given_up(memory: World, make_recorder: MakeRecorder) -> None:
    memory.deploy()
    memory.lead(heartbeat_interval_s=0.3)
    memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online)
    a = Agent(memory, "a", make_recorder())
    a.assigned(lambda said: bool(said.modules))
    assert a.assigned(lambda said: not said.modules and said.generation > 1).modules == ()


def ask(world: World, task: str, reply_to: str) -> None:
    topic = topics.TASK_REQUESTS.at(world.prefix, task=task)
    request = Outgoing(topic, b"a picture", response_topic=reply_to, correlation=b"r-1", content_type="image/jpeg")
    world.listener.publish(request)


def answered(world: World, request: str) -> tuple[Delivery, Result]:
    found = world.heard.wait_for(
        lambda event: isinstance(event, Delivery) and event.topic.endswith(f"/results/{request}")
    )
    return found, decode(Result, found.payload)


class Busy:
    """The orchestrator's decisions, which take so long that messages wait: until they may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[Event, float]] = []  # with the time at which each counts
        self.is_at_it, self.may_go_on = threading.Event(), threading.Event()
        monkeypatch.setattr("orchestrator.service.decide", self.decide)

    def decide(self, state: State, event: Event, now_s: float) -> tuple[State, list[Action]]:
        if isinstance(event, TaskRejected) and not self.is_at_it.is_set():
            self.is_at_it.set()
            assert self.may_go_on.wait(30.0)
        self.seen.append((event, now_s))
        return decide(state, event, now_s)

    def begin(self, world: World) -> None:
        world.say(topics.TASK_SPEC, b"{}", task="odd")
        assert self.is_at_it.wait(world.patience_s)

    def heard(self, device: str) -> list[float]:
        """The times at which its heartbeats count, of those that had to wait."""
        begun = next(n for n, (each, _) in enumerate(self.seen) if isinstance(each, TaskRejected))
        after = [(each, at_s) for each, at_s in self.seen[begun:] if isinstance(each, HeartbeatReceived)]
        return [at_s for each, at_s in after if each.device == device]


def test_a_heartbeat_counts_from_its_arrival_however_late_it_is_read(
    memory: World, make_recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that is behind with its work takes no device for silent whose heartbeats wait in the mailbox."""
    busy = Busy(monkeypatch)
    memory.lead()
    memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online)
    a = Agent(memory, "a", make_recorder())
    a.assigned(lambda _: True)
    busy.begin(memory)
    sent_at_s = []
    for _ in range(2):
        sent_at_s.append(time.monotonic())
        a.heartbeat()
        time.sleep(0.1)
    read_from_s = time.monotonic()
    busy.may_go_on.set()
    memory.say(topics.TASK_SPEC, encode(TASK), task=TASK.task)
    memory.hear(topics.TASK_ROUTE, lambda said: said.task == TASK.task)
    counted_s = busy.heard("a")
    assert all(sent_s <= at_s for at_s, sent_s in zip(counted_s, sent_at_s, strict=True))
    assert max(counted_s) < read_from_s


def test_no_device_is_judged_by_heartbeats_that_were_refused_because_too_many_waited(
    memory: World, make_recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.transport.mailbox.MAX_CONTROL_EVENTS", 3)
    busy = Busy(monkeypatch)
    memory.lead(heartbeat_interval_s=0.5)
    memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online)
    a = Agent(memory, "a", make_recorder())
    a.assigned(lambda _: True)
    busy.begin(memory)
    for _ in range(5):
        a.heartbeat()
    busy.may_go_on.set()
    memory.hear(topics.ORCHESTRATOR_HEARTBEAT, lambda said: said.online)
    memory.say(topics.TASK_SPEC, encode(TASK), task=TASK.task)
    memory.hear(topics.TASK_ROUTE, lambda said: said.task == TASK.task)
    assert len(busy.heard("a")) < 5
    events = [event for event, _ in busy.seen]
    assert events.index(Overslept()) < next(n for n, each in enumerate(events) if isinstance(each, TaskDeployed))


def test_requests_that_no_device_serves_are_answered_with_no_route(world: World) -> None:
    reply_to = topics.RESULTS.at(world.prefix, client="cam", request="probe")
    world.deploy()
    world.lead()
    world.hear_route(lambda route: route.unavailable is not None)
    ask(world, "unknown", reply_to)
    delivery, result = answered(world, "probe")
    assert (delivery.correlation, delivery.content_type) == (b"r-1", JSON)
    assert result.error is not None
    assert "no task is called unknown; deployed tasks: classify" in result.error.message
    ask(world, "classify", reply_to.replace("probe", "second"))
    assert "there are no devices" in str(answered(world, "second")[1].error)


def test_nothing_is_answered_to_a_topic_outside_the_clients_place(memory: World) -> None:
    memory.lead()
    memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online)
    memory.deploy()
    memory.hear_route(lambda route: route.unavailable is not None)
    memory.heard.clear()
    ask(memory, "unknown", f"{memory.prefix}/devices/a/assignment")
    ask(memory, "unknown", topics.RESULTS.at(memory.prefix, client="cam", request="fence"))
    answered(memory, "fence")
    assert not [event for event in memory.heard.deliveries if "/devices/" in event.topic]


def test_without_answers_to_unknown_tasks_no_copy_of_a_request_is_subscribed_to(memory: World) -> None:
    memory.lead(answer_unknown_tasks=False)
    memory.deploy()
    memory.hear_route(lambda route: route.unavailable is not None)
    memory.listener.unsubscribe(f"{memory.prefix}/#")
    topic = topics.TASK_REQUESTS.at(memory.prefix, task="classify")
    memory.listener.publish(Outgoing(topic, b"x", token="nobody"))  # noqa: S106 - not a password
    memory.heard.wait_for(lambda event: getattr(event, "token", None) == "nobody")


def test_malformed_messages_change_nothing_and_malformed_specs_are_reported_to_the_deployer(
    memory: World, make_recorder: MakeRecorder
) -> None:
    memory.lead()
    memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online)
    for topic in (topics.DEVICE_STATE, topics.DEVICE_HEARTBEAT):
        memory.say(topic, b'{"session": "none"}', device="evil")
    memory.say(topics.ORCHESTRATOR_STATE, b"[]")
    memory.say(topics.TASK_SPEC, b'{"task": "broken"}', task="broken")
    memory.say(topics.TASK_SPEC, encode(TASK), task="other-name")
    broken = memory.hear_route(lambda route: route.task == "broken")
    assert "its spec is wrong: TaskSpec: inputs: is missing" in str(broken.unavailable)
    misplaced = memory.hear_route(lambda route: route.task == "other-name")
    assert "names the task classify" in str(misplaced.unavailable)
    memory.deploy()
    a = Agent(memory, "a", make_recorder())
    a.assigned(lambda said: bool(said.modules))


def test_an_undeployed_task_is_unloaded_and_its_route_cleared(memory: World, make_recorder: MakeRecorder) -> None:
    memory.deploy()
    memory.lead()
    memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online)
    a = Agent(memory, "a", make_recorder())
    a.assigned(lambda said: bool(said.modules))
    memory.say(topics.TASK_SPEC, b"", task="classify")
    memory.hear_cleared(topics.TASK_ROUTE, task="classify")
    assert a.assigned(lambda said: not said.modules and said.generation > 1).modules == ()


def test_it_can_be_stopped_while_it_waits_for_a_broker(memory: World, make_recorder: MakeRecorder) -> None:
    waiting = make_recorder()

    def no_broker(_connection: Connection, *, inbox: Inbox, **options: Any) -> Transport:
        def overheard(event: LinkEvent) -> None:
            inbox(event)
            waiting(event)

        return MqttTransport(parse_url("mqtt://127.0.0.1:1"), inbox=overheard, **options)

    memory.connect = no_broker
    orchestrator = memory.lead()
    waiting.wait_for(LinkDown)
    memory.stop(orchestrator)
    assert not (memory.folder / "epoch").exists()


@pytest.mark.parametrize("folder", ["/sys/kernel", "/proc/self"])
def test_a_spare_whose_state_directory_takes_no_file_ends_at_once_while_another_leads(
    memory: World, folder: str
) -> None:
    memory.lead()
    memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online)
    memory.folder = Path(folder)
    with pytest.raises(BadFile, match=r"can't be written: .*name another --state-dir"):
        memory.lead()


def test_a_spare_whose_disk_is_full_later_says_so_and_leads_once_it_can_store_the_epoch(
    memory: World, memory_broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.service.RETRY_LEADING_S", 0.05)
    memory.lead()
    memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online and said.epoch == 1)
    (control,) = [name for name in memory.made if name.endswith(".control")]
    memory.folder = tmp_path / "spare"
    with capture_logs() as log:
        memory.lead()
        memory.until(lambda: any(line["event"] == "waiting_as_standby" for line in log))
        (memory.folder / "epoch.new").mkdir()  # no epoch can be written
        with memory_broker.partitioned(control):
            until(lambda: sum(line["event"] == "cannot_lead" for line in log) > 1)
            assert "epoch: can't be written: " in next(line["reason"] for line in log if line["event"] == "cannot_lead")
            assert not any(line["event"] == "leading" for line in log)
            (memory.folder / "epoch.new").rmdir()
            memory.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online and said.epoch == 2)


def test_a_state_directory_that_cannot_be_made_is_named(memory: World) -> None:
    memory.folder /= "file"
    memory.folder.write_text("not a directory")
    with pytest.raises(BadFile, match="name another --state-dir"):
        memory.lead()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--broker"], "argument --broker: expected one argument"),
        (
            ["--broker", "mqtt://h", "--state-dir", "x", "--site", "a/#"],
            "must consist of a-z, 0-9 and -, with / between levels, got 'a/#'",
        ),
        (["--broker", "mqtt://h", "--state-dir", "x", "--sight", "a"], "unrecognized arguments: --sight a"),
    ],
)
def test_wrong_arguments_give_one_line_and_exit_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.fixture
def start_process(
    embedded_url: str, unique_prefix: str, tmp_path: Path
) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts real processes; what a test leaves running is killed."""
    with ExitStack() as stack:

        def start(state_dir: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "orchestrator", "--broker", embedded_url, "--site", unique_prefix]
            command += ["--state-dir", str(tmp_path / state_dir), "--until-stdin-closes"]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def wait_until_leading(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """The log so far, each line an event name plus fields."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(json.loads(line))
        if lines[-1]["event"] == "state" and lines[-1]["online"]:
            return lines
    pytest.fail(f"it ended before it led: {lines}")


StartProcess = Callable[[str], "subprocess.Popen[str]"]


def test_the_process_ends_cleanly_when_its_standard_input_closes(
    start_process: StartProcess, patience_s: float
) -> None:
    process = start_process("one")
    assert "leading" in [line["event"] for line in wait_until_leading(process)]
    _, rest = process.communicate(timeout=patience_s)
    assert process.returncode == 0
    assert json.loads(rest.splitlines()[-1])["event"] == "stopped"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_cleanly(
    start_process: StartProcess, number: signal.Signals, patience_s: float
) -> None:
    process = start_process("one")
    wait_until_leading(process)
    process.send_signal(number)
    assert process.wait(patience_s) == 0


def test_one_process_at_a_time_uses_a_state_directory_and_the_next_one_when_that_is_killed(
    start_process: StartProcess, patience_s: float
) -> None:
    first = start_process("one")
    wait_until_leading(first)
    second = start_process("one")
    _, said = second.communicate(timeout=patience_s)
    assert second.returncode == 2
    assert "another orchestrator on this machine uses this state directory; end that one, or name" in said
    assert said.count("\n") == 1
    first.kill()
    first.wait(patience_s)
    assert "leading" in [line["event"] for line in wait_until_leading(start_process("one"))]


def test_a_second_process_waits_and_leads_when_the_first_is_killed(
    start_process: StartProcess, patience_s: float
) -> None:
    first = start_process("one")
    wait_until_leading(first)
    spare = start_process("two")
    assert spare.stderr is not None
    assert any(json.loads(line)["event"] == "waiting_as_standby" for line in spare.stderr)
    first.kill()
    assert {"epoch": 2, "event": "leading"}.items() <= wait_until_leading(spare)[0].items()
    spare.communicate(timeout=patience_s)
    assert spare.returncode == 0


def test_standings_statuses_and_events_are_published_for_people(world: World, make_recorder: MakeRecorder) -> None:
    a = Agent(world, "a", make_recorder())
    world.deploy()
    world.lead(heartbeat_interval_s=1.0)
    world.hear(topics.ORCHESTRATOR_STATE, lambda said: said.online)
    a.heartbeat()
    a.assigned(lambda said: bool(said.modules))
    a.heartbeat(VISION)
    assert world.hear(topics.TASK_STATUS, lambda said: said.revision is not None).revision == TASK.revision
    assert world.hear(topics.DEVICE_STANDING, lambda said: said.standing == "online").device == "a"
    a.die()
    dead = world.hear(topics.DEVICE_STANDING, lambda said: said.standing == "dead")
    assert dead.why == "its connection ended"
    for kind in ("leader_changed", "task_deployed", "device_online", "placed", "device_dead", "task_unavailable"):
        world.hear(topics.ORCHESTRATOR_EVENTS, partial(is_of_type, kind))
    world.say(topics.TASK_SPEC, b"", task="classify")
    world.hear_cleared(topics.TASK_STATUS, task="classify")
    late = make_recorder()
    world.open("late", late, f"{world.prefix}/#")
    late.wait_for(lambda event: isinstance(event, Delivery) and event.topic.endswith("/a/standing"))
    assert not [event.topic for event in late.deliveries if event.topic.endswith("/events") and event.retain]


def is_of_type(kind: str, said: SystemEvent) -> bool:
    return said.type == kind


# --- control messages that found no room ---


def test_orders_that_were_refused_are_read_again(
    world: World, make_recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody sends them again. What was deployed all the time is served all the time."""
    full, readings = FullMailboxes(monkeypatch), list[tuple[str, ...]]()

    def counted(connection: Transport, *filters: str) -> None:
        readings.append(filters)
        read_again(connection, *filters)

    monkeypatch.setattr("orchestrator.service.read_again", counted)
    monkeypatch.setattr("orchestrator.arrivals.READ_AGAIN_EVERY_S", 3600.0)
    others = [chain(name, module(name, memory_bytes=10), image_bytes=1000) for name in ("stays", "goes", "comes")]
    stays, goes, comes = others
    for task in (stays, goes):
        world.deploy(task)
    settles_after(monkeypatch, "stays")
    world.lead(settle_s=0.2)
    a = Agent(world, "a", make_recorder())
    held = [module(task.task, memory_bytes=10) for task in others]
    world.hear_route(lambda route: route.task == "goes")
    a.heartbeat(*held)
    world.hear_route(lambda route: route.task == "stays" and route.complete)
    spec = partial(topics.TASK_SPEC.at, world.prefix)
    with full.refusing(spec(task="goes"), spec(task="comes")):
        world.say(topics.TASK_SPEC, b"", task="goes")
        world.deploy(comes)
    world.hear_cleared(topics.TASK_ROUTE, task="goes")
    world.hear_route(lambda route: route.task == "comes")
    count = len(readings)
    assert count >= 1
    with full.refusing(topics.DEVICE_HEARTBEAT.at(world.prefix, device="a")):
        a.heartbeat(*held)
    heard = len(world.heard.deliveries)
    world.until(lambda: len(world.heard.deliveries) > heard + 2)
    assert len(readings) == count, "it has settled, and reads again at most every hour"
    cleared = [event.topic for event in world.heard.deliveries if not event.payload]
    assert topics.TASK_ROUTE.at(world.prefix, task="stays") not in cleared
