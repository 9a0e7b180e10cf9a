"""CTranslate2 on the CPU: float32 arrays to its views, a forward pass of its own model, and back.

Threads are those of the model, set when it was loaded. Whole numbers pass as numpy arrays.
"""

from __future__ import annotations

from collections.abc import Mapping

import ctranslate2
import numpy as np

from broker.protocol.tensors import Array
from edge_agent.modules import Module, Pass


def forward(module: Module, chosen: Pass, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Run one forward pass."""
    own = {name: np.array(each) for name, each in arrays.items()}  # views are of this memory, and it outlives them
    views = {name: ctranslate2.StorageView.from_array(each) for name, each in own.items()}
    return {name: np.array(each) for name, each in chosen.forward(module.network, **views).items()}
