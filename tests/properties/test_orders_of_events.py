"""One device in any order of events: requests, passes that end in every way, assignments, quarantine, permits, time.

The rules are the real ones; the compute thread is a list. Whatever comes when: each request ends; the thread has at
most two groups, each of nodes that may be computed together; no complete node waits while nothing is computed; and the
bytes that are counted are those that are held.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from broker.protocol.errors import ErrorCode, ModuleRefused, RequestFailed
from broker.protocol.messages import Permit, Quarantine, Route
from broker.protocol.specs import ModuleSpec
from edge_agent.decide import decide
from edge_agent.events import Event, ModuleReady, NodeRun, Ran, Reply, Run, Tick
from edge_agent.modules import Output
from edge_agent.requests.batching import MAX_SUBMITTED
from tests.builders import ENCODER, able, agent, assignment, encoder_route, module, requested, route, route_node

HEAD = module("head")
BOTH = (ENCODER, HEAD)
ERRORS = (
    RequestFailed(ErrorCode.BAD_INPUT, "bad"),
    RuntimeError("CUDA out of memory"),
    ValueError("a bug"),
    ModuleRefused("gone"),
)


def routes(generation: int) -> list[Route]:
    """Two tasks of one module, one of the other, and one of both."""
    one_node = [encoder_route(task, key=ENCODER.key, compute_s=0.1, generation=generation) for task in ("a", "b")]
    here = able("gw-a", compute_s=0.1)
    nodes = {"encoder": route_node(ENCODER.key, ("text",), here), "head": route_node(HEAD.key, ("encoder",), here)}
    other = encoder_route("c", key=HEAD.key, compute_s=0.1, generation=generation)
    return [*one_node, other, route("d", nodes, generation=generation)]


class Device:
    """A device that is its own coordinator, and chance."""

    def __init__(self, seed: int) -> None:
        self.chance, self.now_s = random.Random(seed), 0.0  # noqa: S311 - an order, not a secret
        self.state = agent("gw-a", *BOTH, routes=routes(1), compute_s=0.1)
        self.state.batch = self.chance.choice([1, 2, 4, 8])
        self.batched = {spec.key: self.chance.choice([frozenset({None}), frozenset()]) for spec in BOTH}
        self.thread: list[Run] = []  # what was submitted and hasn't ended
        self.asked: set[bytes] = set()
        self.ends: Counter[bytes] = Counter()
        self.generation = 1
        self.ready(*BOTH)

    def handle(self, event: Event) -> None:
        for action in decide(self.state, event, self.now_s):
            if isinstance(action, Run):
                self.submit(action)
            elif isinstance(action, Reply):
                self.ends[action.correlation] += 1
        self.check()

    def submit(self, run: Run) -> None:
        group = [each for each in self.thread if each.group == run.group]
        assert run.run not in {each.run for each in self.thread}, "computed twice at a time"
        assert len(group) < self.state.batch
        assert {(each.key, each.use) for each in group} <= {(run.key, run.use)}
        assert not group or None in self.batched[run.key]
        assert not group or not {run.run.request, run.payload} & self.state.quarantine
        self.thread.append(run)

    def check(self) -> None:
        state = self.state
        queued = {run for task in state.fair_queue.waiting.values() for items in task.values() for run in items}
        assert queued == {run for run, pending in state.pending.items() if pending.waiting}
        assert list(state.passes) == [run.run for run in self.thread]
        assert len({each.group for each in state.passes.values()}) <= MAX_SUBMITTED
        assert not queued or state.passes or state.alone, "idle beside work"
        assert state.pending_bytes == sum(each.size_bytes + each.message_bytes for each in state.pending.values())
        assert state.pending_of == Counter(each.sender for each in state.pending.values())
        assert sum(state.pending_bytes_of.values()) == state.pending_bytes
        assert state.kept_bytes == sum(each.size_bytes for each in state.kept.values())
        assert state.coordinated_bytes == sum(each.size_bytes for each in state.coordinated.values())

    # --- what happens ---

    def ask(self) -> None:
        number = len(self.asked)
        event = requested(self.chance.choice("abcd"), number, expiry_s=self.chance.choice([1, 2, 10, 60]))
        event = replace(event, payload=b"%d" % self.chance.randint(0, 9), client=self.chance.choice("xyz"))
        self.asked.add(event.correlation)
        self.handle(event)

    def end_pass(self) -> None:
        """The thread ends what was in it of the first group when it began; each node ends in its own way."""
        group = [run for run in self.thread if run.group == self.thread[0].group]
        group = group[: self.chance.randint(1, len(group))]
        for run in group:
            self.thread.remove(run)
            self.handle(self.end_of(run.run, len(group)))

    def end_of(self, run: NodeRun, batch: int) -> Ran:
        output, way = Output({"x": np.ones(2, np.float32)}, {"label": "a"}), self.chance.random()
        if way < 0.7:
            return Ran(run, output, None, self.now_s, self.chance.choice([0.0, 0.1, 0.3]), batch=batch)
        if way < 0.8:
            return Ran(run, output, None, self.now_s, 0.0, cached=True)
        return Ran(run, None, self.chance.choice(ERRORS), self.now_s, 0.1)

    def suspect(self) -> None:
        known = list(self.state.coordinated.values())
        some = self.chance.sample(known, min(len(known), 2))
        refused = {each.payload: 5.0 for each in some[1:] if each.payload and self.chance.random() < 0.3}
        self.handle(Quarantine(epoch=1, requests=tuple(each.request for each in some), refused=refused))

    def permit(self, *, granted: bool) -> None:
        if self.state.alone is not None:
            self.handle(Permit(epoch=1, request=self.state.alone.run.request, granted=granted))

    def assign(self, *specs: ModuleSpec) -> None:
        self.generation += 1
        self.handle(assignment(*specs, generation=self.generation))
        self.ready(*specs)

    def ready(self, *specs: ModuleSpec) -> None:
        for spec in specs:
            self.handle(ModuleReady(spec.key, 0.1, self.batched[spec.key]))

    def follow(self) -> None:
        for each in routes(self.generation):
            self.handle(each)

    def happen(self) -> None:
        way = self.chance.random()
        self.now_s += self.chance.choice([0.0, 0.0, 0.01, 0.1, 0.5])
        if way < 0.45:
            self.ask()
        elif way < 0.8:
            if self.thread:
                self.end_pass()
        elif way < 0.87:
            self.handle(Tick())
        elif way < 0.91:
            self.suspect()
        elif way < 0.95:
            self.permit(granted=self.chance.random() < 0.7)
        elif way < 0.98:
            self.assign(*self.chance.choice([BOTH, (ENCODER,), (HEAD,)]))
        else:
            self.assign(*BOTH)
            self.follow()


@pytest.mark.parametrize("seed", range(40))
def test_each_request_ends_in_any_order_of_events(seed: int) -> None:
    device = Device(seed)
    for _ in range(device.chance.randint(10, 150)):
        device.happen()
    while device.state.coordinated or device.state.pending or device.thread:
        if device.thread:
            device.end_pass()
        device.now_s += 0.2
        device.handle(Tick())
        device.permit(granted=True)
        assert device.now_s < 300, "something waits for ever"
    assert device.state.alone is None
    assert device.asked == device.ends.keys()
