"""Downloads from the hub: each answer is checked before it is used, and bounded while it comes.

Owns what is expected of a hub that may lie, or of a proxy that changes its answers: the hub's client calls these checks
for each request and each answer. Knows no repository and no module.

Invariants, for a file at a commit:
- The answer is of that commit. Its ETag is a plain name: the client makes a path of it.
- A file gets its name only if its bytes have the hash that its ETag is (SHA-256 or SHA-1, as the hub's are), and if
  the load's files are no larger than they may be. Otherwise nothing of it stays.
- No answer is decompressed. One that isn't a file, such as a redirect or an error, is read up to ``MAX_OTHER_BYTES``.
- A hub that is asked over TLS leads nowhere else than to TLS. The client sends its token to no other host.
- The disk keeps ``DISK_RESERVE_BYTES`` free, whatever size was announced.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from broker.protocol.errors import ModuleRefused
from broker.protocol.sizes import show_sizes
from edge_agent.modules.weights.progress import Progress, current, reporting_to

CHUNK_BYTES = 1024 * 1024  # written at a time: other loads that wait for the same file see it grow
DISK_RESERVE_BYTES = 64 * 1024 * 1024  # that a download leaves free, for logs and measurements
ROOM_EVERY_BYTES = 16 * 1024 * 1024  # of a download, after which the disk is looked at again
MAX_OTHER_BYTES = 1024 * 1024
ABANDONED_S = 3600.0  # a file that no download has written to for so long was left by a process that was killed
_ETAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_OK, _PARTIAL = 200, 206
FIX = "check the network's proxy and HF_ENDPOINT, or put the repository into the models directory"

_Read = Callable[[int | None], Iterator[bytes]]


class Download:
    """One file of the hub that is being fetched: what its answers must be, and how much of it has come."""

    def __init__(self, what: str, commit: str, progress: Progress) -> None:
        self._what = what
        self._commit = commit
        self._progress = progress
        self.is_known = False  # the hub has said what the file is; what the client reads before is something else
        self._etag = ""
        self._size_bytes: int | None = None
        self._since_room_bytes = 0
        self._kept_bytes = 0
        self._hashes: list[Any] = []

    def on_head(self, response: Any) -> None:  # noqa: ANN401 - of the hub's HTTP library, whose name changes
        """Check the facts about the file.

        Raises:
            ModuleRefused: they are of another commit, or can't be true.
        """
        commit = response.headers.get("X-Repo-Commit")
        if commit is not None and commit != self._commit:
            raise ModuleRefused(
                f"the hub answered with {self._what} of the commit {commit[:80]!r}: try again, or {FIX}"
            )
        etag = (response.headers.get("X-Linked-Etag") or response.headers.get("ETag") or "").lstrip("W/").strip('"')
        if etag and not _ETAG.fullmatch(etag):
            raise ModuleRefused(f"the hub gave {self._what} the ETag {etag[:80]!r}, which is not a plain name: {FIX}")
        size = response.headers.get("X-Linked-Size") or (
            None if response.is_redirect else response.headers.get("Content-Length")
        )
        self.is_known = True
        self._etag, self._size_bytes = etag, int(size) if size is not None and size.isdecimal() else None
        if self._size_bytes is not None:
            self._progress.expect(self._size_bytes)

    def on_file(self, response: Any) -> None:  # noqa: ANN401 - the same
        """Check the beginning of the file itself, or of the rest of it.

        Raises:
            ModuleRefused: it is compressed, larger than it may be, or the disk has no room for it.
        """
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in {"", "identity"}:
            raise ModuleRefused(f"{self._what} comes compressed ({encoding[:40]}), which isn't read: {FIX}")
        length = response.headers.get("Content-Length", "")
        size_bytes = int(length) if length.isdecimal() else None
        if response.status_code == _OK or not self._kept_bytes:
            self._kept_bytes = 0
            self._hashes = _hashes(self._etag, size_bytes if size_bytes is not None else self._size_bytes)
        self._progress.resume_file(self._kept_bytes)
        self._progress.expect(self._kept_bytes + (size_bytes or 0))
        check_room(size_bytes or 0)

    def on_bytes(self, chunk: bytes) -> None:
        """Count bytes that have come.

        Raises:
            ModuleRefused: there are too many, the disk is full, or the load must end.
        """
        self._progress.on_fetched(len(chunk))
        self._since_room_bytes += len(chunk)
        if self._since_room_bytes >= ROOM_EVERY_BYTES:
            self._since_room_bytes = 0
            check_room(0)

    def on_kept(self, chunk: bytes) -> None:
        """Hash bytes that are written: of a download that breaks off, some that came are not."""
        self._kept_bytes += len(chunk)
        for each in self._hashes:
            each.update(chunk)

    def on_end(self) -> None:
        """Check the hash of the whole file.

        Raises:
            ModuleRefused: it is not the one that the hub announced.
        """
        found = [each.hexdigest() for each in self._hashes]
        if found and self._etag not in found:
            raise ModuleRefused(
                f"{self._what} has the hash {found[0]}, and the hub says {self._etag}: it was not kept; "
                f"try again, or {FIX}"
            )


@contextmanager
def downloading(what: str, commit: str, blobs: Path) -> Iterator[None]:
    """The time in which the hub's client fetches one file, in this thread, into the directory ``blobs``."""
    progress = current()
    _watch_client()
    _remove_abandoned(blobs)
    progress.begin_file()
    progress.download = Download(what, commit, progress)
    try:
        with reporting_to(progress), progress.fetching(blobs):
            yield
    finally:
        progress.download = None


def check_room(size_bytes: int) -> None:
    """Check that the disk of the hub's cache has room for a download of this size, or for the rest of one (0).

    Raises:
        ModuleRefused: it hasn't.
    """
    from huggingface_hub import constants  # noqa: PLC0415 - slow, and not needed with a models directory

    check_disk(Path(constants.HF_HUB_CACHE), size_bytes, "the download", "HF_HOME")


def check_disk(directory: Path, size_bytes: int, what: str, variable: str) -> None:
    """Check that the disk of a directory has room for ``what``; ``variable`` names another directory.

    Raises:
        ModuleRefused: it hasn't.
    """
    place = next(path for path in (directory, *directory.parents) if path.is_dir())
    free_bytes = shutil.disk_usage(place).free
    if size_bytes + DISK_RESERVE_BYTES > free_bytes:
        size, free, reserve = show_sizes(size_bytes, free_bytes, DISK_RESERVE_BYTES)
        needs = f"{what} has {size}" if size_bytes else f"{what} goes on"
        raise ModuleRefused(
            f"{needs}, and {free} are free on the disk of {place}, of which {reserve} stay free: free some room, or "
            f"set {variable} to a larger disk"
        )


def _watch_client() -> None:
    """Let the hub's client call the checks of this file.

    The Xet protocol, which reads in threads that nobody can stop, is turned off, and so is telemetry: to say in which
    program it runs, the client would first download a list of programs.
    """
    from huggingface_hub import constants, get_session  # noqa: PLC0415 - the same

    constants.HF_HUB_DISABLE_XET = constants.HF_HUB_DISABLE_TELEMETRY = True
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    hooks = get_session().event_hooks
    if _on_answer not in hooks["response"]:
        hooks["request"].append(_on_request)
        hooks["response"].append(_on_answer)


def _on_request(request: Any) -> None:  # noqa: ANN401 - the same
    from huggingface_hub import constants  # noqa: PLC0415 - the same

    if constants.ENDPOINT.startswith("https:") and request.url.scheme != "https":
        raise ModuleRefused(f"the hub leads from https to {request.url.scheme}://{request.url.host}: {FIX}")
    if request.method == "GET":
        request.headers["Accept-Encoding"] = "identity"


def _on_answer(response: Any) -> None:  # noqa: ANN401 - the same
    download = current().download
    if not isinstance(download, Download):
        return
    if response.request.method == "HEAD":
        download.on_head(response)
    elif download.is_known and response.status_code in {_OK, _PARTIAL}:
        download.on_file(response)
        response.iter_raw = partial(_counted, response.iter_raw, download.on_bytes)
        response.iter_bytes = partial(_hashed, response.iter_bytes, download)
    else:
        response.iter_raw = partial(_bounded, response.iter_raw, response.status_code)


def _counted(read: _Read, count: Callable[[bytes], None], chunk_size: int | None = None) -> Iterator[bytes]:
    for chunk in read(chunk_size):
        count(chunk)
        yield chunk


def _hashed(read: _Read, download: Download, chunk_size: int | None = None) -> Iterator[bytes]:
    for chunk in read(chunk_size):
        download.on_kept(chunk)
        yield chunk
    download.on_end()


def _bounded(read: _Read, status: int, chunk_size: int | None = None) -> Iterator[bytes]:
    got_bytes = 0
    for chunk in read(chunk_size):
        got_bytes += len(chunk)
        if got_bytes > MAX_OTHER_BYTES:
            raise ModuleRefused(f"the hub's answer {status} doesn't end: {FIX}")
        yield chunk


def _hashes(etag: str, size_bytes: int | None) -> list[Any]:
    """The hashes that an ETag may be; none for one that isn't a hash.

    The hub's is the SHA-256 of a large file, and git's SHA-1 of a small one. Some mirrors give the plain SHA-1.
    """
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        return [hashlib.sha256()]
    if re.fullmatch(r"[0-9a-f]{40}", etag):
        plain = hashlib.sha1(usedforsecurity=False)
        git = [] if size_bytes is None else [hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)]
        return [*git, plain]
    return []


def _remove_abandoned(blobs: Path) -> None:
    """Remove what downloads of processes that were killed have left."""
    for path in blobs.glob("*.incomplete"):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime > ABANDONED_S:
                path.unlink()
