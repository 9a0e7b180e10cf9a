"""Tokenizers and image processors of a repository, made offline from its own files, and the values of their rules.

Owns which files those are, and what of transformers' rules ``steps`` can say as a value. Knows no family. Pictures are
prepared as by transformers' processors on Pillow, whose results don't depend on an optional package.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
from PIL.Image import Image, Resampling
from pydantic import JsonValue, ValidationError
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    SequenceFeatureExtractor,
    SiglipTokenizer,
    TokenizersBackend,
)
from transformers.image_processing_backends import PilBackend
from transformers.utils import logging as transformers_logging

from broker.protocol.errors import ModuleRefused, first_line
from broker.protocol.preparation import PicturePreparation, TextPreparation
from broker.protocol.tensors import Array
from broker.text_lines import lines_of
from edge_agent.modules import Value
from edge_agent.modules.inputs import decoding, sample_inputs, steps
from edge_agent.modules.inputs.notes import note
from edge_agent.modules.inputs.tokens import END, UNKNOWN, FastTokens, SigLIPTokens
from edge_agent.modules.panics import panics_as_errors
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.identity import fingerprint
from edge_agent.modules.weights.layout import read_object

# transformers' advice and progress bars are for interactive use.
transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

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
_OWN = ("_preprocess", "process_image", "resize", "center_crop", "rescale", "normalize")
_FILTERS: Mapping[int, Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]] = {
    Resampling.NEAREST: "nearest",
    Resampling.BOX: "box",
    Resampling.BILINEAR: "bilinear",
    Resampling.HAMMING: "hamming",
    Resampling.BICUBIC: "bicubic",
    Resampling.LANCZOS: "lanczos",
}


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
        with panics_as_errors():
            made: PreTrainedTokenizerBase = kind.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
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
        lines = lines_of(_text(checkpoint.repository.required("merges.txt")))
        merges = [line for line in lines if line.strip() and not line.startswith("#version")]
    elif (path := checkpoint.repository.path("vocab.txt")) is not None:
        vocab, merges = lines_of(_text(path)), []
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
    """The steps of a part that takes pictures, prepared as the repository's own image processor does."""
    return lambda checkpoint: steps.Steps((picture(processor(checkpoint, kind)),))


def text_steps(
    kind: type[PreTrainedTokenizerBase], longest: Callable[[Config], int], *, padded: bool = False
) -> Callable[[Checkpoint], steps.Steps]:
    """The steps of a part that takes texts; ``longest`` gives a text's most tokens (see ``TextPreparation``)."""
    return lambda checkpoint: steps.Steps(
        (texts(tokenizer(checkpoint, kind), longest(checkpoint.config), padded=padded),)
    )


def picture(processor: PilBackend) -> steps.Need:
    """A picture, prepared as an image processor does: as a value where its rules are those of ``PicturePreparation``.

    A processor with rules of its own is run itself; such steps can't be described.
    """
    how = picture_preparation(processor)
    return ProcessedPicture(resizing_first(processor)) if how is None else steps.Picture(preparation=how)


def picture_preparation(of: PilBackend) -> PicturePreparation | None:
    """An image processor's rules; None where it has others."""
    plain = all(getattr(type(of), name) is getattr(PilBackend, name) for name in _OWN)
    processor: Any = of  # transformers sets its attributes by name
    size = _sides(processor.size) if processor.do_resize else {}
    crop = _sides(processor.crop_size) if processor.do_center_crop else {}
    if not plain or processor.do_pad or size.keys() not in ({"shortest_edge"}, {"height", "width"}, set[str]()):
        return None
    try:
        return PicturePreparation(
            shorter=size.get("shortest_edge"),
            size=(size["height"], size["width"]) if "height" in size else None,
            resample=_FILTERS[processor.resample],
            crop=(crop["height"], crop["width"]) if processor.do_center_crop else None,
            scale=processor.rescale_factor if processor.do_rescale else 1.0,
            mean=_each(processor.image_mean) if processor.do_normalize else (0.0, 0.0, 0.0),
            std=_each(processor.image_std) if processor.do_normalize else (1.0, 1.0, 1.0),
        )
    except (ValidationError, LookupError, TypeError):
        return None


@dataclass(frozen=True)
class ProcessedPicture:
    """A picture's bytes to ``pixels`` float32 (1, 3, h, w), by transformers' image processor itself."""

    processor: Any

    def read(self, value: Value) -> dict[str, Array]:
        """The pixels.

        Raises:
            RequestFailed: ``bad_input`` when the picture can't be read, or its size leaves nothing of a side.
        """
        picture = decoding.picture(value)
        try:
            made = self.processor(images=picture, return_tensors="np")["pixel_values"]
        except ValueError as error:
            raise decoding.bad_input(
                f"a picture of {picture.width} x {picture.height} pixels is too thin for this model: send a squarer one"
            ) from error
        return {"pixels": np.ascontiguousarray(made, dtype=np.float32)}

    def sample(self) -> Value:
        """A photograph."""
        return sample_inputs.picture()


def texts(
    tokenizer: PreTrainedTokenizerBase, longest: int, *, padded: bool = False, joined: bool = False
) -> steps.Need:
    """Texts, tokenized as transformers' tokenizer does: as a value where its rules are those of ``TextPreparation``.

    A tokenizer with rules of its own is run itself; such steps can't be described.
    """
    how = TextPreparation(longest=longest, padded=padded, joined=joined)
    if isinstance(tokenizer, TokenizersBackend):
        plain = type(tokenizer)._encode_plus is TokenizersBackend._encode_plus  # noqa: SLF001 - it may be overridden
        if plain and not tokenizer.split_special_tokens and isinstance(tokenizer.pad_token, str):
            backend = tokenizer.backend_tokenizer
            backend.no_truncation()
            backend.enable_truncation(longest, direction=tokenizer.truncation_side)
            made = FastTokens(backend, how, tokenizer.pad_token, side=tokenizer.padding_side)
            return steps.Texts.tokenized(how, made)
    elif isinstance(tokenizer, SiglipTokenizer) and _is_published(tokenizer):
        file = how.model_copy(update={"tokenizer": "spiece.model"})
        return steps.Texts.tokenized(file, SigLIPTokens(Path(str(tokenizer.vocab_file)).read_bytes(), file))
    return TokenizedTexts(tokenizer, how)


@dataclass(frozen=True)
class TokenizedTexts:
    """Texts to ``ids`` and ``mask`` int64 (n, t), by transformers' tokenizer itself."""

    tokenizer: PreTrainedTokenizerBase
    preparation: TextPreparation

    def read(self, value: Value) -> dict[str, Array]:
        """The tokens."""
        lines, how = decoding.lines(value), self.preparation
        texts = [" ".join(lines)] if how.joined else lines
        found = self.tokenizer(
            texts,
            padding="max_length" if how.padded else True,
            truncation=True,
            max_length=how.longest,
            return_attention_mask=True,
            return_tensors="np",
        )
        for number, (text, mask) in enumerate(zip(texts, found["attention_mask"], strict=True), start=1):
            if mask.sum() == how.longest and len(self.tokenizer(text, verbose=False)["input_ids"]) > how.longest:
                note(f"text {number} has more than the {how.longest} tokens that are read: the rest is cut")
        return {"ids": found["input_ids"], "mask": found["attention_mask"]}

    def sample(self) -> Value:
        """Four captions, or a question."""
        return sample_inputs.question() if self.preparation.joined else sample_inputs.texts()


def resizing_first(processor: Any) -> Any:  # noqa: ANN401 - a class is made for it
    """The same image processor, which resizes a picture as it is; its own way copies all of it three times before.

    The pixels are the same: its first step makes arrays of the picture, and its second one a picture of them again.
    """
    if not processor.do_resize:
        return processor
    kind, same = type(processor), copy.copy(processor)
    same.__class__ = type(kind.__name__, (kind,), {"process_image": staticmethod(_to_resize)})
    return same


class _ToResize(Image):
    """A picture for transformers' resize: with the shape of its arrays, and its size as (height, width)."""

    def __init__(self, picture: Image) -> None:
        super().__init__()
        self._picture = picture
        self.shape = (3, picture.height, picture.width)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, as transformers reads it."""
        return self._picture.height, self._picture.width

    def resize(self, *arguments: Any, **options: Any) -> Image:  # noqa: ANN401 - as Pillow's
        """The resized picture."""
        return self._picture.resize(*arguments, **options)


def _to_resize(picture: Image, **_: object) -> Image:
    return _ToResize(picture)


def _sides(size: Any) -> dict[str, int]:  # noqa: ANN401 - transformers' size
    return {name: length for name, length in vars(size).items() if length is not None}


def _each(colours: float | Sequence[float]) -> tuple[float, float, float]:
    """The same number for all colours, or one for each."""
    red, green, blue = colours if isinstance(colours, Sequence) else (colours,) * 3
    return float(red), float(green), float(blue)


def _is_published(tokenizer: SiglipTokenizer) -> bool:
    """Whether a tokenizer has SigLIP's own special tokens, and all of its settings are the published ones."""
    own = tokenizer.added_tokens_decoder.values()
    special = (tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    return (
        {str(token) for token in own} == {END, UNKNOWN}
        and special == (END, END, UNKNOWN)
        and not any(token.single_word for token in own)  # blanks beside them never count, whatever they say
        and not (tokenizer.sp_model_kwargs or tokenizer.split_special_tokens)
        and bool(tokenizer.do_lower_case and tokenizer.legacy)
        and (tokenizer.truncation_side, tokenizer.padding_side) == ("right", "right")
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
