"""Engines: the libraries that run modules, by the names that files and messages give them.

Owns the names, and the table that says which engine runs a family's own weights. Knows no library, module or device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias, get_args

from broker.protocol.sentences import described

Engine: TypeAlias = Literal["torch", "onnx", "ctranslate2"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
EngineName = Annotated[str, described(r"^[a-z0-9-]{1,32}$", "is not the name of an engine")]
"""An engine as a message names it: a newer device may have one that this version doesn't know."""
DEFAULT_ENGINES: tuple[Engine, ...] = ("torch", "ctranslate2")
"""The engines of a device that names none: agents of before have these."""
MAX_ENGINES = 8  # that a device names

_OF_FILES: Mapping[str, Engine] = {"onnx": "onnx", "whisper_ctranslate2": "ctranslate2"}


def engine_of(family: str) -> Engine:
    """The engine that runs the weights of a module of this family, as ``ModuleSpec.source`` has them."""
    return _OF_FILES.get(family.partition(".")[0], "torch")
