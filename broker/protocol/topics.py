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
from operator import itemgetter
from typing import Any, Literal

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
from broker.protocol.reports import Standing, Summary, SystemEvent, TaskStatus, Trace, UnansweredRequests
from broker.protocol.sources import SourceAnswer, SourceSpec, SourcesRunning, SourcesSpare, SourcesState
from broker.protocol.specs import ID_PATTERN, INVALID_ID, INVALID_LEVEL, MAX_LEVEL_BYTES, TaskSpec, is_level

VERSION = "s2m3/v1"
_ID = ID_PATTERN.removeprefix("^").removesuffix("$")
_WHOLE_ID = re.compile(_ID)
_LEVEL = re.compile(r"\{(\w+)\}")
MAX_REPLY_TO_BYTES = 1024
CLIENT_LEVELS = 2  # the levels behind ``requests`` that a sensor chooses: its own name, and the request's
_NOT_IN_TOPICS = re.compile(r"[+#\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def require_id(name: str, value: str) -> None:
    """Refuse an id that is not valid with ``LocalProtocolError``."""
    if not isinstance(value, str) or not _WHOLE_ID.fullmatch(value):
        raise LocalProtocolError(f"{name} {value!r} {INVALID_ID}")


@dataclass(frozen=True, eq=False)
class Topic:
    """One row of the contract. ``message`` is None where the payload is not a JSON message of this protocol.

    ``free`` names the levels that a sensor chooses; all other levels in braces are ids. ``crosses`` says where a bridge
    between a site and its core carries the topic: up to the core, down to the site, or nowhere.
    """

    template: str
    qos: Literal[0, 1]
    retain: bool
    writer: str
    reader: str
    message: type[BaseModel] | None
    free: tuple[str, ...] = ()
    crosses: Literal["", "up", "down"] = ""

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


ORCHESTRATOR_ID = "orchestrator"  # of orchestrators, as sender and receiver of tensors
ORCHESTRATOR_STATE = Topic("orchestrator/state", 1, True, "orchestrator", "all", OrchestratorState, crosses="up")
ORCHESTRATOR_HEARTBEAT = Topic("orchestrator/heartbeat", 0, False, "orchestrator", "orchestrator", OrchestratorState)
ORCHESTRATOR_QUARANTINE = Topic("orchestrator/quarantine", 1, True, "orchestrator", "orchestrator, agent", Quarantine)
ORCHESTRATOR_EVENTS = Topic("orchestrator/events", 1, False, "orchestrator", "observer", SystemEvent, crosses="up")
ORCHESTRATOR_UNANSWERED = Topic(
    "orchestrator/unanswered", 1, True, "orchestrator", "observer", UnansweredRequests, crosses="up"
)
TASK_SPEC = Topic(
    "tasks/{task}/spec", 1, True, "operator, orchestrator", "orchestrator, observer", TaskSpec, crosses="down"
)
TASK_ROUTE = Topic(
    "tasks/{task}/route", 1, True, "orchestrator", "orchestrator, agent, sensor, observer", Route, crosses="up"
)
TASK_REVISION = Topic("tasks/{task}/revisions/{revision}", 1, True, "orchestrator", "orchestrator, observer", TaskSpec)
TASK_STATUS = Topic("tasks/{task}/status", 1, True, "orchestrator", "orchestrator, observer", TaskStatus, crosses="up")
DEVICE_STATE = Topic(
    "devices/{device}/state", 1, True, "agent, orchestrator", "orchestrator, agent, observer", DeviceState, crosses="up"
)
DEVICE_ASSIGNMENT = Topic("devices/{device}/assignment", 1, True, "orchestrator", "agent, observer", Assignment)
DEVICE_HEARTBEAT = Topic("devices/{device}/heartbeat", 0, False, "agent", "orchestrator, observer", Heartbeat)
DEVICE_DRAIN = Topic(
    "devices/{device}/drain", 1, True, "operator, dashboard, orchestrator", "orchestrator, observer", Drain
)
DEVICE_FORGET = Topic("devices/{device}/forget", 1, False, "operator", "orchestrator", None)
DEVICE_REBIRTH = Topic("devices/{device}/rebirth", 1, False, "orchestrator", "agent", None)
DEVICE_PERMIT = Topic("devices/{device}/permit", 1, False, "orchestrator", "agent", Permit)
DEVICE_ECHO = Topic("devices/{device}/echo", 0, False, "agent", "agent", None)
DEVICE_STANDING = Topic(
    "devices/{device}/standing", 1, True, "orchestrator", "observer, sources", Standing, crosses="up"
)
DEVICE_SUMMARY = Topic(
    "devices/{device}/summary", 1, True, "agent, orchestrator", "observer, sources", Summary, crosses="up"
)
DEVICE_EVENTS = Topic("devices/{device}/events", 1, False, "agent", "observer", SystemEvent, crosses="up")
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
SOURCES_STATE = Topic("sources/state", 1, True, "sources", "sources, observer", SourcesState)
SOURCES_RUNNING = Topic("sources/running", 1, True, "sources", "observer", SourcesRunning)
SOURCES_SPARE = Topic("sources/spare", 1, True, "sources", "sources, observer", SourcesSpare)
SOURCE_SPEC = Topic("sources/{source}/spec", 1, True, "operator", "sources, observer", SourceSpec)
SOURCE_ANSWER = Topic("sources/{source}/answer", 1, True, "sources", "sources, observer", SourceAnswer)
_TRUSTED = "operator, orchestrator"
CHECK_KEPT = Topic("check/{run}/kept", 1, True, _TRUSTED, _TRUSTED, None)
CHECK_MESSAGES = Topic("check/{run}/messages/{part}/{end}", 1, False, _TRUSTED, _TRUSTED, None)
BRIDGE_STATE = Topic("bridge/state", 1, True, "bridge", "observer", None)

OF_A_DEVICE = (DEVICE_STATE, DEVICE_ASSIGNMENT, DEVICE_DRAIN, DEVICE_STANDING, DEVICE_SUMMARY)
"""The topics at which the broker retains something of a device."""
REQUESTS = (TASK_REQUESTS, CLIENT_REQUESTS)
"""The two topics of a request."""
REPORTS = (
    *(ORCHESTRATOR_STATE, ORCHESTRATOR_EVENTS, ORCHESTRATOR_UNANSWERED, TASK_STATUS),
    *(DEVICE_STATE, DEVICE_STANDING, DEVICE_SUMMARY, DEVICE_ASSIGNMENT, DEVICE_HEARTBEAT, DEVICE_EVENTS, DEVICE_TRACES),
)
"""The topics at which the orchestrator and the devices tell about themselves, for those that watch a site."""
CLEARING = b"s2m3: this clears a retained request"
"""The Correlation Data of an empty message with which an orchestrator clears a retained request."""
TOPICS = tuple(row for row in tuple(globals().values()) if isinstance(row, Topic))
"""The whole table, in the order above."""
SITES = "sites"
"""Below this a core has the topics of the sites that are bridged to it: ``sites/NAME/s2m3/v1/...``."""
ALL_SITES = f"{SITES}/all"
"""A task that a core's operator deploys here goes down to each of its sites."""
IS_UP, IS_DOWN = b"1", b"0"
"""The words of a bridge about its connection to the core."""
NOT_BRIDGED = "no site of this name is bridged to this broker"
"""The sentence, at a core, about a site of which no bridge has said anything."""


def _by_literal_levels() -> dict[int, dict[itemgetter[Any], dict[Any, Topic]]]:
    """The rows by their number of levels, the places of the levels that are given, and these levels."""
    rows: dict[int, dict[tuple[int, ...], dict[Any, Topic]]] = {}
    for row in TOPICS:
        levels = row.template.split("/")
        places = tuple(place for place, level in enumerate(levels) if not _LEVEL.fullmatch(level))
        rows.setdefault(len(levels), {}).setdefault(places, {})[itemgetter(*places)(levels)] = row
    return {count: {itemgetter(*places): found for places, found in each.items()} for count, each in rows.items()}


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
    for given, rows in _ROWS.get(len(levels), {}).items():
        row = rows.get(given(levels))
        if row is not None and (ids := row.match(prefix, topic)) is not None:
            return None if retained and not row.retain else Incoming(row, ids, payload)
    return None


def prefix_of(site: str | None = None) -> str:
    """The prefix of all topics; a site's own prefix stands before it."""
    return f"{site.strip('/')}/{VERSION}" if site else VERSION


def is_at_core(prefix: str) -> bool:
    """Whether topics with this prefix are those of a site as its core has them."""
    return prefix.startswith(f"{SITES}/")


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


@dataclass(frozen=True)
class Asked:
    """A request as its sensor addressed it. The task needn't be an id.

    ``unanswerable`` is the reason why its answer has no topic: ``no_response_topic``, ``response_topic_not_allowed``,
    or ``wrong_topic``.
    """

    task: str
    reply_to: str
    unanswerable: str | None = None


def asked(prefix: str, topic: str, response_topic: str | None) -> Asked | None:
    """A request, whatever it calls its task; None for a topic that isn't one of requests."""
    levels = topic[len(prefix) + 1 :].split("/") if topic.startswith(f"{prefix}/tasks/") else []
    if levels[2:3] != ["requests"]:
        return None
    task, client = levels[1][:MAX_LEVEL_BYTES], levels[3:]
    reply_to = response_topic or ""
    if client and (len(client) != CLIENT_LEVELS or not all(map(is_level, client))):
        return Asked(task, "", "wrong_topic")
    if client:
        reply_to = RESULTS.at(prefix, client=client[0], request=client[1])
    if not reply_to:
        return Asked(task, "", "no_response_topic")
    return Asked(task, reply_to, None if may_reply_to(prefix, reply_to) else "response_topic_not_allowed")


def may_reply_to(prefix: str, reply_to: str) -> bool:
    """Whether an answer may go there: only below ``clients/``, so that no request makes an agent write elsewhere.

    Brokers end the connection of a client whose topic is too deep or has a control character, and an
    agent's carries the requests of all others.
    """
    if not reply_to.startswith(f"{prefix}/clients/") or len(reply_to.encode(errors="replace")) > MAX_REPLY_TO_BYTES:
        return False
    deep = reply_to.count("/") - prefix.count("/") > RESULTS.template.count("/") + 1
    return not deep and _NOT_IN_TOPICS.search(reply_to) is None
