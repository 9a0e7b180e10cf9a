"""The site as the page shows it: messages in, entries of the board out.

Owns what is kept of each message, and the limits: 1,000 devices, the last 100 requests and 200 events. Pure: every time
is a parameter, in seconds since 1970 on this machine's clock.

Invariants:
- A message of a known device or task replaces the one before it. Nothing grows with time.
- What no message named again after a reconnection goes away ``SETTLE_S`` later.
"""

from __future__ import annotations

from collections import deque

from pydantic import BaseModel, JsonValue

from broker.protocol.messages import Drain, OrchestratorState, Route
from broker.protocol.reports import Summary, SystemEvent, TaskStatus, Trace, UnansweredRequests
from broker.protocol.specs import MAX_TASKS
from broker.protocol.topics import (
    BRIDGE_STATE,
    DEVICE_DRAIN,
    DEVICE_HEARTBEAT,
    DEVICE_STATE,
    IS_UP,
    NOT_BRIDGED,
    ORCHESTRATOR_STATE,
    ORCHESTRATOR_UNANSWERED,
    REPORTS,
    TASK_ROUTE,
    TASK_STATUS,
    Incoming,
)
from s2m3.dashboard.board import Board, Update
from s2m3.dashboard.device import Device, Entry, facts_of
from s2m3.dashboard.failures import Failures
from s2m3.dashboard.verdict import verdict_of

READS = (*REPORTS, DEVICE_DRAIN, TASK_ROUTE)
"""The topics that a picture is made of."""
MOST_DEVICES, MOST_REQUESTS, MOST_EVENTS = 1_000, 100, 200
SETTLE_S = 15.0  # after a reconnection: every agent and the orchestrator are back by then


class Picture:
    """The picture of one site. ``take`` messages, and ask for the ``update`` of a browser.

    Args:
        about: the broker, and what a page may do there.
        at_core: whether it is seen from the core to which the site is bridged; then ``bridge`` is an entry.
    """

    def __init__(self, about: Entry, *, at_core: bool = False) -> None:
        self._board = Board()
        self._at_core = at_core
        self._board.put("about", about)
        self._devices: dict[str, Device] = {}
        self._tasks: dict[str, dict[str, BaseModel]] = {}
        self._unnamed: set[tuple[str, str]] = set()  # kinds and names of before the reconnection
        self._settled_at: float | None = None
        self._left_out: set[str] = set()
        self._denied: dict[str, JsonValue] = {}
        self._requests: deque[Trace] = deque(maxlen=MOST_REQUESTS)
        self._numbers = {"request": 0, "event": 0}
        self._failures = Failures(self._board)
        self._judged = -1  # the board's version when the verdict was made
        self.down("the broker has not answered yet")

    def up(self, now: float) -> None:
        """Note that there is a connection again."""
        self._settled_at = now + SETTLE_S
        self._board.put("link", {"up": True, "why": ""})

    def down(self, why: str) -> None:
        """Note that there is no connection."""
        self._settled_at = None
        self._unnamed = {("device", name) for name in self._devices} | {("task", name) for name in self._tasks}
        self._denied.clear()  # a new connection's refusals come before it is up
        self._board.put("denied", None)
        self._note_bridge(b"")
        self._board.put("link", {"up": False, "why": why})

    def deny(self, topic: str, why: str) -> None:
        """Note that the broker refuses a subscription."""
        self._denied[topic] = why
        self._board.put("denied", dict(self._denied))

    def take(self, incoming: Incoming, message: BaseModel | None, now: float) -> None:
        """Take in a message; None where its topic was cleared."""
        if "device" in incoming.ids and incoming.topic.retain | (incoming.topic is DEVICE_HEARTBEAT):
            self._take_device(incoming, message)
        elif "task" in incoming.ids and incoming.topic in {TASK_ROUTE, TASK_STATUS}:
            self._take_task(incoming, message)
        elif isinstance(message, SystemEvent):
            self._number("event", self._failures.take(message, self._users(message.module), now), MOST_EVENTS)
        elif isinstance(message, Trace):
            self._requests.append(message)
            entry = message.model_dump(mode="json") | {"at": now, "coordinator": incoming.ids["device"]}
            self._number("request", entry, MOST_REQUESTS)
            self._failures.answered(message, now)
        elif incoming.topic is ORCHESTRATOR_STATE:
            leads = isinstance(message, OrchestratorState) and message.online
            self._board.put("leader", {"online": leads, "epoch": getattr(message, "epoch", None)})
        elif incoming.topic is BRIDGE_STATE:
            self._note_bridge(incoming.payload)
        elif incoming.topic is ORCHESTRATOR_UNANSWERED:
            counts = message.unanswerable if isinstance(message, UnansweredRequests) else {}
            self._board.put("unanswered", {name: sum(each.values()) for name, each in counts.items()} or None)

    def knows_device(self, name: str) -> bool:
        """Whether a device is shown."""
        return name in self._devices

    def update(self, version: int | None, now: float) -> Update:
        """The changes for a browser that has this version; everything for None."""
        if self._settled_at is not None and now >= self._settled_at:
            self._settle()
        if self._judged != self._board.version:
            self._board.put("verdict", self._verdict())
            self._judged = self._board.version
        return self._board.since(version)

    def _take_device(self, incoming: Incoming, message: BaseModel | None) -> None:
        name = incoming.ids["device"]
        if name not in self._devices:
            if message is None:
                return
            if len(self._devices) >= MOST_DEVICES:
                if len(self._left_out) < MOST_DEVICES:
                    self._left_out.add(name)
                return
        device = self._devices.setdefault(name, Device())
        if incoming.topic is DEVICE_STATE and message is None:
            self._forget("device", name)
            return
        if message is None or (isinstance(message, Drain) and not message.drain):
            kind = incoming.topic.message
            device.said.pop(kind.__name__ if kind else "", None)
        else:
            device.said[type(message).__name__] = facts_of(message, at_core=self._at_core)
        if incoming.topic is DEVICE_STATE or not incoming.topic.retain:
            self._unnamed.discard(("device", name))
        if isinstance(message, Summary) and not self._at_core:
            return  # its counters are part of the verdict only
        self._board.put(f"device/{name}", device.entry())

    def _take_task(self, incoming: Incoming, message: BaseModel | None) -> None:
        name, kind = incoming.ids["task"], incoming.topic.message
        if name not in self._tasks and (message is None or len(self._tasks) >= MAX_TASKS):
            return
        task = self._tasks.setdefault(name, {})
        if message is None:
            task.pop(kind.__name__ if kind else "", None)
        else:
            task[type(message).__name__] = message
        self._unnamed.discard(("task", name))
        if not isinstance(task.get("Route"), Route):
            self._board.put(f"task/{name}", None)
            if not task:
                del self._tasks[name]
            return
        self._board.put(f"task/{name}", _task_entry(task))

    def _note_bridge(self, payload: bytes) -> None:
        """Note what the site's bridge says at the core; nothing, if it isn't known."""
        if self._at_core:
            why = "the site's bridge is down: what is shown is from before" if payload else NOT_BRIDGED
            up = payload == IS_UP
            self._board.put("bridge", {"up": up, "why": "" if up else why})

    def _number(self, kind: str, entry: Entry, most: int) -> None:
        """Add an entry behind the last of its kind; the oldest one beyond the limit goes."""
        self._numbers[kind] = number = self._numbers[kind] + 1
        self._board.put(f"{kind}/{number:09d}", entry)
        if number > most:
            self._board.put(f"{kind}/{number - most:09d}", None)

    def _users(self, module: str | None) -> set[str]:
        """The tasks that use a module of this name."""
        routes = {name: task.get("Route") for name, task in self._tasks.items()}
        return {
            name
            for name, route in routes.items()
            if isinstance(route, Route) and any(node.module == module for node in route.nodes.values())
        }

    def _settle(self) -> None:
        for kind, name in self._unnamed:
            self._forget(kind, name)
        self._unnamed, self._settled_at = set(), None

    def _forget(self, kind: str, name: str) -> None:
        (self._devices if kind == "device" else self._tasks).pop(name, None)
        self._board.put(f"{kind}/{name}", None)

    def _verdict(self) -> Entry:
        devices = {name: self._board[f"device/{name}"] for name in self._devices}
        tasks = {name: self._board[f"task/{name}"] for name in self._tasks}
        minutes = [device.said.get("Summary", {}) for device in self._devices.values()]
        return verdict_of(
            {name: each for name, each in devices.items() if isinstance(each, dict)},
            {name: each for name, each in tasks.items() if isinstance(each, dict)},
            leader=self._board["leader"],
            bridge=self._board["bridge"],
            requests=self._requests,
            minutes=minutes,
            failed_at=self._failures.last_at,
            unanswered=self._board["unanswered"],
            left_out=len(self._left_out),
        )


def _task_entry(task: dict[str, BaseModel]) -> Entry:
    """The entry that the page shows of a task."""
    route, status = task["Route"], task.get("TaskStatus")
    assert isinstance(route, Route)  # noqa: S101 - its caller looked
    state = "unavailable" if route.unavailable else "served" if route.complete else "loading"
    candidate = status.candidate if isinstance(status, TaskStatus) else None
    return {
        "state": state,
        "why": route.unavailable or "",
        "revision": route.revision,
        "candidate": candidate.model_dump(mode="json") if candidate else None,
        "front_door": list(route.front_door),
        "second_door": list(route.second_door),
        "inputs": {
            name: {"kind": each.kind, "optional": each.default is not None} for name, each in route.inputs.items()
        },
        "output": route.output,
        "nodes": {
            name: {
                "module": node.module,
                "key": node.key,
                "needs": list(node.needs),
                "devices": [each.device for each in node.devices],
            }
            for name, node in route.nodes.items()
        },
        "order": list(route.order),
        "unanswerable": dict(status.unanswerable) if isinstance(status, TaskStatus) else {},
    }
