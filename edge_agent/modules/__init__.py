"""One file per model family: its parts, its shapes, its split. Here: what a module is, and the table of families.

Owns the interface between the agent and the networks. Must not know any network: a family's file, and the packages
that it needs, are imported when the first module of that family is loaded, so an agent starts without them.

A module is a function of the values that its node needs, in the order of ``needs``: what a sensor sent (``RawInput``)
or the arrays of another node. The same values give the same bits at the same thread count, on any device of one kind.
A module may have several uses (``NodeSpec.use``): the weights are the same, held once; how a raw input is prepared, or
which outputs cross the wire, is another. Only what a use's consumers need is given.

How to add a family whose weights are published as a model repository (``clip.py`` is the example):

1. ``edge_agent/modules/families/FAMILY.py``, imported lazily by its lines in ``FAMILIES``. Its docstring has the table
   of parts: weights, what each takes, what it gives (name, dtype, shape). It has
   - ``PARTS: model_parts.Parts``: for each part its prefixes in the published layouts, how transformers builds it from
     config.json, its identity, its typical pass, and the module around it (``model_parts.Part`` says all of it);
   - a module a part: one of ``adapters`` where it is a picture, texts, a sound or an array in, arrays out; else a
     class, whose ``__call__(*values)`` prepares raw inputs, runs ``forward`` (tensors to tensors; the typical pass
     calls the same function), and gives ``Output``; one with several uses has ``uses`` and takes ``use=``; its
     ``typical()`` gives values for such a call, from ``sample_inputs.py``: by them a device measures it. Tokenizers
     and image processors come from ``prepare``;
   - ``load = model_parts.loader(PARTS)``.
   A family's name is FILE.PART or FILE.SOMETHING; ``source.part`` in a spec is the key in ``PARTS``, and two families
   that use the same weights differently are two entries only if they can't be one module with two uses.
   Weights are held in the spec's dtype and computed in it: cast inputs with ``decoding.tensor(...).to(dtype)``, and
   give float32 (``.float()``): the wire has no bfloat16. Nothing may draw random numbers.
2. ``edge_agent/catalog/hub/configs/ORG--NAME.json`` for each repository that the family's tasks name (fields: see
   ``s2m3/reference/zoo.py``), and ``edge_agent/catalog/hub/TASK-MODEL.yaml``; ``python -m s2m3 models numbers --write``
   writes its numbers.
3. ``s2m3/reference/whole/FAMILY.py``: each task as one whole transformers model: what split answers must equal.
4. ``tests/equivalence/zoo/FAMILY.py``: ``ENTRIES``, one a catalogue task: a tiny configuration and the inputs.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Protocol, cast

from pydantic import JsonValue

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode, ModuleRefused, RequestFailed
from broker.protocol.specs import ModuleSpec
from broker.protocol.tensors import Array, Tensors

# transformers imports torchao where it is installed, which then tells of libraries for other machines.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

Value = RawInput | Tensors


@dataclass(frozen=True)
class Output:
    """What one forward pass gives: contiguous arrays for other nodes, and what a sensor reads if this is the output."""

    tensors: dict[str, Array]
    answer: dict[str, JsonValue] | None = None


class Module(Protocol):
    """A functional part of a model with its weights in memory."""

    def __call__(self, *values: Value) -> Output:
        """Run one forward pass on the values of the node's needs, in that order.

        Raises:
            RequestFailed: ``bad_input`` for what a sensor sent and this module can't read; ``module_failed`` for
                arrays that don't fit this module, which only a wrong task spec causes.
        """


class MeasurableModule(Protocol):
    """A module that knows what it is typically given. All families of this package are; others are run unmeasured."""

    def typical(self) -> tuple[Value, ...]:
        """Values for one pass in the ordinary use, as its node would be given them."""


class VersatileModule(Protocol):
    """A module that nodes can use in several ways."""

    uses: frozenset[str]  # besides the ordinary one

    def __call__(self, *values: Value, use: str | None = None) -> Output:
        """Run one forward pass in the node's use; raises as a ``Module`` does."""


FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "align.head": "edge_agent.modules.families.align",
        "align.text": "edge_agent.modules.families.align",
        "align.vision": "edge_agent.modules.families.align",
        "audio_spectrogram.alignment_head": "edge_agent.modules.families.audio_spectrogram",
        "audio_spectrogram.encoder": "edge_agent.modules.families.audio_spectrogram",
        "audio_spectrogram.projection": "edge_agent.modules.families.audio_spectrogram",
        "blip.decoder": "edge_agent.modules.families.blip",
        "blip.question": "edge_agent.modules.families.blip",
        "blip.vision": "edge_agent.modules.families.blip",
        "clap.audio": "edge_agent.modules.families.clap",
        "clap.head": "edge_agent.modules.families.clap",
        "clap.text": "edge_agent.modules.families.clap",
        "clip.head": "edge_agent.modules.families.clip",
        "clip.image_projection": "edge_agent.modules.families.clip",
        "clip.text": "edge_agent.modules.families.clip",
        "clip.vision": "edge_agent.modules.families.clip",
        "clipseg.decoder": "edge_agent.modules.families.clipseg",
        "clipseg.reduce": "edge_agent.modules.families.clipseg",
        "conse.head": "edge_agent.modules.families.conse",
        "efficientnet.classifier": "edge_agent.modules.families.efficientnet",
        "efficientnet.encoder": "edge_agent.modules.families.efficientnet",
        "heads.answer": "edge_agent.modules.families.heads",
        "heads.linear": "edge_agent.modules.families.heads",
        "llava.language": "edge_agent.modules.families.llava",
        "llava.projector": "edge_agent.modules.families.llava",
        "llava.tied_language": "edge_agent.modules.families.llava",
        "llava.vision": "edge_agent.modules.families.llava",
        "sentence.encoder": "edge_agent.modules.families.sentence",
        "siglip.head": "edge_agent.modules.families.siglip",
        "siglip.text": "edge_agent.modules.families.siglip",
        "siglip.vision": "edge_agent.modules.families.siglip",
        "smolvlm.language": "edge_agent.modules.families.smolvlm",
        "smolvlm.vision": "edge_agent.modules.families.smolvlm",
        "vilt.answer": "edge_agent.modules.families.vilt",
        "vit.classifier": "edge_agent.modules.families.vit",
        "vit.encoder": "edge_agent.modules.families.vit",
        "vit_gpt2.decoder": "edge_agent.modules.families.vit_gpt2",
        "vit_gpt2.encoder": "edge_agent.modules.families.vit_gpt2",
        "whisper.decoder": "edge_agent.modules.families.whisper",
        "whisper.encoder": "edge_agent.modules.families.whisper",
        "whisper_ctranslate2.decoder": "edge_agent.modules.families.whisper_ctranslate2",
        "whisper_ctranslate2.encoder": "edge_agent.modules.families.whisper_ctranslate2",
    }
)
"""Family -> the file whose ``load(spec)`` makes its modules. A spec chooses a family, never a path."""


def load(spec: ModuleSpec) -> Module:
    """Load a module's weights into memory.

    Raises:
        ModuleRefused: unknown family, a package is missing, or the weights don't fit the spec.
    """
    family = import_family(spec)
    return cast("Callable[[ModuleSpec], Module]", family.load)(spec)


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
        extra = "agent" if spec.source and spec.source.hub else "pocket"
        raise ModuleRefused(
            f"{spec.family} needs the Python package {error.name}, which is missing: install the [{extra}] extra"
        ) from error


def typical_values(module: Module) -> tuple[Value, ...] | None:
    """Values for one typical pass of a module; None when it doesn't know any."""
    made: Callable[[], tuple[Value, ...]] | None = getattr(module, "typical", None)
    return made() if made is not None else None


def run(module: Module, values: Sequence[Value], use: str | None) -> Output:
    """Run a module in a node's use; None is its ordinary one.

    Raises:
        RequestFailed: as the module does, and ``module_failed`` for a use that it doesn't have.
    """
    if use is None:
        return module(*values)
    known: frozenset[str] = getattr(module, "uses", frozenset())
    if use not in known:
        raise RequestFailed(
            ErrorCode.MODULE_FAILED,
            f"this module has no use {use}, only {', '.join(sorted(known)) or 'its ordinary one'}: mend the task's use",
        )
    return cast("VersatileModule", module)(*values, use=use)
