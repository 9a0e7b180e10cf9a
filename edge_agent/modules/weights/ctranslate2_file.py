"""The weights file of CTranslate2, ``model.bin``: read, written with some variables left small, and opened.

Owns how often the library keeps weights in memory, and the byte format, which the library writes in
``ctranslate2/specs/model_spec.py`` (``ModelSpec._serialize``) and reads in ``src/models/model.cc``. Knows no network.
Nothing in such a file is code. All numbers are little-endian; a text is its length with a final zero byte (2 bytes),
its bytes, the zero byte:
- the version of the format (4 bytes), 6 here; the model's kind, a text; the kind's revision (4 bytes);
- the number of variables (4 bytes), then each: name, rank (1 byte), lengths (4 bytes each), dtype (1 byte, an index
  into ``DTYPES``), size in bytes (4 bytes), elements;
- the number of aliases (4 bytes), then each: the alias and the variable it stands for, two texts.
"""

from __future__ import annotations

import math
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import ctranslate2
import numpy as np

from broker.protocol.errors import ModuleRefused
from broker.protocol.tensors import Array
from edge_agent.modules import threads
from edge_agent.modules.weights.downloads import check_disk

os.environ.setdefault("CT2_PACKED_GEMM", "0")
"""The library reads this when it loads its first model. On Intel processors it computes with MKL, and by default keeps
the matrices once more, packed for MKL: 239 MB for a decoder of 118 MB. Where the environment has 1, the
packed matrices count in a module's measured bytes."""

VERSION = 6
DTYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
Shape = tuple[int, ...]
_ITEM_BYTES = {"float32": 4, "int8": 1, "int16": 2, "int32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Variable:
    """One array of the file, its elements as they stand there."""

    shape: tuple[int, ...]
    dtype: str
    data: bytes | memoryview

    @property
    def array(self) -> Array:
        """Its elements; bfloat16, which NumPy doesn't have, as 16-bit integers."""
        dtype = "uint16" if self.dtype == "bfloat16" else self.dtype
        return np.frombuffer(self.data, np.dtype(dtype).newbyteorder("<")).reshape(self.shape)


@dataclass(frozen=True)
class ModelFile:
    """The content of a ``model.bin``."""

    kind: str
    revision: int
    variables: Mapping[str, Variable]
    aliases: Mapping[str, str]


def parse(content: bytes | memoryview, name: str) -> ModelFile:
    """Read a file's content, without copying its variables; ``name`` is for sentences.

    Raises:
        ModuleRefused: another version of the format, truncated, or malformed.
    """
    try:
        return _parse(_Reader(memoryview(content)), name)
    except (struct.error, IndexError, ValueError) as error:
        raise ModuleRefused(f"{name} is truncated or damaged: install it again") from error


def chunks(file: ModelFile) -> Iterator[bytes | memoryview]:
    """The bytes of a file, piece by piece, so that no second copy of the weights is made."""
    yield struct.pack("<I", VERSION) + _text(file.kind) + struct.pack("<II", file.revision, len(file.variables))
    for name, variable in file.variables.items():
        shape = variable.shape
        yield _text(name) + struct.pack(f"<B{len(shape)}I", len(shape), *shape)
        yield struct.pack("<BI", DTYPES.index(variable.dtype), len(variable.data))
        yield variable.data
    yield struct.pack("<I", len(file.aliases))
    yield b"".join(_text(text) for pair in file.aliases.items() for text in pair)


def size_bytes(variables: Iterable[Variable], item_bytes: int) -> int:
    """Bytes of variables when each element takes ``item_bytes`` in memory; scalars, which are settings, don't count."""
    return sum(math.prod(variable.shape) * item_bytes for variable in variables if variable.shape)


def open_whisper(file: ModelFile, config: bytes, vocabulary: bytes, part: str) -> ctranslate2.models.Whisper:
    """The model of a file, in float32, with the agent's threads (``threads``).

    They lie in a temporary directory meanwhile, for the library keeps a copy of a file that it is given from memory:
    the weights, ``config`` as config.json and ``vocabulary`` as vocabulary.txt. ``part`` is for sentences.

    Raises:
        ModuleRefused: the temporary directory has no room, or the library refuses the file.
    """
    written_bytes = sum(len(variable.data) for variable in file.variables.values())
    check_disk(Path(tempfile.gettempdir()), written_bytes, f"the {part}'s file", "TMPDIR")
    try:
        with tempfile.TemporaryDirectory(prefix="s2m3-") as name:
            temporary = Path(name)
            with (temporary / "model.bin").open("wb") as out:
                out.writelines(chunks(file))
            (temporary / "config.json").write_bytes(config)
            (temporary / "vocabulary.txt").write_bytes(vocabulary)
            return ctranslate2.models.Whisper(
                name, device="cpu", compute_type="float32", inter_threads=1, intra_threads=threads.count()
            )
    except OSError as error:
        raise ModuleRefused(
            f"the {part}'s file can't be written to {tempfile.gettempdir()} ({error.strerror or error}): "
            "free some room there, or set TMPDIR to another directory"
        ) from error
    except (RuntimeError, ValueError, IndexError) as error:  # what the library raises for a file it doesn't like
        raise ModuleRefused(f"CTranslate2 {ctranslate2.__version__} can't load the {part}: {error}") from error


class _Reader:
    """Takes numbers, texts and arrays off the front of bytes."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._at = 0

    @property
    def left_bytes(self) -> int:
        return len(self._content) - self._at

    def take(self, length: int) -> memoryview:
        if length > self.left_bytes:
            msg = "the content ends before what it announces"
            raise ValueError(msg)
        self._at += length
        return self._content[self._at - length : self._at]

    def number(self, kind: str) -> int:
        return int(struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0])

    def text(self) -> str:
        return bytes(self.take(self.number("H"))[:-1]).decode()

    def variable(self) -> Variable:
        shape = tuple(self.number("I") for _ in range(self.number("B")))
        dtype = DTYPES[self.number("B")]
        data = self.take(self.number("I"))
        if len(data) != math.prod(shape) * _ITEM_BYTES[dtype]:
            msg = "a variable's size is not that of its shape"
            raise ValueError(msg)
        return Variable(shape, dtype, data)


def _parse(reader: _Reader, name: str) -> ModelFile:
    if (version := reader.number("I")) != VERSION:
        raise ModuleRefused(f"{name} is not a CTranslate2 file of version {VERSION} (it begins with {version})")
    kind, revision = reader.text(), reader.number("I")
    # Dictionaries evaluate a key before its value: the order in which the file has them.
    variables = {reader.text(): reader.variable() for _ in range(reader.number("I"))}
    aliases = {reader.text(): reader.text() for _ in range(reader.number("I"))}
    if reader.left_bytes:
        msg = "something follows the last alias"
        raise ValueError(msg)
    return ModelFile(kind, revision, variables, aliases)


def _text(text: str) -> bytes:
    content = text.encode() + b"\0"
    return struct.pack("<H", len(content)) + content
