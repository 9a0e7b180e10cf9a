"""The steps of one request that families share: for a picture, texts, a sound, or arrays of other nodes.

Owns what a module is given in each of these forms. Knows no network and no engine: how a picture becomes pixels, and
which arrays of which shapes a part takes, come in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.tensors import Array
from edge_agent.modules import SCORES, Output, Prepared, Value
from edge_agent.modules.inputs import decoding, outputs, sample_inputs

Shape = tuple[int, ...]


class Steps:
    """The base: checks how many values there are, and gives the arrays of ``forward`` as they are."""

    values: ClassVar[int] = 1

    def prepare(self, values: Sequence[Value]) -> Prepared:
        """As ``RequestSteps`` says."""
        decoding.count(values, self.values)
        return self.read(*values)

    def read(self, *values: Value) -> Prepared:
        """Make the arrays of the right number of values."""
        raise NotImplementedError

    def answer(self, arrays: Mapping[str, Array], _: Prepared) -> Output:
        """As ``RequestSteps`` says."""
        return Output(dict(arrays))

    def sample(self) -> tuple[Value, ...]:
        """As ``RequestSteps`` says."""
        raise NotImplementedError


class Picture(Steps):
    """A picture's bytes to ``pixels`` (1, 3, h, w).

    Args:
        processor: transformers' image processor.
    """

    def __init__(self, processor: Any) -> None:  # noqa: ANN401 - transformers isn't imported here
        self._processor = processor

    def read(self, *values: Value) -> Prepared:
        """The picture's pixels."""
        return Prepared({"pixels": pixels(self._processor, values[0])})

    def sample(self) -> tuple[Value, ...]:
        """A picture."""
        return (sample_inputs.picture(),)


class Texts(Steps):
    """A text, one a line (n), to ``ids`` and ``mask`` int64 (n, t).

    Args:
        tokenizer: transformers' tokenizer.
        longest: A text's most tokens; what is longer is cut.
        padded: Whether each text is padded to that length, or all to the longest of them.
    """

    def __init__(self, tokenizer: Any, longest: int, *, padded: bool = False) -> None:  # noqa: ANN401 - the same
        self._tokenizer = tokenizer
        self._longest = longest
        self._padding = "max_length" if padded else True

    def read(self, *values: Value) -> Prepared:
        """The texts' tokens."""
        return Prepared(tokens(self._tokenizer, decoding.lines(values[0]), self._longest, padding=self._padding))

    def sample(self) -> tuple[Value, ...]:
        """Four captions."""
        return (sample_inputs.texts(),)


class Sound(Steps):
    """A sound's wav bytes to ``features`` float32 (1, ...).

    Args:
        features: What a sensor sent to that array.
    """

    def __init__(self, features: Callable[[Value], Array]) -> None:
        self._features = features

    def read(self, *values: Value) -> Prepared:
        """The sound's features."""
        return Prepared({"features": np.ascontiguousarray(self._features(values[0]), dtype=np.float32)})

    def sample(self) -> tuple[Value, ...]:
        """A sound."""
        return (sample_inputs.sound(),)


class Arrays(Steps):
    """Arrays of one other node, each of its shape.

    Args:
        shapes: Name to shape, for measuring.
        free: Whether their second length may be any, as that of a text's tokens.
    """

    def __init__(self, shapes: Mapping[str, Shape], *, free: bool = False) -> None:
        self._shapes = shapes
        self._free = free

    def read(self, *values: Value) -> Prepared:
        """The arrays, checked."""
        wanted = {name: (each[0], None, *each[2:]) if self._free else each for name, each in self._shapes.items()}
        return Prepared({name: decoding.array(values[0], name, shape) for name, shape in wanted.items()})

    def sample(self) -> tuple[Value, ...]:
        """Those arrays."""
        return (sample_inputs.arrays(self._shapes),)


class Ranking(Steps):
    """Embeddings of other nodes, ``text_embeds`` (n, e), and the n texts, which are ranked.

    Args:
        names: The arrays (1, e) of the values before the texts' embeddings.
        width: The length e of each.
    """

    def __init__(self, names: Sequence[str], width: int) -> None:
        self._names = names
        self._width = width

    def prepare(self, values: Sequence[Value]) -> Prepared:
        """The embeddings, checked, and the texts."""
        decoding.count(values, len(self._names) + 2)
        texts = decoding.lines(values[-1])
        found = {
            name: decoding.array(value, name, (1, self._width))
            for name, value in zip(self._names, values, strict=False)
        }
        found["text_embeds"] = decoding.array(values[-2], "text_embeds", (len(texts), self._width))
        return Prepared(found, texts)

    def answer(self, arrays: Mapping[str, Array], prepared: Prepared) -> Output:
        """The texts, best first, by ``SCORES`` (1, n)."""
        return ranked("label", prepared.texts, arrays)

    def sample(self) -> tuple[Value, ...]:
        """Embeddings, those of four texts among them, and these."""
        shapes = [{name: (1, self._width)} for name in self._names]
        shapes.append({"text_embeds": (sample_inputs.TEXTS, self._width)})
        return *map(sample_inputs.arrays, shapes), sample_inputs.texts()


class Spelling(Arrays):
    """An encoder's array to the text that the decoder's ``tokens`` (1, t) spell.

    Args:
        shapes: As for ``Arrays``.
        tokenizer: transformers' tokenizer.
        what: The name of the text in the answer.
        free: As for ``Arrays``.
    """

    def __init__(self, shapes: Mapping[str, Shape], tokenizer: Any, what: str, *, free: bool = False) -> None:  # noqa: ANN401 - transformers isn't imported here
        super().__init__(shapes, free=free)
        self._tokenizer = tokenizer
        self._what = what

    def answer(self, arrays: Mapping[str, Array], _: Prepared) -> Output:
        """The tokens, and their text."""
        return spelled(self._tokenizer, arrays["tokens"], self._what)


def pixels(processor: Any, value: Value) -> Array:  # noqa: ANN401 - the same
    """A picture's input for the network, float32 (1, 3, height, width), by transformers' image processor.

    Raises:
        RequestFailed: ``bad_input`` when it can't be read, or its size leaves nothing of a side.
    """
    picture = decoding.picture(value)
    try:
        made = processor(images=picture, return_tensors="np")["pixel_values"]
    except ValueError as error:
        raise RequestFailed(
            ErrorCode.BAD_INPUT,
            f"a picture of {picture.width} x {picture.height} pixels is too thin for this model: send a squarer one",
        ) from error
    return np.ascontiguousarray(made, dtype=np.float32)


def tokens(tokenizer: Any, texts: Sequence[str], longest: int, *, padding: bool | str = True) -> dict[str, Array]:  # noqa: ANN401 - the same
    """``ids`` and ``mask`` int64 (n, t) of n texts, each cut to ``longest`` tokens."""
    found = tokenizer(
        list(texts),
        padding=padding,
        truncation=True,
        max_length=longest,
        return_attention_mask=True,
        return_tensors="np",
    )
    return {"ids": found["input_ids"], "mask": found["attention_mask"]}


def spelled(tokenizer: Any, ids: Array, what: str) -> Output:  # noqa: ANN401 - the same
    """Tokens (1, t) as an output: the ids, and the text under the name ``what``."""
    text = str(tokenizer.decode(ids[0].tolist(), skip_special_tokens=True))
    return Output({"tokens": ids}, {what: text.strip()})


def question(value: Value) -> str:
    """A question; several lines are one question.

    Raises:
        RequestFailed: ``bad_input`` when it is not text.
    """
    return " ".join(decoding.lines(value))


def ranked(what: str, texts: Sequence[str], arrays: Mapping[str, Array], most: int | None = None) -> Output:
    """The arrays that cross the wire, and the n texts by ``SCORES`` (1, n), best first (see ``outputs.ranking``)."""
    sent = {name: array for name, array in arrays.items() if name != SCORES}
    return Output(sent, outputs.ranking(what, texts, arrays[SCORES][0], most))
