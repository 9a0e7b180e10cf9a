"""A list of files: the one file that names all files of a repository, a head or an export, each with its SHA-256.

Owns its form. ``s2m3 models store`` writes such lists, and a source with a ``url`` names one. Each file lies beside its
list, under its own SHA-256. So a list's digest stands for all bytes that it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from broker.protocol.preparation import FileName
from broker.protocol.values import Spec
from edge_agent.modules.weights.exports import Sha256

MAX_LIST_BYTES = 256 * 1024
MAX_FILES = 512


class ListedFile(Spec):
    """One file: its content's SHA-256, and its size."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0, le=2**60)]


class FileList(Spec):
    """All files, by name. None lies in a folder."""

    format: Literal[1] = 1
    files: Annotated[Mapping[FileName, ListedFile], Field(min_length=1, max_length=MAX_FILES)]

    @property
    def size_bytes(self) -> int:
        """The bytes of all files together."""
        return sum(each.bytes for each in self.files.values())

    def encoded(self) -> bytes:
        """Its one spelling: equal files make an equal list, with an equal digest."""
        ordered = {name: self.files[name] for name in sorted(self.files)}
        return FileList(files=ordered).model_dump_json().encode()


def read(path: Path) -> FileList:
    """The list in a file.

    Raises:
        ValidationError: it is not a list.
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        return FileList.model_validate_json(file.read(MAX_LIST_BYTES + 1)[:MAX_LIST_BYTES])
