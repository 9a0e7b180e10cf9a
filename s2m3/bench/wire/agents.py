"""Three agents whose modules cost nothing: what is left of a request's time is the agents' and the broker's.

Owns the task, two encoders and a head on three devices, and the agents' processes. They are real agents, each with the
service thread, the compute thread and both connections. Only their passes take no time: they give arrays at once, and
keep no output for the next request (``cache: 0``). This benchmark plays the orchestrator.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from multiprocessing import get_context
from threading import Event
from typing import Self

import numpy as np
import structlog

from broker.client import Client
from broker.protocol.codec import RawInput, encode
from broker.protocol.messages import AssignedModule, Assignment, DeviceProfile, Route, RouteDevice, RouteNode
from broker.protocol.specs import DeviceId, InputSpec, ModuleSpec
from broker.protocol.topics import DEVICE_ASSIGNMENT, TASK_ROUTE, prefix_of
from broker.transport.connect import connect
from broker.transport.connection import Connection, parse_url
from broker.transport.port import LinkEvent, LinkUp, MakeTransport, Outgoing
from edge_agent.config import AgentConfig
from edge_agent.device.calibration import Calibration
from edge_agent.device.measurements import Measurements
from edge_agent.modules import Module, Output, Pass, Prepared, RequestSteps
from edge_agent.runtime.runner import Ended, Runner
from edge_agent.runtime.store import Store
from edge_agent.service import Agent
from s2m3.testbed.observer import Observer
from s2m3.testbed.site import SiteFailed

TASK = "zero-cost"
NODES = {"image-encoder": "gw-a", "text-encoder": "gw-b", "head": "gw-c"}
HEAD = "head"
FRONT_DOOR = NODES[HEAD]
PREFIX = prefix_of()
READY_S = 60.0
DEADLINE_S = 30.0
FEATURES = np.zeros((1, 512), dtype=np.float32)  # 2 KB, as an encoder gives
IMAGE = RawInput(bytes(2048), "image/jpeg")
TEXT = RawInput(b"a cat\na dog", "text/plain")
PROFILE = DeviceProfile(memory_bytes=2**30, compute_flops_per_s=1e9, bandwidth_bits_per_s=1e9, latency_s=0.0001)


class _Steps:
    def prepare(self, _: object) -> Prepared:
        return Prepared({})

    def answer(self, _: object, __: object) -> Output:
        return Output({})

    def sample(self) -> None:
        return None


class _NoCost(Runner):
    """Gives the outputs of a node at once."""

    def run_all(self, module: Module, many: Sequence[object], *_: object, **__: object) -> Iterator[list[Ended]]:
        output = Output({}, {"label": "a cat"}) if module.network == HEAD else Output({"features": FEATURES})
        yield [Ended(index, output, 0.0) for index in range(len(many))]


def _spec(node: str) -> ModuleSpec:
    family = f"bench.{node.replace('-', '_')}"
    return ModuleSpec(family=family, flops=1, memory_bytes=1, output_bytes=FEATURES.nbytes)


def _load(spec: ModuleSpec) -> Module:
    steps: RequestSteps = _Steps()
    return Module(spec.family.removeprefix("bench."), {None: Pass(steps, lambda *_: {})})


def agent_of(device: DeviceId, connection: Connection, make_transport: MakeTransport = connect) -> Agent:
    """The agent of one of the three devices."""
    runner = _NoCost()
    calibration = Calibration(Measurements(), runner=runner, resident_bytes=lambda: None, free_bytes=lambda: None)
    store = Store(PROFILE.memory_bytes, _load, calibration=calibration)
    config = AgentConfig(
        id=device, cache=0, latency_s=PROFILE.latency_s, bandwidth_bits_per_s=PROFILE.bandwidth_bits_per_s
    )
    both = connection, connection
    return Agent(config, profile=PROFILE, store=store, runner=runner, connections=both, make_transport=make_transport)


def _serve(url: str, device: DeviceId) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    agent_of(device, parse_url(url)).run()


def _route() -> Route:
    needs = {"image-encoder": ("image",), "text-encoder": ("text",), "head": ("image-encoder", "text-encoder")}

    def planned(node: str) -> RouteNode:
        link = {"latency_s": PROFILE.latency_s, "bandwidth_bits_per_s": PROFILE.bandwidth_bits_per_s}
        able = (RouteDevice(device=NODES[node], compute_s=0.0, **link),)
        return RouteNode(
            module=node, key=_spec(node).key, needs=needs[node], output_bytes=FEATURES.nbytes, devices=able
        )

    return Route(
        task=TASK,
        epoch=1,
        generation=1,
        group=1,
        inputs={"image": InputSpec(kind="image", bytes=2048), "text": InputSpec(kind="text", bytes=20)},
        nodes={node: planned(node) for node in NODES},
        output="head",
        front_door=(FRONT_DOOR,),
    )


def orders() -> list[Outgoing]:
    """The messages that an orchestrator retains: the assignments and the route."""
    given = []
    for node, device in NODES.items():
        wanted = Assignment(epoch=1, generation=1, modules=(AssignedModule(module=node, spec=_spec(node)),))
        given.append(Outgoing(DEVICE_ASSIGNMENT.at(PREFIX, device=device), encode(wanted), retain=True))
    return [*given, Outgoing(TASK_ROUTE.at(PREFIX, task=TASK), encode(_route()), retain=True)]


class Agents:
    """Three agents that serve the task, and a sensor, as a context manager.

    Raises:
        SiteFailed: the task isn't served in time.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        context = get_context("spawn")
        self._processes = [context.Process(target=_serve, args=(url, each), daemon=True) for each in NODES.values()]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for process in self._processes:
                process.start()
                stack.callback(process.join)
                stack.callback(process.terminate)
            self._observer = stack.enter_context(Observer(parse_url(self._url)))
            self._require(lambda seen: seen.has_heartbeats(NODES.values()), "an agent isn't online")
            self._retain()
            self._require(lambda seen: all(seen.ready(device) for device in NODES.values()), "a module isn't ready")
            self._client = stack.enter_context(Client(self._url))
            self.ask()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def ask(self) -> float:
        """The seconds of one request.

        Raises:
            SiteFailed: it was refused.
        """
        response = self._client.request(TASK, {"image": IMAGE, "text": TEXT}, deadline_s=DEADLINE_S)
        if response.result.error is not None:
            raise SiteFailed(f"a request failed: {response.result.error.message}")
        return response.latency_s

    def _retain(self) -> None:
        """Publish the orders."""
        up = Event()

        def hear(event: LinkEvent) -> None:
            if isinstance(event, LinkUp):
                up.set()

        transport = connect(parse_url(self._url), client_id="bench-orchestrator", inbox=hear)
        transport.start()
        if not up.wait(READY_S):
            raise SiteFailed("the broker doesn't answer")
        for order in orders():
            transport.publish(order)
        transport.close()

    def _require(self, holds: Callable[[Observer], bool], otherwise: str) -> None:
        if not self._observer.wait_for(holds, READY_S):
            raise SiteFailed(f"{otherwise} within {READY_S:g} s")
