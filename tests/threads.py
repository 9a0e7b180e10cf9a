"""A small site whose orchestrator and agents are threads of the test: real connections, a trivial task, no weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from broker.client import Client
from broker.protocol.messages import DeviceProfile
from broker.protocol.specs import ModuleSpec
from broker.protocol.topics import prefix_of
from broker.transport.connection import parse_url
from broker.transport.memory import MemoryBroker, MemoryTransport
from broker.transport.port import Inbox
from edge_agent.config import AgentConfig
from edge_agent.modules import Module, Output, Value
from edge_agent.runtime.store import Store
from edge_agent.service import Agent
from orchestrator.service import Orchestrator
from s2m3.testbed.observer import Observer
from tests.builders import InlinePlanner, chain, computing, module, profile, uncalibrated_store
from tests.patience import PATIENCE_S, until

TASK = chain("echo", module("y", memory_bytes=10, output_bytes=8), image_bytes=1_000)
PICTURE = b"\xff\xd8\xff\xe0a picture"


class Service(Protocol):
    """An agent or an orchestrator."""

    def run(self) -> None:
        """Serve until stopped."""

    def stop(self) -> None:
        """End ``run`` soon."""


@contextmanager
def running(service: Service) -> Iterator[None]:
    """Run it in a thread of its own while the block lasts."""
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        yield
    finally:
        service.stop()
        thread.join(4 * PATIENCE_S)
        assert not thread.is_alive()


@contextmanager
def agent_in_memory(inbox: Inbox, *, profile: DeviceProfile, store: Store) -> Iterator[MemoryTransport]:
    """The agent ``gw-a`` on an in-memory broker, and a client that hears all into ``inbox``, while the block lasts."""
    broker = MemoryBroker()
    listener = MemoryTransport(broker, client_id="listener", inbox=inbox)
    listener.subscribe(f"{prefix_of()}/#")
    listener.start()
    config = AgentConfig(id="gw-a", heartbeat_interval_s=0.05)
    with running(Agent(config, profile=profile, store=store, make_transport=broker.connect)):
        yield listener


@dataclass
class SmallSite:
    """A site that serves ``TASK``; its answer is the label that says the site's name."""

    url: str
    site: str | None
    client: Client
    observer: Observer
    agents: dict[str, Agent]
    orchestrator: Orchestrator

    def ask(self) -> str:
        """The label of a request's answer."""
        response = self.client.request(TASK.task, {"image": PICTURE}, deadline_s=PATIENCE_S)
        assert response.result.answer is not None, response.result.error
        return str(response.result.answer["label"])

    def answers(self) -> bool:
        """Whether a request is answered."""
        return self.client.request(TASK.task, {"image": PICTURE}, deadline_s=PATIENCE_S).ok


@contextmanager
def small_site(
    url: str, state_dir: Path, site: str | None = None, devices: Sequence[str] = ("gw-a",)
) -> Iterator[SmallSite]:
    """Start a site with these devices and deploy ``TASK``; the block begins when it is served."""

    def answer(*_: Value) -> Output:
        return Output({}, {"label": str(site)})

    def load(_: ModuleSpec) -> Module:
        return computing(answer)

    connection = replace(parse_url(url), site=site)
    with ExitStack() as stack:
        observer = stack.enter_context(Observer(connection))
        orchestrator = Orchestrator(connection, state_dir, settle_s=0.1, make_planner=InlinePlanner)
        stack.enter_context(running(orchestrator))
        agents = {}
        for device in devices:
            config = AgentConfig(id=device, broker=url, site=site)
            agents[device] = Agent(config, profile=profile(), store=uncalibrated_store(100, load))
            stack.enter_context(running(agents[device]))
        client = stack.enter_context(Client(connection))
        until(lambda: observer.wait_for(lambda seen: seen.leads and seen.has_heartbeats(devices), 0.1))
        route = observer.deploy([TASK], PATIENCE_S)[TASK.task]
        assert route is not None, "the task isn't served"
        assert route.complete, route.unavailable
        yield SmallSite(url, site, client, observer, agents, orchestrator)
