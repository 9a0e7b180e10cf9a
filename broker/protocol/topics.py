"""The topic table: one constant per topic; every other file uses these constants.

Owns templates, QoS, retain, writers, readers and messages, and how a delivered message is recognized (``read``).
``topics.md`` is this table for people; a test holds them equal. Doesn't know connections.
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
from broker.protocol.messages import Assignment, DeviceState, Drain, Heartbeat, OrchestratorState, Result, Route
from broker.protocol.specs import ID_PATTERN, INVALID_ID, TaskSpec

VERSION = "s2m3/v1"
_ID = ID_PATTERN.removeprefix("^").removesuffix("$")
_LEVEL = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Topic:
    """One row of the contract. ``message`` is None where the payload is not a JSON message of this protocol."""

    template: str
    qos: Literal[0, 1]
    retain: bool
    writer: str
    reader: str
    message: type[BaseModel] | None

    def at(self, prefix: str, **ids: str) -> str:
        """The topic for these ids.

        Raises:
            LocalProtocolError: an id is not valid.
        """
        for name, value in ids.items():
            if not re.fullmatch(_ID, value):
                raise LocalProtocolError(f"{name} {value!r} {INVALID_ID}")
        return f"{prefix}/{self.template.format(**ids)}"

    def filter(self, prefix: str, **ids: str) -> str:
        """The subscription filter: an id that is not given matches any id."""
        levels = dict.fromkeys(_LEVEL.findall(self.template), "+")
        return f"{prefix}/{self.template.format(**(levels | ids))}"

    def match(self, prefix: str, topic: str) -> dict[str, str] | None:
        """The ids in a delivered topic; None when it is another topic or an id is not valid."""
        if not topic.startswith(prefix + "/"):
            return None
        found = self._pattern.fullmatch(topic, len(prefix) + 1)
        return found.groupdict() if found else None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(_LEVEL.sub(rf"(?P<\1>{_ID})", self.template))


ORCHESTRATOR_STATE = Topic("orchestrator/state", 1, True, "orchestrator", "all", OrchestratorState)
ORCHESTRATOR_HEARTBEAT = Topic("orchestrator/heartbeat", 0, False, "orchestrator", "orchestrator", OrchestratorState)
TASK_SPEC = Topic("tasks/{task}/spec", 1, True, "deployer, orchestrator", "orchestrator", TaskSpec)
TASK_ROUTE = Topic("tasks/{task}/route", 1, True, "orchestrator", "agents, clients", Route)
DEVICE_STATE = Topic("devices/{device}/state", 1, True, "agent", "all", DeviceState)
DEVICE_ASSIGNMENT = Topic("devices/{device}/assignment", 1, True, "orchestrator", "agent", Assignment)
DEVICE_HEARTBEAT = Topic("devices/{device}/heartbeat", 0, False, "agent", "orchestrator", Heartbeat)
DEVICE_DRAIN = Topic("devices/{device}/drain", 1, True, "operator, orchestrator", "orchestrator", Drain)
DEVICE_REBIRTH = Topic("devices/{device}/rebirth", 1, False, "orchestrator", "agent", None)
DEVICE_ECHO = Topic("devices/{device}/echo", 0, False, "agent", "agent", None)
TASK_REQUESTS = Topic("tasks/{task}/requests", 1, False, "sensor", "front door", None)
TENSORS = Topic("tensors/{sender}/{receiver}/{request}/{node}", 1, False, "agent", "agent", None)
RESULTS = Topic("clients/{client}/results/{request}", 1, False, "agent", "sensor", Result)

TOPICS = tuple(row for row in tuple(globals().values()) if isinstance(row, Topic))
"""The whole table, in the order above."""


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


def read(prefix: str, topic: str, payload: bytes) -> Incoming | None:
    """Recognize a delivered message; None when its topic is not in the table. The payload is not decoded yet."""
    for row in TOPICS:
        if (ids := row.match(prefix, topic)) is not None:
            return Incoming(row, ids, payload)
    return None


def prefix_of(site: str | None = None) -> str:
    """The prefix of all topics; a site's own prefix stands before it."""
    return f"{site.strip('/')}/{VERSION}" if site else VERSION


def share_group_filter(prefix: str, task: str, epoch: int, group: int, *, backup: bool = False) -> str:
    """The shared subscription of a task's front door. New members form a new group: a hung one stays in the old.

    With ``backup`` it is that of the backup coordinators, who get each request that the front door gets.
    """
    second = "-second" if backup else ""
    return f"$share/{task}-{epoch}-{group}{second}/{TASK_REQUESTS.at(prefix, task=task)}"


def may_reply_to(prefix: str, reply_to: str) -> bool:
    """Whether an answer may go there: only below ``clients/``, so that no request makes an agent write elsewhere."""
    inside = reply_to.startswith(f"{prefix}/clients/")
    return inside and not any(sign in reply_to for sign in "+#\0") and len(reply_to.encode()) <= 1024  # noqa: PLR2004
