"""The base of all whole models: each answers requests, and computes no gradients. It imports no transformers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from broker.protocol.tensors import embeddings
from edge_agent.modules import Output

Inputs = Mapping[str, RawInput]


class Model(ABC):
    """A whole model with its weights in memory."""

    def __call__(self, inputs: Inputs) -> Output:
        """Answers one request: the arrays of the task's output node, where the model has them, and its answer.

        Raises:
            RequestFailed: ``bad_input`` when an input can't be read.
        """
        with torch.inference_mode():
            return self._answer(inputs)

    @abstractmethod
    def _answer(self, inputs: Inputs) -> Output: ...


def embedded(task: TaskSpec, name: str, rows: Tensor) -> Output:
    """Embeddings (n, width) as the array ``name``, and as the answer in the task's form."""
    arrays = {name: rows.contiguous().numpy()}
    return Output(arrays, embeddings(arrays, task.answer) if task.answer else None)
