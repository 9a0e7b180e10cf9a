"""Parallel against sequential routing: the branches of a request are sent at once, or one after the other.

Owns a coordinator of its own, so that the two differ in nothing but when it sends: all branches at once, or each branch
when the one before it has reported ``done``. The site is real: two agents, a plan by ``choose_plan``, messages as
agents write them. The same request also goes through the front door, with the agent's own coordinator.

The task is CLIP B/16 with so many captions that its text encoder costs about as much as its vision encoder.
"""

from __future__ import annotations

import queue
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from broker.protocol.codec import RawInput, decode_result, decode_tensors
from broker.protocol.messages import NodeDone, NodeFailed, NodeInputs, Plan, Result, Route
from broker.protocol.specs import NodeName
from broker.protocol.topics import RESULTS, TENSORS, prefix_of, read
from broker.transport.connect import client_id_for, connect
from broker.transport.connection import Connection
from broker.transport.port import Delivery, LinkEvent, LinkUp
from edge_agent import wire
from edge_agent.events import Send
from edge_agent.requests.routing import choose_plan
from s2m3.bench.latency.compare import WARM_UP, Progress
from s2m3.bench.latency.settings import Machine
from s2m3.bench.latency.trial import DEADLINE_S, Trial, percentiles
from s2m3.bench.latency.workloads import Workload
from s2m3.bench.requests import text_input
from s2m3.reference.pictures import picture
from s2m3.testbed.proxy import UNSHAPED
from s2m3.testbed.site import SiteFailed

COORDINATOR = "bench-coordinator"
MEMORY_BYTES = 450 * 1024**2  # for one of the encoders, not both: no device has a copy of the other's
THINGS = ("cat", "dog", "horse", "cup", "photo", "picture", "coffee", "a", "what", "this")
PLACES = ("a cup", "a picture", "this photo", "coffee", "a dog")
LINES = tuple(f"a photo of the {thing} in {place}" for thing in THINGS for place in PLACES)
"""Captions of about equal length."""


class Coordinator:
    """Sends requests to agents as a front door does, at once or one branch after the other; a context manager."""

    def __init__(self, connection: Connection) -> None:
        self._prefix = prefix_of(connection.site)
        self._events: queue.Queue[LinkEvent] = queue.Queue()
        self._transport = connect(connection, client_id=client_id_for(connection), inbox=self._events.put)
        self._transport.subscribe(
            TENSORS.filter(self._prefix, receiver=COORDINATOR), RESULTS.filter(self._prefix, client=COORDINATOR)
        )

    def __enter__(self) -> Self:
        self._transport.start()
        until_s = time.monotonic() + DEADLINE_S
        while not isinstance(self._next(until_s), LinkUp):
            pass
        return self

    def __exit__(self, *exc: object) -> None:
        self._transport.close()

    def ask(self, route: Route, inputs: Mapping[str, RawInput], *, sequential: bool) -> float:
        """Sends one request, and returns the seconds until its answer.

        Raises:
            SiteFailed: a node failed, or the deadline passed.
        """
        sizes = {name: len(raw.data) for name, raw in inputs.items()}
        choice = choose_plan(route, here=COORDINATOR, input_bytes=sizes)
        if choice is None:
            raise SiteFailed("the route has no device for one of the nodes")
        plan, request = choice[0], uuid.uuid4().hex
        began_s = time.monotonic()
        for node in _branches(plan, inputs):
            taken = {need: inputs[need] for need in plan.nodes[node].needs if need in inputs}
            message = self._message(route, plan, request, node, taken)
            send = Send(plan.nodes[node].device, message, taken, began_s + DEADLINE_S)
            self._transport.publish(wire.tensors_message(self._prefix, COORDINATOR, send, began_s))
            if sequential and node != plan.output:
                self._await(NodeDone, request, node)
        self._await(Result, request)
        return time.monotonic() - began_s

    def _message(
        self, route: Route, plan: Plan, request: str, node: NodeName, taken: Mapping[NodeName, RawInput]
    ) -> NodeInputs:
        return NodeInputs(
            request=request,
            task=route.task,
            node=node,
            epoch=route.epoch,
            generation=route.generation,
            attempt=0,
            coordinator=COORDINATOR,
            deadline_s=DEADLINE_S,
            reply_to=RESULTS.at(self._prefix, client=COORDINATOR, request=request),
            plan=plan,
            content_types={name: raw.content_type for name, raw in taken.items()},
        )

    def _await(self, kind: type[NodeDone | Result], request: str, node: NodeName | None = None) -> None:
        """Waits for a request's answer, or for the end of one of its nodes."""
        until_s = time.monotonic() + DEADLINE_S
        while True:
            message = self._read(self._next(until_s))
            if isinstance(message, kind) and message.request == request and node == getattr(message, "node", None):
                return

    def _next(self, until_s: float) -> LinkEvent:
        try:
            return self._events.get(timeout=max(0.0, until_s - time.monotonic()))
        except queue.Empty:
            raise SiteFailed(f"no answer within {DEADLINE_S:g} s") from None

    def _read(self, event: LinkEvent) -> object:
        """The message of an event; None if it has none."""
        incoming = read(self._prefix, event.topic, event.payload) if isinstance(event, Delivery) else None
        if incoming is None or not isinstance(event, Delivery):
            return None
        if incoming.topic is RESULTS:
            result, _ = decode_result(event.payload, event.content_type)
            if result.error:
                raise SiteFailed(f"a request failed: {result.error.message}")
            return result
        message, _ = decode_tensors(incoming.payload)
        if isinstance(message, NodeFailed):
            raise SiteFailed(f"{message.node} failed on {message.device}: {message.error.message}")
        return message


def _branches(plan: Plan, inputs: Mapping[str, RawInput]) -> Sequence[NodeName]:
    """The nodes that take an input of the request; the output comes last, for it waits for the branches."""
    takers = [name for name, node in plan.nodes.items() if any(need in inputs for need in node.needs)]
    return sorted(takers, key=lambda name: name == plan.output)


def compare_branches(*, models: Path, requests: int, captions: int, progress: Progress) -> dict[str, Any]:
    """The report of both on one site of two equal devices, measured by this number of requests after the warm-up.

    Raises:
        SiteFailed: the site doesn't serve, or both encoders are on one device.
    """
    workload = Workload("hub/retrieval-clip-b16", dict)
    inputs = {"image": picture("china.jpg").raw, "text": text_input(*LINES[:captions])}
    agents = [Machine(id=name, memory=MEMORY_BYTES).config(UNSHAPED, str(models)) for name in ("gw-a", "gw-b")]
    latency_s: dict[str, list[float]] = {"parallel": [], "sequential": []}
    with Trial("routing", agents, {}, workload.task) as trial:
        progress("routing: starting")
        trial.deploy()
        trial.settle()
        where = trial.placement
        if where["clip-b16/vision"] == where["clip-b16/text"]:
            raise SiteFailed(f"both encoders are on {where['clip-b16/text']}: nothing to compare")
        with Coordinator(trial.site.connection) as coordinator:
            for number in range(-WARM_UP, requests):
                progress(f"routing: request {max(0, number + 1)} of {requests}")
                trial.ask(inputs, counts=number >= 0)
                for name, times in latency_s.items():
                    seconds = coordinator.ask(trial.route, inputs, sequential=name == "sequential")
                    if number >= 0:
                        times.append(seconds)
        report = trial.report()
    found = {name: percentiles(times) for name, times in latency_s.items()}
    return {
        "workload": workload.name,
        "captions": captions,
        "placement": where,
        "encoder_s": {name: report["nodes"][name]["compute_s"] for name in ("image-encoder", "text-encoder")},
        "front_door_s": report["latency_s"],
        **{f"{name}_s": times for name, times in found.items()},
        "reduction": 1 - found["parallel"]["p50"] / found["sequential"]["p50"],
    }
