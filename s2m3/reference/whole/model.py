"""The base of all whole models, which answers requests without gradients; and the reading of a head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from safetensors.torch import load_file
from torch import Tensor

from broker.protocol.codec import RawInput
from broker.protocol.errors import BadFile
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families import heads
from edge_agent.modules.weights import hub
from edge_agent.modules.weights.checkpoint import SINGLE, read_object

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


def read_head(task: TaskSpec) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors and the labels of the head that gives a task's output.

    The tensors are in aligned memory of their own: the kernels' order of sums depends on where a file's mapping begins.
    """
    source = task.module_of(task.output).source
    if source is None:
        raise BadFile(file=task.task, field=task.output, problem="has no source", fix="write it")
    repository = hub.repository(source)
    tensors = {name: each.clone() for name, each in load_file(repository.required(SINGLE)).items()}
    return tensors, heads.labels(read_object(repository.required("config.json")))
