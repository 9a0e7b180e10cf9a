"""The durable copy of the deployed tasks: a file beside the epoch, for a broker that loses its memory.

Owns the file, and when its content may be used. Doesn't know the broker, or what a task means.

Invariants:
- the copy counts only for the broker and the topic prefix that it was written for, and only while no later term is
  known: a later leader may have undeployed a task;
- a damaged file is the same as no file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from broker.protocol.specs import TaskName, TaskSpec
from orchestrator.leadership.epoch import write_durably

_log = structlog.get_logger("orchestrator")


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True)

    epoch: int
    broker: str
    prefix: str
    tasks: tuple[TaskSpec, ...]  # in the order in which they were deployed


@dataclass(frozen=True)
class DeployedTasks:
    """The file of one site.

    Args:
        file: where the tasks are stored.
        broker: the broker's URL.
        prefix: the prefix of the site's topics.
    """

    file: Path
    broker: str
    prefix: str

    def read(self, last_epoch: int) -> dict[TaskName, TaskSpec]:
        """The stored tasks; none if the file is of another site or of a term before ``last_epoch``."""
        try:
            content = _Content.model_validate_json(self.file.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            _log.warning("stored_tasks_unreadable", file=str(self.file), reason=str(error))
            return {}
        if (content.broker, content.prefix) != (self.broker, self.prefix) or content.epoch < last_epoch:
            return {}
        return {spec.task: spec for spec in content.tasks}

    def store(self, epoch: int, tasks: Iterable[TaskSpec]) -> None:
        """Write the tasks durably.

        Raises:
            BadFile: the file can't be written.
        """
        content = _Content(epoch=epoch, broker=self.broker, prefix=self.prefix, tasks=tuple(tasks))
        write_durably(self.file, content.model_dump_json())
