"""The steps of one request as frozen values: a picture, texts, a sound, or arrays of other nodes, and an answer.

Owns what a module is given in each of these forms, and their description as JSON, from which the same steps are made
again (``described``, ``from_description``). Knows no network and no engine, and imports neither torch nor transformers.
A family may have needs and answers of its own (``Need``, ``Answer``); steps that have one can't be described.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import Field, JsonValue, PrivateAttr, StringConstraints, TypeAdapter, ValidationError, model_validator

from broker.protocol.errors import ModuleRefused
from broker.protocol.preparation import PicturePreparation, SoundPreparation, TextPreparation
from broker.protocol.sentences import describe
from broker.protocol.tensors import Array
from broker.protocol.values import Spec
from edge_agent.modules import Output, Prepared, RequestSteps, Value, lacking
from edge_agent.modules.inputs import audio, decoding, sample_inputs, spectrogram, tokens
from edge_agent.modules.inputs.answers import Answer, AsItIs, Likeliest, Masks, Ranked
from edge_agent.modules.inputs.limits import MAX_LINES
from edge_agent.modules.inputs.pixels import pixels

MAX_NUMBERS = 2**26  # of an array, in a description
Name = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Shape = tuple[int, ...]
_Shape = Annotated[tuple[Annotated[int, Field(ge=1, le=MAX_NUMBERS)], ...], Field(max_length=8)]


class Need(Protocol):
    """One value of a node's needs: how it is read as arrays of ``forward``, and a value to measure with."""

    def read(self, value: Value) -> Mapping[str, Array]:
        """The arrays of a value, checked; raises RequestFailed as ``RequestSteps.prepare``."""

    def sample(self) -> Value:
        """A value to measure with."""


class Picture(Spec):
    """A picture's bytes to ``pixels`` float32 (1, 3, h, w)."""

    kind: Literal["picture"] = "picture"
    preparation: PicturePreparation

    def read(self, value: Value) -> dict[str, Array]:
        """The pixels."""
        return {"pixels": pixels(decoding.picture(value), self.preparation)}

    def sample(self) -> Value:
        """A photograph."""
        return sample_inputs.picture()


class Texts(Spec):
    """Texts, one a line (n), or a question, to ``ids`` and ``mask`` int64 (n, t).

    It is made with its tokenizer (``tokenized``), or reads it where a directory is the context of its validation.
    """

    kind: Literal["texts"] = "texts"
    preparation: TextPreparation
    _tokens: tokens.Tokens = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:  # noqa: ANN401 - pydantic's
        """Read the tokenizer from the directory of a description.

        Raises:
            ModuleRefused: it isn't there or makes none.
        """
        if isinstance(context, Path):
            self._tokens = tokens.read(context, self.preparation)

    @classmethod
    def tokenized(cls, preparation: TextPreparation, by: tokens.Tokens) -> Texts:
        """Texts whose tokenizer is in memory already."""
        made = cls(preparation=preparation)
        made._tokens = by
        return made

    def read(self, value: Value) -> dict[str, Array]:
        """The tokens."""
        lines = decoding.lines(value)
        return self._tokens.of([" ".join(lines)] if self.preparation.joined else lines)

    def sample(self) -> Value:
        """Four captions, or a question."""
        return sample_inputs.question() if self.preparation.joined else sample_inputs.texts()

    def file(self) -> bytes:
        """The file of the tokenizer, from which it is made again."""
        return self._tokens.file()


class Sound(Spec):
    """A sound's wav bytes to ``features`` float32 (1, ...)."""

    kind: Literal["sound"] = "sound"
    preparation: SoundPreparation

    def read(self, value: Value) -> dict[str, Array]:
        """The features."""
        how = self.preparation
        found = audio.samples(value, how.rate_hz, how.most_s)
        if len(found) < how.least:
            raise decoding.bad_input(f"this sound has {len(found)} samples: send at least {how.least}")
        return {"features": spectrogram.features(found, how)}

    def sample(self) -> Value:
        """A sound of two seconds."""
        return sample_inputs.sound()


class Arrays(Spec):
    """Arrays of one other node, each of its shape.

    Args:
        shapes: The shapes by the names under which the other node gives the arrays.
        free: Whether their second length may be any (a text's tokens).
        question: Whether the first length is the lines of a question: it must be one.
        names: The names that ``forward`` takes, by those that the other node gives, where they differ.
    """

    kind: Literal["arrays"] = "arrays"
    shapes: Annotated[dict[Name, _Shape], Field(min_length=1, max_length=64)]
    free: bool = False
    question: bool = False
    names: Annotated[dict[Name, Name], Field(max_length=64)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _are_small(self) -> Self:
        if (most := max(math.prod(shape) for shape in self.shapes.values())) > MAX_NUMBERS:
            raise ValueError(f"an array has {most} numbers, at most {MAX_NUMBERS} are allowed")
        return self

    def read(self, value: Value) -> dict[str, Array]:
        """The arrays."""
        found: dict[str, Array] = {}
        for name, (first, *rest) in self.shapes.items():
            wanted = (None if self.question else first, *((None, *rest[1:]) if self.free else rest))
            array = decoding.array(value, name, wanted)
            if self.question:
                decoding.one_question(array)
            found[self.names.get(name, name)] = array
        return found

    def sample(self) -> Value:
        """Arrays of these shapes."""
        return sample_inputs.arrays(self.shapes)


_AS_IT_IS = AsItIs()


@dataclass(frozen=True)
class Steps:
    """The steps of a module whose values are read one by one, each by its ``Need``."""

    needs: tuple[Need, ...]
    answer: Answer = _AS_IT_IS

    def prepare(self, values: Sequence[Value]) -> Prepared:
        """As ``RequestSteps`` says."""
        decoding.count(values, len(self.needs))
        read = [need.read(value) for need, value in zip(self.needs, values, strict=True)]
        return Prepared({name: array for arrays in read for name, array in arrays.items()})

    def sample(self) -> tuple[Value, ...]:
        """As ``RequestSteps`` says."""
        return tuple(need.sample() for need in self.needs)


class Ranking(Spec):
    """The steps of a module that judges texts: arrays of other nodes, the embeddings of n texts, and these texts.

    Args:
        needs: The arrays before the embeddings.
        question: A question's embedding, between both; a task may leave it out.
        embeddings: The name under which the other node gives the embeddings (n, width).
        taken: Their name for ``forward``.
        width: Their length.
        most: The most texts.
        sampled: How many texts there are to measure with.
        result: The answer; it has the texts.
    """

    kind: Literal["ranking"] = "ranking"
    needs: Annotated[tuple[Arrays, ...], Field(min_length=1, max_length=16)]
    question: Arrays | None = None
    embeddings: Name = "text_embeds"
    taken: Name = "text_embeds"
    width: Annotated[int, Field(ge=1, le=65_536)]
    most: Annotated[int, Field(ge=1, le=MAX_LINES)] = MAX_LINES
    sampled: Literal[1, 4] = 4
    result: Annotated[AsItIs | Ranked | Masks, Field(discriminator="kind")] = Ranked()

    def prepare(self, values: Sequence[Value]) -> Prepared:
        """The arrays, checked, and the texts."""
        fewest = len(self.needs) + 2
        decoding.count(values, fewest, *([fewest + 1] if self.question else []))
        *given, embedded, sent = values
        texts = decoding.lines(sent)
        if len(texts) > self.most:
            raise decoding.bad_input(f"{len(texts)} texts, at most {self.most} are taken at once: send fewer")
        found = {self.taken: decoding.array(embedded, self.embeddings, (len(texts), self.width))}
        for need, value in zip((*self.needs, self.question), given, strict=False):
            found |= need.read(value) if need else {}
        return Prepared(found, texts)

    def answer(self, arrays: Mapping[str, Array], prepared: Prepared, /) -> Output:
        """The output, with the texts."""
        return self.result(arrays, prepared)

    def sample(self) -> tuple[Value, ...]:
        """Arrays, embeddings of some texts, and these."""
        texts = sample_inputs.texts() if self.sampled == sample_inputs.TEXTS else sample_inputs.question()
        embedded = sample_inputs.arrays({self.embeddings: (self.sampled, self.width)})
        return *(need.sample() for need in self.needs), embedded, texts


class _Described(Spec):
    """``Steps`` of which each value can be described."""

    kind: Literal["steps"] = "steps"
    needs: Annotated[
        tuple[Annotated[Picture | Texts | Sound | Arrays, Field(discriminator="kind")], ...],
        Field(min_length=1, max_length=16),
    ]
    answer: Annotated[AsItIs | Likeliest, Field(discriminator="kind")]


_ANY: TypeAdapter[_Described | Ranking] = TypeAdapter(Annotated[_Described | Ranking, Field(discriminator="kind")])


def described(made: RequestSteps) -> JsonValue:
    """The description of steps as JSON; the files that it names are those of ``files``.

    Raises:
        ModuleRefused: a need or an answer is of a kind that only its family has.
    """
    if isinstance(made, Ranking):
        return made.model_dump(mode="json")
    try:
        if isinstance(made, Steps):
            whole = _Described.model_validate({"needs": made.needs, "answer": made.answer})
            return whole.model_dump(mode="json")
    except ValidationError:
        pass
    own = (*made.needs, made.answer) if isinstance(made, Steps) else (made,)
    strange = next((each for each in own if not isinstance(each, Spec)), made)
    raise ModuleRefused(
        f"its steps can't be described: {type(strange).__name__} of {type(strange).__module__} is its family's own"
    )


def files(made: RequestSteps) -> dict[str, bytes]:
    """The files that a description of these steps names, which ``from_description`` reads from its directory."""
    needs = made.needs if isinstance(made, Steps) else ()
    return {need.preparation.tokenizer: need.file() for need in needs if isinstance(need, Texts)}


def from_description(content: object, directory: Path) -> RequestSteps:
    """The steps of a description, with files of this directory.

    Raises:
        ModuleRefused: it doesn't describe steps, a file isn't there or is wrong, or a package is missing.
    """
    try:
        made = _ANY.validate_python(content, context=directory)
    except ValidationError as error:
        field, sentence = describe(error.errors()[0])
        raise ModuleRefused(f"{field or 'the description'} {sentence}: correct it, or export it again") from error
    except ImportError as error:
        fix = f"pip install {error.name}" if error.name else "install it again"
        raise ModuleRefused(f"its steps need {lacking(error)}: {fix}") from error
    return made if isinstance(made, Ranking) else Steps(made.needs, made.answer)
