"""The messages for people who watch a site: standings, statuses, events, traces and summaries.

Owns their fields. They report decisions and measurements; no process decides by them. Doesn't know their readers. A
reader ignores unknown fields and event types.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from broker.protocol.messages import AskedTask, Count, Fence, FirstLoad, Message, Reason
from broker.protocol.specs import (
    MAX_NODES,
    DeviceId,
    Digest,
    ModuleKey,
    ModuleName,
    NodeName,
    NotNegative,
    RequestId,
    Revision,
    TaskName,
)
from broker.protocol.trace_context import Traceparent

MAX_DIGESTS = 2 * MAX_NODES  # of a task: its modules, and those of the revision that is still served
MAX_UNKNOWN_TASKS = 64  # names of tasks that aren't deployed: anyone may invent them
Time = NotNegative
"""Seconds since 1970 on the sender's clock."""
Word = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_]{0,63}$")]
"""A name for programs. The set may grow: a reader takes any."""


UNDELIVERED = "its assignment can't pass the broker"
"""The standing of a device that is online begins its ``why`` so, while its assignment is too large."""


class Standing(Message):
    """The orchestrator's opinion of a device, since when, until when, and why."""

    device: DeviceId
    standing: Literal["online", "suspect", "unresponsive", "dead", "away", "probation", "draining", "drained"]
    since: Time
    until: Time | None = None
    why: str


class Candidate(Message):
    """A spec that was deployed and isn't served yet. ``revision`` is left out if it can't be read."""

    revision: Revision | None = None
    state: Literal["loading", "refused"]
    why: str | None = None


class TaskStatus(Message):
    """A task's revisions, and the requests that could not be answered."""

    task: TaskName
    revision: Revision | None = None  # the one that is served
    candidate: Candidate | None = None  # the one that takes over when it is ready
    revisions: tuple[Revision, ...] = ()  # the last five, newest first
    unanswerable: dict[str, Count] = Field(default_factory=dict)  # reason -> requests
    digests: dict[str, FirstLoad] = Field(
        default_factory=dict, max_length=MAX_DIGESTS, exclude_if=lambda digests: not digests
    )  # of the first loads of its sources, where no task file states them
    other_digests: dict[str, dict[DeviceId, Digest]] = Field(
        default_factory=dict, max_length=MAX_DIGESTS, exclude_if=lambda others: not others
    )  # of the same sources, that devices found later and didn't load


class UnansweredRequests(Message):
    """The requests that could not be answered at names that no deployed task has, such as one in capitals.

    They are counted since this leader leads. Beyond ``MAX_UNKNOWN_TASKS`` names they count under an empty one.
    """

    unanswerable: Annotated[dict[AskedTask, dict[Word, Count]], Field(max_length=MAX_UNKNOWN_TASKS + 1)]


class EventType(StrEnum):
    """The types of events that this version tells."""

    DEVICE_ONLINE = "device_online"
    DEVICE_SUSPECT = "device_suspect"
    DEVICE_DEAD = "device_dead"
    DEVICE_AWAY = "device_away"
    DEVICE_DRAINING = "device_draining"
    DEVICE_DRAINED = "device_drained"
    DEVICE_FORGOTTEN = "device_forgotten"
    MODULE_LOADING = "module_loading"
    MODULE_READY = "module_ready"
    MODULE_FAILED = "module_failed"
    MODULE_UNLOADED = "module_unloaded"
    PLACED = "placed"
    MOVED = "moved"
    TOOK_OVER = "took_over"
    LEADER_CHANGED = "leader_changed"
    TASK_DEPLOYED = "task_deployed"
    TASK_UNAVAILABLE = "task_unavailable"
    REVISION_SERVED = "revision_served"
    REVISION_REFUSED = "revision_refused"


class SystemEvent(Message):
    """One thing that happened. ``at`` is the sender's clock; order is by arrival. It may have further fields."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: Word
    at: Time
    device: DeviceId | None = None
    task: TaskName | None = None
    module: ModuleName | None = None
    why: str | None = None


class TraceNode(Message):
    """The way of one node of a request: seconds on the coordinator's clock."""

    device: DeviceId
    transfer_s: NotNegative
    queue_s: NotNegative
    compute_s: NotNegative
    return_s: NotNegative
    bytes: Count
    attempts: Count
    cache_hit: bool = False
    batch: Annotated[Count, Field(ge=1)] = 1


class Trace(Message):
    """The way of one request, without its payload. ``outcome`` is ``answered`` or an error code."""

    request: RequestId
    task: TaskName
    outcome: Word
    total_s: NotNegative
    traceparent: Traceparent | None = None  # as the sensor sent it
    nodes: dict[NodeName, TraceNode]  # that finished
    unfinished: dict[NodeName, DeviceId] = Field(default_factory=dict)


class ModuleSummary(Message):
    """A module on a device, for people."""

    module: ModuleName
    state: Word
    memory_bytes: Count
    error: Reason | None = None


class TaskCounters(Message):
    """The requests of a task that a device coordinated since its agent started."""

    requests: Count
    answered: Count
    errors: dict[Word, Count] = Field(default_factory=dict)  # error code -> requests
    latency_s: dict[float, Count] = Field(default_factory=dict)  # upper bound of a bucket in seconds -> answers


class Summary(Message):
    """A device's modules and counters, for people."""

    session: Fence
    at: Time
    version: str
    modules: dict[ModuleKey, ModuleSummary] = Field(default_factory=dict)
    counters: dict[TaskName, TaskCounters] = Field(default_factory=dict)
    last_minute: dict[TaskName, TaskCounters] = Field(default_factory=dict)  # what they grew by
