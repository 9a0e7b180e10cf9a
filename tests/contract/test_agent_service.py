"""The agent's loop over the in-memory broker: the work of its threads, and when it sends no heartbeats."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import psutil
import pytest

from broker.protocol import codec, tensors
from broker.protocol.codec import RawInput, decode, decode_tensors, encode
from broker.protocol.errors import ErrorCode
from broker.protocol.messages import (
    About,
    DeviceState,
    Heartbeat,
    NodeFailed,
    OrchestratorState,
    Result,
)
from broker.protocol.reports import Summary, SystemEvent, Trace
from broker.protocol.specs import Availability, ModuleSpec, Source
from broker.protocol.topics import (
    DEVICE_ASSIGNMENT,
    DEVICE_ECHO,
    DEVICE_EVENTS,
    DEVICE_REBIRTH,
    DEVICE_STATE,
    DEVICE_SUMMARY,
    DEVICE_TRACES,
    ORCHESTRATOR_STATE,
    TASK_REQUESTS,
    TASK_ROUTE,
)
from broker.transport import mailbox
from broker.transport.memory import MemoryBroker, MemoryTransport
from broker.transport.port import Delivery, Outgoing
from edge_agent import heart, service, term, wire, workers
from edge_agent.config import AgentConfig
from edge_agent.decide import step
from edge_agent.device.calibration import Calibration
from edge_agent.device.link_probe import LARGE, ROUNDS, SMALL
from edge_agent.device.measurements import Measurements
from edge_agent.events import LeaderAnnounced
from edge_agent.modules import Module, Output, Value
from edge_agent.requests import traces
from edge_agent.restart import PassLost
from edge_agent.runtime.runner import Runner
from edge_agent.runtime.store import Store
from edge_agent.service import Agent
from edge_agent.wire import LATE_S
from orchestrator.events import CheckDevice
from orchestrator.wire import outgoing_of
from tests.builders import PREFIX, able, assignment, computing, module, profile, route, route_node
from tests.full_mailboxes import FullMailboxes
from tests.patience import PATIENCE_S, until

WAIT_S = PATIENCE_S
EXPIRY_S = 60  # of the requests
SPEC = module("y", memory_bytes=10, output_bytes=8)
PROFILE = profile()


class World:
    """One agent, and a client that plays the orchestrator and the sensor."""

    def __init__(
        self,
        received: Any,
        module: Callable[..., Output] | Module,
        *,
        packet_bytes: int = 2**20,
        footprint: int = 12,
        about: About | None = None,
        availability: Availability = "always",
        runner: Runner | None = None,
    ) -> None:
        self.footprint = footprint
        self.broker = MemoryBroker(max_packet_bytes=packet_bytes)
        self.received = received
        self.observer = MemoryTransport(self.broker, client_id="observer", inbox=received)
        self.observer.subscribe(f"{PREFIX}/#")
        self.observer.start()
        config = AgentConfig(id="gw-a", heartbeat_interval_s=0.05, availability=availability)
        self.calibration = Calibration(Measurements(), resident_bytes=lambda: self.resident, free_bytes=lambda: None)
        self.resident = 0
        store = Store(100, load=lambda _: self._load(module), calibration=self.calibration)
        make = self.broker.connect
        self.agent = Agent(config, profile=PROFILE, store=store, make_transport=make, about=about, runner=runner)
        self.lost: PassLost | None = None  # for which its process would be replaced
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.agent.run()
        except PassLost as error:
            self.lost = error

    def _load(self, compute: Callable[..., Output] | Module) -> Module:
        self.resident += self.footprint
        if isinstance(compute, Module):
            return compute
        return computing(compute, getattr(compute, "sample", None))

    def assign(self, *specs: ModuleSpec, generation: int = 1) -> None:
        self.publish(DEVICE_ASSIGNMENT.at(PREFIX, device="gw-a"), encode(assignment(*specs, generation=generation)))

    def serve(self) -> None:
        self.assign(SPEC)
        self.heartbeat(lambda seen: any(held.state == "ready" for held in seen.modules.values()))
        served = route("echo", {"node": route_node(SPEC.key, ("image",), able("gw-a", compute_s=0.01))})
        self.publish(TASK_ROUTE.at(PREFIX, task="echo"), encode(served))

    def ask(self, payload: bytes = b"x", traceparent: str | None = None) -> Result:
        topic = f"{PREFIX}/clients/observer/results/1"
        self.received.clear()
        # the agent joins its share group in its own thread: publish until it takes the request
        while True:
            message = Outgoing(TASK_REQUESTS.at(PREFIX, task="echo"), payload, response_topic=topic, expiry_s=EXPIRY_S)
            message = replace(message, traceparent=traceparent)
            self.observer.publish(message)
            with self.broker.lock:
                if self.broker.receivers(message.topic) != [self.broker.connected["observer"]]:
                    break
        self.observer.publish(message)
        found = self.received.wait_for(lambda event: getattr(event, "topic", "") == topic)
        return decode(Result, found.payload)

    def heartbeat(self, fits: Callable[[Heartbeat], object] = lambda _: True, count: int = 1) -> Heartbeat:
        def fitting(event: object) -> bool:
            if not isinstance(event, Delivery) or not event.topic.endswith("/heartbeat"):
                return False
            return bool(fits(decode(Heartbeat, event.payload)))

        return decode(Heartbeat, self.received.wait_for(fitting, count=count).payload)

    def summary(self, fits: Callable[[Summary], object] = lambda _: True) -> Any:
        topic = DEVICE_SUMMARY.at(PREFIX, device="gw-a")
        return self.received.wait_for(
            lambda event: getattr(event, "topic", "") == topic and fits(decode(Summary, event.payload))
        )

    def await_link_measured(self) -> None:
        topic = DEVICE_ECHO.at(PREFIX, device="gw-a")
        self.received.wait_for(lambda event: getattr(event, "topic", "") == topic, count=SMALL + LARGE)

    def publish(self, topic: str, payload: bytes) -> None:
        self.observer.publish(Outgoing(topic, payload, retain=True))

    def stop(self) -> None:
        self.agent.stop()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


def state_of(seen: Heartbeat) -> str | None:
    """The state of the module that the world serves."""
    return seen.modules[SPEC.key].state if SPEC.key in seen.modules else None


def echo(value: Value) -> Output:
    assert value
    return Output({"bits": np.zeros(1, dtype=np.float32)}, {"label": "echo"})


class Measurable:
    """An echo with sample inputs, so that it can be measured."""

    sample = (RawInput(b"typical"),)

    def __call__(self, value: Value) -> Output:
        return echo(value)


@pytest.fixture
def start(recorder: Any) -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def make(module: Callable[..., Output] | Module = echo, **changed: Any) -> World:
        worlds.append(World(recorder, module, **changed))
        return worlds[-1]

    yield make
    for world in worlds:
        world.stop()


def test_it_announces_itself_loads_serves_and_announces_its_end(start: Callable[..., World]) -> None:
    world = start()
    world.serve()
    assert world.ask().answer == {"label": "echo"}
    world.received.clear()
    world.stop()
    state = DEVICE_STATE.at(PREFIX, device="gw-a")
    states = [decode(DeviceState, event.payload) for event in world.received.deliveries if event.topic == state]
    assert states[-1].status == "offline"


def test_a_late_will_of_an_earlier_process_is_corrected(start: Callable[..., World]) -> None:
    world = start()
    world.heartbeat()
    state = DEVICE_STATE.at(PREFIX, device="gw-a")
    world.received.clear()
    world.publish(state, encode(DeviceState(status="offline", session=1)))
    wanted = "online"
    world.received.wait_for(
        lambda event: getattr(event, "topic", "") == state and decode(DeviceState, event.payload).status == wanted
    )


@pytest.mark.parametrize(
    "lie",
    [
        {"status": "offline"},
        {"status": "draining"},
        {"profile": profile(1)},
        {"session": 1, "profile": profile(1)},
        {"session": 1, "status": "draining"},
    ],
    ids=["its end", "its drain", "a small one", "another session", "its drain, in another session"],
)
def test_a_device_whose_state_another_client_wrote_announces_itself_once_under_a_new_session(
    start: Callable[..., World], lie: dict[str, Any]
) -> None:
    world, topic = start(), DEVICE_STATE.at(PREFIX, device="gw-a")
    world.await_link_measured()
    session = world.heartbeat().session
    world.received.clear()
    wrong = DeviceState(status="online", session=session, profile=PROFILE).model_copy(update=lie)
    world.publish(topic, encode(wrong))
    after = world.heartbeat(lambda seen: seen.session != session, count=3).session
    states = [decode(DeviceState, event.payload) for event in world.received.deliveries if event.topic == topic]
    assert states[0] == wrong
    assert {each.status for each in states[1:]} == {"online"}
    assert {each.session for each in states[1:]} == {after}
    assert PROFILE.memory_bytes == max(each.profile.memory_bytes for each in states[1:] if each.profile)


def test_a_rebirth_request_is_answered_with_the_profile_and_a_heartbeat(start: Callable[..., World]) -> None:
    world = start()
    world.await_link_measured()
    world.heartbeat()
    world.observer.publish(Outgoing(DEVICE_STATE.at(PREFIX, device="gw-a"), b"", retain=True))  # the broker forgot it
    world.received.clear()
    world.observer.publish(Outgoing(DEVICE_REBIRTH.at(PREFIX, device="gw-a"), b""))
    topic = DEVICE_STATE.at(PREFIX, device="gw-a")
    birth = world.received.wait_for(lambda event: getattr(event, "topic", "") == topic)
    state = decode(DeviceState, birth.payload)
    assert (state.status, state.profile is not None) == ("online", True)
    assert world.heartbeat().session == state.session
    assert DEVICE_REBIRTH.at(PREFIX, device="gw-a") not in world.broker.retained


def test_a_term_that_no_leader_stands_up_for_is_given_up_and_the_retained_messages_are_read_again(
    start: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.term.CONFIRM_S", 0.2)
    world = start()
    world.serve()
    lie = assignment(epoch=1000, generation=1)
    world.publish(DEVICE_ASSIGNMENT.at(PREFIX, device="gw-a"), encode(lie))
    world.heartbeat(lambda seen: (seen.epoch, seen.modules) == (1000, {}))
    world.assign(SPEC)  # the leader sends the assignment again; it is stale, and retained
    world.received.clear()
    world.publish(ORCHESTRATOR_STATE.at(PREFIX), encode(OrchestratorState(epoch=1, online=True, session=1)))
    world.heartbeat(lambda seen: (seen.epoch, seen.generation, state_of(seen)) == (1, 1, "ready"))
    assert world.ask().answer == {"label": "echo"}


def test_a_birth_says_what_the_device_is_and_a_death_does_not(start: Callable[..., World]) -> None:
    about = About(version="1", host="h", machine="m", cpu="c", python="3", engines=("torch 2",))
    world = start(about=about)
    world.heartbeat()
    world.stop()
    state = DEVICE_STATE.at(PREFIX, device="gw-a")
    states = [decode(DeviceState, event.payload) for event in world.received.deliveries if event.topic == state]
    assert {(each.status, each.about) for each in states} == {("online", about), ("offline", None)}


def test_a_birth_says_that_the_device_is_on_only_sometimes(start: Callable[..., World]) -> None:
    world = start(availability="sometimes")
    world.heartbeat()
    state = DEVICE_STATE.at(PREFIX, device="gw-a")
    births = [decode(DeviceState, event.payload) for event in world.received.deliveries if event.topic == state]
    assert {each.availability for each in births} == {"sometimes"}


def test_a_summary_is_retained_and_comes_again_to_a_broker_that_lost_it(start: Callable[..., World]) -> None:
    world = start()
    world.serve()
    topic = DEVICE_SUMMARY.at(PREFIX, device="gw-a")
    first = decode(Summary, world.summary().payload)
    assert first.counters == {}
    world.received.clear()
    world.broker.retained.pop(topic)
    world.broker.restart()
    assert decode(Summary, world.summary().payload) == first
    assert topic in world.broker.retained


def test_a_summary_counts_the_requests_since_the_start_of_the_process(
    start: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SUMMARY_S", 0.2)
    world = start()
    world.serve()
    assert world.ask().error is None
    one = world.summary(lambda seen: "echo" in seen.counters)
    counted = decode(Summary, one.payload)
    assert counted.counters["echo"].answered == counted.counters["echo"].requests >= 1
    assert counted.counters == counted.last_minute
    assert {each.state for each in counted.modules.values()} == {"ready"}
    world.broker.restart()
    world.ask(b"y")
    more = counted.counters["echo"].answered + 1
    later = decode(Summary, world.summary(lambda seen: seen.counters["echo"].answered >= more).payload)
    assert later.session == counted.session, "a new link doesn't start the counters again"


def test_the_life_of_a_module_is_published_and_not_retained(start: Callable[..., World]) -> None:
    world = start()
    topic = DEVICE_EVENTS.at(PREFIX, device="gw-a")
    world.assign(SPEC)
    world.received.wait_for(lambda event: getattr(event, "topic", "") == topic, count=2)
    world.assign(generation=2)
    world.received.wait_for(lambda event: getattr(event, "topic", "") == topic, count=3)
    found = [decode(SystemEvent, event.payload) for event in world.received.deliveries if event.topic == topic]
    assert [each.type for each in found] == ["module_loading", "module_ready", "module_unloaded"]
    assert {(each.module, each.device) for each in found} == {("m/y", "gw-a")}
    assert all(each.at > 0 for each in found)
    assert topic not in world.broker.retained


def test_the_trace_of_a_request_is_published_and_not_retained(start: Callable[..., World]) -> None:
    world = start()
    world.serve()
    parent = f"00-{'4b' * 16}-{'0f' * 8}-01"
    request = world.ask(traceparent=parent).request
    topic = DEVICE_TRACES.at(PREFIX, device="gw-a", request=request)
    trace = decode(Trace, world.received.wait_for(lambda event: getattr(event, "topic", "") == topic).payload)
    assert (trace.task, trace.outcome, set(trace.nodes)) == ("echo", "answered", {"node"})
    assert trace.traceparent == parent
    assert topic not in world.broker.retained


def test_an_orchestrators_check_is_answered_with_a_refusal_and_not_while_a_pass_hangs(
    start: Callable[..., World],
) -> None:
    release = threading.Event()

    def hang(value: Value) -> Output:
        release.wait(WAIT_S)
        return echo(value)

    world = start(hang)
    world.serve()
    world.observer.subscribe(f"{PREFIX}/tensors/gw-a/orchestrator/+/+")

    def check(request: str, key: str = SPEC.key) -> None:
        world.observer.publish(outgoing_of(PREFIX, CheckDevice("gw-a", request, key, (1, 1), 30.0)))

    def answered(request: str) -> Callable[[object], bool]:
        topic = f"{PREFIX}/tensors/gw-a/orchestrator/{request}/node"
        return lambda event: getattr(event, "topic", None) == topic

    check("check-1")
    said = decode_tensors(world.received.wait_for(answered("check-1")).payload)[0]
    assert isinstance(said, NodeFailed)
    assert "has no use check" in said.error.message
    check("check-2", "not-held")
    world.received.wait_for(answered("check-2"))
    topic = f"{PREFIX}/clients/observer/results/1"
    while not world.agent._computing:
        world.observer.publish(
            Outgoing(TASK_REQUESTS.at(PREFIX, task="echo"), b"x", response_topic=topic, expiry_s=EXPIRY_S)
        )
    check("check-3")
    check("check-4", "not-held")
    world.received.wait_for(answered("check-4"))  # the loop has read both
    assert not any(answered("check-3")(event) for event in world.received.events)
    release.set()
    world.received.wait_for(answered("check-3"))


def test_a_request_that_stays_on_its_device_is_neither_packed_nor_read_again(
    start: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    for owner, name in ((codec, "pack"), (codec, "unpack"), (wire, "failure")):
        monkeypatch.setattr(owner, name, lambda *_, name=name, **__: made.append(name))
    world = start(lambda value: Output({}, {"bytes": len(value.data)}))
    world.serve()
    assert world.ask(b"four").answer == {"bytes": 4}
    assert made == []


def test_the_loop_looks_around_when_no_event_waits_and_not_between_an_event_and_its_pass(
    start: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str] = []

    def getting(*args: Any, really: Any = mailbox.Mailbox.get) -> Any:
        item = really(*args)
        turns.append("idle" if item is None else "event")
        return item

    def looking(agent: Agent, now_s: float, really: Any = Agent._look_around) -> None:
        turns.append("look")
        really(agent, now_s)

    monkeypatch.setattr(service, "LOOK_AROUND_S", WAIT_S)
    monkeypatch.setattr(mailbox.Mailbox, "get", getting)
    monkeypatch.setattr(Agent, "_look_around", looking)
    world = start()
    world.serve()
    world.ask()
    until(lambda: turns[-1] == "look")
    looks = [before for before, turn in pairwise(turns) if turn == "look"]
    assert set(looks[1:]) == {"idle"}, "the first turn looks, too"


def test_arrays_for_other_nodes_are_rounded_in_the_compute_thread(
    start: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def rounding(*args: Any, really: Any = tensors.narrowed) -> Any:
        threads.append(threading.current_thread().name)
        return really(*args)

    monkeypatch.setattr(workers, "narrowed", rounding)
    monkeypatch.setattr(tensors, "narrowed", rounding)
    nodes = {name: route_node(SPEC.key, needs, able("gw-a")) for name, needs in (("a", ("image",)), ("b", ("a",)))}
    world = start(lambda _: Output({"x": np.ones(2, np.float32)}, {"label": "x"}))
    world.serve()
    world.publish(TASK_ROUTE.at(PREFIX, task="echo"), encode(route("echo", nodes, generation=2, wire="float16")))
    assert world.ask().error is None
    assert set(threads) == {"agent[gw-a].compute"}


def test_an_answer_expires_a_little_after_its_request(start: Callable[..., World]) -> None:
    world = start()
    world.serve()
    world.ask()
    answers = [seen.expiry_s for seen in world.received.deliveries if "/results/" in seen.topic]
    assert answers
    assert all(expiry_s is not None and EXPIRY_S < expiry_s <= EXPIRY_S + LATE_S for expiry_s in answers)


def test_an_answer_that_the_broker_does_not_take_ends_in_an_error(start: Callable[..., World]) -> None:
    world = start(lambda _: Output({}, {"label": "x" * 100_000}), packet_bytes=50_000)
    world.serve()
    error = world.ask().error
    assert error is not None
    assert error.code == ErrorCode.TOO_LARGE


def test_an_answer_that_is_ready_while_the_link_is_down_comes_when_it_is_back(start: Callable[..., World]) -> None:
    running, may_end = threading.Event(), threading.Event()

    def slow(value: Value) -> Output:
        running.set()
        assert may_end.wait(WAIT_S)
        return echo(value)

    world = start(slow)
    world.serve()
    answers: list[Result] = []
    asking = threading.Thread(target=lambda: answers.append(world.ask()))
    asking.start()
    assert running.wait(WAIT_S)
    with world.broker.partitioned("s2m3.devices.gw-a.data"):
        may_end.set()
        until(lambda: world.agent._data.kept)  # type: ignore[attr-defined]
        assert not answers
    asking.join(WAIT_S)
    assert [result.answer for result in answers] == [{"label": "echo"}]


def test_it_sends_no_heartbeats_while_its_data_link_is_down(start: Callable[..., World]) -> None:
    world = start()
    world.heartbeat()
    with world.broker.partitioned("s2m3.devices.gw-a.data"):
        world.agent._data_up = False  # as its loop will set it in a moment
        world.received.clear()
        before = len(world.received.deliveries)
        world.publish(f"{PREFIX}/probe", b"")  # everything sent earlier has arrived by then
        during = [e for e in world.received.deliveries[before:] if e.topic.endswith("/heartbeat")]
        assert len(during) <= 1
    world.heartbeat()


def test_a_hung_loop_sends_no_heartbeats(start: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    released, hung, silent = threading.Event(), threading.Event(), threading.Event()

    def hang(state: Any, waiting: Any, now_s: float) -> Any:
        if waiting[0] == LeaderAnnounced(OrchestratorState(epoch=9, online=True, session=1)):
            hung.set()
            released.wait(WAIT_S)
        return step(state, waiting, now_s)

    class Log:
        def bind(self, **_: object) -> Log:
            return self

        def error(self, action: str, **_: object) -> None:
            if action == "hung":
                silent.set()

        def __getattr__(self, _: str) -> Callable[..., None]:
            return lambda *_, **__: None

    monkeypatch.setattr(service, "step", hang)
    monkeypatch.setattr(heart, "HUNG_S", 0.7)
    monkeypatch.setattr(heart, "log", Log())
    world = start()
    world.heartbeat()
    world.publish(f"{PREFIX}/orchestrator/state", encode(OrchestratorState(epoch=9, online=True, session=1)))
    assert hung.wait(WAIT_S)
    assert silent.wait(WAIT_S)
    released.set()
    world.received.clear()
    world.heartbeat()


def test_an_action_that_fails_takes_none_of_those_behind_it_along(
    start: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = start()
    other = module("z", memory_bytes=10)
    submit = world.agent._workers.submit

    def fail_once(action: Any) -> None:
        if getattr(action, "assigned", None) and action.assigned.spec == SPEC:
            raise ZeroDivisionError
        submit(action)

    monkeypatch.setattr(world.agent._workers, "submit", fail_once)
    world.assign(SPEC, other)
    world.heartbeat(lambda seen: other.key in seen.modules and seen.modules[other.key].state == "ready")
    seen = world.heartbeat(lambda seen: seen.dropped)
    assert seen.dropped["internal_error"] == 1
    until(lambda: SPEC.key in world.agent._state.failed)  # nothing waits for a load that was never begun


def test_an_answer_that_no_code_can_write_ends_in_an_error(
    start: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = wire.result_message

    def fail_for_answers(reply: Any, now_s: float) -> Outgoing:
        return write(reply, now_s / (0 if reply.result.answer else 1))

    monkeypatch.setattr(wire, "result_message", fail_for_answers)
    world = start()
    world.serve()
    error = world.ask().error
    assert error is not None
    assert (error.code, "ZeroDivisionError" in error.message) == (ErrorCode.MODULE_FAILED, True)


def test_what_was_decided_before_a_bug_is_done(start: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    world = start()
    world.serve()
    monkeypatch.setattr(traces, "trace_of", fail)
    assert world.ask().answer == {"label": "echo"}
    assert world.heartbeat(lambda seen: seen.dropped.get("internal_error")).in_flight == 0


def test_an_agent_that_is_asked_to_end_does_not_restart_for_a_hung_pass(start: Callable[..., World]) -> None:
    world = start()
    world.heartbeat()
    world.agent._ended_by = PassLost("it hangs")
    world.stop()
    assert world.lost is None


def test_an_agent_whose_accelerator_fails_goes_offline_and_asks_for_a_new_process(
    start: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "FAREWELL_S", 0.1)

    def fail(_: object) -> dict[str, object]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    made = replace(computing(echo), device="meta")
    made = replace(made, passes={None: replace(made.passes[None], forward=fail)})
    world = start(made, runner=Runner(device="meta", problem=lambda: "Some Card can't be used"))
    world.serve()
    error = world.ask().error
    assert error is not None
    assert error.code != ErrorCode.MODULE_FAILED, "nobody says that the request is at fault"
    world.received.wait_for(lambda event: b"its accelerator fails (Some Card can't" in getattr(event, "payload", b""))
    until(lambda: world.lost is not None)
    state = DEVICE_STATE.at(PREFIX, device="gw-a")
    states = [decode(DeviceState, event.payload) for event in world.received.deliveries if event.topic == state]
    assert states[-1].status == "offline"


def test_a_full_mailbox_refuses_requests_but_no_pass_or_module_of_its_own(
    start: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox, "MAX_REQUESTS", 0)
    monkeypatch.setattr(mailbox, "MAX_DATA_EVENTS", 0)
    world = start()
    world.serve()
    error = world.ask(b"whatever this is").error
    assert error is not None
    assert (error.code, error.retry_after_s) == (ErrorCode.OVERLOADED, 1.0)
    assert world.heartbeat(lambda seen: seen.dropped).dropped["mailbox_full"] >= 1


def test_memory_that_a_burst_took_returns_to_the_system(
    start: Callable[..., World], burst: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "GIVE_BACK_S", 0.2)
    world = start()
    world.await_link_measured()
    full, process = burst(), psutil.Process()
    until(lambda: process.memory_info().rss <= full - 50e6)


def test_a_loaded_module_is_reported_with_its_measured_cost_before_the_first_request(
    start: Callable[..., World],
) -> None:
    world = start(Measurable())
    world.assign(SPEC)
    ready = world.heartbeat(lambda seen: state_of(seen) == "ready")
    held = ready.modules[SPEC.key]
    assert (held.memory_bytes, ready.memory_used_bytes) == (12, 12)
    assert held.compute_s is not None
    assert held.load_s is not None
    assert held.load_s >= held.compute_s > 0
    assert ready.cached == {}


def test_an_unloaded_module_is_reported_as_cached_while_its_weights_are_on_the_disk(
    start: Callable[..., World],
) -> None:
    world = start(Measurable())
    here = module("y", memory_bytes=10, source=Source(catalog="pocket/imagenet-names.safetensors", part="y"))
    world.assign(SPEC, here)
    world.heartbeat(
        lambda seen: len(seen.modules) == 2 and all(each.state == "ready" for each in seen.modules.values())
    )
    world.assign(generation=2)
    assert list(world.heartbeat(lambda seen: seen.cached).cached) == [here.key], "not the other one"


def test_a_module_larger_than_its_spec_is_refused_with_the_reason_and_the_agent_goes_on(
    start: Callable[..., World],
) -> None:
    world = start(Measurable(), footprint=101)
    world.assign(SPEC)
    failed = world.heartbeat(lambda seen: state_of(seen) == "failed")
    assert "really occupies 101 bytes and 100 bytes of 100 bytes are free" in str(failed.modules[SPEC.key].error)
    assert failed.memory_used_bytes == 0
    world.footprint = 100
    world.assign(SPEC, generation=2)
    world.heartbeat(lambda seen: state_of(seen) == "ready")


def test_heartbeats_and_the_loop_go_on_while_a_module_is_calibrated(start: Callable[..., World]) -> None:
    running, may_end = threading.Event(), threading.Event()

    class Slow(Measurable):
        def __call__(self, value: Value) -> Output:
            running.set()
            assert may_end.wait(WAIT_S)
            return echo(value)

    world = start(Slow())
    world.assign(SPEC)
    try:
        assert running.wait(WAIT_S)
        first = world.heartbeat(lambda seen: state_of(seen) == "loading")
        world.publish(ORCHESTRATOR_STATE.at(PREFIX), encode(OrchestratorState(epoch=3, online=True, session=1)))
        world.heartbeat(lambda seen: seen.progress > first.progress and seen.seq > first.seq + 2)
    finally:
        may_end.set()
    world.heartbeat(lambda seen: state_of(seen) == "ready")


def test_the_link_is_measured_over_the_broker_and_announced_with_the_profile(
    start: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.device.link_probe.FIRST_S", 0.1)  # between rounds nothing happens
    monkeypatch.setattr("edge_agent.device.link_probe.FIRST_GAP_S", 0.1)
    world = start()
    topic = DEVICE_STATE.at(PREFIX, device="gw-a")

    def measured(event: object) -> bool:
        if not isinstance(event, Delivery) or event.topic != topic:
            return False
        announced = decode(DeviceState, event.payload).profile
        return announced is not None and announced.bandwidth_bits_per_s != PROFILE.bandwidth_bits_per_s

    announced = decode(DeviceState, world.received.wait_for(measured).payload)
    birth = decode(DeviceState, world.received.wait_for(lambda event: getattr(event, "topic", "") == topic).payload)
    assert (birth.profile, birth.session) == (PROFILE, announced.session), "the birth doesn't wait for the measurement"
    assert announced.status == "online"
    assert announced.profile is not None
    assert announced.profile.memory_bytes == PROFILE.memory_bytes
    echoes = [e for e in world.received.deliveries if e.topic == DEVICE_ECHO.at(PREFIX, device="gw-a")]
    assert len(echoes) == ROUNDS * (SMALL + LARGE)


def test_a_broker_that_refuses_large_messages_leaves_the_assumed_link(start: Callable[..., World]) -> None:
    world = start(packet_bytes=64 * 1024)
    world.serve()
    assert world.ask().answer == {"label": "echo"}
    retained = world.broker.retained[DEVICE_STATE.at(PREFIX, device="gw-a")]
    assert decode(DeviceState, retained.payload).profile == PROFILE


def test_routes_and_assignments_that_were_refused_are_read_again_and_cleared_routes_are_forgotten(
    start: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "READ_AGAIN_AFTER_S", 0.1)
    monkeypatch.setattr(term, "CONFIRM_S", 0.5)
    full = FullMailboxes(monkeypatch)
    world = start()
    world.publish(ORCHESTRATOR_STATE.at(PREFIX), encode(OrchestratorState(epoch=1, online=True, session=9)))
    assigned, routed = DEVICE_ASSIGNMENT.at(PREFIX, device="gw-a"), TASK_ROUTE.at(PREFIX, task="echo")
    with full.refusing(assigned, routed):
        world.assign(SPEC)
        served = route("echo", {"node": route_node(SPEC.key, ("image",), able("gw-a", compute_s=0.01))})
        world.publish(routed, encode(served))
    world.heartbeat(lambda seen: state_of(seen) == "ready")
    assert world.ask().answer == {"label": "echo"}
    full.refused.clear()
    with full.refusing(routed):
        world.publish(routed, b"")
    until(lambda: "echo" not in world.agent._state.routes)
