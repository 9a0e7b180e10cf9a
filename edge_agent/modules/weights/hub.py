"""Model repositories: where the files of ``source: {hub: org/name}`` are on this machine.

Owns the order of places: the models directory (``DIRECTORY_VARIABLE``, or the agent's setting ``models:``), laid out
DIR/org/name/{config.json, *.safetensors, tokenizer files}; then the Hugging Face hub at the pinned revision, file by
file, into the hub client's own cache. A source with a URL has a cache of its own (``stored``). Knows no file's
meaning, and opens none.

Invariants: a repository found in the models directory is complete there, and the hub isn't asked for the rest. The
organisation ``local`` is for weights that nobody publishes, or only at an unknown commit: they are looked up in the
models directory only. What is downloaded, or read from the cache, is allowed (``allowed``), and checked as it comes
(``downloads``).
HF_ENDPOINT (a mirror), HF_HUB_OFFLINE, HF_HOME and HF_TOKEN mean what they mean to the hub's own client.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from broker.directories import in_home
from broker.files import inside
from broker.protocol.errors import BadFile, ModuleRefused, first_line
from broker.protocol.specs import Source
from edge_agent.modules.weights import stored
from edge_agent.modules.weights.allowed import allowed
from edge_agent.modules.weights.downloads import downloading

DIRECTORY_VARIABLE = "S2M3_MODELS"
LOCAL = "local"
UNKNOWN = object()
_NAME = re.compile(r"[A-Za-z0-9][\w-]*(\.[\w-]+)*/[A-Za-z0-9][\w-]*(\.[\w-]+)*")  # no dots beside dots: no way up


_ENDPOINT_VARIABLE = "HF_ENDPOINT"
_ENDPOINT = re.compile(r"https?://[^\s/@?#]+(/[^\s@?#]*)?")


class HubIsAway(ModuleRefused):
    """A file isn't here, and the hub can't be asked for it."""


@dataclass(eq=False)
class Repository:
    """The files of one repository."""

    name: str  # organisation/name
    revision: str | None  # the pinned commit; in the models directory it may be None
    directory: Path | None  # where it is in the models directory; None when it is on the hub
    _hub_is_away: bool = field(default=False, init=False)
    _fetched: list[Path] = field(default_factory=list, init=False)

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
            fetched = _download(self.name, str(self.revision), file, cache_only=self._hub_is_away)
        except HubIsAway:
            self._hub_is_away = True
            if not isinstance(_cached(self.name, self.revision, "config.json"), Path):
                raise
            return None
        if fetched is not None:
            self._fetched.append(fetched)
        return fetched

    def set_aside(self) -> tuple[Path, ...]:
        """Rename what this load downloaded, so that nothing uses it; returns the new names."""
        aside = []
        for path in self._fetched:
            with suppress(OSError):
                blob = path.resolve()
                aside.append(blob.rename(blob.with_name(f"{blob.name}.refused")))
                path.unlink(missing_ok=True)
        self._fetched.clear()
        return tuple(aside)

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
        return tuple(path.name for path in inside(self.directory) if path.is_file())

    def __str__(self) -> str:
        if self.directory is not None:
            return str(self.directory)
        return f"{self.name}@{self.revision}" if self.revision else self.name


def models_directory() -> Path | None:
    """The models directory, when one is set."""
    return in_home(value) if (value := os.environ.get(DIRECTORY_VARIABLE)) else None


def repository(source: Source) -> Repository:
    """Find the repository of a source.

    Raises:
        ModuleRefused: its URL or name is not valid, it is ``local`` and not in the models directory, a link leads out
            of that, or the agent's file or the missing commit forbids to download it.
    """
    if source.url is not None:
        return Repository(source.url, None, stored.cache().directory_of(source))
    name = source.hub or ""
    if not _NAME.fullmatch(name):
        raise ModuleRefused(
            f"{name!r} is not a repository: write hub: organisation/name, of letters, digits, _, - and single dots"
        )
    models = models_directory()
    if models is not None and (models / name).is_dir():
        allowed().check_links(models, models / name)
        return Repository(name, source.revision, models / name)
    if name.startswith(f"{LOCAL}/"):
        place = f"{models}/{name}" if models else f"DIR/{name}, and set {DIRECTORY_VARIABLE}=DIR"
        raise ModuleRefused(
            f"{name} comes from the models directory only: put its config.json and safetensors (or model.onnx) into "
            f"{place}; `s2m3 head train` makes heads, `s2m3 models random` random weights"
        )
    allowed().check_repository(source)
    return Repository(name, source.revision, None)


def check_endpoint() -> None:
    """Refuse a wrong address of a mirror, which its client would show in every error.

    Raises:
        BadFile: it isn't an address, or has a login.
    """
    endpoint = os.environ.get(_ENDPOINT_VARIABLE)
    if endpoint is None or _ENDPOINT.fullmatch(endpoint):
        return
    if "@" in endpoint:
        problem, fix = "has a login, which logs would show", "write the address without it, and a token into HF_TOKEN"
    else:
        problem, fix = f"is {endpoint!r}, not the address of a mirror", "write https://host, or unset it for the hub"
    raise BadFile(file=_ENDPOINT_VARIABLE, problem=problem, fix=fix)


def _the_hub() -> str:
    """The hub, or the mirror that is asked in its place, for a sentence."""
    endpoint = os.environ.get(_ENDPOINT_VARIABLE)
    return f"{endpoint} ({_ENDPOINT_VARIABLE})" if endpoint else "the hub"


def _cached(name: str, revision: str | None, file: str) -> Path | object | None:
    """A file in the hub's cache; None when the hub is known to have none; UNKNOWN when it must be asked."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - slow, and not needed with a models directory

    found = try_to_load_from_cache(name, file, revision=revision)
    if isinstance(found, str):
        return Path(found)
    return UNKNOWN if found is None else None


def _download(name: str, revision: str, file: str, *, cache_only: bool) -> Path | None:
    from huggingface_hub import constants, errors, hf_hub_download  # noqa: PLC0415 - the same

    try:
        check_endpoint()
    except BadFile as error:
        raise ModuleRefused(str(error)) from error
    where = f"{name}@{revision}"
    elsewhere = f"put the repository into DIR/{name} and set {DIRECTORY_VARIABLE}=DIR (or models: in the agent's file)"
    try:
        blobs = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "blobs"
        with downloading(f"{file} of {where}", revision, blobs):
            return Path(hf_hub_download(name, file, revision=revision, local_files_only=cache_only))
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:  # before the former's base class
        raise HubIsAway(
            f"no network for {_the_hub()}, and {file} of {where} is not in its cache: connect this device, or "
            f"{elsewhere}"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError as error:
        raise ModuleRefused(f"{where} is gated: accept its terms on the hub and set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise ModuleRefused(f"{name} has no revision {revision}: correct the spec's revision") from error
    except errors.RepositoryNotFoundError as error:
        raise ModuleRefused(f"{_the_hub()} has no {name}: correct the spec's source, or {elsewhere}") from error
    except ModuleRefused:
        raise
    except Exception as error:  # the hub's own errors are OSErrors, as a disk's are; those of its HTTP library aren't
        raise ModuleRefused(_reason(error, f"{file} of {where}", elsewhere)) from error


def _reason(error: Exception, what: str, elsewhere: str) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number in {errno.ENOSPC, errno.EDQUOT}:
        return f"the disk is full: {what} doesn't fit; free some room, or set HF_HOME to a larger disk"
    first = first_line(error)
    if isinstance(error, ConnectionError | TimeoutError) or number is None:
        return f"no network for {_the_hub()}, or it refuses: {what}: {first}; try again later, or {elsewhere}"
    return f"{what} can't be stored ({first}): check the disk and the permissions of HF_HOME"
