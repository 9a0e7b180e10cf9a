"""What most parts do with their network: a picture, texts, a sound or another node's array in, arrays out.

Owns the steps around a forward pass that families share. Knows no family: which network, which function of it, and how
its input is prepared come in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.image_processing_backends import PilBackend

from edge_agent.modules import Output, Value
from edge_agent.modules.inputs import decoding, outputs, prepare, sample_inputs

N = TypeVar("N", bound=nn.Module)


class Pictures(Generic[N]):
    """A network that sees.

    Args:
        see: The network and a picture (1, 3, h, w) to arrays.
        network: The network.
        processor: How a picture is prepared.
    """

    def __init__(self, see: Callable[[N, Tensor], Mapping[str, Tensor]], network: N, processor: PilBackend) -> None:
        self._see = see
        self._network = network
        self._processor = processor
        self._dtype = next(network.parameters()).dtype

    def typical(self) -> tuple[Value, ...]:
        """A picture."""
        return (sample_inputs.picture(),)

    def __call__(self, *values: Value) -> Output:
        """A picture's bytes to arrays."""
        decoding.count(values, 1)
        pixels = prepare.pixels(self._processor, decoding.picture(values[0])).to(self._dtype)
        with torch.inference_mode():
            return Output(outputs.arrays(self._see(self._network, pixels)))


class Texts(Generic[N]):
    """A network that reads.

    Args:
        read: The network, tokens (n, t) and their mask (n, t) to arrays.
        network: The network.
        tokenizer: Its tokenizer.
        longest: A text's most tokens; what is longer is cut.
        padded: Whether each text is padded to that length, or all to the longest of them.
    """

    def __init__(
        self,
        read: Callable[[N, Tensor, Tensor], Mapping[str, Tensor]],
        network: N,
        tokenizer: PreTrainedTokenizerBase,
        longest: int,
        *,
        padded: bool = False,
    ) -> None:
        self._read = read
        self._network = network
        self._tokenizer = tokenizer
        self._longest = longest
        self._padding = "max_length" if padded else True

    def typical(self) -> tuple[Value, ...]:
        """Four captions."""
        return (sample_inputs.texts(),)

    def __call__(self, *values: Value) -> Output:
        """A text, one a line (n), to arrays."""
        decoding.count(values, 1)
        tokens = self._tokenizer(
            decoding.lines(values[0]),
            padding=self._padding,
            truncation=True,
            max_length=self._longest,
            return_attention_mask=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            return Output(outputs.arrays(self._read(self._network, tokens["input_ids"], tokens["attention_mask"])))


class Sounds(Generic[N]):
    """A network that hears.

    Args:
        hear: The network and a sound's features (1, ...) to arrays.
        network: The network.
        features: How a sound is prepared: a wav's bytes to features, float32.
    """

    def __init__(
        self,
        hear: Callable[[N, Tensor], Mapping[str, Tensor]],
        network: N,
        features: Callable[[Value], Tensor],
    ) -> None:
        self._hear = hear
        self._network = network
        self._features = features
        self._dtype = next(network.parameters()).dtype

    def typical(self) -> tuple[Value, ...]:
        """A sound."""
        return (sample_inputs.sound(),)

    def __call__(self, *values: Value) -> Output:
        """A sound's wav bytes to arrays."""
        decoding.count(values, 1)
        features = self._features(values[0]).to(self._dtype)
        with torch.inference_mode():
            return Output(outputs.arrays(self._hear(self._network, features)))


class Arrays(Generic[N]):
    """A network that takes one array of another node.

    Args:
        forward: The network and that array to arrays.
        network: The network.
        name: The array's name.
        shape: Its shape.
    """

    def __init__(
        self,
        forward: Callable[[N, Tensor], Mapping[str, Tensor]],
        network: N,
        name: str,
        shape: tuple[int, ...],
    ) -> None:
        self._forward = forward
        self._network = network
        self._name = name
        self._shape = shape
        self._dtype = next(network.parameters()).dtype

    def typical(self) -> tuple[Value, ...]:
        """That array."""
        return (sample_inputs.arrays({self._name: self._shape}),)

    def __call__(self, *values: Value) -> Output:
        """The array to arrays."""
        decoding.count(values, 1)
        given = decoding.tensor(values[0], self._name, self._shape).to(self._dtype)
        with torch.inference_mode():
            return Output(outputs.arrays(self._forward(self._network, given)))
