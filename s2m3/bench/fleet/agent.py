"""The MQTT session of one simulated device.

Owns the way between ``device`` and ``sessions``: will, birth, assignment, rebirth, and heartbeats: one in each
interval, and one at once when the held modules change. Doesn't know what the assignments mean.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field

from broker.protocol import topics
from broker.protocol.client_ids import client_id
from broker.protocol.codec import decode, encode
from broker.protocol.messages import Assignment, DeviceState
from s2m3.bench.fleet import packets
from s2m3.bench.fleet.device import SimulatedDevice
from s2m3.bench.fleet.schedule import Punctuality
from s2m3.bench.fleet.sessions import Client, Sessions

KEEPALIVE_S = 3  # as an agent's
SESSION_BITS = 53  # exact in every JSON reader


@dataclass
class Fleet:
    """The parts that all simulated agents share."""

    sessions: Sessions
    prefix: str
    interval_s: float
    punctuality: Punctuality
    all_subscriptions: bool = False  # also those to all routes and to the orchestrator's state, as an agent has
    received: Counter[str] = field(default_factory=Counter)  # messages by the template of their topic
    chance: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311 - session numbers, no secret


class SimulatedAgent(Client):
    """The agent of a simulated device; ``fleet.sessions`` runs it."""

    def __init__(self, device: SimulatedDevice, fleet: Fleet) -> None:
        self.device = device
        self.born_s: float | None = None  # when its first birth was sent
        self._fleet = fleet
        self._sessions, self._agenda = fleet.sessions, fleet.sessions.agenda
        at = {"prefix": fleet.prefix, "device": device.id}
        self.client_id = client_id("devices", device.id, "control")
        self._assignment = topics.DEVICE_ASSIGNMENT.at(**at)
        self._rebirth = topics.DEVICE_REBIRTH.at(**at)
        self._state = topics.DEVICE_STATE.at(**at)
        self._heartbeat = topics.DEVICE_HEARTBEAT.at(**at)
        self.filters = [self._assignment, self._rebirth]
        if fleet.all_subscriptions:
            routes = topics.TASK_ROUTE.filter(fleet.prefix)
            self.filters += [self._state, routes, topics.ORCHESTRATOR_STATE.at(fleet.prefix)]
        self._packet_id = 1

    def hello(self) -> bytes:
        """The CONNECT of a new session, with its will."""
        session = self._fleet.chance.getrandbits(SESSION_BITS)
        self.device.begin_session(session)
        will = encode(DeviceState(status="offline", session=session))
        return packets.connect(self.client_id, keepalive_s=KEEPALIVE_S, will_topic=self._state, will=will)

    def on_up(self) -> None:
        """Announce the device, and begin its heartbeats."""
        self._announce()
        self.born_s = self.born_s or time.monotonic()

    def on_down(self) -> None:
        """Send no heartbeats until the next session."""
        self._agenda.discard(self._on_due)

    def on_message(self, message: packets.Message) -> None:
        """Obey an assignment; announce the device again when the orchestrator asks for it."""
        if message.topic == self._assignment:
            self._fleet.received[topics.DEVICE_ASSIGNMENT.template] += 1
            if message.payload and self.device.obey(decode(Assignment, message.payload), time.monotonic()):
                self._send_heartbeat()
                self._wait_for_loads()
        elif message.topic == self._rebirth:
            self._fleet.received[topics.DEVICE_REBIRTH.template] += 1
            self._announce()

    def fail(self) -> None:
        """Lose power: the connection ends without a goodbye, and the memory is empty."""
        self._sessions.close(self)
        self._agenda.discard(self._on_loaded)
        self.device.lose_power()
        self.born_s = None

    def _announce(self) -> None:
        self._packet_id = self._packet_id % 0xFFFF + 1
        birth = encode(self.device.birth)
        self._sessions.send(self, packets.publish(self._state, birth, retain=True, packet_id=self._packet_id))
        self._send_heartbeat()

    def _wait_for_loads(self) -> None:
        if (at_s := self.device.next_load_s) is not None:
            self._agenda.set(self._on_loaded, at_s)

    def _on_loaded(self, _: float) -> None:
        if self.device.finish_loads(time.monotonic()) and self._sessions.is_up(self):
            self._send_heartbeat()
        self._wait_for_loads()

    def _on_due(self, due_s: float) -> None:
        def written() -> None:
            self._fleet.punctuality.note(time.monotonic() - due_s)

        self._agenda.set(self._on_due, due_s + self._fleet.interval_s)
        self._sessions.send(self, packets.publish(self._heartbeat, encode(self.device.next_heartbeat())), written)

    def _send_heartbeat(self) -> None:
        """Send a heartbeat out of turn, because something changed; the next one is due an interval later."""
        self._agenda.set(self._on_due, time.monotonic() + self._fleet.interval_s)
        self._sessions.send(self, packets.publish(self._heartbeat, encode(self.device.next_heartbeat())))
