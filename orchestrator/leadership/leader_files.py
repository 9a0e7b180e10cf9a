"""The leader's files: the epoch, and the operators' orders (deployed tasks, drains) for a broker that loses its memory.

Owns how they are written, so that neither a crash nor a power cut leaves an old or a half-written one. A damaged file
is set aside under another name and logged, and the start goes on without it. Doesn't know the broker, or what a task
means.

Invariants:
- the epoch only grows, unless its file is damaged: then it goes on from what the broker remembers;
- the orders count only for the topic prefix that they were stored for: a site is its topics, wherever its broker is.
  One that moved to another address, or lost its memory there, gets them back;
- no file has a password;
- one process at a time uses a directory (``held_alone``): two would overwrite each other's orders.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import structlog
from pydantic import BaseModel, TypeAdapter, ValidationError, model_validator

from broker.epochs import LARGEST_EPOCH
from broker.protocol.errors import BadFile
from broker.protocol.messages import Fence, FirstLoad
from broker.protocol.sentences import describe
from broker.protocol.specs import DeviceId, TaskName, TaskSpec
from broker.transport.connection import parse_url
from orchestrator.leadership.orders import Deployed, Orders, record

WRITE_EVERY_S = 0.1
"""Between two writes of the orders: one waits for the disk, a few milliseconds, or a hundred on an SD card."""

TAKE_S = 3.0
"""How long a process waits for a directory: the one before may still be ending, as after a supervisor's restart."""

_log = structlog.get_logger("orchestrator")


class _StoredTask(BaseModel):
    spec: TaskSpec
    change: Fence


class _StoredOrders(BaseModel):
    broker: str
    prefix: str
    change: Fence
    session: Fence | None = None
    confirmed: Fence | None = None  # versions that didn't store it: all orders
    tasks: tuple[_StoredTask, ...]
    drains: dict[DeviceId, Fence] = {}
    undeployed: dict[TaskName, Fence] = {}
    undrained: dict[DeviceId, Fence] = {}
    revisions: dict[TaskName, tuple[TaskSpec, ...]] = {}
    served: dict[TaskName, TaskSpec] = {}
    digests: dict[str, FirstLoad] = {}

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        specs = [*self.served.items(), *((task, spec) for task, last in self.revisions.items() for spec in last)]
        if other := next(((task, spec.task) for task, spec in specs if spec.task != task), None):
            raise ValueError(f"{other[0]} has a spec of {other[1]}")
        return self


class _StoredTasks(BaseModel):
    """The file of versions that stored no change numbers."""

    epoch: Fence
    broker: str
    prefix: str
    tasks: tuple[TaskSpec, ...]  # in the order in which they were deployed


_SUM = re.compile(rb',"crc32":([0-9]{1,10})}$')  # of all before it; versions that stored none: no such field
_STORED: TypeAdapter[_StoredOrders | _StoredTasks] = TypeAdapter(_StoredOrders | _StoredTasks)


@contextmanager
def held_alone(folder: Path) -> Iterator[None]:
    """Hold a state directory for this process alone, until it ends, however it ends; makes the directory.

    Where the file system has no locks, nothing is held.

    Raises:
        BadFile: another process holds it, or it can't be written.
    """
    file = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        problem = f"can't be written: {error.strerror}"
        raise BadFile(file=str(file), problem=problem, fix="name another --state-dir") from error
    try:
        _take(lock, folder)
        yield
    finally:
        os.close(lock)


def _take(lock: int, folder: Path) -> None:
    until_s = time.monotonic() + TAKE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= until_s:
                problem = "another orchestrator on this machine uses this state directory"
                raise BadFile(
                    file=str(folder), problem=problem, fix="end that one, or name another --state-dir"
                ) from error
            time.sleep(0.05)
        except OSError as error:
            _log.warning("state_directory_not_locked", directory=str(folder), reason=error.strerror)
            return
        else:
            return


@dataclass(frozen=True)
class LeaderFiles:
    """The files in the state directory of a site, which has this prefix of topics; its broker is there now.

    Raises:
        BadFile: a method can't read or write a file.
    """

    folder: Path
    broker: str
    prefix: str

    def check(self) -> None:
        """Raise BadFile if the epoch can't be read, or couldn't be stored: a disk that is full or read-only."""
        self.read_epoch()
        trial = self.folder / "trial"
        _write_durably(trial, f"{LARGEST_EPOCH}\n")
        trial.unlink(missing_ok=True)

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
        if re.fullmatch(rb"\s*[0-9]{1,16}\s*", content) and int(content) < LARGEST_EPOCH:
            return int(content)
        _set_aside(file, f"it holds {content[:40]!r}, and an epoch is a whole number below {LARGEST_EPOCH}")
        return 0

    def store_epoch(self, epoch: int) -> None:
        """Write the epoch durably."""
        _write_durably(self.folder / "epoch", f"{epoch}\n")

    def read_orders(self, last_epoch: int) -> Orders:
        """The stored orders; none if the file doesn't exist, is of another site, or was damaged and is set aside."""
        file = self.folder / "tasks.json"
        try:
            content = file.read_bytes()
            if not _is_whole(content):
                _set_aside(file, "it isn't as it was written; if a person changed it, rename it back without crc32")
                return Orders()
            stored = _STORED.validate_json(content, extra="ignore")
        except FileNotFoundError:
            return Orders()
        except OSError as error:
            problem = error.strerror or "can't be read"
            raise BadFile(file=str(file), problem=problem, fix="name another --state-dir") from error
        except ValidationError as error:
            _set_aside(file, f"it holds no deployed tasks: {': '.join(describe(error.errors()[0]))}")
            return Orders()
        if stored.prefix != self.prefix:
            _log.warning("stored_tasks_of_another_site", file=str(file), prefix=stored.prefix)
            return Orders()
        if str(parse_url(stored.broker)) != str(parse_url(self.broker)):
            hint = "if this is another site, stop, and give each site its own --site or --state-dir"
            _log.warning("broker_moved", file=str(file), before=stored.broker, hint=hint)
        if isinstance(stored, _StoredTasks):
            tasks = {spec.task: spec for spec in stored.tasks} if stored.epoch >= last_epoch else {}
            return record(Orders(), tasks, (), epoch=0, session=None)
        return Orders(
            change=stored.change,
            session=stored.session,
            confirmed=stored.change if stored.confirmed is None else stored.confirmed,
            tasks={each.spec.task: Deployed(each.spec, each.change) for each in stored.tasks},
            drains=stored.drains,
            undeployed=stored.undeployed,
            undrained=stored.undrained,
            revisions=stored.revisions,
            served=stored.served,
            digests=stored.digests,
        )

    def store_orders(self, orders: Orders) -> None:
        """Write the orders durably."""
        stored = _StoredOrders(
            broker=f"mqtt://{parse_url(self.broker)}",
            prefix=self.prefix,
            change=orders.change,
            session=orders.session,
            confirmed=orders.confirmed,
            tasks=tuple(_StoredTask(spec=each.spec, change=each.change) for each in orders.tasks.values()),
            drains=dict(orders.drains),
            undeployed=dict(orders.undeployed),
            undrained=dict(orders.undrained),
            revisions=dict(orders.revisions),
            served=dict(orders.served),
            digests=dict(orders.digests),
        )
        _write_durably(self.folder / "tasks.json", _sealed(stored.model_dump_json()))


class StoredOrders:
    """The orders on the disk, kept up to date: changes that follow each other quickly are written together."""

    def __init__(self, files: LeaderFiles) -> None:
        self._files = files
        self._written: Orders | None = None
        self._next_s = 0.0

    def write(self, orders: Orders) -> None:
        """Write the orders now.

        Raises:
            BadFile: they can't be written.
        """
        self._files.store_orders(orders)
        self._written, self._next_s = orders, time.monotonic() + WRITE_EVERY_S

    def update(self, orders: Orders, *, at_once: bool = False) -> bool:
        """Write the orders if they changed; False if they have to wait a moment, and with them what follows from them.

        A file that can't be written is logged, and doesn't hold up the site.
        """
        if orders is self._written:
            return True
        if not at_once and time.monotonic() < self._next_s:
            return False
        try:
            self.write(orders)
        except BadFile as error:
            self._written = orders
            _log.error("tasks_not_stored", reason=str(error))
        return True


def _sealed(document: str) -> str:
    return f'{document[:-1]},"crc32":{zlib.crc32(document.encode())}}}'


def _is_whole(content: bytes) -> bool:
    """Whether a file is as it was written, as far as it says."""
    found = _SUM.search(content)
    return found is None or zlib.crc32(content[: found.start()] + b"}") == int(found[1])


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
