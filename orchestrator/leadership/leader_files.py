"""The leader's files: the epoch, and a copy of the deployed tasks for a broker that loses its memory.

Owns how they are written, so that neither a crash nor a power cut leaves an old or a half-written one. Doesn't know the
broker, or what a task means.

Invariants:
- the epoch only grows;
- the tasks count only for the broker and the topic prefix that they were stored for, and only while no later term is
  known: a later leader may have undeployed one;
- a damaged file of tasks is the same as no file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import BaseModel, ValidationError

from broker.protocol.errors import BadFile
from broker.protocol.specs import TaskName, TaskSpec

_log = structlog.get_logger("orchestrator")


class _StoredTasks(BaseModel):
    epoch: int
    broker: str
    prefix: str
    tasks: tuple[TaskSpec, ...]  # in the order in which they were deployed


@dataclass(frozen=True)
class LeaderFiles:
    """The files in the state directory of a site, which has this broker and this prefix of topics.

    Raises:
        BadFile: a method can't read the epoch or write a file, or the epoch isn't a whole number.
    """

    folder: Path
    broker: str
    prefix: str

    def read_epoch(self) -> int:
        """The stored epoch; 0 when the file doesn't exist. Makes the directory."""
        file = self.folder / "epoch"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            text = file.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return 0
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is not text"
            raise BadFile(file=str(file), problem=reason, fix="name another --state-dir") from error
        if not text.isdecimal():
            fix = "remove it: the epoch then goes on from what the broker remembers"
            raise BadFile(file=str(file), problem=f"holds {text[:40]!r}, no epoch", fix=fix)
        return int(text)

    def store_epoch(self, epoch: int) -> None:
        """Write the epoch durably."""
        _write_durably(self.folder / "epoch", f"{epoch}\n")

    def read_tasks(self, last_epoch: int) -> dict[TaskName, TaskSpec]:
        """The stored tasks; none if they are of another site or of a term before ``last_epoch``."""
        file = self.folder / "tasks.json"
        try:
            stored = _StoredTasks.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            _log.warning("stored_tasks_unreadable", file=str(file), reason=str(error))
            return {}
        if (stored.broker, stored.prefix) != (self.broker, self.prefix) or stored.epoch < last_epoch:
            return {}
        return {spec.task: spec for spec in stored.tasks}

    def store_tasks(self, epoch: int, tasks: Iterable[TaskSpec]) -> None:
        """Write the tasks durably."""
        stored = _StoredTasks(epoch=epoch, broker=self.broker, prefix=self.prefix, tasks=tuple(tasks))
        _write_durably(self.folder / "tasks.json", stored.model_dump_json())


def _write_durably(file: Path, text: str) -> None:
    fresh = file.with_suffix(".new")
    try:
        with fresh.open("w", encoding="utf-8") as written:
            written.write(text)
            written.flush()
            os.fsync(written.fileno())
        fresh.replace(file)
        directory = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        problem = f"can't be written: {error.strerror}"
        raise BadFile(file=str(file), problem=problem, fix="name another --state-dir") from error
