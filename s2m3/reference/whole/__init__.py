"""Tasks as one whole model in this process: the reference that split answers must equal.

Owns the table of them and the one way to load the whole model of a task: the pocket's, the hub's,
and linear heads that were fitted on an encoder of either. One file a family. A whole model is the published library's
own code with its own weights: no graph, no codec, no parts, and nothing shared with another task. It shares with the
split path only the decoding of pictures, sounds and lines (``inputs``), the form of an answer (``outputs``), the
constants of our own rules (ConSE, prompts, limits of generation), and EfficientNet's arithmetic.

Imports neither torch nor transformers: a family's file does, when its model is wanted.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import cast

import numpy as np

from broker.protocol.codec import RawInput
from broker.protocol.errors import BadFile
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from s2m3.catalogue import load_task

LINEAR_HEAD = "a linear head on pocket/vision"


Whole = Callable[[Mapping[str, RawInput]], Output]
"""A whole model with its weights in memory: ``model.Model`` says what it gives for a request's inputs."""

CLASSES: Mapping[str, str] = {
    "pocket/ask": "whisper_ctranslate2.SpokenQuestion",
    "pocket/classify": "efficientnet.Classification",
    "pocket/embed-image": "efficientnet.Features",
    "pocket/embed-text": "sentence.Embedding",
    "pocket/speech": "whisper_ctranslate2.Transcription",
    "pocket/vqa": "conse.QuestionAnswering",
    "pocket/zero-shot": "conse.ZeroShot",
    LINEAR_HEAD: "linear_head.LinearHead",
    "hub/alignment-clap": "clap.Alignment",
    "hub/alignment-clip-b16-ast": "audio_spectrogram.Alignment",
    "hub/captioning-blip": "blip.Captioning",
    "hub/captioning-vit-gpt2": "vit_gpt2.Captioning",
    "hub/classification-clip-b16": "clip.Classification",
    "hub/classification-vit-b16": "vit.Classification",
    "hub/decoder-vqa-llava-7b": "llava.Answering",
    "hub/decoder-vqa-llava-interleave": "llava.Answering",
    "hub/decoder-vqa-smolvlm-256m": "smolvlm.Answering",
    "hub/embed-image-clip-b16": "clip.PictureEmbedding",
    "hub/embed-text-clip-b16": "clip.TextEmbedding",
    "hub/embed-image-clip-b32": "clip.PictureEmbedding",
    "hub/embed-text-clip-b32": "clip.TextEmbedding",
    "hub/embed-image-siglip-b16": "siglip.PictureEmbedding",
    "hub/embed-text-siglip-b16": "siglip.TextEmbedding",
    "hub/encoder-vqa-blip": "blip.Answering",
    "hub/encoder-vqa-clip-b16": "clip.QuestionAnswering",
    "hub/encoder-vqa-clip-l14-336": "clip.QuestionAnswering",
    "hub/encoder-vqa-vilt": "vilt.Answering",
    "hub/retrieval-align": "align.Retrieval",
    "hub/retrieval-clip-b16": "clip.Retrieval",
    "hub/retrieval-clip-b32": "clip.Retrieval",
    "hub/retrieval-clip-l14": "clip.Retrieval",
    "hub/retrieval-clip-l14-336": "clip.Retrieval",
    "hub/retrieval-siglip-b16": "siglip.Retrieval",
    "hub/segmentation-clipseg": "clipseg.Segmentation",
    "hub/speech-whisper-base": "whisper.Transcription",
    "hub/speech-whisper-tiny": "whisper.Transcription",
}
"""Catalogue name -> the file and the class here of its whole model. The class is constructed with the task."""


def load(name: str, task: TaskSpec) -> Whole:
    """The whole model of a task, loaded. The task's graph decides if the catalogue doesn't have the name.

    Raises:
        BadFile: no whole model of such a graph is known.
        ModuleRefused: a repository is missing.
    """
    return importer(name, task)(task)


def importer(name: str, task: TaskSpec) -> Callable[[TaskSpec], Whole]:
    """The loader of a task's whole model, as ``load`` finds it. The libraries that the model needs are imported."""
    known = name if name in CLASSES else _with_graph_of(name, task)
    file, _, name_of_class = CLASSES[known].partition(".")
    return cast("Callable[[TaskSpec], Whole]", getattr(importlib.import_module(f"{__name__}.{file}"), name_of_class))


def same(split: Output, whole: Output) -> bool:
    """Whether two outputs are equal bit for bit: the answers, and every array that the whole model gives."""
    return split.answer == whole.answer and all(
        name in split.tensors
        and np.array_equal(array, split.tensors[name])
        and array.dtype == split.tensors[name].dtype
        for name, array in whole.tensors.items()
    )


def _with_graph_of(name: str, task: TaskSpec) -> str:
    graph = _graph(task)
    if graph == [("efficientnet.encoder", None), ("heads.linear", None)]:
        return LINEAR_HEAD
    for known in CLASSES:
        if known != LINEAR_HEAD and graph == _graph(load_task(known)):
            return known
    fix = "name a task of the catalogue, or compare nothing with --unsplit 0"
    raise BadFile(file=name, problem="no whole model is known for this graph", fix=fix)


def _graph(task: TaskSpec) -> list[tuple[str, str | None]]:
    return [(task.module_of(node).family, task.nodes[node].use) for node in task.order]
