"""An output from the cache equals a computed one bit for bit: each node of each pocket task, for both wires."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import pytest

from broker.protocol.specs import ModuleKey, NodeName, Wire
from edge_agent import events
from edge_agent.config import AgentConfig
from edge_agent.device.pass_note import PassNote
from edge_agent.modules import Module, Value
from edge_agent.runtime.output_cache import OutputCache
from edge_agent.runtime.runner import Runner
from edge_agent.workers import Workers
from s2m3.bench.requests import requests
from tests.patience import PATIENCE_S

CACHE_BYTES = 64 * 2**20  # Whisper's encoder gives 2.3 MB
Bits = tuple[dict[str, tuple[str, tuple[int, ...], bytes]], str]


class Held:
    """Modules that are in memory already, as a store has them."""

    def __init__(self, modules: Mapping[ModuleKey, Module]) -> None:
        self._modules = modules

    @contextmanager
    def use(self, key: ModuleKey) -> Iterator[Module]:
        yield self._modules[key]

    def passing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self, key: ModuleKey, compute_s: float) -> None:
        """Keep nothing."""


@pytest.fixture(scope="module")
def threads(split: Any) -> Iterator[tuple[Workers, queue.SimpleQueue[Any]]]:
    reported: queue.SimpleQueue[Any] = queue.SimpleQueue()
    store, config, cache = cast("Any", Held(split.modules)), AgentConfig(id="gw-a"), OutputCache(CACHE_BYTES)
    workers = Workers(config, store, Runner(), report=reported.put, note=PassNote(), cache=cache)
    yield workers, reported
    workers.close()


def bits(ran: events.Ran) -> Bits:
    assert ran.output is not None, ran.error
    arrays = {f"output/{name}": array for name, array in ran.output.tensors.items()}
    arrays |= {f"given/{name}": array for name, array in (ran.given or {}).items()}
    return {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in arrays.items()}, repr(ran.output.answer)


@pytest.mark.parametrize("name", ["ask", "classify", "speech", "vision", "vqa", "zero-shot"])
def test_each_node_of_the_pocket_zoo_has_the_same_bits_from_the_cache(
    split: Any, threads: tuple[Workers, queue.SimpleQueue[Any]], name: str
) -> None:
    workers, reported = threads
    task = split.specs[name]

    def run(node: NodeName, values: Mapping[NodeName, Value], wire: Wire) -> events.Ran:
        spec = task.nodes[node]
        given = tuple(values[need] for need in spec.needs)
        of_node = events.NodeRun("r", node, "w")
        deadline_s = time.monotonic() + PATIENCE_S
        key, answers = task.module_of(node).key, node == task.output
        workers.submit(events.Run(of_node, key, given, deadline_s, spec.use, wire, answers))
        return cast("events.Ran", reported.get(timeout=PATIENCE_S))

    values: dict[NodeName, Value] = dict(requests(task)[0])
    for node in task.order:
        rounded, whole = run(node, values, "float16"), run(node, values, "float32")
        assert whole.cached
        assert bits(run(node, values, "float16")) == bits(rounded)
        computed = Runner().run(split.modules[task.module_of(node).key], [values[n] for n in task.nodes[node].needs])
        assert whole.output is not None
        assert bits(whole) == bits(events.Ran(whole.run, computed, None, 0.0, 0.0))
        values[node] = whole.output.tensors
