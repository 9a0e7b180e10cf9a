"""The leader's files: the epoch, and a copy of the deployed tasks for a broker that loses its memory.

Owns how they are written, so that neither a crash nor a power cut leaves an old or a half-written one. A damaged file
is set aside under another name and logged, and the start goes on without it. Doesn't know the broker, or what a task
means.

Invariants:
- the epoch only grows, unless its file is damaged: then it goes on from what the broker remembers;
- the tasks count only for the broker and the topic prefix that they were stored for, and only while no later term is
  known: a later leader may have undeployed one;
- a damaged file of tasks is the same as no file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import BaseModel, ValidationError

from broker.protocol.errors import BadFile
from broker.protocol.specs import TaskName, TaskSpec
from orchestrator.leadership.epochs import LARGEST_EPOCH

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
        BadFile: a method can't read or write a file.
    """

    folder: Path
    broker: str
    prefix: str

    def read_epoch(self) -> int:
        """The stored epoch; 0 when the file doesn't exist, or was damaged and is set aside. Makes the directory."""
        file = self.folder / "epoch"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            content = file.read_bytes()
        except FileNotFoundError:
            return 0
        except OSError as error:
            problem = error.strerror or "can't be read"
            raise BadFile(file=str(file), problem=problem, fix="name another --state-dir") from error
        if re.fullmatch(rb"\s*[0-9]{1,16}\s*", content) and int(content) <= LARGEST_EPOCH:
            return int(content)
        _set_aside(file, f"it holds {content[:40]!r}, and an epoch is a whole number up to {LARGEST_EPOCH}")
        return 0

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


def _set_aside(file: Path, reason: str) -> None:
    """Rename a damaged file, so that the next start doesn't read it again, and log its new name."""
    kept_as = file.with_name(f"{file.name}.damaged")
    try:
        file.replace(kept_as)
    except OSError as error:
        problem = f"is damaged and can't be renamed: {error.strerror}"
        raise BadFile(file=str(file), problem=problem, fix="name another --state-dir") from error
    _log.error("damaged_file_set_aside", file=str(file), kept_as=str(kept_as), reason=reason)


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
