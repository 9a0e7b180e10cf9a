"""JSON lines: an object a line, read one at a time, with the line's number in every error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from broker.protocol.errors import BadFile
from s2m3.bench.datasets import disk


def objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with their lines; empty lines are passed over.

    Raises:
        BadFile: the file can't be read, has none, or the next line is no object.
    """
    empty = True
    for line, content in enumerate(disk.text(file).splitlines(), start=1):
        if not content.strip():
            continue
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise BadFile(file=str(file), line=line, problem="is not JSON", fix="write one object a line") from error
        if not isinstance(found, dict):
            raise BadFile(file=str(file), line=line, problem="is not an object", fix="write one object a line")
        empty = False
        yield line, found
    if empty:
        raise BadFile(file=str(file), problem="is empty", fix="write one object a line")


def known(found: dict[str, Any], fields: tuple[str, ...], *, file: Path, line: int) -> None:
    """Refuse a field that nobody reads: it is a misspelt one.

    Raises:
        BadFile: there is one.
    """
    if strange := sorted(found.keys() - set(fields)):
        fix = f"remove it or mend its spelling; known: {', '.join(fields)}"
        raise BadFile(file=str(file), line=line, field=strange[0], problem="is no known field", fix=fix)
