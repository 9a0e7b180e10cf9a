"""One contender of a comparison: a site that serves one task, and answers request after request.

Owns starting the site, waiting until it serves, and the costs of its requests. Compares nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

from broker.client import Response
from broker.protocol.codec import RawInput
from broker.protocol.messages import Route
from broker.protocol.specs import TaskSpec
from edge_agent.config import AgentConfig
from s2m3.testbed.observer import Observer
from s2m3.testbed.percentiles import percentile
from s2m3.testbed.proxy import LinkShape
from s2m3.testbed.site import Site, SiteFailed

START_S = 180.0  # several agents import torch and read gigabytes of weights on two cores
SETTLE_S = 3.0  # without a new route: the placement has settled
DEADLINE_S = 120.0


@dataclass
class Trial:
    """A running site with one task, as a context manager."""

    name: str  # in errors
    agents: Sequence[AgentConfig]
    links: Mapping[str, LinkShape]  # of the devices that have one to the broker
    task: TaskSpec
    responses: list[Response] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self.site = self._stack.enter_context(Site("mosquitto", self.agents, links=self.links))
        self.observer, self.client = self.site.observer, self.site.client
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def route(self) -> Route:
        """The task's newest route."""
        self.observer.look()
        return self.observer.routes[self.task.task]

    @property
    def placement(self) -> dict[str, list[str]]:
        """Module -> the devices that run it."""
        nodes = self.route.nodes.values()
        return {node.module: [device.device for device in node.devices] for node in nodes}

    def deploy(self) -> None:
        """Waits for the devices, deploys the task, and waits until it is served.

        Raises:
            SiteFailed: it isn't served in time, with the reason; or a process ended.
        """
        try:
            self.site.serve([self.task], START_S, patient=True)
        except SiteFailed as error:
            raise SiteFailed(f"{self.name}: {error}") from error

    def settle(self) -> None:
        """Waits until nothing loads and the route is stable: standbys load late, and measurements move modules.

        Raises:
            SiteFailed: this takes too long.
        """
        self.observer.look()  # what arrived while other sites started
        if not self.site.wait_for(_settled, START_S):
            raise SiteFailed(f"{self.name}: modules still load or move after {START_S:g} s")

    def ask(self, inputs: Mapping[str, RawInput], *, counts: bool = True) -> Response:
        """Sends one request and waits for its answer. The report includes it if it counts: a warm-up doesn't.

        Raises:
            SiteFailed: the request ended in an error.
        """
        response = self.client.request(self.task.task, inputs, deadline_s=DEADLINE_S)
        if not response.ok:
            raise SiteFailed(f"{self.name}: a request failed: {response.result.error}")
        if counts:
            self.responses.append(response)
        return response

    def report(self) -> dict[str, Any]:
        """Percentiles of the latency, and the median of each node's part in it."""
        nodes: dict[str, dict[str, Any]] = {}
        for name in self.task.order:
            timings = [t for response in self.responses for t in response.result.timings if t.node == name]
            nodes[name] = {
                "devices": sorted({timing.device for timing in timings}),
                "compute_s": percentile([timing.compute_s for timing in timings], 50),
                "queue_s": percentile([timing.queue_s for timing in timings], 50),
            }
        return {
            "requests": len(self.responses),
            "retried": sum(response.attempts > 1 for response in self.responses),
            "latency_s": percentiles([response.latency_s for response in self.responses]),
            "placement": self.placement,
            "nodes": nodes,
        }


def _settled(seen: Observer) -> bool:
    """Whether each assigned module is ready or failed by the newest heartbeats, and the newest route isn't new."""
    held = {(device, key): each.state for device, last in seen.heartbeats.items() for key, each in last.modules.items()}
    assigned = [(device, each.spec.key) for device, all_ in seen.assignments.items() for each in all_.modules]
    loads = any(held.get(each, "loading") == "loading" for each in assigned)
    newest_s = max(each.at_s for each in seen.sightings if isinstance(each.message, Route))
    return not loads and time.monotonic() - newest_s >= SETTLE_S


def percentiles(latency_s: Sequence[float]) -> dict[str, Any]:
    """The median, the 95th percentile and the extremes of latencies, by nearest rank."""
    shares = {"p50": 50, "p95": 95, "min": 0, "max": 100}
    return {name: percentile(latency_s, share) for name, share in shares.items()}
