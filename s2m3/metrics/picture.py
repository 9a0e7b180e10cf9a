"""The site as the exporter knows it: the newest state of each topic, and counts of events and traces. Pure.

Owns what is kept, and its bounds. Doesn't know the format of a sample (``samples``) nor connections; times come in.

Invariants:
- State is forgotten when the link ends: the broker sends what it retains again, and nothing old is shown as new.
- Counts of events and traces only grow while the process runs.
- What a device or a client may invent (event types, task and node names) can't make the picture grow without bound.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pydantic import BaseModel

from broker.protocol.errors import RemoteProtocolError
from broker.protocol.messages import Assignment, DeviceState, Heartbeat, OrchestratorState
from broker.protocol.reports import EventType, Standing, Summary, SystemEvent, TaskStatus, Trace, UnansweredRequests
from broker.protocol.specs import DeviceId, ModuleKey, NodeName, TaskName
from broker.protocol.topics import (
    BRIDGE_STATE,
    DEVICE_ASSIGNMENT,
    DEVICE_HEARTBEAT,
    DEVICE_STANDING,
    DEVICE_STATE,
    DEVICE_SUMMARY,
    IS_UP,
    ORCHESTRATOR_EVENTS,
    ORCHESTRATOR_STATE,
    ORCHESTRATOR_UNANSWERED,
    REPORTS,
    TASK_STATUS,
    Incoming,
    Topic,
)
from s2m3.message_room import MessageRoom

MAX_NODES = 5_000  # nodes of all tasks that traces name
BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
PHASES = ("transfer", "queue", "compute", "return")
DOWN = frozenset({"dead", "away"})
WILL, HEARTBEAT, DRAIN, OTHER = "will", "heartbeat", "drain", "other"
_KNOWN_EVENTS = frozenset(EventType)


class Histogram:
    """Counts of durations by bucket, and their sum."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, duration_s: float) -> None:
        """Count a duration."""
        self.counts[sum(duration_s > bound_s for bound_s in BOUNDS_S)] += 1
        self.sum_s += duration_s


@dataclass
class Picture:
    """All that the exporter knows of a site. ``at_core``: it is seen from the core to which the site is bridged."""

    at_core: bool = False
    bridge: bool = False  # whether the site's bridge is up
    leader: OrchestratorState | None = None
    states: dict[DeviceId, DeviceState] = field(default_factory=dict)
    standings: dict[DeviceId, Standing] = field(default_factory=dict)
    summaries: dict[DeviceId, Summary] = field(default_factory=dict)
    roles: dict[DeviceId, dict[ModuleKey, str]] = field(default_factory=dict)
    statuses: dict[TaskName, TaskStatus] = field(default_factory=dict)
    unanswered: UnansweredRequests | None = None
    heartbeats: dict[DeviceId, tuple[float, bytes]] = field(
        default_factory=dict
    )  # when it arrived; decoded if asked for

    events: Counter[str] = field(default_factory=Counter)  # by type
    replacements: Counter[str] = field(default_factory=Counter)  # modules, by signal
    detections: dict[str, Histogram] = field(default_factory=dict)  # by signal
    nodes: dict[tuple[TaskName, NodeName, str], Histogram] = field(default_factory=dict)  # by task, node and phase
    refused: Counter[str] = field(default_factory=Counter)  # messages that can't be read, by topic's template
    left_out: int = 0  # messages for which there was no room

    _signals: dict[DeviceId, str] = field(default_factory=dict)  # of devices that are dead: what told it
    _room: MessageRoom = field(default_factory=MessageRoom)  # for the states that are kept

    def note(self, incoming: Incoming, at_s: float) -> None:
        """Take in a message; one that can't be read, or has no room, is counted."""
        topic, name = incoming.topic, "/".join(incoming.ids.values())
        if topic is BRIDGE_STATE:
            self.bridge = incoming.payload == IS_UP
        if topic not in REPORTS:
            return
        if (topic.retain or topic is DEVICE_HEARTBEAT) and not self._room.take(topic, name, len(incoming.payload)):
            self.left_out += 1
            return
        if topic is DEVICE_HEARTBEAT:
            self.heartbeats[name] = (at_s, incoming.payload)
            return
        try:
            message = incoming.decode()
        except RemoteProtocolError:
            self.refused[topic.template] += 1
            return
        if isinstance(message, SystemEvent):
            self._on_event(message, at_s, is_orchestrators=topic is ORCHESTRATOR_EVENTS)
        elif isinstance(message, Trace):
            self._on_trace(message)
        else:
            self._keep(topic, name, message)

    def forget_states(self) -> None:
        """Forget what the broker will send again, because the link ended."""
        self.leader = self.unanswered = None
        self.bridge = False
        for kept in (self.states, self.standings, self.summaries, self.roles, self.statuses, self.heartbeats):
            kept.clear()
        self._room = MessageRoom()

    def is_up(self, device: DeviceId) -> bool:
        """Whether a device serves, by its own state and by the orchestrator's opinion."""
        state, standing = self.states.get(device), self.standings.get(device)
        if state is not None and state.status == "offline":
            return False
        return standing.standing not in DOWN if standing is not None else state is not None

    @property
    def devices(self) -> list[DeviceId]:
        """The devices that the site knows."""
        return sorted(self.states.keys() | self.standings.keys())

    def _keep(self, topic: Topic, name: str, message: BaseModel | None) -> None:
        if topic is ORCHESTRATOR_STATE:
            self.leader = message if isinstance(message, OrchestratorState) else None
        elif topic is ORCHESTRATOR_UNANSWERED:
            self.unanswered = message if isinstance(message, UnansweredRequests) else None
        elif topic is DEVICE_ASSIGNMENT:
            assigned = message.modules if isinstance(message, Assignment) else ()
            self.roles[name] = {each.spec.key: each.role for each in assigned}
        else:
            kept: dict[str, BaseModel] = {
                DEVICE_STATE: self.states,
                DEVICE_STANDING: self.standings,
                DEVICE_SUMMARY: self.summaries,
                TASK_STATUS: self.statuses,
            }[topic]  # type: ignore[assignment]  # the table gives each topic's message
            kept.pop(name, None)
            kept |= {name: message} if message is not None else {}
            if topic is DEVICE_STATE and message is None:
                self._forget(name)

    def _forget(self, device: DeviceId) -> None:
        """Forget a device that the site has forgotten, as far as no further message says so."""
        self.heartbeats.pop(device, None)
        self._signals.pop(device, None)
        self._room.take(DEVICE_HEARTBEAT, device, 0)

    def _on_event(self, event: SystemEvent, at_s: float, *, is_orchestrators: bool) -> None:
        self.events[event.type if event.type in _KNOWN_EVENTS else OTHER] += 1
        if not is_orchestrators:
            return  # only the orchestrator says who is dead, and what moves
        device = event.device
        if event.type == EventType.DEVICE_DEAD and device is not None:
            state = self.states.get(device)
            signal = WILL if state is not None and state.status == "offline" else HEARTBEAT
            if device in self.states or device in self.standings:
                self._signals[device] = signal
            if device in self.heartbeats:
                self.detections.setdefault(signal, Histogram()).add(max(0.0, at_s - self.heartbeats[device][0]))
        elif event.type == EventType.DEVICE_ONLINE and device is not None:
            self._signals.pop(device, None)
        elif event.type in {EventType.MOVED, EventType.TOOK_OVER}:
            self.replacements[self._signal_of((event.model_extra or {}).get("origin"))] += 1

    def _signal_of(self, origin: object) -> str:
        """The reason why a module left a device."""
        if not isinstance(origin, str):
            return OTHER
        if origin in self._signals:
            return self._signals[origin]
        standing = self.standings.get(origin)
        return DRAIN if standing is not None and standing.standing in {"draining", "drained"} else OTHER

    def _on_trace(self, trace: Trace) -> None:
        for node, way in trace.nodes.items():
            durations = (way.transfer_s, way.queue_s, way.compute_s, way.return_s)
            for phase, duration_s in zip(PHASES, durations, strict=True):
                key = (trace.task, node, phase)
                if key not in self.nodes and len(self.nodes) >= MAX_NODES * len(PHASES):
                    self.left_out += 1
                    return
                self.nodes.setdefault(key, Histogram()).add(duration_s)


def heartbeat_of(picture: Picture, device: DeviceId) -> Heartbeat | None:
    """A device's last heartbeat; None if it sent none, or none that can be read."""
    if device not in picture.heartbeats:
        return None
    try:
        message = Incoming(DEVICE_HEARTBEAT, {"device": device}, picture.heartbeats[device][1]).decode()
    except RemoteProtocolError:
        return None
    return message if isinstance(message, Heartbeat) else None
