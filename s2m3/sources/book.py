"""Which sources run: those of files, and those that the broker retains. Pure.

Owns the choice between them. A source of a file is first; a retained one of the same name doesn't count. A source that
can't run beside the others (a loop, a topic of the site) is refused with a sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from broker.protocol.sources import SourceName, SourceSpec
from s2m3.sources.filters import problems

MAX_SOURCES = 128  # that the broker retains


class Book:
    """The sources of one process."""

    def __init__(self, prefix: str, files: Mapping[SourceName, SourceSpec], also_published: Iterable[str] = ()) -> None:
        self._prefix = prefix
        self._files = dict(files)
        self._published = tuple(also_published)
        self._retained: dict[SourceName, SourceSpec | str] = {}  # or the reason why it can't be read
        self._unconfirmed: set[SourceName] = set()
        self.running: dict[SourceName, SourceSpec] = dict(files)
        self.refused: dict[SourceName, str] = {}
        """The retained sources that don't run, with the reason."""

    @property
    def names(self) -> set[SourceName]:
        """All sources, refused ones among them."""
        return self.running.keys() | self.refused.keys()

    def on_link_up(self) -> None:
        """The broker sends what it retains again: what doesn't come was removed meanwhile."""
        self._unconfirmed = set(self._retained)

    def settle(self) -> None:
        """All that the broker retains has arrived."""
        for name in self._unconfirmed:
            self._retained.pop(name, None)
        self._unconfirmed = set()
        self.choose()

    def on_spec(self, name: SourceName, spec: SourceSpec | str | None) -> None:
        """A retained spec, the reason why it can't be read, or None if it was removed. It counts after ``choose``."""
        self._unconfirmed.discard(name)
        if isinstance(spec, SourceSpec) and spec.source != name:
            spec = f"its source is {spec.source}, and its topic names {name}: publish it at sources/{spec.source}/spec"
        if spec is None:
            self._retained.pop(name, None)
        else:
            self._retained[name] = spec

    def choose(self) -> None:
        """Choose the sources that run, by their names: the order in which a broker sends them decides nothing."""
        running, refused = dict(self._files), {}
        for number, name in enumerate(sorted(self._retained)):
            spec = self._retained[name]
            if name in self._files:
                continue
            if isinstance(spec, str):
                refused[name] = spec
            elif number >= MAX_SOURCES:
                refused[name] = f"there are more than {MAX_SOURCES} retained sources: use + in a filter, or a file"
            else:
                found = next(problems(spec, running.values(), self._prefix, self._published), None)
                if found is None:
                    running[name] = spec
                else:
                    culprit, field, problem, fix = found
                    of = "" if culprit is spec else f" of the source {culprit.source}"
                    refused[name] = f"{field}{of} {problem}; {fix}"
        self.running, self.refused = running, refused
