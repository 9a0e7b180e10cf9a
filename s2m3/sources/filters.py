"""Topic filters: what a filter's ``+`` matched, and whether two filters can match one topic. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from broker.protocol.errors import BadFile
from broker.protocol.sources import SourceSpec
from broker.servers.access import require_outside


def captures_of(topic_filter: str, topic: str) -> tuple[str, ...] | None:
    """The levels of a topic that the filter's ``+`` match, in order; None when the filter doesn't match."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in {"+", "#"}:
        return None  # the broker's own topics
    found: list[str] = []
    for position, level in enumerate(wanted):
        if level == "#":
            return tuple(found)
        if position >= len(levels) or level not in {"+", levels[position]}:
            return None
        if level == "+":
            found.append(levels[position])
    return tuple(found) if len(wanted) == len(levels) else None


def overlap(one: str, other: str) -> bool:
    """Whether a topic exists that both filters match."""
    ours, theirs = one.split("/"), other.split("/")
    for left, right in zip(ours, theirs, strict=False):
        if "#" in {left, right}:
            return True
        if left != right and "+" not in {left, right}:
            return False
    longer, length = (ours, len(theirs)) if len(ours) > len(theirs) else (theirs, len(ours))
    return len(longer) == length or longer[length:] == ["#"]  # which matches its parent level, too


Problem = tuple[SourceSpec, str, str, str]
"""A source, its field, what is wrong, and what to do."""


def problems(
    spec: SourceSpec, others: Collection[SourceSpec], prefix: str, also_published: Iterable[str] = ()
) -> Iterator[Problem]:
    """The reasons why a source can't run beside others, which can run together.

    ``also_published`` are filters that the process writes beside the answers.
    """
    for field, filter_ in (("subscribe", spec.subscribe), ("publish", spec.published)):
        try:
            require_outside((filter_,) if filter_ else (), prefix)
        except BadFile as error:
            yield spec, field, f"{filter_} {error.problem}", error.fix
    for written in also_published:
        if overlap(spec.subscribe, written):
            problem = f"is a loop: it reads {written}, which the sources themselves publish"
            yield spec, "subscribe", problem, "subscribe to fewer topics"
    for reader, writer in [(spec, spec), *((spec, each) for each in others), *((each, spec) for each in others)]:
        if writer.published is not None and overlap(reader.subscribe, writer.published):
            own = "this source" if writer is reader else f"the source {reader.source}"
            problem = f"is a loop: {own} reads {reader.subscribe}, and would take {writer.publish} as a new message"
            yield writer, "publish", problem, "publish elsewhere, or subscribe to fewer topics"
