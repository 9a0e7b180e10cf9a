"""Weights by URL: fetched into a cache on this machine, checked before each use, and removed for room.

Owns the cache. ``DIR/whole/DIGEST`` has the files of one source under their own names, ``DIR/begun/DIGEST`` those of
one that isn't complete, ``DIR/locks`` an empty file or two for each. Several agents of a machine may share it.

Invariants:
- A directory in ``whole`` is complete. Its files had the SHA-256 of their list, which has that of the source; ``held``
  checks them again at each use, and fetches what a disk has changed.
- What an assignment of any agent here names is never removed (``hold``). Of the rest, the longest unused goes first.
- One download at a time in a process, and one of a source on a machine.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

import structlog
from pydantic import ValidationError

from broker.protocol.errors import ModuleRefused
from broker.protocol.sentences import describe
from broker.protocol.sizes import show_sizes
from broker.protocol.specs import ModuleKey, ModuleSpec, Source
from edge_agent.modules.weights import file_list
from edge_agent.modules.weights.allowed import allowed
from edge_agent.modules.weights.download_settings import Downloads
from edge_agent.modules.weights.downloads import DISK_RESERVE_BYTES
from edge_agent.modules.weights.exports import sha256_of
from edge_agent.modules.weights.file_list import FileList, ListedFile
from edge_agent.modules.weights.progress import Progress, current
from edge_agent.modules.weights.web import Wanted, Web

LIST = ".list.json"  # beside the files, whose names never begin with a point
FILES = {".onnx": "model.onnx", ".safetensors": "model.safetensors"}
"""The name of a file that has no list, by the end of its URL."""
LOOK_S = 0.1  # between two looks at a lock

log = structlog.get_logger()


class Cache:
    """The weights that were fetched by URL."""

    def __init__(self, directory: Path, settings: Downloads, web: Web | None = None) -> None:
        self._directory = directory
        self._settings = settings
        self._web = web or Web(settings)
        self._one_at_a_time = threading.Lock()
        self._held: dict[ModuleKey, list[int]] = {}
        self._held_lock = threading.Lock()

    def has(self, source: Source) -> bool:
        """Whether all files of a source are here."""
        return self._whole(source).is_dir()

    def directory_of(self, source: Source) -> Path:
        """The directory of a source's files, each of which was checked just now.

        Raises:
            ModuleRefused: the source isn't allowed, or can't be had.
        """
        allowed().check_url(str(source.url))
        progress, whole = current(), self._whole(source)
        try:
            if whole.is_dir() and (changed := _changed(whole)):
                log.warning("weights_changed_on_disk", file=str(whole / changed), hint="they are fetched again")
                with self._locked(f"{whole.name}.get", progress):
                    shutil.rmtree(whole, ignore_errors=True)
            if not whole.is_dir():
                self._fetch(source, progress)
            os.utime(whole)
        except OSError as error:
            raise ModuleRefused(
                f"{error.filename or self._directory} can't be used ({error.strerror or error}): correct its rights, "
                "free some room, or name another place, downloads: {directory: DIR} in the agent's file"
            ) from error
        return whole

    def hold(self, spec: ModuleSpec) -> None:
        """Keep what a module may be loaded from, until ``let_go``: an assignment names it."""
        sources = [spec.source, *(variant.source for variant in spec.variants)]
        digests = [each.digest for each in sources if each is not None and each.digest is not None]
        with self._held_lock, suppress(OSError):
            if digests and spec.key not in self._held:
                self._held[spec.key] = [self._shared(digest) for digest in digests]

    def let_go(self, key: ModuleKey) -> None:
        """No assignment names this module any more: what it was loaded from may be removed."""
        with self._held_lock:
            for lock in self._held.pop(key, ()):
                os.close(lock)

    def _whole(self, source: Source) -> Path:
        return self._directory / "whole" / str(source.digest).partition(":")[2]

    def _fetch(self, source: Source, progress: Progress) -> None:
        whole = self._whole(source)
        begun = self._directory / "begun" / whole.name
        begun.mkdir(parents=True, exist_ok=True)
        whole.parent.mkdir(parents=True, exist_ok=True)
        with progress.fetching(begun), self._turn(progress), self._locked(f"{whole.name}.get", progress):
            if whole.is_dir():
                return  # another load has fetched it
            begun.mkdir(exist_ok=True)
            files = self._listed(source, begun, progress)
            for name, file in files.files.items():
                path = begun / name
                if not (path.is_file() and path.stat().st_size == file.bytes):
                    url = f"{str(source.url).rpartition('/')[0]}/{file.sha256}"
                    allowed().check_url(url)
                    self._web.fetch(Wanted(url, file.sha256, path, file.bytes), progress)
            _flush(begun)
            begun.replace(whole)
        log.info("weights_fetched", url=source.url, bytes=files.size_bytes, directory=str(whole))

    def _listed(self, source: Source, begun: Path, progress: Progress) -> FileList:
        """The list of a source's files: what lies at its URL, or a list of that file alone."""
        url, path, sha256 = str(source.url), begun / LIST, begun.name
        self._room_for(begun, 0)
        if (name := FILES.get(PurePosixPath(url).suffix)) is not None:
            if not (begun / name).is_file():
                self._web.fetch(Wanted(url, sha256, begun / name), progress)
            alone = FileList(files={name: ListedFile(sha256=sha256, bytes=(begun / name).stat().st_size)})
            path.write_bytes(alone.encoded())
        elif not path.is_file() or sha256_of(path) != sha256:
            self._web.fetch(Wanted(url, sha256, path), progress)
        try:
            files = file_list.read(path)
        except ValidationError as error:
            first = error.errors()[0]
            problem = "it is not JSON" if first["type"] == "json_invalid" else ": ".join(describe(first))
            raise ModuleRefused(
                f"{url} is not a list of files ({problem}), and its name doesn't end in {' or '.join(FILES)}: `s2m3 "
                "models store` makes such a list"
            ) from error
        progress.expect(files.size_bytes)
        self._room_for(begun, files.size_bytes)
        return files

    def _room_for(self, begun: Path, size_bytes: int) -> None:
        """Remove what nobody needs, the longest unused first, until there is room for a source of this size.

        Raises:
            ModuleRefused: there is too little.
        """
        missing = size_bytes - sum(each.stat().st_size for each in begun.iterdir() if each.name != LIST)
        with self._locked("room", Progress()):
            others = sorted((each for each in self._all() if each != begun), key=lambda path: path.stat().st_mtime)
            while True:
                used, free = sum(map(_size_of, others)), shutil.disk_usage(self._directory).free
                if used + size_bytes <= self._settings.limit and missing + DISK_RESERVE_BYTES <= free:
                    return
                gone = next((each for each in others if self._removed(each)), None)
                if gone is None:
                    size, held, limit = show_sizes(size_bytes, used, self._settings.limit)
                    left, reserve = show_sizes(free, DISK_RESERVE_BYTES)
                    raise ModuleRefused(
                        f"its files have {size}, and {self._directory} has no room: {held} of {limit} are used by what "
                        f"is assigned, {left} are free on its disk, of which {reserve} stay free: free some room, or "
                        "raise downloads: {limit: …} in the agent's file"
                    )
                others.remove(gone)
                log.info(
                    "weights_removed", directory=str(gone), hint="they were the longest unused, and room is needed"
                )

    def _all(self) -> list[Path]:
        return [each for kind in ("whole", "begun") for each in (self._directory / kind).glob("*") if each.is_dir()]

    def _removed(self, directory: Path) -> bool:
        """Remove a directory that no agent here needs."""
        lock = self._open(f"{directory.name}.use")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        else:
            shutil.rmtree(directory)
            return True
        finally:
            os.close(lock)

    def _shared(self, digest: str) -> int:
        lock = self._open(f"{digest.partition(':')[2]}.use")
        fcntl.flock(lock, fcntl.LOCK_SH)
        return lock

    def _open(self, name: str) -> int:
        locks = self._directory / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return os.open(locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    @contextmanager
    def _turn(self, progress: Progress) -> Iterator[None]:
        """The time in which this load alone fetches in this process. To wait for it isn't to stand still."""
        progress.held_back = True
        try:
            while not self._one_at_a_time.acquire(timeout=LOOK_S):
                _check(progress)
        finally:
            progress.held_back = False
        try:
            yield
        finally:
            self._one_at_a_time.release()

    @contextmanager
    def _locked(self, name: str, progress: Progress) -> Iterator[None]:
        """The time in which no other process does this; a killed one's lock is gone with it."""
        lock = self._open(name)
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    _check(progress)
                    time.sleep(LOOK_S)
                else:
                    break
            yield
        finally:
            os.close(lock)


class _InForce:
    """The cache of this process."""

    cache: Cache | None = None


def keep_in(cache: Cache | None) -> None:
    """Set the cache of this process; None: weights by URL are refused."""
    _InForce.cache = cache


def cache() -> Cache:
    """The cache of this process.

    Raises:
        ModuleRefused: it has none.
    """
    if _InForce.cache is None:
        raise ModuleRefused(
            "weights by URL are fetched by agents only: store them in a models directory for this command"
        )
    return _InForce.cache


def hold(spec: ModuleSpec) -> None:
    """Keep what a module that is assigned may be loaded from."""
    if _InForce.cache is not None:
        _InForce.cache.hold(spec)


def let_go(key: ModuleKey) -> None:
    """A module isn't assigned any more."""
    if _InForce.cache is not None:
        _InForce.cache.let_go(key)


def _changed(whole: Path) -> str | None:
    """The first file that isn't what its list says; None: all are."""
    try:
        files = file_list.read(whole / LIST).files
        if whole.name not in {sha256_of(whole / LIST), *(each.sha256 for each in files.values() if len(files) == 1)}:
            return LIST
        for name, file in files.items():
            path = whole / name
            if path.stat().st_size != file.bytes or sha256_of(path) != file.sha256:
                return name
    except (OSError, ValidationError):
        return LIST
    return None


def _size_of(directory: Path) -> int:
    """The bytes of a source's files, also of those that are yet to come."""
    with suppress(OSError, ValidationError):
        return file_list.read(directory / LIST).size_bytes
    return sum(each.stat().st_size for each in directory.glob("*") if each.name != LIST)


def _flush(directory: Path) -> None:
    """Bring all files to the disk: what has its final name is complete there, also after a power failure."""
    for path in (*directory.iterdir(), directory):
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _check(progress: Progress) -> None:
    if progress.stopped:
        raise ModuleRefused(progress.stopped)
