"""A user's own ONNX file as a module: an encoder, or a classifier.

    part         takes                                                gives (and nothing else crosses the wire)
    encoder      a picture, texts or a sound, as ``prepare`` says     ``features`` float32 (n, d)
    classifier   the same, or without ``prepare`` ``features``        ``logits`` float32 (1, c), and the answer
                 (1, d) of an encoder

The file is ``model.onnx`` in the directory of the source; a tokenizer, and a file of labels, lie beside it. It takes
one array under any name, or tokens under transformers' names; its first output counts. A picture is laid out as the
file takes it: colours first or last, three or one (the luma), numbers or bytes. A classifier's numbers that
are at least 0 and add up to 1 are probabilities; others become probabilities by a softmax.

Everything is checked when the module is loaded, by a pass on sample inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from broker.protocol.codec import RawInput
from broker.protocol.errors import ModuleRefused, RequestFailed, first_line
from broker.protocol.preparation import PicturePreparation
from broker.protocol.sizes import show_count, show_sizes
from broker.protocol.specs import ModuleSpec
from broker.protocol.tensors import Array
from broker.text_lines import lines_of
from edge_agent.modules import SCORES, Module, Pass
from edge_agent.modules.inputs import sample_inputs, steps
from edge_agent.modules.inputs.answers import MAX_LABELS, AsItIs, Likeliest
from edge_agent.modules.weights import digests, exports, hub, identity, onnx_file, part_source
from edge_agent.modules.weights.onnx_file import Session, show_shape

FILE = "model.onnx"
FEATURES = "features"
RANKED = 5  # labels named in an answer
OTHER_SOUND_S = 3.0  # of a sound that is longer than the sample
_TOKENS = {"ids": "ids", "input_ids": "ids", "mask": "mask", "attention_mask": "mask"}
_KINDS = "token_type_ids"  # of BERT: which of two texts a token belongs to; here all are of the first


_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601: what Pillow and OpenCV make of a colour as a grey
_COLOURS = (1, 3)


@dataclass(frozen=True)
class Run:
    """The file's pass: arrays as the steps name them, to its first output."""

    path: Path
    session: Session
    names: Mapping[str, str]  # the file's -> the steps'
    is_classifier: bool
    picture: PicturePreparation | None = None  # of its input, if that is a picture

    def given(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The arrays as the file names them, and pictures as it takes them."""
        given = {name: arrays[own] for name, own in self.names.items()}
        if self.picture is not None:
            given = {name: laid_out(array, self.picture, *self.session.inputs[name]) for name, array in given.items()}
        return given | ({_KINDS: np.zeros_like(arrays["ids"])} if _KINDS in self.session.inputs else {})

    def __call__(self, _: object, **arrays: Array) -> dict[str, Array]:
        """The features, or the logits and the scores."""
        first = self.session.outputs[0]
        found = self.session.run(self.given(arrays), (first,))[first]
        return {"logits": found, SCORES: probabilities(found)} if self.is_classifier else {FEATURES: found}


def laid_out(pixels: Array, prepared: PicturePreparation, shape: Sequence[int | None], dtype: str) -> Array:
    """Pixels float32 (n, 3, height, width) as a file of this shape and dtype takes them."""
    if len(shape) != pixels.ndim:
        return pixels
    is_last = shape[3] in _COLOURS and shape[1] not in _COLOURS
    if shape[3 if is_last else 1] == 1:
        pixels = np.tensordot(_LUMA, pixels, axes=(0, 1))[:, None]
    if is_last:
        pixels = pixels.transpose(0, 2, 3, 1)
    if dtype == "uint8" and gives_bytes(prepared):
        pixels = pixels.round().clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def gives_bytes(prepared: PicturePreparation) -> bool:
    """Whether a picture's numbers stay those from 0 to 255."""
    return prepared.scale == 1 and not any(prepared.mean) and set(prepared.std) == {1.0}


def probabilities(numbers: Array) -> Array:
    """Rows (n, c) that are no probabilities, by a softmax; others as they are."""
    wide = numbers.astype(np.float64)
    if (wide >= 0).all() and np.allclose(wide.sum(axis=-1), 1, atol=1e-3):
        return numbers
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    found: Array = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
    return found


def load(spec: ModuleSpec) -> Module:
    """Load the file, and try it on sample inputs.

    Raises:
        ModuleRefused: it isn't there, or it and the spec don't fit each other; the sentence names the file and field.
    """
    part = spec.family.partition(".")[2]
    if spec.dtype != "float32":
        raise ModuleRefused(f"{spec.family} computes as its file says: set dtype to float32")
    repository = hub.repository(part_source(spec, part))
    path = repository.required(FILE)
    if (size := path.stat().st_size) > spec.memory_bytes:
        held, said = show_sizes(size, spec.memory_bytes)
        raise ModuleRefused(f"{path} has {held} and the spec says {said}: correct memory_bytes to {size}")
    onnx_file.check(path)
    tokenizer = spec.prepare.text.tokenizer if spec.prepare and spec.prepare.text else None
    beside = {name: repository.required(name) for name in (tokenizer, spec.labels) if isinstance(name, str)}
    labels = _labels(beside[spec.labels]) if isinstance(spec.labels, str) else spec.labels or ()
    digests.check(spec, lambda: _digest(spec, path, beside), lambda: _trusted(path, beside, tokenizer))
    session = onnx_file.open_session(path)
    _check_session(path, session)
    is_classifier = part == "classifier"
    if is_classifier and not labels:
        raise ModuleRefused(f"{spec.family} needs labels in the task file: list them, or name a file with one a line")
    need = _need(spec, path, session)
    answer = Likeliest(labels=labels, most=min(RANKED, len(labels))) if is_classifier else AsItIs()
    made = steps.Steps((need,), answer)
    arrays = _sample(path, made)
    picture = spec.prepare.picture if spec.prepare else None
    run = Run(path, session, _names(path, session, tuple(arrays)), is_classifier, picture)
    _try(path, arrays, run, len(labels))
    _try_other(path, need, run, arrays, len(labels))
    return Module(session, {None: Pass(made, run)}, engine="onnx")


def _check_session(path: Path, session: Session) -> None:
    """Check what any preparation and any answer need."""
    session.require_arrays(path, session.outputs[:1])
    if name := next((name for name, (shape, _) in session.inputs.items() if not shape), None):
        raise ModuleRefused(f"{path} doesn't say the shape of its input {name}: export it with that shape")


def _need(spec: ModuleSpec, path: Path, session: Session) -> steps.Need:
    """The input, by the task file."""
    how = spec.prepare
    if how is None:
        if spec.family == "onnx.encoder":
            raise ModuleRefused("onnx.encoder needs prepare in the task file: write picture, text or sound there")
        shape = next(iter(session.inputs.values()))[0]
        if len(shape) != 2 or shape[1] is None:  # noqa: PLR2004 - a batch of rows
            taken = show_shape(shape)
            raise ModuleRefused(f"{path} takes {taken}, and a classifier of features takes (any, width): write prepare")
        return steps.Arrays(shapes={FEATURES: (1, shape[1])})
    if how.picture is not None:
        return steps.Picture(preparation=how.picture)
    if how.sound is not None:
        return steps.Sound(preparation=how.sound)
    return steps.Texts.model_validate({"preparation": how.text}, context=path.parent)


def _names(path: Path, session: Session, prepared: Sequence[str]) -> dict[str, str]:
    """The file's inputs -> the arrays that the steps prepare."""
    if "ids" in prepared:
        strange = sorted(session.inputs.keys() - _TOKENS.keys() - {_KINDS})
        if strange or "ids" not in {_TOKENS.get(name) for name in session.inputs}:
            known = ", ".join([*_TOKENS, _KINDS])
            raise ModuleRefused(
                f"{path} takes {', '.join(session.inputs)}, and texts give {known}: export it with these names only"
            )
        return {name: _TOKENS[name] for name in session.inputs if name in _TOKENS}
    if len(session.inputs) != 1:
        raise ModuleRefused(f"{path} takes {', '.join(session.inputs)}: export it with one input")
    return dict(zip(session.inputs, prepared, strict=True))


def _sample(path: Path, made: steps.Steps) -> Mapping[str, Array]:
    try:
        return made.prepare(made.sample()).arrays
    except RequestFailed as error:
        raise ModuleRefused(f"{path}: prepare can't read a usual input ({error.message}): correct it") from error


def _try(path: Path, arrays: Mapping[str, Array], run: Run, labels: int, of: str = "") -> None:
    """Run a pass, and check what goes in and comes out. ``of`` says which input this is, if not the sample."""
    _check_given(path, arrays, run, of)
    try:
        found = next(iter(run(None, **arrays).values()))
    except Exception as error:  # the library's errors have no base class of their own
        raise ModuleRefused(
            f"{path} can't run on a sample input{of} ({onnx_file.reason(error)}): correct prepare in the task file, or "
            "export it again"
        ) from error
    rows = next(iter(arrays.values())).shape[0]
    if found.ndim != 2 or found.shape[0] != rows or not found.size or found.dtype.kind != "f":  # noqa: PLR2004 - rows
        raise ModuleRefused(
            f"{path}: its first output {run.session.outputs[0]} is {found.dtype} {show_shape(found.shape)}, and it "
            f"must be one row of numbers for each input, ({rows}, width): export it so"
        )
    if FEATURES not in arrays and not of and not np.isfinite(found).all():  # made-up arrays may be out of its range
        raise ModuleRefused(
            f"{path} gives numbers that aren't finite on a usual input: correct prepare in the task file, or export it "
            "in float32"
        )
    if labels and found.shape[1] != labels:
        raise ModuleRefused(
            f"{path} gives {show_count(found.shape[1], 'number')}, and labels names {labels}: correct labels"
        )


def _check_given(path: Path, arrays: Mapping[str, Array], run: Run, of: str) -> None:
    """Check that the file takes these arrays."""
    given = run.given(arrays)
    for name in run.names:
        array, (shape, dtype) = given[name], run.session.inputs[name]
        fits = len(shape) == array.ndim and all(a in {None, b} for a, b in zip(shape, array.shape, strict=True))
        if not fits or (np.dtype(dtype).kind == "f") != (array.dtype.kind == "f"):
            raise ModuleRefused(
                f"{path}: its input {name} is {dtype} {show_shape(shape)}, and prepare gives {array.dtype} "
                f"{show_shape(array.shape)}{of}{_fix(shape, dtype, run)}"
            )


def _fix(shape: Sequence[int | None], dtype: str, run: Run) -> str:
    """The fix where a file doesn't take what is prepared for it."""
    if run.picture is None:
        return ": correct prepare in the task file"
    if dtype == "uint8" and not gives_bytes(run.picture):
        return ": write scale: 1, and neither mean nor std, in prepare"
    of_pictures = len(shape) == 4 and shape[0] in {None, 1} and {shape[1], shape[3]} & {None, *_COLOURS}  # noqa: PLR2004
    if not of_pictures or (np.dtype(dtype).kind != "f" and dtype != "uint8"):
        return (
            "; a picture becomes float32 or uint8, (n, 3, height, width) or (n, height, width, 3), or has 1 in place "
            "of the 3: export it for that"
        )
    return ": correct prepare in the task file"


def _try_other(path: Path, need: steps.Need, run: Run, sample: Mapping[str, Array], labels: int) -> None:
    """Run a pass on an input of another size, where that makes other arrays: the sample may fit by chance."""
    others: Mapping[type, tuple[Callable[[], RawInput], str]] = {
        steps.Picture: (sample_inputs.other_picture, " of a smaller picture"),
        steps.Texts: (sample_inputs.text, " of one short text"),
        steps.Sound: (partial(sample_inputs.sound, OTHER_SOUND_S), " of a longer sound"),
    }
    if type(need) not in others:
        return
    make, of = others[type(need)]
    with suppress(RequestFailed):  # its lengths are limited: then this one is refused
        arrays = need.read(make())
        if any(array.shape != sample[name].shape for name, array in arrays.items()):
            _try(path, arrays, run, labels, of)


def _labels(path: Path) -> tuple[str, ...]:
    try:
        found = tuple(line.strip() for line in lines_of(path.read_text(encoding="utf-8-sig")) if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ModuleRefused(f"{path} can't be read ({first_line(error)}): write one label a line, in UTF-8") from error
    if not found:
        raise ModuleRefused(f"{path} is empty: write one label a line")
    if len(found) > MAX_LABELS:
        raise ModuleRefused(f"{path} has {len(found)} labels, at most {MAX_LABELS} are allowed: name another file")
    return found


def _digest(spec: ModuleSpec, path: Path, beside: Mapping[str, Path]) -> str:
    """The identity: all files, and what the task file says of them."""
    files: Mapping[str, Path] = {FILE: path, **beside}
    said: dict[str, JsonValue] = spec.model_dump(mode="json", include={"family", "prepare", "labels"})
    content: dict[str, JsonValue] = {"files": {name: exports.sha256_of(each) for name, each in files.items()}}
    return f"sha256:{identity.fingerprint(said | content)}"


def _trusted(path: Path, beside: Mapping[str, Path], tokenizer: str | None) -> Mapping[str, str]:
    """The digests of the files that must stay as they were first loaded. Labels may be corrected, in a file, too."""
    files = {FILE: path, **({tokenizer: beside[tokenizer]} if tokenizer else {})}
    return {name: f"sha256:{exports.sha256_of(each)}" for name, each in files.items()}
