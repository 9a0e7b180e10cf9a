"""Model repositories: where the files of ``source: {hub: org/name}`` are on this machine.

Owns the order of places: the models directory (``DIRECTORY_VARIABLE``, or the agent's setting ``models:``), laid out
DIR/org/name/{config.json, *.safetensors, tokenizer files}; then the Hugging Face hub at the pinned revision, file by
file, into the hub client's own cache. Owns the check for room on the disk. Knows no file's meaning, and opens none.

Invariants: a repository found in the models directory is complete there, and the hub isn't asked for the rest. The
organisation ``local`` is for weights that nobody publishes: they are looked up in the models directory only.
HF_HUB_OFFLINE, HF_HOME and HF_TOKEN mean what they mean to the hub's own client.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.protocol.errors import ModuleRefused, first_line
from broker.protocol.specs import Source
from edge_agent.modules.weights.progress import current

DIRECTORY_VARIABLE = "S2M3_MODELS"
CHUNK_BYTES = 1024 * 1024  # written at a time: other loads that wait for the same file see it grow
DISK_RESERVE_BYTES = 64 * 1024 * 1024  # that a download leaves free, for logs and measurements
LOCAL = "local"
UNKNOWN = object()
_NAME = re.compile(r"[A-Za-z0-9][\w-]*(\.[\w-]+)*/[A-Za-z0-9][\w-]*(\.[\w-]+)*")  # no dots beside dots: no way up


class HubIsAway(ModuleRefused):
    """A file isn't here, and the hub can't be asked for it."""


@dataclass(eq=False)
class Repository:
    """The files of one repository."""

    name: str  # organisation/name
    revision: str | None  # the pinned one; None is the hub's newest
    directory: Path | None  # where it is in the models directory; None when it is on the hub
    _hub_is_away: bool = field(default=False, init=False)

    def path(self, file: str) -> Path | None:
        """A file on this machine, downloaded when it must be; None when the repository has none of that name.

        Without a network, a file that isn't in the cache counts as absent if config.json is in the cache: the fetch
        that got config.json got every file that existed.

        Raises:
            ModuleRefused: it may be there, and can't be had.
        """
        if self.directory is not None:
            return self.cached(file)
        cached = _cached(self.name, self.revision, file)
        if cached is None or isinstance(cached, Path):
            return cached
        try:
            return _download(self.name, self.revision, file, cache_only=self._hub_is_away)
        except HubIsAway:
            self._hub_is_away = True
            if not isinstance(_cached(self.name, self.revision, "config.json"), Path):
                raise
            return None

    def cached(self, file: str) -> Path | None:
        """A file that is on this machine already; nobody is asked, and nothing is downloaded."""
        if self.directory is not None:
            path = self.directory / file
            return path if path.is_file() else None
        found = _cached(self.name, self.revision, file)
        return found if isinstance(found, Path) else None

    def required(self, file: str) -> Path:
        """A file that must be there.

        Raises:
            ModuleRefused: it isn't, or can't be had.
        """
        if (path := self.path(file)) is None:
            away = " in the hub's cache, and there is no network" if self._hub_is_away else ""
            raise ModuleRefused(f"{self} has no {file}{away}: complete it, or name another revision or repository")
        return path

    def names(self) -> tuple[str, ...]:
        """The files of a repository in the models directory, sorted; empty for one on the hub."""
        if self.directory is None:
            return ()
        return tuple(sorted(path.name for path in self.directory.iterdir() if path.is_file()))

    def __str__(self) -> str:
        if self.directory is not None:
            return str(self.directory)
        return f"{self.name}@{self.revision}" if self.revision else self.name


def models_directory() -> Path | None:
    """The models directory, when one is set."""
    return Path(value).expanduser() if (value := os.environ.get(DIRECTORY_VARIABLE)) else None


def repository(source: Source) -> Repository:
    """Find the repository of a source.

    Raises:
        ModuleRefused: its name is not valid, or it is ``local`` and not in the models directory.
    """
    name = source.hub or ""
    if not _NAME.fullmatch(name):
        raise ModuleRefused(f"{name!r} is not a repository: write hub: organisation/name")
    models = models_directory()
    if models is not None and (models / name).is_dir():
        return Repository(name, source.revision, models / name)
    if name.startswith(f"{LOCAL}/"):
        place = f"{models}/{name}" if models else f"DIR/{name}, and set {DIRECTORY_VARIABLE}=DIR"
        raise ModuleRefused(
            f"nobody publishes {name}: put its config.json and safetensors into {place}; "
            "`s2m3 head train` makes heads, `s2m3 models random` random weights"
        )
    return Repository(name, source.revision, None)


def _cached(name: str, revision: str | None, file: str) -> Path | object | None:
    """A file in the hub's cache; None when the hub is known to have none; UNKNOWN when it must be asked."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - slow, and not needed with a models directory

    found = try_to_load_from_cache(name, file, revision=revision)
    if isinstance(found, str):
        return Path(found)
    return UNKNOWN if found is None else None


def _download(name: str, revision: str | None, file: str, *, cache_only: bool) -> Path | None:
    from huggingface_hub import constants, errors, hf_hub_download  # noqa: PLC0415 - the same

    watch_downloads()
    where = f"{name}@{revision}" if revision else name
    elsewhere = f"put the repository into DIR/{name} and set {DIRECTORY_VARIABLE}=DIR (or models: in the agent's file)"
    try:
        with current().fetching(Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "blobs"):
            return Path(hf_hub_download(name, file, revision=revision, local_files_only=cache_only))
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:  # before the former's base class
        raise HubIsAway(
            f"no network for the hub, and {file} of {where} is not in its cache: connect this device, or {elsewhere}"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError as error:
        raise ModuleRefused(f"{where} is gated: accept its terms on the hub and set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise ModuleRefused(f"{name} has no revision {revision}: correct the spec's revision") from error
    except errors.RepositoryNotFoundError as error:
        raise ModuleRefused(f"the hub has no {name}: correct the spec's source, or {elsewhere}") from error
    except OSError as error:  # the hub's own errors are of this kind, and so is a disk's
        raise ModuleRefused(_reason(error, f"{file} of {where}", elsewhere)) from error


def _reason(error: OSError, what: str, elsewhere: str) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"the disk is full: {what} doesn't fit; free some room, or set HF_HOME to a larger disk"
    first = first_line(error)
    if isinstance(error, ConnectionError | TimeoutError) or error.errno is None:
        return f"no network for the hub, or it refuses: {what}: {first}; try again later, or {elsewhere}"
    return f"{what} can't be stored ({first}): check the disk and the permissions of HF_HOME"


def watch_downloads() -> None:
    """Let each download of the hub's client report its progress, so that it can be stopped and needs the disk's room.

    The Xet protocol, which reads in threads that nobody can stop, is turned off.
    """
    from huggingface_hub import constants, get_session  # noqa: PLC0415 - the same

    constants.HF_HUB_DISABLE_XET = True
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    hooks = get_session().event_hooks["response"]
    if _watch not in hooks:
        hooks.append(_watch)


def _watch(response: Any) -> None:  # noqa: ANN401 - of the hub's HTTP library, which differs between its versions
    """Check the room for a download that begins, and count its bytes as they come."""
    if response.request.method != "GET" or response.is_redirect:
        return
    progress, read = current(), response.iter_raw
    size_bytes = int(response.headers.get("Content-Length") or 0)
    check_room(size_bytes)
    progress.expected_bytes += size_bytes

    def counted(chunk_size: int | None = None) -> Iterator[bytes]:
        for chunk in read(chunk_size):
            progress.on_fetched(len(chunk))
            yield chunk

    response.iter_raw = counted


def check_room(size_bytes: int) -> None:
    """Check that the disk of the hub's cache has room for a download.

    Raises:
        ModuleRefused: it hasn't.
    """
    from huggingface_hub import constants  # noqa: PLC0415 - the same

    cache = Path(constants.HF_HUB_CACHE)
    place = next(path for path in (cache, *cache.parents) if path.is_dir())
    free_bytes = shutil.disk_usage(place).free
    if size_bytes + DISK_RESERVE_BYTES > free_bytes:
        raise ModuleRefused(
            f"the download has {size_bytes} bytes, and {free_bytes} are free on the disk of {place}, of which "
            f"{DISK_RESERVE_BYTES} stay free: free some room, or set HF_HOME to a larger disk"
        )
