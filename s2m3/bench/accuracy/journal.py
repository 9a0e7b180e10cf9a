"""One run's results as JSON lines: what it was, its records, its summary; so that it can go on where it stopped.

Owns the file. Knows no model. ``{"run": ...}`` is the first line, then one a record in their order, then
``{"summary": ...}``. A line is written whole and flushed; what a crash left half-written at the end is cut off.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from broker.protocol.errors import BadFile

Line = dict[str, Any]


class Journal:
    """The results of one run.

    Args:
        path: Its file; None keeps them in memory only.
        run: What is run, with all settings that change a result.

    Raises:
        BadFile: the file is another run's, or no results file.
    """

    def __init__(self, path: Path | None, run: Line) -> None:
        self._path = path
        self.records: list[Line] = []
        self.summary: Line | None = None
        found = self._lines()
        if not found:
            self._append({"run": run})
        elif found[0].get("run") != run:
            old = found[0].get("run")
            differs = [key for key in run if not isinstance(old, dict) or old.get(key) != run[key]]
            problem = f"holds results of another run ({', '.join(differs) or 'no run'} differs)"
            raise BadFile(file=str(path), line=1, problem=problem, fix="name another --results, or remove it")
        for line in found[1:]:
            if "summary" in line:
                self.summary = line["summary"]
            else:
                self.records.append(line)

    def add(self, record: Line) -> None:
        """Keep a record's result."""
        self.records.append(record)
        self._append(record)

    def finish(self, summary: Line) -> None:
        """Keep the summary: the run is over."""
        self.summary = summary
        self._append({"summary": summary})

    def _append(self, line: Line) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            problem = error.strerror or "can't be written"
            raise BadFile(
                file=str(self._path), problem=problem, fix="name another --results, or free some room"
            ) from error

    def _lines(self) -> list[Line]:
        if self._path is None or not self._path.exists():
            return []
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
        found: list[Line] = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                found.append(dict(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise BadFile(
                    file=str(self._path),
                    line=number,
                    problem="is no result",
                    fix="name another --results, or remove it",
                ) from error
        return found
