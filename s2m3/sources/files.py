"""The files of ``s2m3 sources``: one source, or several with the settings of the process.

Owns their form, and what only shows when all files of a process are together: a name given twice, a loop. Doesn't know
how a source is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from broker.files import bad_field, keys_of, load_spec
from broker.protocol.errors import BadFile
from broker.protocol.sentences import described
from broker.protocol.sources import SourceName, SourceSpec
from broker.protocol.values import Spec
from s2m3.homeassistant.discovery import PREFIX, Discovery
from s2m3.sources.book import MAX_SOURCES
from s2m3.sources.filters import problems

_NO_PREFIX = "is not a valid topic prefix: use letters, digits, _ and -, with / between levels"


class SourcesFile(Spec):
    """Several sources, and what the process does beside them."""

    sources: Annotated[tuple[SourceSpec, ...], Field(max_length=MAX_SOURCES)] = ()
    homeassistant: bool = False
    homeassistant_prefix: Annotated[str, described(r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", _NO_PREFIX)] = PREFIX


@dataclass(frozen=True)
class Configuration:
    """The content of all files of a process. ``homeassistant`` is the prefix of its discovery; None without it."""

    sources: Mapping[SourceName, SourceSpec] = field(default_factory=dict)
    homeassistant: str | None = None


def read_files(paths: Sequence[Path | str], prefix: str) -> Configuration:
    """Read the files of a process, on a site with this prefix of topics.

    Raises:
        BadFile: a file is wrong, two sources have one name, or a source can't run beside the others.
    """
    found: dict[SourceName, SourceSpec] = {}
    places: dict[SourceName, tuple[str, tuple[int | str, ...]]] = {}
    homeassistant = None
    for path in paths:
        read, is_list = _read(path)
        if read.homeassistant:
            homeassistant = read.homeassistant_prefix
        for number, spec in enumerate(read.sources):
            place: tuple[int | str, ...] = ("sources", number) if is_list else ()
            if spec.source in found:
                problem = f"{spec.source} is the name of a source in {places[spec.source][0]}, too"
                raise bad_field(path, (*place, "source"), problem=problem, fix="rename one of them")
            found[spec.source], places[spec.source] = spec, (str(path), place)
    published = Discovery(prefix, site=None, version="", root=homeassistant).published if homeassistant else ()
    before: list[SourceSpec] = []
    for each in found.values():
        for spec, name, problem, fix in problems(each, before, prefix, published):
            path, place = places[spec.source]
            raise bad_field(path, (*place, name), problem=problem, fix=fix)
        before.append(each)
    return Configuration(found, homeassistant)


def _read(path: Path | str) -> tuple[SourcesFile, bool]:
    """A file's content, and whether its sources stand in a list."""
    keys = keys_of(Path(path))
    if {"source", "subscribe"} & keys:
        return SourcesFile(sources=(load_spec(path, SourceSpec),)), False
    if {"task", "nodes", "modules"} & keys:
        fix = "name a file with sources; `s2m3 deploy` takes this one"
        raise BadFile(file=str(path), line=1, problem="is the file of a task", fix=fix)
    if not Path(path).suffix and not Path(path).exists():
        fix = "name a file with sources, such as sources.yaml, and not a task"
        raise BadFile(file=str(path), problem="there is no such file", fix=fix)
    read = load_spec(path, SourcesFile)
    if not read.sources and not read.homeassistant:
        raise BadFile(file=str(path), line=1, problem="has no sources", fix="write one, or homeassistant: true")
    return read, True
