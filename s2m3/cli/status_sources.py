"""The sources in ``s2m3 status``: which run and where, their newest answers, and the spare.

Owns the table and the document. Doesn't know how either is printed.
"""

from __future__ import annotations

from rich.table import Table

from broker.protocol.sources import RunningSource, SourceAnswer, SourcesSpare
from s2m3.cli.output import clock, document_of, table
from s2m3.testbed.observer import Observer

MOST_SHOWN = 200  # characters of an answer


def source_table(observer: Observer) -> Table | None:
    """The table of a site's sources; None where it has none."""
    found = sources_of(observer)
    if not found:
        return None
    made = table("source", "reads", "task", "newest answer", title=title_of(observer))
    for name, source, answer in found:
        made.add_row(name, source.subscribe if source else "", _task_of(source, answer) or "", newest_of(answer))
    return made


def sources_document(observer: Observer) -> dict[str, object]:
    """The sources for programs."""
    running = observer.sources_running.get("")
    return {
        "state": document_of(observer.sources_state.get("")),
        "host": running.host if running else None,
        "spare": document_of(spare_of(observer)),
        "sources": {
            name: {
                "subscribe": source.subscribe if source else None,
                "task": _task_of(source, answer),
                "answer": document_of(answer),
            }
            for name, source, answer in sources_of(observer)
        },
    }


def spare_of(observer: Observer) -> SourcesSpare | None:
    """The process that waits as the spare of the one that runs the sources."""
    spare = observer.sources_spare.get("")
    return spare if spare is not None and spare.online else None


def sources_of(observer: Observer) -> list[tuple[str, RunningSource | None, SourceAnswer | None]]:
    """The sources that run, and those that have an answer, such as the reason why they don't run."""
    running = observer.sources_running.get("")
    known = running.sources if running else {}
    names = sorted(known.keys() | observer.source_answers.keys())
    return [(name, known.get(name), observer.source_answers.get(name)) for name in names]


def title_of(observer: Observer) -> str:
    """The title of the table: the process that runs the sources, and the one that waits as its spare."""
    state, running = observer.sources_state.get(""), observer.sources_running.get("")
    if state is None or not state.online:
        return "sources: no process runs them now (`s2m3 sources` does)"
    spare = spare_of(observer)
    waiting = f"a spare waits on {spare.host}" if spare else "no spare waits"
    more = f"; {running.more} more have no room here" if running and running.more else ""
    return f"sources, run{f' on {running.host}' if running else ''}, epoch {state.epoch}; {waiting}{more}"


def newest_of(answer: SourceAnswer | None) -> str:
    """A source's newest answer, or its error, with its time."""
    if answer is None:
        return "none yet"
    said = f"{answer.error.code}: {answer.error.message}" if answer.error else answer.label or ""
    score = f" {answer.score:.3f}" if answer.score is not None and not answer.error else ""
    label = said if len(said) <= MOST_SHOWN else f"{said[:MOST_SHOWN]}…"
    return f"{clock(answer.at)} {label}{score}"


def _task_of(source: RunningSource | None, answer: SourceAnswer | None) -> str | None:
    return source.task if source else answer.task if answer else None
