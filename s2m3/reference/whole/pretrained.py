"""Whole models that transformers reads with ``from_pretrained`` and runs with ``forward`` or ``generate``.

Owns reading a repository of a task with transformers, and what the families' files have in common.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar, cast

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from broker.protocol.errors import BadFile
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families import causal, heads
from edge_agent.modules.families.generation import limits
from edge_agent.modules.inputs import answers, decoding
from edge_agent.modules.weights import hub, precision
from edge_agent.modules.weights.layout import SINGLE, read_object
from s2m3.reference.whole.model import Inputs, Model, embedded

M = TypeVar("M", bound=PreTrainedModel)


class Repository:
    """The repository of a task's module whose name ends in ``part``, as transformers reads it.

    Raises:
        KeyError: no module has such a name, or it has no source.
        ModuleRefused: the repository is missing.
    """

    def __init__(self, task: TaskSpec, part: str) -> None:
        found = [module.source for name, module in task.modules.items() if name.endswith(part) and module.source]
        if not found:
            raise KeyError(part)
        repository = hub.repository(found[0])
        self.where = str(repository.directory or repository.name)
        self._how = {"revision": repository.revision} if repository.directory is None else {"local_files_only": True}

    def read(self, kind: Any) -> Any:  # noqa: ANN401 - any class of transformers
        """A tokenizer, a processor or a configuration of transformers' class ``kind``."""
        return kind.from_pretrained(self.where, **self._how)

    def model(self, kind: type[M], **how: Any) -> M:  # noqa: ANN401 - what from_pretrained takes
        """A model of transformers' class ``kind``, its weights in aligned memory of their own.

        transformers leaves them where the file's mapping has them, and the kernels' order of sums depends on alignment.
        """
        model = kind.from_pretrained(self.where, **self._how, **how)
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
        model.train(mode=False)
        return model


class Pretrained(Model):
    """A whole model of one repository with its tokenizer and its processor of pictures or sounds.

    A subclass names transformers' classes.
    """

    part: ClassVar[str]  # whose repository it is: as for ``Repository``
    architecture: ClassVar[type[PreTrainedModel]]
    tokenizer: ClassVar[Any] = None
    processor: ClassVar[Any] = None

    def __init__(self, task: TaskSpec) -> None:
        repository = Repository(task, self.part)
        self._model: Any = repository.model(self.architecture)
        self._tokenizer: Any = repository.read(self.tokenizer) if self.tokenizer else None
        self._processor: Any = repository.read(self.processor) if self.processor else None

    def _pixels(self, inputs: Inputs) -> Any:  # noqa: ANN401 - transformers' batch of arrays
        return self._processor(images=decoding.picture(inputs["image"]), return_tensors="pt")


class Retrieval(Pretrained):
    """Picture and texts to logits (1, n), and the texts ranked by how well each fits, by a model of two encoders."""

    part = "/vision"
    padding: ClassVar[Mapping[str, Any]] = {"padding": True, "truncation": True}

    def _answer(self, inputs: Inputs) -> Output:
        texts = decoding.lines(inputs["text"])
        tokens = self._tokenizer(texts, return_tensors="pt", **self.padding)
        logits = self._model(**tokens, **self._pixels(inputs)).logits_per_image  # (1, n)
        return ranked("label", texts, logits, self._scores(logits))

    def _scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1)


class PictureEmbedding(Pretrained):
    """Picture to its projected embedding (1, e)."""

    part = "/vision"

    def __init__(self, task: TaskSpec) -> None:
        super().__init__(task)
        self._task = task

    def _answer(self, inputs: Inputs) -> Output:
        found = self._model.get_image_features(**self._pixels(inputs))
        return embedded(self._task, "image_embeds", found.pooler_output)


class TextEmbedding(Pretrained):
    """Texts to their projected embeddings (n, e)."""

    part = "/text"
    padding: ClassVar[Mapping[str, Any]] = {"padding": True, "truncation": True}

    def __init__(self, task: TaskSpec) -> None:
        super().__init__(task)
        self._task = task

    def _answer(self, inputs: Inputs) -> Output:
        tokens = self._tokenizer(decoding.lines(inputs["text"]), return_tensors="pt", **self.padding)
        return embedded(self._task, "text_embeds", self._model.get_text_features(**tokens).pooler_output)


class Prompted(Model):
    """Picture and question to the new tokens (1, t) and the answer, which a model writes behind a prompt."""

    architecture: ClassVar[type[PreTrainedModel]]

    def __init__(self, task: TaskSpec) -> None:
        repository = Repository(task, "/language")
        dtype = precision.FLOATS[task.module_of(task.output).dtype]
        self._model: Any = repository.model(self.architecture, dtype=dtype)
        self._processor = self._processor_of(repository)

    def _answer(self, inputs: Inputs) -> Output:
        prompt = self._prompt().format(image=causal.IMAGE, question=decoding.lines(inputs["text"])[0])
        picture = decoding.picture(inputs["image"])
        ready = self._processor(images=[[picture]], text=[prompt], return_tensors="pt").to(self._model.dtype)
        tokens = self._model.generate(**ready, **limits(causal.MOST_TOKENS))
        return generated("answer", tokens[:, ready["input_ids"].shape[1] :], self._processor.tokenizer)

    @abstractmethod
    def _processor_of(self, repository: Repository) -> Any: ...  # noqa: ANN401 - transformers' own

    @abstractmethod
    def _prompt(self) -> str: ...


def ranked(what: str, texts: Sequence[str], logits: Tensor, scores: Tensor, most: int | None = None) -> Output:
    """Logits (1, n), and n texts ranked by their scores (1, n): ``answers.ranking`` says how."""
    return Output({"logits": logits.contiguous().numpy()}, answers.ranking(what, texts, scores[0], most))


def generated(what: str, tokens: Tensor, decoder: Any) -> Output:  # noqa: ANN401 - any tokenizer
    """Generated tokens (1, t), and their text under the name ``what``."""
    text = cast("str", decoder.batch_decode(tokens, skip_special_tokens=True)[0])
    return Output({"tokens": tokens.contiguous().numpy()}, {what: text.strip()})


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
