"""Tokenizers and image processors of a repository, made offline from its own files.

Owns which files those are. Knows no family. Pictures go through transformers' processors on Pillow, whose results
don't depend on an optional package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from pydantic import JsonValue
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.image_processing_backends import PilBackend

from broker.protocol.errors import ErrorCode, ModuleRefused, RequestFailed, first_line
from edge_agent.modules.weights import identity
from edge_agent.modules.weights.checkpoint import Checkpoint, read_object

P = TypeVar("P", bound=PilBackend)

TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
PREPROCESSOR = "preprocessor_config.json"
# Fields of an image processor's file that don't change what it gives.
HISTORY = frozenset({"feature_extractor_type", "image_processor_type", "processor_class", "_valid_processor_keys"})


def tokenizer(
    checkpoint: Checkpoint, kind: type[PreTrainedTokenizerBase | AutoTokenizer] = AutoTokenizer
) -> PreTrainedTokenizerBase:
    """The repository's tokenizer.

    Args:
        checkpoint: The repository.
        kind: transformers' class, where its automatic choice would depend on what is installed.

    Raises:
        ModuleRefused: its files aren't there, or make none.
    """
    found = {file: path for file in TOKENIZER_FILES if (path := checkpoint.repository.path(file)) is not None}
    if not found.keys() & {"tokenizer.json", "vocab.json", "vocab.txt", "spiece.model"}:
        raise ModuleRefused(
            f"{checkpoint.repository} has no tokenizer: add its tokenizer.json, or vocab.json and merges.txt"
        )
    directory = checkpoint.repository.required("config.json").parent
    try:
        made: PreTrainedTokenizerBase = kind.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # its files may be wrong in any way
        raise ModuleRefused(
            f"the tokenizer files in {directory} make no tokenizer ({first_line(error)}): fetch them again"
        ) from error
    return made


def vocabulary(checkpoint: Checkpoint) -> JsonValue:
    """A fingerprint of the tokenizer's vocabulary and merges, the same whether they stand in one file or in two.

    Null when the repository has no tokenizer, which a module that needs one refuses to load without.
    """
    if (path := checkpoint.repository.path("tokenizer.json")) is not None:
        model = read_object(path).get("model", {})
        vocab, merges = model.get("vocab"), model.get("merges", [])
        merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in merges]
    elif (path := checkpoint.repository.path("vocab.json")) is not None:
        vocab = read_object(path)
        lines = _text(checkpoint.repository.required("merges.txt")).splitlines()
        merges = [line for line in lines if line.strip() and not line.startswith("#version")]
    elif (path := checkpoint.repository.path("vocab.txt")) is not None:
        vocab, merges = _text(path).splitlines(), []
    elif (path := checkpoint.repository.path("spiece.model")) is not None:
        vocab, merges = path.read_bytes().hex(), []
    else:
        return None
    return identity.fingerprint([vocab, merges])


def image_processor(checkpoint: Checkpoint, kind: type[P]) -> P:
    """The repository's own image processor, from its preprocessor_config.json.

    Raises:
        ModuleRefused: the file isn't there, or makes none.
    """
    path = checkpoint.repository.required(PREPROCESSOR)
    fields = {name: value for name, value in read_object(path).items() if name not in HISTORY}
    try:
        return kind(**fields)
    except Exception as error:  # its fields may be wrong in any way
        raise ModuleRefused(f"{path} makes no image processor ({first_line(error)}): fetch it again") from error


def effective(processor: PilBackend) -> dict[str, JsonValue]:
    """What the result of an image processor depends on, canonically: for comparisons and identities."""
    known = {name: value for name, value in processor.to_dict().items() if name not in HISTORY and value is not None}
    plain: dict[str, JsonValue] = json.loads(json.dumps(known, default=_plain_size))
    return plain


def pictures(checkpoint: Checkpoint, kind: type[P]) -> dict[str, JsonValue]:
    """How a repository's image processor prepares a picture, for identities.

    Raises:
        ModuleRefused: its file isn't there, or makes none.
    """
    return effective(image_processor(checkpoint, kind))


def fields(config: object, names: str) -> dict[str, JsonValue]:
    """Some fields of a configuration, for identities. ``names`` are separated by blanks."""
    return {name: getattr(config, name) for name in names.split()}


def pixels(processor: PilBackend, picture: Image.Image) -> Tensor:
    """A picture's input for the network, float32 (1, 3, height, width).

    Raises:
        RequestFailed: ``bad_input`` when its size leaves nothing of a side.
    """
    try:
        made = processor(images=picture, return_tensors="np")["pixel_values"]
    except ValueError as error:
        raise RequestFailed(
            ErrorCode.BAD_INPUT,
            f"a picture of {picture.width} x {picture.height} pixels is too thin for this model: send a squarer one",
        ) from error
    return torch.tensor(np.ascontiguousarray(made, dtype=np.float32))


def blank(config: Any) -> Tensor:  # noqa: ANN401 - any vision tower's
    """A picture (1, channels, s, s) of the size that a tower's configuration says, for counting.

    Raises:
        ModuleRefused: it isn't square.
    """
    length = side(config.image_size)
    return torch.empty(1, getattr(config, "num_channels", 3), length, length)


def side(size: object) -> int:
    """The side of a square picture, or patch, as a configuration gives it.

    Raises:
        ModuleRefused: it isn't square.
    """
    if not isinstance(size, int):
        raise ModuleRefused(f"config.json says a size of {size}, and this family takes squares: one number")
    return size


def _plain_size(size: Any) -> Any:  # noqa: ANN401 - transformers' size, or an enumeration
    if hasattr(size, "items"):
        return {key: value for key, value in size.items() if value is not None}
    return {key: value for key, value in vars(size).items() if value is not None}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModuleRefused(f"{path} is no text: fetch it again") from error
