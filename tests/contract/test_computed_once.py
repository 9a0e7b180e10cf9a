"""Equal work is computed once: a counting module behind the threads of an agent, and behind an agent's whole loop."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from broker.protocol.codec import RawInput, decode, encode
from broker.protocol.errors import ErrorCode, LocalProtocolError, RequestFailed
from broker.protocol.messages import Heartbeat, Result
from broker.protocol.reports import Trace
from broker.protocol.specs import ModuleSpec
from broker.protocol.topics import DEVICE_ASSIGNMENT, DEVICE_HEARTBEAT, DEVICE_TRACES, TASK_REQUESTS, TASK_ROUTE
from broker.transport.memory import MemoryBroker, MemoryTransport
from broker.transport.port import Delivery, LinkEvent, Outgoing
from edge_agent import events
from edge_agent.config import AgentConfig
from edge_agent.device.pass_note import PassNote
from edge_agent.modules import Output, Value
from edge_agent.runtime import output_cache
from edge_agent.runtime.output_cache import OutputCache
from edge_agent.runtime.runner import Runner
from edge_agent.runtime.store import Store
from edge_agent.service import Agent
from edge_agent.workers import Workers
from tests.builders import PREFIX, able, assignment, computing, module, profile, route, route_node, uncalibrated_store
from tests.patience import PATIENCE_S, until

SPEC = module("encoder", memory_bytes=10)


class Counting:
    """An encoder of the length of what it gets, which counts its passes, and refuses ``bad``."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, value: Value) -> Output:
        assert isinstance(value, RawInput)
        self.seen.append(value.data)
        assert self.may_go_on.wait(PATIENCE_S)
        if value.data == b"bad":
            raise RequestFailed(ErrorCode.BAD_INPUT, "bad")
        number = 1e6 if value.data == b"large" else len(value.data) / 3
        return Output({"embeddings": np.full(4, number, dtype=np.float32)}, {"label": value.data.decode()})


class Threads:
    """An agent's threads with a module that is ready, and what they report."""

    def __init__(self, cache_bytes: int) -> None:
        self.counting, self.cache = Counting(), OutputCache(cache_bytes)
        self.store = self._store()
        self._reported: queue.SimpleQueue[events.Event] = queue.SimpleQueue()
        self._number = 0
        report = self._reported.put
        config = AgentConfig(id="gw-a")
        self.workers = Workers(config, self.store, Runner(), report=report, note=PassNote(), cache=self.cache)
        self.load()

    def _store(self) -> Store:
        return uncalibrated_store(100, lambda _: computing(self.counting))

    def load(self) -> None:
        (assigned,) = assignment(SPEC).modules
        self.workers.submit(events.Load(assigned))
        assert isinstance(self._reported.get(timeout=PATIENCE_S), events.ModuleReady)

    def unload(self) -> None:
        self.workers.submit(events.Unload(SPEC.key, "encoder"))
        assert isinstance(self._reported.get(timeout=PATIENCE_S), events.ModuleUnloaded)

    def submit(self, data: bytes, **fields: Any) -> None:
        self._number += 1
        deadline_s = fields.pop("deadline_s", time.monotonic() + PATIENCE_S)
        node = events.NodeRun(f"r{self._number}", "node", "w")
        self.workers.submit(events.Run(node, SPEC.key, (RawInput(data),), deadline_s, **fields))

    def ended(self) -> events.Ran:
        found = self._reported.get(timeout=PATIENCE_S)
        assert isinstance(found, events.Ran)
        return found

    def run(self, data: bytes, **fields: Any) -> events.Ran:
        self.submit(data, **fields)
        return self.ended()


@pytest.fixture
def start() -> Iterator[Callable[..., Threads]]:
    made: list[Threads] = []

    def begin(cache_bytes: int = 1_000_000) -> Threads:
        made.append(Threads(cache_bytes))
        return made[-1]

    yield begin
    for threads in made:
        threads.counting.may_go_on.set()
        threads.workers.close()


def bits(ran: events.Ran) -> dict[str, tuple[str, bytes]]:
    assert ran.output is not None
    arrays = ran.output.tensors if ran.given is None else ran.given
    return {name: (array.dtype.str, array.tobytes()) for name, array in arrays.items()}


def test_equal_nodes_of_any_requests_are_computed_once_and_get_the_same_bits(start: Callable[..., Threads]) -> None:
    threads = start()
    threads.counting.may_go_on.clear()
    for _ in range(4):
        threads.submit(b"frame")  # the last three wait while the first is computed
    threads.counting.may_go_on.set()
    ran = [threads.ended() for _ in range(4)]
    assert threads.counting.seen == [b"frame"]
    assert [each.cached for each in ran] == [False, True, True, True]
    assert len({tuple(bits(each).items()) for each in ran}) == 1
    assert [each.output.answer for each in ran if each.output] == [{"label": "frame"}] * 4


def test_without_a_cache_each_is_computed(start: Callable[..., Threads]) -> None:
    threads = start(cache_bytes=0)
    ran = [threads.run(b"frame") for _ in range(3)]
    assert len(threads.counting.seen) == 3
    assert not any(each.cached for each in ran)


def test_a_node_that_expires_fails_alone(start: Callable[..., Threads]) -> None:
    threads = start()
    expired = threads.run(b"frame", deadline_s=0.0)
    assert isinstance(expired.error, RequestFailed)
    assert threads.run(b"frame").output is not None
    late = threads.run(b"frame", deadline_s=0.0)
    assert isinstance(late.error, RequestFailed)
    assert threads.run(b"frame").cached


def test_a_failure_is_not_kept_each_node_fails_by_itself(start: Callable[..., Threads]) -> None:
    threads = start()
    assert [type(threads.run(b"bad").error) for _ in range(2)] == [RequestFailed, RequestFailed]
    assert threads.counting.seen == [b"bad", b"bad"]


def test_tasks_with_different_wires_share_the_unrounded_output(start: Callable[..., Threads]) -> None:
    threads = start()
    rounded = threads.run(b"frame", wire="float16")
    whole = threads.run(b"frame")
    answers = threads.run(b"frame", wire="float16", answers=True)
    assert threads.counting.seen == [b"frame"]
    assert bits(whole)["embeddings"] == ("<f4", np.full(4, 5 / 3, dtype=np.float32).tobytes())
    assert bits(rounded) == bits(answers)
    assert bits(rounded)["embeddings"] == ("<f2", np.full(4, 5 / 3, dtype=np.float32).astype(np.float16).tobytes())
    assert answers.output is not None
    assert answers.output.tensors["embeddings"].dtype == np.float32


def test_numbers_beyond_float16_fail_the_tasks_that_round_and_no_other(start: Callable[..., Threads]) -> None:
    threads = start()
    assert isinstance(threads.run(b"large", wire="float16").error, LocalProtocolError)
    assert threads.run(b"large").cached
    assert isinstance(threads.run(b"large", wire="float16").error, LocalProtocolError)
    assert threads.counting.seen == [b"large"]


@pytest.mark.parametrize(("fails", "is_answered"), [("size_of", True), ("work_of", False)])
def test_a_cache_that_has_no_memory_loses_no_node(
    start: Callable[..., Threads], monkeypatch: pytest.MonkeyPatch, fails: str, *, is_answered: bool
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    threads = start()
    with monkeypatch.context() as patched:
        patched.setattr(output_cache, fails, no_memory)
        ran = [threads.run(b"frame") for _ in range(3)]
    assert [each.output is not None for each in ran] == [is_answered] * 3
    assert {type(each.error) for each in ran} == {type(None) if is_answered else MemoryError}
    assert [threads.run(b"frame").cached for _ in range(2)] == [False, True]


def test_a_module_that_was_unloaded_computes_again(start: Callable[..., Threads]) -> None:
    threads = start()
    threads.run(b"frame")
    threads.unload()
    until(lambda: threads.cache.use().outputs == 0)  # type: ignore[union-attr]
    assert threads.run(b"frame").error is not None, "not held"
    threads.load()
    assert not threads.run(b"frame").cached


def test_a_kept_output_says_nothing_about_the_time_of_a_pass(start: Callable[..., Threads]) -> None:
    threads = start()
    threads.run(b"frame")
    measured_s = threads.store.held()[SPEC.key].compute_s
    threads.run(b"frame")
    assert threads.store.held()[SPEC.key].compute_s == measured_s is not None


# --- the whole loop ---


@pytest.fixture
def client(recorder: Any) -> Iterator[tuple[MemoryTransport, Counting]]:
    """A sensor that is the orchestrator, too, beside one agent that keeps outputs and serves four tasks."""
    counting, broker = Counting(), MemoryBroker(max_packet_bytes=2**20)
    observer = MemoryTransport(broker, client_id="observer", inbox=recorder)
    observer.subscribe(f"{PREFIX}/#")
    observer.start()
    store = uncalibrated_store(100, lambda spec: computing(counting if spec.key == SPEC.key else head))
    config, cache = AgentConfig(id="gw-a", heartbeat_interval_s=0.05), OutputCache(1_000_000)
    agent = Agent(config, profile=profile(), store=store, make_transport=broker.connect, cache=cache)
    thread = threading.Thread(target=agent.run)
    thread.start()
    yield observer, counting
    counting.may_go_on.set()
    agent.stop()
    thread.join(PATIENCE_S)
    observer.close()


def head(value: Value) -> Output:
    assert not isinstance(value, RawInput)
    return Output({}, {"sum": float(value["embeddings"].sum())})


def deploy(observer: MemoryTransport, heads: list[ModuleSpec]) -> None:
    wanted = assignment(SPEC, *heads)
    observer.publish(Outgoing(DEVICE_ASSIGNMENT.at(PREFIX, device="gw-a"), encode(wanted), retain=True))
    for number, each in enumerate(heads):
        nodes = {
            f"vision-{number}": route_node(SPEC.key, ("image",), able("gw-a")),
            "head": route_node(each.key, (f"vision-{number}",), able("gw-a")),
        }
        served = encode(route(f"t{number}", nodes))
        observer.publish(Outgoing(TASK_ROUTE.at(PREFIX, task=f"t{number}"), served, retain=True))


def test_one_frame_for_four_tasks_is_encoded_once_and_everybody_can_see_it(client: Any, recorder: Any) -> None:
    observer, counting = client
    heads = [module(f"head-{number}", memory_bytes=10) for number in range(4)]
    deploy(observer, heads)
    heartbeats = DEVICE_HEARTBEAT.at(PREFIX, device="gw-a")

    def heard(fits: Callable[[Heartbeat], object]) -> Heartbeat:
        found = recorder.wait_for(
            lambda event: topic_of(event) == heartbeats and fits(decode(Heartbeat, event.payload))
        )
        return decode(Heartbeat, found.payload)

    heard(lambda seen: [held.state for held in seen.modules.values()] == ["ready"] * 5)
    until(lambda: all(joined(observer, number) for number in range(4)))
    counting.may_go_on.clear()
    for number in range(4):
        topic, reply = TASK_REQUESTS.at(PREFIX, task=f"t{number}"), f"{PREFIX}/clients/observer/results/{number}"
        kind = "image/jpeg" if number % 2 else None
        observer.publish(Outgoing(topic, b"frame", response_topic=reply, content_type=kind, expiry_s=60))
    until(lambda: counting.seen)
    counting.may_go_on.set()
    results = []
    for number in range(4):
        reply = f"{PREFIX}/clients/observer/results/{number}"
        found = recorder.wait_for(lambda event, reply=reply: topic_of(event) == reply)
        results.append(decode(Result, found.payload))
    assert {str(each.answer) for each in results} == {str({"sum": float(np.full(4, 5 / 3, np.float32).sum())})}
    assert counting.seen == [b"frame"]
    encodings = [timing for each in results for timing in each.timings if timing.node.startswith("vision")]
    assert sorted(timing.cached for timing in encodings) == [False, True, True, True]
    assert not any(timing.cached for each in results for timing in each.timings if timing.node == "head")
    counted = heard(lambda seen: seen.output_cache and seen.output_cache.computed == 5).output_cache  # the heads' end
    assert counted is not None
    assert (counted.hits, counted.outputs) == (3, 5)
    traces = DEVICE_TRACES.filter(PREFIX, device="gw-a").removesuffix("+")
    recorder.wait_for(lambda event: topic_of(event).startswith(traces), count=4)
    read = [decode(Trace, each.payload) for each in recorder.deliveries if each.topic.startswith(traces)]
    hits = [node.cache_hit for each in read for name, node in each.nodes.items() if name.startswith("vision")]
    assert sorted(hits) == [False, True, True, True]


def topic_of(event: LinkEvent) -> str:
    return event.topic if isinstance(event, Delivery) else ""


def joined(observer: MemoryTransport, number: int) -> bool:
    """Whether the agent is in the share group of a task."""
    broker = observer._broker
    with broker.lock:
        return broker.receivers(TASK_REQUESTS.at(PREFIX, task=f"t{number}")) != [broker.connected["observer"]]
