"""Checkpoints of random weights in the published layout: for tests, and for machines without access to the hub.

Owns writing a repository of the catalogue into a models directory without its real weights: config.json and the other
files as published, safetensors with the published names, a small tokenizer. The same code then loads it. Every number
is random, those of biases and normalisations too, so that a tensor that is not loaded is noticed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from edge_agent.modules.weights.checkpoint import Checkpoint
from edge_agent.modules.weights.hub import Repository
from edge_agent.modules.weights.layout import SINGLE
from s2m3.reference import tokenizers, zoo
from s2m3.reference.zoo import Published

NOISE = 0.02  # standard deviation of what is added to every weight


def write(
    published: Published,
    models: Path,
    *,
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
    max_shard_size: str = "5GB",
) -> Path:
    """Writes a repository into a models directory, and gives the repository's directory.

    ``changes`` are by file, and inside it section by section: for a small model of the same architecture. Weights of
    more than ``max_shard_size`` get several files, and an index.
    """
    directory = models / published.repository
    directory.mkdir(parents=True, exist_ok=True)
    files = {name: merged(content, (changes or {}).get(name, {})) for name, content in published.files.items()}
    config = files["config.json"]
    torch.manual_seed(seed)
    if published.architecture is not None:
        model = whole_model(published.architecture, config)
        randomise(model)
        if published.frozen is not None:
            copy_frozen(model, published.frozen, models)
        model.save_pretrained(directory, max_shard_size=max_shard_size)
    else:
        tensors: dict[str, Tensor] = {}
        for family in published.families:
            tensors |= part_tensors(family, config)
        save_file(tensors, directory / SINGLE)
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    if published.tokenizer is not None:
        tokenizers.WRITERS[published.tokenizer](directory, config)
    return directory


def merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with changes, section by section."""
    made = dict(copy.deepcopy(config))
    for name, value in changes.items():
        section = made.get(name)
        made[name] = merged(section, value) if isinstance(section, Mapping) and isinstance(value, Mapping) else value
    return made


def whole_model(architecture: str, config: Mapping[str, Any]) -> transformers.PreTrainedModel:
    """The whole transformers model of a configuration, with its own random weights."""
    kind = getattr(transformers, architecture)
    model = kind(kind.config_class.from_dict(dict(config)))
    return cast("transformers.PreTrainedModel", model.train(mode=False))


def randomise(network: nn.Module) -> None:
    """Adds noise to every number of a network; variances stay positive."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn_like(tensor) * NOISE
                tensor.add_(noise.abs() if name.endswith("running_var") else noise)


def copy_frozen(model: nn.Module, frozen: Mapping[str, Any], models: Path) -> None:
    """Copies a model's frozen parts from another repository, if the models directory has it.

    ``frozen`` has that ``repository``, and ``prefixes``: the prefix in the network -> the published one in the other.
    """
    if not (models / frozen["repository"]).is_dir():
        return
    other = Checkpoint(Repository(frozen["repository"], None, models / frozen["repository"]))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            for own, theirs in frozen["prefixes"].items():
                published = theirs + name.removeprefix(own)
                if name.startswith(own) and published in other.files:
                    tensor.copy_(other.read([published])[published])


def part_tensors(family: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """A part's random weights under their published names, which are its network's names."""
    part = zoo.part(family, family.partition(".")[2])
    network = part.build(config)
    randomise(network)
    layout = part.prefixes[str(config["model_type"])][0]
    found = {}
    for own, tensor in network.state_dict().items():
        prefix = next(each for each, canonical in layout.items() if own.startswith(canonical))
        found[prefix + own.removeprefix(layout[prefix])] = tensor.contiguous()
    return found
