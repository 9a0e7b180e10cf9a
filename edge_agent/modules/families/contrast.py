"""The head of every model with two towers: scores of texts for a picture (or a sound), and the ranked texts.

Owns the head's inputs and its answer; how embeddings become logits is the family's network.

    takes                                              gives
    ``image_embeds`` (1, e), ``text_embeds`` (n, e),   ``logits`` float32 (1, n), and the texts, best first
    the texts
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edge_agent.modules import Output, Value
from edge_agent.modules.inputs import decoding, outputs, sample_inputs


def softmax(logits: Tensor) -> Tensor:
    """The texts compete: probabilities (1, n) that add up to 1."""
    return logits.softmax(dim=1)


class ContrastHead(nn.Module):
    """Base of the families' heads. ``width`` is that of the embeddings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, image_embeds: Tensor, text_embeds: Tensor) -> dict[str, Tensor]:
        """``logits`` (1, n) of a picture (1, e) and n texts (n, e)."""
        raise NotImplementedError

    def typical(self, texts: int) -> dict[str, Tensor]:
        """The pass for one picture and this many texts."""
        return self.forward(torch.empty(1, self.width), torch.empty(texts, self.width))


class HeadModule:
    """A head with its weights.

    Args:
        network: The family's head.
        probabilities: Logits (1, n) to scores (1, n) between 0 and 1.
        name: The array of the first value: ``image_embeds``, or another tower's.
    """

    def __init__(
        self, network: ContrastHead, probabilities: Callable[[Tensor], Tensor] = softmax, name: str = "image_embeds"
    ) -> None:
        self._network = network
        self._probabilities = probabilities
        self._name = name
        self._dtype = next(network.parameters()).dtype

    def typical(self) -> tuple[Value, ...]:
        """Embeddings of one picture and four texts, and these."""
        picture = sample_inputs.arrays({self._name: (1, self._network.width)})
        return (
            picture,
            sample_inputs.arrays({"text_embeds": (sample_inputs.TEXTS, self._network.width)}),
            sample_inputs.texts(),
        )

    def __call__(self, *values: Value) -> Output:
        """Embeddings of one picture, of n texts, and the texts, to ``logits`` (1, n) and the ranked texts."""
        decoding.count(values, 3)
        texts = decoding.lines(values[2])
        image = decoding.tensor(values[0], self._name, (1, self._network.width)).to(self._dtype)
        text = decoding.tensor(values[1], "text_embeds", (len(texts), self._network.width)).to(self._dtype)
        with torch.inference_mode():
            output = self._network.forward(image, text)
            scores = self._probabilities(output["logits"].float())[0]  # (n,)
            return Output(outputs.arrays(output), outputs.ranking("label", texts, scores))
