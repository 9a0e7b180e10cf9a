"""Model repositories: where the files of ``source: {hub: org/name}`` are on this machine.

Owns the order of places: the models directory (``DIRECTORY_VARIABLE``, or the agent's setting ``models:``), laid out
DIR/org/name/{config.json, *.safetensors, tokenizer files}; then the Hugging Face hub at the pinned revision, file by
file, into the hub client's own cache. Knows no file's meaning, and never opens one.

Invariants: a repository found in the models directory is complete there, and the hub isn't asked for the rest. The
organisation ``local`` stands for what nobody publishes: it is looked up in the models directory only. HF_HUB_OFFLINE,
HF_HOME and HF_TOKEN mean what they mean to the hub's own client.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from broker.errors import ModuleRefused
from broker.specs import Source

DIRECTORY_VARIABLE = "S2M3_MODELS"
LOCAL = "local"
_NAME = re.compile(r"[A-Za-z0-9][\w-]*(\.[\w-]+)*/[A-Za-z0-9][\w-]*(\.[\w-]+)*")  # no dots beside dots: no way up


@dataclass(frozen=True)
class Repository:
    """The files of one repository."""

    name: str  # org/name
    revision: str | None
    directory: Path | None  # in the models directory; None: on the hub

    def path(self, file: str) -> Path | None:
        """A file on this machine, downloaded when it must be; None when the repository has none of that name.

        Raises:
            ModuleRefused: it may be there, and can't be had.
        """
        if self.directory is None:
            return _download(self.name, self.revision, file)
        path = self.directory / file
        return path if path.is_file() else None

    def required(self, file: str) -> Path:
        """A file that must be there.

        Raises:
            ModuleRefused: it isn't, or can't be had.
        """
        if (path := self.path(file)) is None:
            raise ModuleRefused(f"{self} has no {file}: complete it, or name another revision or repository")
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
        ModuleRefused: its name is none, or it is ``local`` and not in the models directory.
    """
    name = source.hub or ""
    if not _NAME.fullmatch(name):
        raise ModuleRefused(f"{name!r} is no repository: write hub: organisation/name")
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


@cache
def _absent(name: str, revision: str | None, file: str) -> set[str]:
    """A place to remember that the hub has no such file, so that it is asked once; empty when it has."""
    return set()


def _download(name: str, revision: str | None, file: str) -> Path | None:
    from huggingface_hub import errors, hf_hub_download  # noqa: PLC0415 - slow, and not needed with a models directory

    gone = _absent(name, revision, file)
    if gone:
        return None
    where = f"{name}@{revision}" if revision else name
    elsewhere = f"put the repository into DIR/{name} and set {DIRECTORY_VARIABLE}=DIR (or models: in the agent's file)"
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except errors.LocalEntryNotFoundError as error:  # before its base class: not here, and nobody could be asked
        raise ModuleRefused(
            f"no network for the hub, and {file} of {where} is not in its cache: connect this device, or {elsewhere}"
        ) from error
    except errors.EntryNotFoundError:
        gone.add(file)
        return None
    except errors.GatedRepoError as error:
        raise ModuleRefused(f"{where} is gated: accept its terms on the hub and set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise ModuleRefused(f"{name} has no revision {revision}: correct the spec's revision") from error
    except errors.RepositoryNotFoundError as error:
        raise ModuleRefused(f"the hub has no {name}: correct the spec's source, or {elsewhere}") from error
    except (errors.HfHubHTTPError, ConnectionError, TimeoutError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModuleRefused(f"no network for the hub: {file} of {where}: {reason}; {elsewhere}") from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise ModuleRefused(
                f"the disk is full: {file} of {where} doesn't fit; free some room, or set HF_HOME to a larger disk"
            ) from error
        raise ModuleRefused(f"{file} of {where} can't be stored ({error}): mend HF_HOME's disk or rights") from error
