"""A user's own ONNX file as a module: an encoder, or a classifier.

    part         takes                                                gives (and nothing else crosses the wire)
    encoder      a picture, texts or a sound, as ``prepare`` says     ``features`` float32 (n, d)
    classifier   the same, or without ``prepare`` ``features``        ``logits`` float32 (1, c), and the answer
                 (1, d) of an encoder

The file is ``model.onnx`` in the directory of the source; a tokenizer, and a file of labels, lie beside it. It takes
one array under any name, or tokens under transformers' names; its first output counts. A classifier's numbers that are
at least 0 and add up to 1 are probabilities; others become probabilities by a softmax.

Everything is checked when the module is loaded, by a pass on sample inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from broker.protocol.errors import ModuleRefused, RequestFailed, first_line
from broker.protocol.specs import ModuleSpec
from broker.protocol.tensors import Array
from edge_agent.modules import SCORES, Module, Pass
from edge_agent.modules.inputs import steps
from edge_agent.modules.inputs.answers import AsItIs, Likeliest
from edge_agent.modules.weights import digests, exports, hub, identity, onnx_file, part_source
from edge_agent.modules.weights.onnx_file import Session

FILE = "model.onnx"
FEATURES = "features"
RANKED = 5  # labels named in an answer
_TOKENS = {"ids": "ids", "input_ids": "ids", "mask": "mask", "attention_mask": "mask"}
_KINDS = "token_type_ids"  # of BERT: which of two texts a token belongs to; here all are of the first


@dataclass(frozen=True)
class _Run:
    """The file's pass: arrays as the steps name them, to its first output."""

    session: Session
    names: Mapping[str, str]  # the file's -> the steps'
    is_classifier: bool

    def __call__(self, _: object, **arrays: Array) -> dict[str, Array]:
        given = {name: arrays[own] for name, own in self.names.items()}
        if _KINDS in self.session.inputs:
            given[_KINDS] = np.zeros_like(arrays["ids"])
        first = self.session.outputs[0]
        found = self.session.run(given, (first,))[first]
        return {"logits": found, SCORES: probabilities(found)} if self.is_classifier else {FEATURES: found}


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
        raise ModuleRefused(f"{path} has {size} bytes and the spec says {spec.memory_bytes}: correct memory_bytes")
    onnx_file.check(path)
    tokenizer = spec.prepare.text.tokenizer if spec.prepare and spec.prepare.text else None
    beside = {name: repository.required(name) for name in (tokenizer, spec.labels) if isinstance(name, str)}
    labels = _labels(beside[spec.labels]) if isinstance(spec.labels, str) else spec.labels or ()
    digests.check(spec, lambda: _digest(spec, path, beside))
    session = onnx_file.open_session(path)
    is_classifier = part == "classifier"
    if is_classifier and not labels:
        raise ModuleRefused(f"{spec.family} needs labels in the task file: list them, or name a file with one a line")
    need = _need(spec, path, session)
    answer = Likeliest(labels=labels, most=min(RANKED, len(labels))) if is_classifier else AsItIs()
    made = steps.Steps((need,), answer)
    arrays = _sample(path, made)
    run = _Run(session, _names(path, session, tuple(arrays)), is_classifier)
    _try(path, arrays, run, len(labels))
    return Module(session, {None: Pass(made, run)}, engine="onnx")


def _need(spec: ModuleSpec, path: Path, session: Session) -> steps.Need:
    """The input, by the task file."""
    how = spec.prepare
    if how is None:
        if spec.family == "onnx.encoder":
            raise ModuleRefused("onnx.encoder needs prepare in the task file: write picture, text or sound there")
        shape = next(iter(session.inputs.values()))[0]
        if len(shape) != 2 or shape[1] is None:  # noqa: PLR2004 - a batch of rows
            raise ModuleRefused(f"{path} takes {shape}, and a classifier of features takes (any, width): write prepare")
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
            raise ModuleRefused(f"{path} takes {', '.join(session.inputs)}, and texts give {known}: rename its inputs")
        return {name: _TOKENS[name] for name in session.inputs if name in _TOKENS}
    if len(session.inputs) != 1:
        raise ModuleRefused(f"{path} takes {', '.join(session.inputs)}: export it with one input")
    return dict(zip(session.inputs, prepared, strict=True))


def _sample(path: Path, made: steps.Steps) -> Mapping[str, Array]:
    try:
        return made.prepare(made.sample()).arrays
    except RequestFailed as error:
        raise ModuleRefused(f"{path}: prepare can't read a usual input ({error.message}): correct it") from error


def _try(path: Path, arrays: Mapping[str, Array], run: _Run, labels: int) -> None:
    """Run a pass, and check what goes in and comes out."""
    for name, own in run.names.items():
        array, (shape, dtype) = arrays[own], run.session.inputs[name]
        fits = len(shape) == array.ndim and all(a in {None, b} for a, b in zip(shape, array.shape, strict=True))
        if not fits or (np.dtype(dtype).kind == "f") != (array.dtype.kind == "f"):
            raise ModuleRefused(
                f"{path}: its input {name} is {dtype} {_text(shape)}, and prepare gives {array.dtype} "
                f"{_text(array.shape)}: correct prepare in the task file"
            )
    try:
        found = next(iter(run(None, **arrays).values()))
    except Exception as error:  # the library's errors have no base class of their own
        raise ModuleRefused(f"{path} can't run on a sample input ({first_line(error)}): export it again") from error
    rows = next(iter(arrays.values())).shape[0]
    if found.ndim != 2 or found.shape[0] != rows or found.dtype.kind != "f":  # noqa: PLR2004 - rows of numbers
        raise ModuleRefused(
            f"{path}: its first output {run.session.outputs[0]} is {found.dtype} {_text(found.shape)}, and it must be "
            f"one row of numbers for each input, ({rows}, width): export it so"
        )
    if labels and found.shape[1] != labels:
        raise ModuleRefused(f"{path} gives {found.shape[1]} numbers, and labels names {labels}: correct labels")


def _labels(path: Path) -> tuple[str, ...]:
    try:
        found = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ModuleRefused(f"{path} can't be read ({first_line(error)}): write one label a line, in UTF-8") from error
    if not found:
        raise ModuleRefused(f"{path} is empty: write one label a line")
    return found


def _digest(spec: ModuleSpec, path: Path, beside: Mapping[str, Path]) -> str:
    """The identity: all files, and what the task file says of them."""
    files: Mapping[str, Path] = {FILE: path, **beside}
    said: dict[str, JsonValue] = spec.model_dump(mode="json", include={"family", "prepare", "labels"})
    content: dict[str, JsonValue] = {"files": {name: exports.sha256_of(each) for name, each in files.items()}}
    return f"sha256:{identity.fingerprint(said | content)}"


def _text(shape: Sequence[int | None]) -> str:
    return f"({', '.join('any' if length is None else str(length) for length in shape)})"
