"""The reference: each task of catalog/hub as one whole model in this process. Split answers must equal these.

One file a family. Owns the table and the interface. A whole model is read by transformers' own ``from_pretrained``
and run by transformers' own ``forward`` or ``generate``: no graph, no codec, no cut, no module objects. It shares with
the split path only the decoding of pictures and lines (``inputs``), and the form of an answer (``answers``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, cast

import torch
from transformers import PreTrainedModel

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.weights import hub

M = TypeVar("M", bound=PreTrainedModel)


class Whole(Protocol):
    """A whole model with its weights in memory."""

    def __call__(self, inputs: Mapping[str, RawInput], /) -> Output:
        """Answer one request: the arrays of the task's output node, and its answer.

        Raises:
            RequestFailed: ``bad_input``.
        """


FILES: Mapping[str, str] = MappingProxyType(
    {
        "hub/alignment-clap": "clap",
        "hub/alignment-clip-b16-ast": "audio_spectrogram",
        "hub/captioning-blip": "blip",
        "hub/captioning-vit-gpt2": "vit_gpt2",
        "hub/classification-clip-b16": "clip",
        "hub/classification-vit-b16": "vit",
        "hub/decoder-vqa-llava-7b": "llava",
        "hub/decoder-vqa-llava-interleave": "llava",
        "hub/decoder-vqa-smolvlm-256m": "smolvlm",
        "hub/encoder-vqa-blip": "blip",
        "hub/encoder-vqa-clip-b16": "clip",
        "hub/encoder-vqa-clip-l14-336": "clip",
        "hub/encoder-vqa-vilt": "vilt",
        "hub/retrieval-align": "align",
        "hub/retrieval-clip-b16": "clip",
        "hub/retrieval-clip-b32": "clip",
        "hub/retrieval-clip-l14": "clip",
        "hub/retrieval-clip-l14-336": "clip",
        "hub/retrieval-siglip-b16": "siglip",
        "hub/segmentation-clipseg": "clipseg",
        "hub/speech-whisper-base": "whisper",
        "hub/speech-whisper-tiny": "whisper",
    }
)
"""Catalogue name -> the file here whose ``WHOLE[name](task)`` loads its whole model."""


def load(name: str, task: TaskSpec) -> Whole:
    """Load the whole model of a task of edge_agent/catalog/hub.

    Raises:
        KeyError: no such task.
        ModuleRefused: a repository is missing.
    """
    return family(name)[name](task)


def family(name: str) -> Mapping[str, Callable[[TaskSpec], Whole]]:
    """Import the file that has a task's whole model; catalogue name -> what loads it.

    Raises:
        KeyError: no such task.
    """
    file = importlib.import_module(f"s2m3.reference.whole.{FILES[name]}")
    return cast("Mapping[str, Callable[[TaskSpec], Whole]]", file.WHOLE)


def read(kind: type[M], where: str, **how: Any) -> M:  # noqa: ANN401 - what from_pretrained takes
    """A whole model by its own ``from_pretrained``, its weights in aligned memory of their own.

    transformers leaves them where the file's mapping has them, and the kernels' order of sums depends on alignment.

    Args:
        kind: transformers' class.
        where: As ``place`` says.
        how: The same.
    """
    model = kind.from_pretrained(where, **how)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    model.train(mode=False)
    return model


def place(task: TaskSpec, module: str) -> tuple[str, dict[str, Any]]:
    """Where transformers finds a module's repository: its first argument, and keyword arguments.

    Raises:
        ModuleRefused: the repository is missing.
    """
    source = task.modules[module].source
    if source is None:
        raise KeyError(module)
    found = hub.repository(source)
    if found.directory is not None:
        return str(found.directory), {"local_files_only": True}
    return found.name, {"revision": found.revision}
