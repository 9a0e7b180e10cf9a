"""Tensors of a ``.pth``, by torch's loader that takes tensors and nothing else, mapped from the file.

Knows no network. torch maps a zip archive itself. A file as it wrote them before 1.6 it can only read as a whole, with
the tensors of a model's other parts. So there it gets a file that leaves out large tensors and notes where they stand.
"""

from __future__ import annotations

import io
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ZIP = b"PK\x03\x04"
_LARGE = 65_536  # bytes; less is read at once, such as the length before each tensor


def mapped(path: Path) -> dict[str, Tensor]:
    """The tensors by name. Large ones take no memory.

    Raises:
        Exception: the file is damaged, or holds something else than tensors; torch raises anything.
    """
    with path.open("rb", buffering=0) as raw, _Noted(raw) as file:
        if file.peek(len(_ZIP)).startswith(_ZIP):
            return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        content = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_COPY)  # for torch, which warns of what is read-only
        stored = torch.load(file, map_location="cpu", weights_only=True)
        return {name: file.mapped(tensor, content) for name, tensor in stored.items()}


class _Noted(io.BufferedReader):
    """A file for torch, which reads the numbers of each tensor into its memory: of large ones the place is noted."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self._places: dict[int, int] = {}  # address of the memory -> place in the file

    def fileno(self) -> int:
        """It has none, or torch would read past this object."""
        raise io.UnsupportedOperation

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any writable memory
        """Read a little, or note where much stands."""
        if len(buffer) < _LARGE:
            return super().readinto(buffer)
        self._places[np.frombuffer(buffer, np.uint8).ctypes.data] = self.tell()
        self.seek(len(buffer), os.SEEK_CUR)
        return len(buffer)

    def mapped(self, tensor: Tensor, content: mmap.mmap) -> Tensor:
        """The same tensor in the file's content, if its numbers weren't read."""
        memory = tensor.untyped_storage()
        if (place := self._places.get(memory.data_ptr())) is None:
            return tensor
        count = memory.nbytes() // tensor.itemsize
        flat = torch.frombuffer(content, dtype=tensor.dtype, count=count, offset=place)
        return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
