"""Sources: rules that turn messages of any topic into requests, and their answers. Pure.

Owns the fields of a source, as a person writes it and as it travels, the syntax of its topics and JSON paths, and what
the process that runs sources publishes. Doesn't know how a source is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from broker.protocol.default_text import DefaultText
from broker.protocol.messages import MAX_DEADLINE_S, Count, Fence, LeaderState, Message, Reason
from broker.protocol.reports import Time, Word
from broker.protocol.specs import MAX_INPUTS, Id, NodeName, TaskName
from broker.protocol.values import Spec

MAX_FILTER_BYTES = 1024
MAX_LEVELS = 100  # Mosquitto ends the connection of a client whose topic has more than 200
MAX_PATH = 256  # characters of a JSON path
MAX_INTERVAL_S = 86_400.0
MAX_CAPTURES = 64
MAX_TOLD = 200  # sources in one message: with the longest filters it stays below the limit of control messages

SourceName = Id
HostName = Annotated[str, StringConstraints(max_length=255)]
_CAPTURE = re.compile(r"\{([^{}]*)\}")
_NOT_IN_TOPICS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_STEP = re.compile(r"\.([^.\[\]]+)|\[([0-9]{1,9})\]|\['([^']+)'\]")
_PATHS = "write raw, or json: with a path for each input, such as {json: {image: $.picture}}"


def _unsound(place: tuple[int | str, ...], sentence: str) -> PydanticCustomError:
    return PydanticCustomError("unsound_source", "{sentence}", {"sentence": sentence, "place": place})


def steps_of(path: str) -> tuple[str | int, ...]:
    """The names and numbers of a JSON path such as ``$.after.boxes[0]`` or ``$['a key'].b``.

    Raises:
        ValueError: it is not such a path.
    """
    steps: list[str | int] = []
    position = 1
    while position < len(path):
        step = _STEP.match(path, position)
        if step is None:
            break
        name, number, quoted = step.groups()
        steps.append(int(number) if number is not None else name or quoted)
        position = step.end()
    if not path.startswith("$") or position < len(path) or len(path) > MAX_PATH:
        raise ValueError(f"{path[:80]!r} is not a JSON path; write it like $.after.snapshot, $.images[0] or $['a key']")
    return tuple(steps)


def is_filter(text: str) -> bool:
    """Whether a text is an MQTT topic filter, of topics that clients publish: not of ``$SYS``, and not a shared one."""
    levels = text.split("/")
    return (
        0 < len(text.encode(errors="replace")) <= MAX_FILTER_BYTES
        and not text.startswith("$")
        and not _NOT_IN_TOPICS.search(text)
        and len(levels) <= MAX_LEVELS
        and all(level in {"+", "#"} or not set(level) & {"+", "#"} for level in levels)
        and "#" not in levels[:-1]
    )


def is_topic(text: str) -> bool:
    """Whether a text is a topic that a client may publish to. Brokers end connections for others."""
    return is_filter(text) and not set(text) & {"+", "#"}


def _filter(text: str) -> str:
    if not is_filter(text):
        raise ValueError("is not an MQTT topic filter; write it like frigate/+/person/snapshot or home/#")
    return text


def _payload(value: object) -> object:
    """Check what stands under ``payload``, so that an error names its place."""
    if value == "raw":
        return value
    paths = value.get("json") if isinstance(value, Mapping) and set(value) == {"json"} else None
    if not isinstance(paths, Mapping) or not paths:
        raise ValueError(f"is neither raw nor json with paths; {_PATHS}")
    for name, path in paths.items():
        if not isinstance(path, str):
            raise _unsound(("json", str(name)), "must be a JSON path in quotes, such as '$.picture'")
        try:
            steps_of(path)
        except ValueError as error:
            raise _unsound(("json", str(name)), str(error)) from None
    return value


JsonPaths = Annotated[dict[NodeName, str], Field(max_length=MAX_INPUTS)]
Seconds = Annotated[float, Field(ge=0, le=MAX_INTERVAL_S, allow_inf_nan=False)]
Deadline = Annotated[float, Field(gt=0, le=MAX_DEADLINE_S, allow_inf_nan=False)]


class SourceSpec(Spec):
    """A rule that turns the messages of a topic filter into requests of a task, and publishes the answers.

    ``payload`` says whether a message is an input itself, or JSON with the inputs at these paths. ``inputs`` are
    constant ones. Of the messages that come within ``min_interval_s``, or before the answer, the newest is sent.
    ``publish`` may name the levels that the filter's ``+`` matched: ``home/{1}/who``.
    """

    source: SourceName
    subscribe: Annotated[str, AfterValidator(_filter)]
    payload: Annotated[Literal["raw"] | dict[Literal["json"], JsonPaths], BeforeValidator(_payload)] = "raw"
    task: TaskName
    inputs: Annotated[dict[NodeName, DefaultText], Field(default={}, max_length=MAX_INPUTS)]
    min_interval_s: Seconds = 1.0
    retained: Literal["skip", "take"] = "skip"
    deadline_s: Deadline = 10.0
    publish: Annotated[str, StringConstraints(min_length=1, max_length=MAX_FILTER_BYTES)] | None = None

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        for name in self.paths:
            if name in self.inputs:
                raise _unsound(("inputs", name), "is taken from the message, too (payload.json); remove one of them")
        captures = self.subscribe.split("/").count("+")
        for found in _CAPTURE.findall(self.publish or ""):
            if not found.isascii() or not found.isdigit() or not 1 <= int(found) <= captures:
                known = f"{{1}} to {{{captures}}}" if captures > 1 else "{1}" if captures else "no such name"
                plus = "one +" if captures == 1 else f"{captures} of +"
                sentence = f"names {{{found}}}; subscribe has {plus}, so there is {known}"
                raise _unsound(("publish",), sentence)
        if self.published is not None and (not is_filter(self.published) or "#" in self.published):
            raise _unsound(("publish",), "is not a topic; write it like home/door/who or home/{1}/who")
        if "+" in (self.publish or ""):
            raise _unsound(("publish",), "has a +; write {1} for what the first + of subscribe matched")
        return self

    @cached_property
    def paths(self) -> Mapping[NodeName, tuple[str | int, ...]]:
        """The steps to each input in a JSON message; none of a raw one."""
        if isinstance(self.payload, str):
            return {}
        return {name: steps_of(path) for name, path in self.payload["json"].items()}

    @cached_property
    def published(self) -> str | None:
        """The filter of all topics that ``publish`` can be; None without it."""
        if self.publish is None:
            return None
        levels = ("+" if _CAPTURE.search(level) else level for level in self.publish.split("/"))
        return "/".join(levels)

    def topic_for(self, captures: tuple[str, ...]) -> str | None:
        """The topic of the answer to a message whose levels these are; None without one, or if it isn't a topic."""
        if self.publish is None:
            return None
        topic = _CAPTURE.sub(lambda found: captures[int(found[1]) - 1], self.publish)
        return topic if is_topic(topic) else None


class SourcesState(LeaderState):
    """The process that runs the sources, or its end."""


class RunningSource(Message):
    """A source that runs: the filter that it reads, and the task that it asks."""

    subscribe: Annotated[str, StringConstraints(max_length=MAX_FILTER_BYTES)]
    task: TaskName


class SourcesRunning(Message):
    """The sources that run, of files and retained ones, and the machine whose process runs them.

    ``more`` counts those that have no room here.
    """

    host: HostName
    sources: Annotated[dict[SourceName, RunningSource], Field(max_length=MAX_TOLD)]
    more: Count = 0


class SourcesSpare(Message):
    """A process that waits as the spare, and its machine; or its end."""

    online: bool
    host: HostName
    session: Fence  # new at each connection, so that a late will of an older connection ends nothing


class SourceError(Message):
    """The reason why a message of a source has no answer: a request's error code, or ``bad_source``."""

    code: Word
    message: Reason
    retry_after_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class SourceAnswer(Message):
    """The newest answer of a source, or the error.

    ``label`` is the text that a person wants of the answer; ``answer`` is the whole of it, where it isn't large.
    ``topic`` and ``captures`` are those of the message, ``skipped`` counts messages of this topic that newer ones
    replaced since the process started.
    """

    source: SourceName
    task: TaskName | None = None
    at: Time
    label: str | None = None
    score: Annotated[float, Field(allow_inf_nan=False)] | None = None
    error: SourceError | None = None
    topic: str | None = None
    captures: Annotated[tuple[str, ...], Field(max_length=MAX_CAPTURES)] = ()
    skipped: Count = 0
    latency_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    answer: dict[str, JsonValue] | None = None
