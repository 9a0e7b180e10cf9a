"""The progress of one load, as other threads see it, and the way to stop it.

Owns the figures and the word to stop. A load's thread has one of these; readers of weights find it with ``current``.
A download checks at each packet whether it must end. Reading from a disk can't be stopped: its thread is left behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from broker.protocol.errors import ModuleRefused
from broker.protocol.sizes import show_sizes


def _nothing() -> None:
    """Do nothing: nobody watches this load."""


class Progress:
    """How far one load has come.

    ``step_aside`` is called when it begins to wait for the network, and ``go_on`` when it has what it waited for. Its
    downloads have at most ``limit_bytes`` together; None: any number, for the commands that a person starts.
    """

    def __init__(
        self,
        step_aside: Callable[[], None] = _nothing,
        go_on: Callable[[], None] = _nothing,
        *,
        limit_bytes: int | None = None,
    ) -> None:
        self.fetched_bytes = 0  # also those that were fetched twice
        self.expected_bytes = 0  # of all downloads that have begun
        self.file_bytes = 0  # of the file that is being downloaded
        self.download: object | None = None  # whose answers are checked (``downloads``)
        self._finished_bytes = 0  # of the files before it
        self._limit_bytes = limit_bytes
        self.disturbed = False  # another load ran meanwhile: the growth of memory isn't this module's alone
        self.stopped = ""  # the reason why it must end
        self.directory: Path | None = None  # where a download grows, perhaps that of another load or process
        self.held_back = False  # another download of this process comes first
        self._step_aside, self._go_on = step_aside, go_on

    def begin_file(self) -> None:
        """Begin the download of one more file."""
        self._finished_bytes += self.file_bytes
        self.file_bytes = 0

    def resume_file(self, kept_bytes: int) -> None:
        """The file that is being downloaded goes on behind what was kept of it, or begins again (0)."""
        self.file_bytes = kept_bytes

    def expect(self, file_bytes: int) -> None:
        """The file that is being downloaded has so many bytes; ``ModuleRefused`` if that is too much for this load."""
        self._check(self._finished_bytes + file_bytes)
        self.expected_bytes = max(self.expected_bytes, self._finished_bytes + file_bytes)

    def on_fetched(self, size_bytes: int) -> None:
        """Count bytes of a download; ``ModuleRefused`` when the load must end, or they are too many."""
        self.fetched_bytes += size_bytes
        self.file_bytes += size_bytes
        if self.stopped:
            raise ModuleRefused(self.stopped)
        self._check(self._finished_bytes + self.file_bytes)

    def _check(self, size_bytes: int) -> None:
        if self._limit_bytes is not None and size_bytes > self._limit_bytes:
            size, limit = show_sizes(size_bytes, self._limit_bytes)
            raise ModuleRefused(
                f"its files have {size} or more, and a download for this module may have "
                f"{limit} by its memory_bytes: if more is right, write download_bytes: in its source"
            )

    @property
    def growing_bytes(self) -> int:
        """The bytes of unfinished downloads where this load waits for one; another load or process may do it."""
        if self.directory is None:
            return 0
        with suppress(OSError):
            return sum(path.stat().st_size for path in self.directory.glob("*.incomplete"))
        return 0

    @contextmanager
    def fetching(self, directory: Path) -> Iterator[None]:
        """The time of a download into a directory: other loads may go on."""
        self.directory = directory
        self._step_aside()
        try:
            yield
        finally:
            self._go_on()
            self.directory = None


class _Current(threading.local):
    progress: Progress | None = None


_current = _Current()


def current() -> Progress:
    """The progress of this thread's load; a new one where no load is watched."""
    return _current.progress or Progress()


@contextmanager
def reporting_to(progress: Progress) -> Iterator[None]:
    """Let the load that this thread does report its progress here."""
    before, _current.progress = _current.progress, progress
    try:
        yield
    finally:
        _current.progress = before
