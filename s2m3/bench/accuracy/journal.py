"""One run's results as JSON lines, so that the run can be resumed where it stopped.

Owns the file. Knows no model. The first line is ``{"run": ...}`` with the run's settings, then comes a line for each
record in their order, then ``{"summary": ...}``. A line is written whole and flushed. A line that a crash left
half-written at the end is cut off.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from broker.protocol.errors import BadFile

Line = dict[str, Any]


class Journal:
    """The results of a run with these settings, which are all that change a result. Without a file: in memory only.

    Raises:
        BadFile: the file has another run's results, or is not a results file.
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
            raise self._foreign(1, f"holds results of another run ({', '.join(differs) or 'no run'} differs)")
        for line in found[1:]:
            if "summary" in line:
                self.summary = line["summary"]
            else:
                self.records.append(line)

    def add(self, record: Line) -> None:
        """Adds a record's result."""
        self.records.append(record)
        self._append(record)

    def finish(self, summary: Line) -> None:
        """Adds the summary: the run is complete."""
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
                file=str(self._path), problem=problem, fix="name another --results, or free disk space"
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
                raise self._foreign(number, "is not a result") from error
        return found

    def _foreign(self, line: int, problem: str) -> BadFile:
        return BadFile(file=str(self._path), line=line, problem=problem, fix="name another --results, or remove it")
