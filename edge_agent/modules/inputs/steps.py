"""The steps of one request that families share: for a picture, texts, a sound, or arrays of other nodes.

Owns what a module is given in each of these forms, and the form of rankings. Knows no network and no engine: how a
picture becomes pixels, and which arrays of which shapes a part takes, come in.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL.Image import Image
from pydantic import JsonValue

from broker.protocol.tensors import Array
from edge_agent.modules import SCORES, Output, Prepared, Value
from edge_agent.modules.inputs import decoding, sample_inputs

Shape = tuple[int, ...]
Answer = Callable[[Mapping[str, Array], Prepared], Output]


@dataclass(frozen=True)
class Need:
    """One value of a node's needs: how it is read as arrays of ``forward``, and a value to measure with."""

    read: Callable[[Value], Mapping[str, Array]]
    sample: Callable[[], Value]


def as_it_is(arrays: Mapping[str, Array], _: Prepared) -> Output:
    """The arrays of ``forward`` as the output, without an answer for the sensor."""
    return Output(dict(arrays))


class Steps:
    """The steps of a module whose values are read one by one, each by its ``Need``."""

    def __init__(self, *needs: Need, answer: Answer = as_it_is) -> None:
        self._needs = needs
        self.answer = answer

    def prepare(self, values: Sequence[Value]) -> Prepared:
        """As ``RequestSteps`` says."""
        decoding.count(values, len(self._needs))
        read = [need.read(value) for need, value in zip(self._needs, values, strict=True)]
        return Prepared({name: array for arrays in read for name, array in arrays.items()})

    def sample(self) -> tuple[Value, ...]:
        """As ``RequestSteps`` says."""
        return tuple(need.sample() for need in self._needs)


def picture(processor: Any) -> Need:  # noqa: ANN401 - transformers isn't imported here
    """A picture's bytes to ``pixels`` float32 (1, 3, h, w), by transformers' image processor.

    Reading raises RequestFailed: ``bad_input`` when it can't be read, or its size leaves nothing of a side.
    """
    resizing = resizing_first(processor)

    def read(value: Value) -> dict[str, Array]:
        picture = decoding.picture(value)
        try:
            made = resizing(images=picture, return_tensors="np")["pixel_values"]
        except ValueError as error:
            raise decoding.bad_input(
                f"a picture of {picture.width} x {picture.height} pixels is too thin for this model: send a squarer one"
            ) from error
        return {"pixels": np.ascontiguousarray(made, dtype=np.float32)}

    return Need(read, sample_inputs.picture)


def resizing_first(processor: Any) -> Any:  # noqa: ANN401 - the same
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


def texts(tokenizer: Any, longest: int, *, padded: bool = False) -> Need:  # noqa: ANN401 - the same
    """A text, one a line (n), to ``ids`` and ``mask`` int64 (n, t), by transformers' tokenizer.

    Each text is cut to ``longest`` tokens, and padded to as many if ``padded``, else to the longest of the n.
    """
    padding = "max_length" if padded else True
    return Need(lambda value: tokens(tokenizer, decoding.lines(value), longest, padding=padding), sample_inputs.texts)


def question(tokenizer: Any, longest: int) -> Need:  # noqa: ANN401 - the same
    """A question, whose lines are joined, to ``ids`` and ``mask`` int64 (1, t)."""
    return Need(lambda value: tokens(tokenizer, [" ".join(decoding.lines(value))], longest), sample_inputs.question)


def sound(extractor: Any, samples: Callable[[Any, Value], Array], key: str) -> Need:  # noqa: ANN401 - the same
    """A sound's wav bytes to ``features`` float32 (1, ...): what transformers' ``extractor`` gives under ``key``.

    ``samples`` makes the samples (n,) of what a sensor sent, for this extractor.
    """

    def read(value: Value) -> dict[str, Array]:
        found = extractor(samples(extractor, value), sampling_rate=extractor.sampling_rate, return_tensors="np")[key]
        return {"features": np.ascontiguousarray(found, dtype=np.float32)}

    return Need(read, sample_inputs.sound)


def arrays(shapes: Mapping[str, Shape], *, free: bool = False) -> Need:
    """Arrays of one other node, each of its shape; if ``free``, their second length may be any (a text's tokens)."""
    wanted = {name: (each[0], None, *each[2:]) if free else each for name, each in shapes.items()}
    return Need(
        lambda value: {name: decoding.array(value, name, shape) for name, shape in wanted.items()},
        lambda: sample_inputs.arrays(shapes),
    )


class Ranking:
    """Arrays of other nodes, ``text_embeds`` (n, e), and the n texts, which are ranked.

    ``shapes`` are those of the arrays, one mapping for each node, and ``width`` is e.
    """

    def __init__(self, *shapes: Mapping[str, Shape], width: int) -> None:
        self._needs = [arrays(each) for each in shapes]
        self._width = width

    def prepare(self, values: Sequence[Value]) -> Prepared:
        """The arrays, checked, and the texts."""
        decoding.count(values, len(self._needs) + 2)
        texts = decoding.lines(values[-1])
        found = {"text_embeds": decoding.array(values[-2], "text_embeds", (len(texts), self._width))}
        for need, value in zip(self._needs, values, strict=False):
            found |= need.read(value)
        return Prepared(found, texts)

    def answer(self, arrays: Mapping[str, Array], prepared: Prepared) -> Output:
        """The texts, best first, by ``SCORES`` (1, n)."""
        return ranked("label", prepared.texts, arrays)

    def sample(self) -> tuple[Value, ...]:
        """Embeddings, those of four texts among them, and these."""
        embedded = sample_inputs.arrays({"text_embeds": (sample_inputs.TEXTS, self._width)})
        return *(need.sample() for need in self._needs), embedded, sample_inputs.texts()


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


def spelling(tokenizer: Any, what: str) -> Answer:  # noqa: ANN401 - the same
    """The answer of ``tokens`` (1, t): the text that they spell, under the name ``what``."""

    def answer(arrays: Mapping[str, Array], _: Prepared) -> Output:
        text = str(tokenizer.decode(arrays["tokens"][0].tolist(), skip_special_tokens=True))
        return Output({"tokens": arrays["tokens"]}, {what: text.strip()})

    return answer


def likeliest(what: str, texts: Sequence[str], most: int) -> Answer:
    """The answer of a classifier: its likeliest ``most`` texts, under the name ``what``."""
    return lambda arrays, _: ranked(what, texts, arrays, most)


def ranked(what: str, texts: Sequence[str], arrays: Mapping[str, Array], most: int | None = None) -> Output:
    """The arrays that cross the wire, and the n texts by ``SCORES`` (1, n), best first (see ``ranking``)."""
    sent = {name: array for name, array in arrays.items() if name != SCORES}
    return Output(sent, ranking(what, texts, arrays[SCORES][0], most))


def ranking(what: str, texts: Sequence[str], scores: ArrayLike, most: int | None = None) -> dict[str, JsonValue]:
    """The best of n texts by scores (n,) under the name ``what``, its score, and the best ``most`` texts, best first.

    All are named by default; ties stay in the order of the texts.
    """
    values = np.asarray(scores)
    order = np.argsort(-values, kind="stable").tolist()
    ranked: list[JsonValue] = [{what: texts[index], "score": float(values[index])} for index in order[:most]]
    return {what: texts[order[0]], "score": float(values[order[0]]), "ranked": ranked}
