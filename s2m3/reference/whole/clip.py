"""Whole models around CLIP: CLIPModel with its processor, CLIPForImageClassification, CLIPModel with answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
)

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families.heads import RANKED
from edge_agent.modules.inputs import decoding, outputs
from s2m3.reference.whole import Whole, place, read


class Retrieval:
    """Captions ranked by CLIPModel."""

    def __init__(self, task: TaskSpec) -> None:
        where, how = place(task, next(name for name in task.modules if name.endswith("/vision")))
        self._model = read(CLIPModel, where, **how)
        self._tokenizer = CLIPTokenizer.from_pretrained(where, **how)
        self._processor = CLIPImageProcessorPil.from_pretrained(where, **how)

    def __call__(self, given: Mapping[str, RawInput]) -> Output:
        """Picture and texts to logits (1, n) and the ranked texts."""
        texts = decoding.lines(given["text"])
        picture = self._processor(images=decoding.picture(given["image"]), return_tensors="pt")
        tokens = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(**tokens, **picture).logits_per_image  # (1, n)
        ranked = outputs.ranking("label", texts, logits.softmax(dim=1)[0])
        return Output({"logits": logits.contiguous().numpy()}, ranked)


class Classification:
    """CLIPForImageClassification: CLIP's tower, and the linear classifier."""

    def __init__(self, task: TaskSpec) -> None:
        where, how = place(task, "clip-b16/vision")
        head, names = read_head(task, "clip-b16/linear")
        config = CLIPConfig.from_pretrained(where, **how)
        config.num_labels = len(names)
        self._model = CLIPForImageClassification(config)
        self._model.vision_model.load_state_dict(read(CLIPModel, where, **how).vision_model.state_dict())
        self._model.classifier.load_state_dict({"weight": head["classifier.weight"], "bias": head["classifier.bias"]})
        self._model.train(mode=False)
        self._names = names
        self._processor = CLIPImageProcessorPil.from_pretrained(where, **how)

    def __call__(self, given: Mapping[str, RawInput]) -> Output:
        """Picture to logits (1, c) and the likeliest labels."""
        picture = self._processor(images=decoding.picture(given["image"]), return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(**picture).logits  # (1, c)
        ranked = outputs.ranking("label", self._names, logits.softmax(dim=1)[0], RANKED)
        return Output({"logits": logits.numpy()}, ranked)


class QuestionAnswering:
    """CLIPModel's pooled picture and embedded question, and the answer head, in one process."""

    def __init__(self, task: TaskSpec) -> None:
        where, how = place(task, next(name for name in task.modules if name.endswith("/vision")))
        self._model = read(CLIPModel, where, **how)
        self._head, self._names = read_head(task, next(name for name in task.modules if name.endswith("/answers")))
        self._tokenizer = CLIPTokenizer.from_pretrained(where, **how)
        self._processor = CLIPImageProcessorPil.from_pretrained(where, **how)

    def __call__(self, given: Mapping[str, RawInput]) -> Output:
        """Picture and question to logits (1, c) and the likeliest answers."""
        picture = self._processor(images=decoding.picture(given["image"]), return_tensors="pt")
        tokens = self._tokenizer(decoding.lines(given["question"]), padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            seen = self._model.vision_model(**picture).pooler_output  # (1, d)
            asked = self._model.get_text_features(**tokens).pooler_output  # (1, e)
            joined = torch.cat([seen, asked], dim=1)
            hidden = functional.gelu(functional.linear(joined, self._head["fuse.weight"], self._head["fuse.bias"]))
            logits = functional.linear(hidden, self._head["classify.weight"], self._head["classify.bias"])
        ranked = outputs.ranking("answer", self._names, logits.softmax(dim=1)[0], RANKED)
        return Output({"logits": logits.numpy()}, ranked)


def read_head(task: TaskSpec, module: str) -> tuple[dict[str, Tensor], list[str]]:
    """A local head's tensors, in memory of their own, and its labels."""
    where, _ = place(task, module)
    tensors = load_file(Path(where) / "model.safetensors")
    config = json.loads((Path(where) / "config.json").read_text(encoding="utf-8"))
    names = config.get("id2label") or {str(index): f"label {index}" for index in range(config["labels"])}
    return {name: tensor.clone() for name, tensor in tensors.items()}, list(names.values())


WHOLE: Mapping[str, type[Whole]] = MappingProxyType(
    {f"hub/retrieval-clip-{size}": Retrieval for size in ("b16", "b32", "l14", "l14-336")}
    | {f"hub/encoder-vqa-clip-{size}": QuestionAnswering for size in ("b16", "l14-336")}
    | {"hub/classification-clip-b16": Classification}
)
