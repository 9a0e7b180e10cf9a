"""The operator's session: it deploys the tasks, and records the messages of the orchestrator with their times.

Owns the records: the routes, the homes of modules, the moves between them, the leader's heartbeats, and the broker's
own counts. Judges nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from broker.protocol import topics
from broker.protocol.codec import decode, encode
from broker.protocol.messages import OrchestratorState, Route
from broker.protocol.specs import DeviceId, ModuleKey, TaskName, TaskSpec
from broker.transport.connect import client_id_for
from broker.transport.connection import Connection
from s2m3.bench.fleet import packets
from s2m3.bench.fleet.sessions import Client, Sessions
from s2m3.testbed.observer import named

BROKER_COUNTS = "$SYS/broker"
KEEPALIVE_S = 60


@dataclass(frozen=True)
class Move:
    """A module's active copy that planning counts is on another device than before."""

    key: ModuleKey
    origin: DeviceId
    to: DeviceId
    at_s: float
    since_s: float  # since when it was on the first device


class Watch(Client):
    """The operator's session."""

    def __init__(self, sessions: Sessions, prefix: str) -> None:
        self.client_id = client_id_for(Connection())
        self._sessions, self._prefix = sessions, prefix
        self.filters = [
            topics.ORCHESTRATOR_STATE.at(prefix),
            topics.ORCHESTRATOR_HEARTBEAT.at(prefix),
            topics.TASK_ROUTE.filter(prefix),
            *(f"{BROKER_COUNTS}/{name}" for name in ("bytes/+", "publish/messages/dropped")),
        ]
        self.leader: OrchestratorState | None = None
        self.leader_heartbeats_s: list[float] = []
        self.epochs: set[int] = set()  # of all leaders
        self.routes: dict[TaskName, Route] = {}
        self.changed_s: dict[TaskName, float] = {}  # when the newest route of each task came
        self.served_s: dict[TaskName, float] = {}  # when the first complete route of each task came
        self.homes: dict[ModuleKey, tuple[DeviceId, float]] = {}  # where each module is served, and since when
        self.moves: list[Move] = []
        self.received: Counter[str] = Counter()  # messages by the template of their topic
        self.counts: dict[str, int] = {}  # the broker's own, by the rest of their topic
        self._packet_id = 1

    # --- the operator ---

    def deploy(self, specs: Iterable[TaskSpec]) -> None:
        """Publish the specs of tasks."""
        for spec in specs:
            self._packet_id = self._packet_id % 0xFFFF + 1
            topic = topics.TASK_SPEC.at(self._prefix, task=spec.task)
            data = packets.publish(topic, encode(spec), retain=True, packet_id=self._packet_id)
            self._sessions.send(self, data)

    def forget(self) -> None:
        """Forget the site, which loses its power."""
        self.leader = None
        for record in (self.routes, self.changed_s, self.served_s, self.homes, self.moves):
            record.clear()

    def serves(self, tasks: Iterable[TaskName]) -> bool:
        """Whether each of these tasks has a complete route."""
        return all(task in self.routes and self.routes[task].complete for task in tasks)

    def naming(self, devices: Sequence[DeviceId]) -> list[TaskName]:
        """The tasks whose routes lead to one of these devices."""
        return [task for task, route in self.routes.items() if named(route) & set(devices)]

    @property
    def broker_bytes(self) -> Mapping[str, int]:
        """The bytes that the broker has received and sent since its start, by its own count."""
        return {way: self.counts.get(f"bytes/{way}", 0) for way in ("received", "sent")}

    # --- the session ---

    def hello(self) -> bytes:
        """The CONNECT of a new session; its will is empty, on a topic of its own."""
        will_topic = f"{self._prefix}/clients/{self.client_id}/gone"
        return packets.connect(self.client_id, keepalive_s=KEEPALIVE_S, will_topic=will_topic, will=b"")

    def on_up(self) -> None:
        """Nothing to announce."""

    def on_message(self, message: packets.Message) -> None:
        """Record a message."""
        if message.topic.startswith(BROKER_COUNTS):
            self.counts[message.topic.removeprefix(f"{BROKER_COUNTS}/")] = int(message.payload)
            return
        incoming = topics.read(self._prefix, message.topic, message.payload)
        if incoming is None:
            return
        self.received[incoming.topic.template] += 1
        now_s = time.monotonic()
        if incoming.topic is topics.ORCHESTRATOR_HEARTBEAT:
            self.leader_heartbeats_s.append(now_s)
        elif incoming.topic is topics.ORCHESTRATOR_STATE:
            self.leader = decode(OrchestratorState, message.payload) if message.payload else None
            self.epochs |= {self.leader.epoch} if self.leader and self.leader.online else set()
        elif not message.payload:
            self.routes.pop(incoming.ids["task"], None)
        else:
            self._on_route(decode(Route, message.payload), now_s)

    def _on_route(self, route: Route, now_s: float) -> None:
        self.routes[route.task], self.changed_s[route.task] = route, now_s
        if route.complete:
            self.served_s.setdefault(route.task, now_s)
        for node in route.nodes.values():
            if not node.devices:
                continue
            home, since_s = node.devices[0].device, now_s
            if (known := self.homes.get(node.key)) is not None:
                if known[0] == home:
                    continue
                self.moves.append(Move(node.key, known[0], home, now_s, known[1]))
            self.homes[node.key] = (home, since_s)
