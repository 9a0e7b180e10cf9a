"""Tokenizers and image processors of a repository, made offline from its own files.

Owns which files those are. Knows no family. Pictures go through transformers' processors on Pillow, whose results
don't depend on an optional package.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import JsonValue
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, SequenceFeatureExtractor
from transformers.image_processing_backends import PilBackend

from broker.protocol.errors import ModuleRefused, first_line
from edge_agent.modules.inputs import steps
from edge_agent.modules.weights.checkpoint import Checkpoint, Config, read_object
from edge_agent.modules.weights.identity import fingerprint

T = TypeVar("T")
P = TypeVar("P", bound=PilBackend | SequenceFeatureExtractor)

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
# Fields of a transformer's configuration that change what it gives, for identities.
TOWER = "hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act layer_norm_eps"
VISION = f"{TOWER} num_channels image_size patch_size"
TEXT = f"{TOWER} vocab_size max_position_embeddings"
# Fields of preprocessor_config.json that don't change what a processor gives, or follow from others.
HISTORY = frozenset(
    {
        "_valid_processor_keys",
        "feature_extractor_type",
        "image_processor_type",
        "nb_frequency_bins",
        "nb_max_samples",
        "processor_class",
    }
)


def tokenizer(
    checkpoint: Checkpoint, kind: type[PreTrainedTokenizerBase | AutoTokenizer] = AutoTokenizer
) -> PreTrainedTokenizerBase:
    """The repository's tokenizer, of transformers' class ``kind`` where its own choice depends on what is installed.

    Raises:
        ModuleRefused: its files aren't there, or make no tokenizer.
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
    return fingerprint([vocab, merges])


def processor(checkpoint: Checkpoint, kind: type[P], only: Collection[str] = ()) -> P:
    """The repository's own image processor, or feature extractor for sounds, from its preprocessor_config.json.

    With ``only``, from these of the file's fields.

    Raises:
        ModuleRefused: the file isn't there, or makes none.
    """
    path = checkpoint.repository.required(PREPROCESSOR)
    found = read_object(path)
    fields = {name: value for name, value in found.items() if (name in only if only else name not in HISTORY)}
    try:
        return kind(**fields)
    except Exception as error:  # its fields may be wrong in any way
        what = "image processor" if issubclass(kind, PilBackend) else "feature extractor"
        raise ModuleRefused(f"{path} makes no {what} ({first_line(error)}): fetch it again") from error


def picture_steps(kind: type[PilBackend]) -> Callable[[Checkpoint], steps.Steps]:
    """The steps of a part that takes pictures, prepared by the repository's own image processor."""
    return lambda checkpoint: steps.Steps(steps.picture(processor(checkpoint, kind)))


def text_steps(
    kind: type[PreTrainedTokenizerBase], longest: Callable[[Config], int], *, padded: bool = False
) -> Callable[[Checkpoint], steps.Steps]:
    """The steps of a part that takes texts; ``longest`` gives a text's most tokens (see ``steps.texts``)."""
    return lambda checkpoint: steps.Steps(
        steps.texts(tokenizer(checkpoint, kind), longest(checkpoint.config), padded=padded)
    )


def effective(processor: PilBackend) -> dict[str, JsonValue]:
    """Everything that the result of an image processor depends on, canonically: for comparisons and identities."""
    known = {name: value for name, value in processor.to_dict().items() if name not in HISTORY and value is not None}
    plain: dict[str, JsonValue] = json.loads(json.dumps(known, default=_plain_size))
    return plain


def identity(
    config_of: Callable[[Config], object], names: str, *, pictures: type[PilBackend] | None = None, texts: bool = False
) -> Callable[[Checkpoint], dict[str, JsonValue]]:
    """A part's identity: the fields ``names`` of its configuration, and how its pictures and texts are prepared.

    ``config_of`` makes the configuration of config.json. ``pictures`` is the image processor of a part that takes
    pictures. With ``texts``, which the part takes or gives, the vocabulary counts.
    """

    def of(checkpoint: Checkpoint) -> dict[str, JsonValue]:
        found = fields(config_of(checkpoint.config), names)
        if pictures is not None:
            found["pictures"] = effective(processor(checkpoint, pictures))
        return found | ({"vocabulary": vocabulary(checkpoint)} if texts else {})

    return of


def section(name: str, kind: Callable[..., T]) -> Callable[[Config], T]:
    """Reads a section of config.json as transformers' configuration; what is missing is as in the class."""
    return lambda config: kind(**config.get(name, {}))


def labels(config: PreTrainedConfig) -> list[str]:
    """A classifier's labels, by index."""
    names = cast("dict[int, str]", config.id2label)
    return [names[index] for index in range(len(names))]


def fields(config: object, names: str) -> dict[str, JsonValue]:
    """Some fields of a configuration, for identities. ``names`` are separated by blanks."""
    return {name: getattr(config, name) for name in names.split()}


def _plain_size(size: Any) -> Any:  # noqa: ANN401 - transformers' size, or an enumeration
    fields = size if hasattr(size, "items") else vars(size)
    return {key: value for key, value in fields.items() if value is not None}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModuleRefused(f"{path} is not text in UTF-8: fetch it again") from error
