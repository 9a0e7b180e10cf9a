"""The numbers of a module that a task file leaves to this machine: ``auto``.

Owns how they are found: counted from the configuration of a checkpoint that is here, or that the catalogue knows, or
by a pass of an ONNX file that is here. Downloads nothing.
"""

from __future__ import annotations

from importlib.util import find_spec

from broker.protocol.errors import BadFile, ModuleRefused
from broker.protocol.specs import ModuleSpec
from edge_agent.modules.weights import hub
from edge_agent.modules.weights.hub import DIRECTORY_VARIABLE
from s2m3.catalogue import config_path


def counted(spec: ModuleSpec, use: str | None) -> dict[str, int]:
    """``memory_bytes``, ``flops`` and ``output_bytes`` of a module in one of its uses.

    Raises:
        ModuleRefused: they can't be found here; the sentence says why.
    """
    if (needed := "onnxruntime" if spec.engine == "onnx" else "torch") and find_spec(needed) is None:
        raise ModuleRefused(f"the Python package {needed}, which counts it, is missing here")
    if spec.engine == "onnx":
        from s2m3.reference import onnx_task  # noqa: PLC0415 - onnxruntime

        _repository(spec)
        return onnx_task.measured(spec)[0]
    from edge_agent.modules.weights import model_parts  # noqa: PLC0415 - torch
    from edge_agent.modules.weights.checkpoint import Checkpoint  # noqa: PLC0415 - torch
    from s2m3.reference import zoo  # noqa: PLC0415 - torch

    name = spec.source.hub if spec.source else None
    if spec.source is None or name is None:
        raise ModuleRefused(f"that of {spec.family} from {spec.source} isn't counted")
    is_known = config_path(name).is_file()
    is_here = (models := hub.models_directory()) is not None and (models / name).is_dir()
    try:
        part = zoo.part(spec.family, spec.source.part)
        config = zoo.published(name).config if is_known and not is_here else Checkpoint(_repository(spec)).config
    except BadFile as error:
        raise ModuleRefused(f"that of {spec.family} isn't counted ({error.problem})") from error
    if use not in part.forwards:
        raise ModuleRefused(f"{spec.family} has no use {use}")
    found = model_parts.count(part, config, use=use, dtype=spec.dtype)
    return {
        "memory_bytes": max(1, found.memory_bytes),
        "flops": max(1, found.flops),
        "output_bytes": max(1, found.output_bytes),
    }


def _repository(spec: ModuleSpec) -> hub.Repository:
    """The repository of a module in the models directory of this machine."""
    models = hub.models_directory()
    if spec.source is None or spec.source.hub is None or models is None:
        raise ModuleRefused(f"{spec.source} isn't on this machine ({DIRECTORY_VARIABLE}=DIR says where a hub's are)")
    if not (models / spec.source.hub).is_dir():
        raise ModuleRefused(f"{spec.source} isn't in {models} ({DIRECTORY_VARIABLE})")
    return hub.repository(spec.source)
