"""The topic table: one constant per topic; every other file uses these constants.

Owns templates, QoS, retain, writers, readers and messages, and how a delivered message is recognized (``read``).
``topics.md`` is this table for people; a test holds them equal: a topic that a process uses has its section there.
Doesn't know connections.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pydantic import BaseModel

from broker.protocol.codec import decode
from broker.protocol.errors import LocalProtocolError
from broker.protocol.messages import (
    Assignment,
    DeviceState,
    Drain,
    Heartbeat,
    OrchestratorState,
    Permit,
    Quarantine,
    Result,
    Route,
)
from broker.protocol.reports import Standing, Summary, SystemEvent, TaskStatus, Trace
from broker.protocol.specs import ID_PATTERN, INVALID_ID, INVALID_LEVEL, TaskSpec, is_level

VERSION = "s2m3/v1"
_ID = ID_PATTERN.removeprefix("^").removesuffix("$")
_WHOLE_ID = re.compile(_ID)
_LEVEL = re.compile(r"\{(\w+)\}")
MAX_REPLY_TO_BYTES = 1024
_NOT_IN_TOPICS = re.compile(r"[+#\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def require_id(name: str, value: str) -> None:
    """Refuse an id that is not valid with ``LocalProtocolError``."""
    if not _WHOLE_ID.fullmatch(value):
        raise LocalProtocolError(f"{name} {value!r} {INVALID_ID}")


@dataclass(frozen=True, eq=False)
class Topic:
    """One row of the contract. ``message`` is None where the payload is not a JSON message of this protocol.

    ``free`` names the levels that a sensor chooses; all other levels in braces are ids.
    """

    template: str
    qos: Literal[0, 1]
    retain: bool
    writer: str
    reader: str
    message: type[BaseModel] | None
    free: tuple[str, ...] = ()

    def at(self, prefix: str, **ids: str) -> str:
        """The topic for these ids.

        Raises:
            LocalProtocolError: an id is not valid.
        """
        for name, value in ids.items():
            if name not in self.free:
                require_id(name, value)
            elif not is_level(value):
                raise LocalProtocolError(f"{name} {value!r} {INVALID_LEVEL}")
        return f"{prefix}/{self.template.format(**ids)}"

    def filter(self, prefix: str, **ids: str) -> str:
        """The subscription filter: an id that is not given matches any id."""
        levels = dict.fromkeys(self.fields, "+")
        return f"{prefix}/{self.template.format(**(levels | ids))}"

    def match(self, prefix: str, topic: str) -> dict[str, str] | None:
        """The ids in a delivered topic; None when it is another topic or an id is not valid."""
        if not topic.startswith(prefix + "/"):
            return None
        found = self._pattern.fullmatch(topic, len(prefix) + 1)
        ids = found.groupdict() if found else None
        return ids if ids is not None and all(is_level(ids[name]) for name in self.free) else None

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The names of the levels in braces."""
        return tuple(_LEVEL.findall(self.template))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(
            _LEVEL.sub(lambda level: f"(?P<{level[1]}>{'[^/]+' if level[1] in self.free else _ID})", self.template)
        )


ORCHESTRATOR_STATE = Topic("orchestrator/state", 1, True, "orchestrator", "all", OrchestratorState)
ORCHESTRATOR_HEARTBEAT = Topic("orchestrator/heartbeat", 0, False, "orchestrator", "orchestrator", OrchestratorState)
ORCHESTRATOR_QUARANTINE = Topic("orchestrator/quarantine", 1, True, "orchestrator", "orchestrator, agent", Quarantine)
ORCHESTRATOR_EVENTS = Topic("orchestrator/events", 0, False, "orchestrator", "observer", SystemEvent)
TASK_SPEC = Topic("tasks/{task}/spec", 1, True, "operator, orchestrator", "orchestrator, observer", TaskSpec)
TASK_ROUTE = Topic("tasks/{task}/route", 1, True, "orchestrator", "orchestrator, agent, sensor, observer", Route)
TASK_REVISION = Topic("tasks/{task}/revisions/{revision}", 1, True, "orchestrator", "orchestrator, observer", TaskSpec)
TASK_STATUS = Topic("tasks/{task}/status", 1, True, "orchestrator", "orchestrator, observer", TaskStatus)
DEVICE_STATE = Topic("devices/{device}/state", 1, True, "agent", "orchestrator, agent, observer", DeviceState)
DEVICE_ASSIGNMENT = Topic("devices/{device}/assignment", 1, True, "orchestrator", "agent, observer", Assignment)
DEVICE_HEARTBEAT = Topic("devices/{device}/heartbeat", 0, False, "agent", "orchestrator, observer", Heartbeat)
DEVICE_DRAIN = Topic("devices/{device}/drain", 1, True, "operator, orchestrator", "orchestrator, observer", Drain)
DEVICE_REBIRTH = Topic("devices/{device}/rebirth", 1, False, "orchestrator", "agent", None)
DEVICE_PERMIT = Topic("devices/{device}/permit", 1, False, "orchestrator", "agent", Permit)
DEVICE_ECHO = Topic("devices/{device}/echo", 0, False, "agent", "agent", None)
DEVICE_STANDING = Topic("devices/{device}/standing", 1, True, "orchestrator", "observer", Standing)
DEVICE_SUMMARY = Topic("devices/{device}/summary", 1, True, "agent", "observer", Summary)
DEVICE_EVENTS = Topic("devices/{device}/events", 0, False, "agent", "observer", SystemEvent)
DEVICE_TRACES = Topic("devices/{device}/traces/{request}", 0, False, "agent", "observer", Trace)
TASK_REQUESTS = Topic("tasks/{task}/requests", 1, False, "sensor, orchestrator", "front door, orchestrator", None)
CLIENT_REQUESTS = Topic(
    "tasks/{task}/requests/{client}/{request}",
    1,
    False,
    "sensor, orchestrator",
    "front door, orchestrator",
    None,
    free=("client", "request"),
)
TENSORS = Topic(
    "tensors/{sender}/{receiver}/{request}/{node}", 1, False, "agent, orchestrator", "agent, orchestrator", None
)
RESULTS = Topic(
    "clients/{client}/results/{request}", 1, False, "agent, orchestrator", "sensor", Result, free=("client", "request")
)

REQUESTS = (TASK_REQUESTS, CLIENT_REQUESTS)
"""The two topics of a request."""
CLEARING = b"s2m3: this clears a retained request"
"""The Correlation Data of an empty message with which an orchestrator clears a retained request."""
TOPICS = tuple(row for row in tuple(globals().values()) if isinstance(row, Topic))
"""The whole table, in the order above."""


def _by_literal_levels() -> dict[int, dict[tuple[int, ...], dict[tuple[str, ...], Topic]]]:
    """The rows by their number of levels, the places of the levels that are given, and these levels."""
    rows: dict[int, dict[tuple[int, ...], dict[tuple[str, ...], Topic]]] = {}
    for row in TOPICS:
        levels = row.template.split("/")
        places = tuple(place for place, level in enumerate(levels) if not _LEVEL.fullmatch(level))
        rows.setdefault(len(levels), {}).setdefault(places, {})[tuple(levels[place] for place in places)] = row
    return rows


_ROWS = _by_literal_levels()


@dataclass(frozen=True)
class Incoming:
    """A delivered message, recognized: its row of the table, the ids of its topic, and its bytes."""

    topic: Topic
    ids: Mapping[str, str]
    payload: bytes

    def decode(self) -> BaseModel | None:
        """The JSON message that the table declares; None for topics without one, and when a retained topic was cleared.

        Raises:
            RemoteProtocolError: too large, not JSON, or a field is missing or wrong.
        """
        if self.topic.message is None or (self.topic.retain and not self.payload):
            return None
        return decode(self.topic.message, self.payload)


def read(prefix: str, topic: str, payload: bytes, *, retained: bool = False) -> Incoming | None:
    """Recognize a delivered message; None when its topic is not in the table. The payload is not decoded yet.

    None also for a retained message at a topic of events: they count only when they happen.
    """
    if not topic.startswith(prefix + "/"):
        return None
    levels = topic[len(prefix) + 1 :].split("/")
    for places, rows in _ROWS.get(len(levels), {}).items():
        row = rows.get(tuple(levels[place] for place in places))
        if row is not None and (ids := row.match(prefix, topic)) is not None:
            return None if retained and not row.retain else Incoming(row, ids, payload)
    return None


def prefix_of(site: str | None = None) -> str:
    """The prefix of all topics; a site's own prefix stands before it."""
    return f"{site.strip('/')}/{VERSION}" if site else VERSION


def share_group_filter(prefix: str, task: str, epoch: int, group: int, *, backup: bool = False) -> str:
    """The shared subscription of a task's front door. New members form a new group: a hung one stays in the old.

    With ``backup`` it is that of the backup coordinators, who get each request that the front door gets.
    """
    second = "-second" if backup else ""
    return f"$share/{task}-{epoch}-{group}{second}/{requests_filter(prefix, task)}"


def requests_filter(prefix: str, task: str = "+") -> str:
    """The filter of a task's requests, on both of their topics.

    It is one filter, not two: of two filters in one share group the embedded broker delivers only the first one's.
    """
    return f"{TASK_REQUESTS.filter(prefix, task=task)}/#"


def answer_topic(prefix: str, request: Incoming, response_topic: str | None) -> str:
    """The topic of a request's answer; empty when the request names none.

    A request that names its client in its own topic is answered at that client's topic, whatever its Response Topic
    is: so an access rule for the request's topic holds for the answer's, too.
    """
    if request.topic is not CLIENT_REQUESTS:
        return response_topic or ""
    return RESULTS.at(prefix, client=request.ids["client"], request=request.ids["request"])


def may_reply_to(prefix: str, reply_to: str) -> bool:
    """Whether an answer may go there: only below ``clients/``, so that no request makes an agent write elsewhere.

    Brokers end the connection of a client whose topic is too deep or has a control character, and an
    agent's carries the requests of all others.
    """
    if not reply_to.startswith(f"{prefix}/clients/") or len(reply_to.encode(errors="replace")) > MAX_REPLY_TO_BYTES:
        return False
    deep = reply_to.count("/") - prefix.count("/") > RESULTS.template.count("/") + 1
    return not deep and _NOT_IN_TOPICS.search(reply_to) is None
