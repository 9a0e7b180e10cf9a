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


def _nothing() -> None:
    """Do nothing: nobody watches this load."""


class Progress:
    """How far one load has come.

    ``step_aside`` is called when it begins to wait for the network, and ``go_on`` when it has what it waited for.
    """

    def __init__(self, step_aside: Callable[[], None] = _nothing, go_on: Callable[[], None] = _nothing) -> None:
        self.fetched_bytes = 0
        self.expected_bytes = 0  # of all downloads that have begun
        self.disturbed = False  # another load ran meanwhile: the growth of memory isn't this module's alone
        self.stopped = ""  # the reason why it must end
        self.directory: Path | None = None  # where a download grows, perhaps that of another load or process
        self._step_aside, self._go_on = step_aside, go_on

    def on_fetched(self, size_bytes: int) -> None:
        """Count bytes of a download; ``ModuleRefused`` when the load must end."""
        self.fetched_bytes += size_bytes
        if self.stopped:
            raise ModuleRefused(self.stopped)

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
