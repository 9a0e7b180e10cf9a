"""Whisper (Radford et al. 2022, arXiv:2212.04356), tiny.en, run by CTranslate2 and cut between encoder and decoder.

    part      weights       takes                                  gives (this and nothing else crosses the wire)
    encoder   ``encoder/``  a wav file's bytes, at most 30 s       ``hidden`` float32 (1, 1500, 384)
    decoder   ``decoder/``  ``hidden``                             ``text`` U8 (n,), UTF-8, for nodes that take a text;
                                                                   the answer {"text": ...}

The encoder pads every sound to its window of 30 s, as the network was trained, and all of it is sent: the decoder
attends to the padding too. The decoder is greedy, without time stamps, with the published suppressed tokens; there is
no fallback to other temperatures. So one sound has one text. Silence or noise gives whatever the network hears in it.

The published weights are float16; both parts hold and compute them in float32 (CTranslate2's compute type of that name,
never ``auto`` or ``int8``, which choose by the processor). Same bits at the same thread count on processors for which
CTranslate2 picks the same kernels; its threads are the agent's, at the time of loading.

CTranslate2 loads one ``model.bin`` with an encoder and a decoder. So each part gives it a reduced file: its own half as
published, and of the other half what the library's constructor asks for and never runs: its settings, one layer of
arrays of one element, and for the decoder the encoder's last norm, by whose width ``generate`` knows an encoder's
output. These are less than 4 kB and not in ``memory_bytes``, which counts the half's weights in float32. The file must
have exactly the published names and shapes: the library drops a layer that lacks a tensor without a word.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from pydantic import JsonValue
from tokenizers import Tokenizer

from broker.protocol.errors import ModuleRefused
from broker.protocol.preparation import SoundPreparation
from broker.protocol.specs import ModuleSpec
from broker.protocol.tensors import Array
from edge_agent.modules import Module, Output, Pass, Prepared
from edge_agent.modules.inputs import decoding, steps
from edge_agent.modules.panics import panics_as_errors
from edge_agent.modules.weights import check_size, ctranslate2_file, digests, identity, packaged, part_source
from edge_agent.modules.weights.ctranslate2_file import ModelFile, Shape, Variable, open_whisper

PARTS = ("encoder", "decoder")
WIDTH = 384
POSITIONS = 1500  # of the encoder: one for 20 ms
MELS = 80
RATE_HZ = 16_000
WINDOW_S = 30.0
PROMPT = ("<|startoftranscript|>", "<|notimestamps|>")  # an English model takes no language and no task
MOST_TOKENS = 224  # half the decoder's positions, as in the published decoding
GREEDY = 1  # beams
_LAYERS = 4
_VOCABULARY = 51_864
_TEXT_POSITIONS = 448
_FLOAT32_BYTES = 4
_SETTINGS = {
    "encoder": ("num_heads",),
    "decoder": (
        "activation",
        "alibi",
        "alignment_heads",
        "alignment_layer",
        "num_heads",
        "pre_norm",
        "scale_embeddings",
        "start_from_zero_embedding",
    ),
}
_ALIASES = {"decoder/projection/weight": "decoder/embeddings/weight"}
_KEPT = {"encoder": (), "decoder": ("encoder/layer_norm/beta", "encoder/layer_norm/gamma")}  # of the other half


def shapes(part: str) -> dict[str, Shape]:
    """Every variable of a part with its shape, () for a setting."""
    found: dict[str, Shape] = {f"{part}/{name}": () for name in _SETTINGS[part]}
    if part == "encoder":
        found |= {"encoder/conv1/weight": (WIDTH, MELS, 3), "encoder/conv1/bias": (WIDTH,)}
        found |= {"encoder/conv2/weight": (WIDTH, WIDTH, 3), "encoder/conv2/bias": (WIDTH,)}
        found["encoder/position_encodings/encodings"] = (POSITIONS, WIDTH)
    else:
        found["decoder/embeddings/weight"] = (_VOCABULARY, WIDTH)
        found["decoder/position_encodings/encodings"] = (_TEXT_POSITIONS, WIDTH)
    for layer in (f"{part}/layer_{index}" for index in range(_LAYERS)):
        found |= _norm(f"{layer}/self_attention") | _norm(f"{layer}/ffn")
        found |= _linear(f"{layer}/self_attention/linear_0", 3 * WIDTH) | _linear(f"{layer}/self_attention/linear_1")
        found |= _linear(f"{layer}/ffn/linear_0", 4 * WIDTH) | _linear(f"{layer}/ffn/linear_1", width=4 * WIDTH)
        if part == "decoder":
            found |= _norm(f"{layer}/attention") | _linear(f"{layer}/attention/linear_0")
            found |= _linear(f"{layer}/attention/linear_1", 2 * WIDTH) | _linear(f"{layer}/attention/linear_2")
    return found | _norm(part)


PREPARATION = SoundPreparation(
    rate_hz=RATE_HZ,
    most_s=WINDOW_S,
    samples=int(RATE_HZ * WINDOW_S),
    window=400,
    hop=160,
    bands=MELS,
    highest_hz=8000.0,
    frames=3000,
    range=8.0,
    mean=-4.0,
    std=4.0,
)
"""A sound's log-mel ``features`` (1, 80, 3000), padded to the window."""


@dataclass(frozen=True)
class Spoken:
    """``text`` (n,), one line, with the answer."""

    tokenizer: Tokenizer

    def __call__(self, arrays: Mapping[str, Array], _: Prepared) -> Output:
        """The output."""
        spoken = self.tokenizer.decode(arrays["tokens"].tolist(), skip_special_tokens=True)
        text = " ".join(spoken.split())
        return Output({decoding.TEXT: decoding.text_array(text)}, {"text": text})


def encode_audio(model: ctranslate2.models.Whisper, features: ctranslate2.StorageView) -> dict[str, Any]:
    """Features (1, 80, 3000) to ``hidden`` (1, 1500, 384)."""
    return {"hidden": model.encode(features, to_cpu=True)}


def generate(model: ctranslate2.models.Whisper, hidden: ctranslate2.StorageView) -> dict[str, Any]:
    """``hidden`` (1, 1500, 384) to ``tokens`` (t,), one after the other."""
    found = model.generate(hidden, [list(PROMPT)], beam_size=GREEDY, max_length=MOST_TOKENS)
    return {"tokens": found[0].sequences_ids[0]}


def load(spec: ModuleSpec) -> Module:
    """Load one of the two parts.

    Raises:
        ModuleRefused: the weights aren't there or don't fit, or the temporary directory has no room for them.
    """
    part = spec.family.partition(".")[2]
    if spec.dtype != "float32":
        raise ModuleRefused(f"{spec.family} computes in float32, not {spec.dtype}: set dtype to float32")
    path, directory = packaged.path_of(part_source(spec, part)), packaged.directory_of(spec)
    whole = read_file(path)
    held = _checked(whole, path.name, spec, part)
    digests.check(spec, lambda: _digest(held, directory, part))
    vocabulary = (directory / "vocabulary.txt").read_bytes() if part == "decoder" else b"none\n"
    model = open_whisper(reduced(whole, part), (directory / "config.json").read_bytes(), vocabulary, part)
    if part == "encoder":
        return Module(
            model,
            {None: Pass(steps.Steps((steps.Sound(preparation=PREPARATION),)), encode_audio)},
            engine="ctranslate2",
        )
    hidden, answer = steps.Arrays(shapes={"hidden": (1, POSITIONS, WIDTH)}), Spoken(_tokenizer(directory))
    return Module(model, {None: Pass(steps.Steps((hidden,), answer), generate)}, engine="ctranslate2")


def read_file(path: Path) -> ModelFile:
    """The weights file, mapped into memory and not yet read.

    Raises:
        ModuleRefused: it can't be read.
    """
    try:
        with path.open("rb") as file:
            return ctranslate2_file.parse(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), path.name)
    except (OSError, ValueError) as error:  # ValueError: an empty file can't be mapped
        raise ModuleRefused(
            f"{path.name} can't be read as weights ({type(error).__name__}): install it again"
        ) from error


def reduced(whole: ModelFile, part: str) -> ModelFile:
    """A file with one half as it is, and of the other what the library's constructor asks for.

    The largest variables come last. The library reads all of them as they are, and then begins with the last ones when
    it makes float32 of each: while it does so with the decoder's matrix of words, the others take half their bytes.
    """

    def kept(name: str, variable: Variable) -> Variable:
        if name.startswith(f"{part}/") or name in _KEPT[part] or not variable.shape:
            return variable
        return Variable((1,) * len(variable.shape), "float16", bytes(2))

    left_out = tuple(f"{other}/layer_{index}/" for other in PARTS if other != part for index in range(1, _LAYERS))
    variables = {n: kept(n, variable) for n, variable in whole.variables.items() if not n.startswith(left_out)}
    return replace(whole, variables=dict(sorted(variables.items(), key=lambda each: len(each[1].data))))


def _checked(whole: ModelFile, name: str, spec: ModuleSpec, part: str) -> dict[str, Variable]:
    """The part's variables, when the file is exactly the published layout."""
    wanted = {variable: shape for each in PARTS for variable, shape in shapes(each).items()}
    if missing := sorted(wanted.keys() - whole.variables.keys()):
        raise ModuleRefused(f"{name} lacks {missing[0]}: these are not the weights of {spec.family}")
    if extra := sorted(whole.variables.keys() - wanted.keys()):
        raise ModuleRefused(f"{name} has {extra[0]} besides: these are not the weights of {spec.family}")
    for variable, shape in wanted.items():
        found = whole.variables[variable]
        if found.shape != shape or (shape and found.dtype != "float16"):
            raise ModuleRefused(
                f"{variable} in {name} is {found.dtype} {found.shape}, {spec.family} takes float16 {shape}"
            )
    if dict(whole.aliases) != _ALIASES:
        raise ModuleRefused(f"{name} doesn't share its embeddings: these are not the weights of {spec.family}")
    held = {variable: whole.variables[variable] for variable in shapes(part)}
    check_size(spec, ctranslate2_file.size_bytes(held.values(), _FLOAT32_BYTES))
    return held


class _Held(Mapping[str, Array]):
    """Variables as arrays, as they are held. They are made one by one."""

    def __init__(self, variables: Mapping[str, Variable]) -> None:
        self._variables = variables

    def __getitem__(self, name: str) -> Array:
        variable = self._variables[name]
        return variable.array.astype(np.float32 if variable.shape else np.int16)

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)


def _digest(held: Mapping[str, Variable], directory: Path, part: str) -> str:
    """The identity: the weights as held, the settings, and for the decoder what turns its numbers into a text."""
    tensors = _Held(held)
    files = ("config.json", "tokenizer.json") if part == "decoder" else ()
    config: dict[str, JsonValue] = {
        name: identity.fingerprint(json.loads((directory / name).read_text(encoding="utf-8"))) for name in files
    }
    return identity.digest(tensors, config)


def _tokenizer(directory: Path) -> Tokenizer:
    try:
        with panics_as_errors():
            return Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # the library raises Exception itself
        raise ModuleRefused(f"tokenizer.json can't be read ({error}): install it again") from error


def _norm(name: str) -> dict[str, Shape]:
    return {f"{name}/layer_norm/{each}": (WIDTH,) for each in ("beta", "gamma")}


def _linear(name: str, out: int = WIDTH, width: int = WIDTH) -> dict[str, Shape]:
    return {f"{name}/weight": (out, width), f"{name}/bias": (out,)}
