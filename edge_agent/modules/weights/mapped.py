"""Files that stay mapped into memory while a module serves, and whether one of them was written to.

Weights of safetensors, and those beside an ONNX file, are read from their file when a pass needs them: what is written
into it changes a module whose digest was checked before, and a shorter file ends the process. A load's thread has a
list of such files; readers of weights add to it (``note``).
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.protocol.errors import ModuleRefused


class Mapped:
    """A file that stays mapped while a module lives. One that is renamed to its name is another file."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        self._was = self._now()

    def check(self) -> None:
        """Raise ModuleRefused if the file was written to."""
        if self._now() != self._was:
            raise ModuleRefused(
                f"{self._path} was overwritten while its module was in use: copy new files beside the old ones, and "
                "rename them"
            )

    def _now(self) -> tuple[int, int]:
        found = os.fstat(self._file)
        return found.st_size, found.st_mtime_ns


class _Current(threading.local):
    files: dict[Path, Mapped] | None = None


_current = _Current()


@contextmanager
def noted() -> Iterator[dict[Path, Mapped]]:
    """Collect the files of this thread's load."""
    before, _current.files = _current.files, {}
    try:
        yield _current.files
    finally:
        _current.files = before


def note(path: Path) -> None:
    """Add a file, before its content is read; ``OSError`` if it can't be opened. The first time counts."""
    if _current.files is not None and path not in _current.files:
        _current.files[path] = Mapped(path)


def check(files: Iterable[Mapped]) -> None:
    """Raise ModuleRefused if one of the files was written to."""
    for each in files:
        each.check()
