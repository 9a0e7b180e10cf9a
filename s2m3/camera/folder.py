"""A watched folder: the picture files that appear in it or below, each when it is complete.

Owns which files are new. A file is complete when two looks found the same size and time; those that were there before
the first look are left out. It knows no broker.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from broker.files import is_left_behind

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_Stamp = tuple[int, int]  # size and time of the last change


class Folder:
    """The files of a folder and of the folders in it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._growing: dict[Path, _Stamp] = {}
        self._known = dict(self._files())

    def new(self) -> list[Path]:
        """The files that are new and complete since the last look, the oldest first."""
        found = dict(self._files())
        fresh = {path: stamp for path, stamp in found.items() if self._known.get(path) != stamp}
        complete = [path for path, stamp in fresh.items() if self._growing.get(path) == stamp]
        self._growing = {path: stamp for path, stamp in fresh.items() if path not in complete}
        self._known = {path: found[path] for path in found if path in complete or path not in fresh}
        return sorted(complete, key=lambda path: (found[path][1], path))

    def _files(self) -> Iterator[tuple[Path, _Stamp]]:
        for place, folders, names in os.walk(self._directory):
            folders[:] = [name for name in folders if not is_left_behind(name)]
            for name in names:
                if name.lower().endswith(SUFFIXES) and not is_left_behind(name):
                    path = Path(place, name)
                    try:
                        seen = path.stat()
                    except OSError:  # removed meanwhile
                        continue
                    if stat.S_ISREG(seen.st_mode):  # a pipe has no end: reading it would wait for ever
                        yield path, (seen.st_size, seen.st_mtime_ns)
