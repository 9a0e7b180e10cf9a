"""Modules of models, and the table of model families. One file per family has its parts, its shapes and its split.

Owns the interface between the agent and the networks. Knows no network: a family's file, and the packages that it
needs, are imported when the first module of that family is loaded, so an agent starts without them.

A module is three steps. ``prepare`` and ``answer`` run once a request, on the CPU, on numpy arrays, text and bytes.
``forward`` is the engine's: it takes and gives the engine's own tensors (torch's, for the engine ``torch``).

    prepare(values) -> Prepared    what a sensor sent (``RawInput``) or the arrays of other nodes, in the order of the
                                   node's ``needs``, checked and made into the arrays that ``forward`` takes
    forward(network, **tensors)    tensors by name to tensors by name; the names are those of ``Prepared.arrays``
    answer(arrays, prepared)       float32 (or whole) arrays of ``forward`` to an ``Output``

``runtime.runner`` runs them. It owns the engine, with its threads, its devices and its dtype casts: no family enters
inference mode, moves a tensor or converts one. The same values give the same bits at the same thread count, on any
device of one kind. A module may have several uses (``NodeSpec.use``): the weights are the same and are held once; each
use has its own steps and its own ``forward``. Only the arrays that a use's consumers need cross the wire.

``families/README.md`` tells how to add a family; an engine is a file in ``edge_agent/runtime/engines``, and its line in
``ENGINES`` there.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Protocol, cast

from pydantic import JsonValue

from broker.protocol.codec import RawInput
from broker.protocol.errors import ModuleRefused, first_line
from broker.protocol.specs import ModuleSpec
from broker.protocol.tensors import Array, Tensors
from edge_agent.modules.weights.mapped import Mapped, noted

# transformers imports torchao where it is installed, which then tells of libraries for other machines.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

Value = RawInput | Tensors
SCORES = "answer.scores"
"""An array of this name, of ``forward``, is for ``answer`` alone: probabilities, best computed by the engine."""


@dataclass(frozen=True)
class Output:
    """The result of one pass: contiguous arrays for other nodes, and the sensor's answer if this is the output."""

    tensors: dict[str, Array]
    answer: dict[str, JsonValue] | None = None
    notes: tuple[str, ...] = ()  # for the sensor, about the part of an input that isn't used


@dataclass(frozen=True)
class Prepared:
    """One request's arrays for ``forward``, and the texts that its answer names."""

    arrays: Mapping[str, Array]
    texts: Sequence[str] = ()
    notes: tuple[str, ...] = ()  # for the sensor; ``runtime.runner`` gathers them


class RequestSteps(Protocol):
    """The two steps of a module that run once a request. They know no engine."""

    def prepare(self, values: Sequence[Value]) -> Prepared:
        """Check the values of the node's needs, in that order, and make the arrays that ``forward`` takes.

        Raises:
            RequestFailed: ``bad_input`` for a sensor's bytes that this module can't read; ``module_failed`` for
                arrays that don't fit this module, which only a wrong task spec causes.
        """

    def answer(self, arrays: Mapping[str, Array], prepared: Prepared, /) -> Output:
        """Make the output of what ``forward`` gave."""

    def sample(self) -> tuple[Value, ...] | None:
        """Values for one pass, as the node would be given them; None: this module isn't measured."""


@dataclass(frozen=True)
class Pass:
    """One use of a module."""

    steps: RequestSteps
    forward: Callable[..., Any]  # (network, **tensors) -> the engine's tensors by name
    batched: bool = False  # requests are joined along the first axis of all its tensors, and its outputs split again


@dataclass(frozen=True)
class Module:
    """A functional part of a model with its weights in memory."""

    network: Any
    passes: Mapping[str | None, Pass]  # by use; None is the ordinary one
    engine: str = "torch"
    dtype: str = "float32"  # of the floats that forward takes
    device: str = "cpu"  # that holds the network, in the engine's words
    mapped: tuple[Mapped, ...] = ()  # the files that its weights are read from, when a pass needs them


_PARTS = {
    "align": ("head", "text", "vision"),
    "audio_spectrogram": ("alignment_head", "encoder", "projection"),
    "blip": ("decoder", "question", "vision"),
    "clap": ("audio", "head", "text"),
    "clip": ("head", "image_projection", "text", "vision"),
    "clipseg": ("decoder", "reduce"),
    "conse": ("head",),
    "efficientnet": ("classifier", "encoder"),
    "heads": ("answer", "linear"),
    "llava": ("language", "projector", "tied_language", "vision"),
    "onnx": ("classifier", "encoder"),
    "sentence": ("encoder",),
    "siglip": ("head", "text", "vision"),
    "smolvlm": ("language", "vision"),
    "vilt": ("answer",),
    "vit": ("classifier", "encoder"),
    "vit_gpt2": ("decoder", "encoder"),
    "whisper": ("decoder", "encoder"),
    "whisper_ctranslate2": ("decoder", "encoder"),
}
FAMILIES: Mapping[str, str] = {
    f"{file}.{part}": f"{__name__}.families.{file}" for file, parts in _PARTS.items() for part in parts
}
"""Family -> the file whose ``load(spec)`` makes its modules. A spec chooses a family, never a path."""


def load(spec: ModuleSpec) -> Module:
    """Load a module's weights into memory.

    Raises:
        ModuleRefused: unknown family, a package is missing, or the weights don't fit the spec.
    """
    family = import_family(spec)
    try:
        with noted() as files:
            found = cast("Callable[[ModuleSpec], Module]", family.load)(spec)
        return replace(found, mapped=tuple(files.values()))
    except ImportError as error:  # of a package that only some modules of the family need
        raise _lacks_package(spec, error) from error


def import_family(spec: ModuleSpec) -> ModuleType:
    """Import the file of a module's family, and the packages that it needs; no weights.

    Raises:
        ModuleRefused: unknown family, or a package is missing.
    """
    if spec.family not in FAMILIES:
        raise ModuleRefused(f"unknown family {spec.family}: this agent has {', '.join(sorted(FAMILIES))}")
    try:
        return importlib.import_module(FAMILIES[spec.family])
    except ImportError as error:
        raise _lacks_package(spec, error) from error


def _lacks_package(spec: ModuleSpec, error: ImportError) -> ModuleRefused:
    extra = (
        "onnx"
        if spec.engine == "onnx"
        else "agent"
        if spec.source and (spec.source.hub or spec.source.url)
        else "pocket"
    )
    return ModuleRefused(f"{spec.family} needs {lacking(error)}: install the [{extra}] extra")


def lacking(error: ImportError) -> str:
    """The package that can't be imported, for a sentence. One that is broken may not say its name."""
    if error.name is None:
        return f"a Python package that is broken here ({first_line(error)})"
    return f"the Python package {error.name}, which is missing"
