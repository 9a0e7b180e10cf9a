"""The functions that every peer runs: pocket/zero-shot's encoders, classifier and head, on one thread.

Owns their making with torch (this project's own modules, so that no peer computes anything else) and with ONNX Runtime
(the same modules, exported by ``s2m3 models export``, in plain sessions: what a careful user writes).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from broker.protocol.codec import RawInput
from broker.protocol.specs import ModuleSpec
from broker.protocol.tensors import Array
from edge_agent.modules import Output, Value
from s2m3.catalogue import load_task

TASK = "pocket/zero-shot"
IMAGE = ("efficientnet-lite0/encoder", "efficientnet-lite0/classifier")
TEXT = ("minilm/text",)
HEAD = ("conse/head",)
Tensors = dict[str, Array]
Run = Callable[..., Output]
"""Values of a module's needs to its output."""


def torch_run(name: str) -> Run:
    """A module of the task on torch."""
    from edge_agent import modules  # noqa: PLC0415 - torch comes with the first module
    from edge_agent.runtime.runner import Runner  # noqa: PLC0415 - the same

    spec: ModuleSpec = load_task(TASK).modules[name]
    module, runner = modules.load(spec), Runner(threads=1)
    return lambda *values: runner.run(module, values)


def onnx_run(name: str, exports: Path) -> Run:
    """A module of the task on ONNX Runtime: one session without a memory arena, and the steps beside the file."""
    import onnxruntime  # noqa: PLC0415 - a process on torch goes without it

    from edge_agent.modules.inputs import steps  # noqa: PLC0415 - the same

    directory = exports / name.replace("/", "--")
    use = json.loads((directory / "export.json").read_text(encoding="utf-8"))["uses"][""]
    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = False
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(directory / use["file"], options, providers=["CPUExecutionProvider"])
    outputs = [each.name for each in session.get_outputs()]
    empty = {"question": np.zeros((0, 384), np.float32)} if "question" in use.get("optional", ()) else {}
    step = steps.from_description(use["steps"], directory)

    def run(*values: Value) -> Output:
        prepared = step.prepare(values)
        found = session.run(outputs, empty | dict(prepared.arrays))
        return step.answer(dict(zip(outputs, found, strict=True)), prepared)

    return run


def make(name: str, engine: str, exports: Path | None) -> Run:
    """A module of the task on an engine."""
    return torch_run(name) if engine == "torch" else onnx_run(name, exports or Path())


class Image:
    """A picture's class probabilities."""

    def __init__(self, engine: str, exports: Path | None) -> None:
        self._encode, self._classify = (make(name, engine, exports) for name in IMAGE)

    def run(self, picture: bytes) -> Tensors:
        """The tensors of the classifier."""
        return self._classify(self._encode(RawInput(picture, "image/jpeg")).tensors).tensors


class Text:
    """Captions' embeddings."""

    def __init__(self, engine: str, exports: Path | None) -> None:
        self._encode = make(TEXT[0], engine, exports)

    def run(self, captions: bytes) -> Tensors:
        """The tensors of the text encoder."""
        return self._encode(RawInput(captions, "text/plain")).tensors


class Head:
    """The caption that fits best."""

    def __init__(self, engine: str, exports: Path | None) -> None:
        self._rank = make(HEAD[0], engine, exports)

    def run(self, image: Tensors, text: Tensors, captions: bytes) -> dict[str, JsonValue] | None:
        """The answer."""
        return self._rank(image, text, RawInput(captions, "text/plain")).answer
