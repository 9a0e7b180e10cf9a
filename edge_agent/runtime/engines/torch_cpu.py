"""torch on the CPU: numpy arrays to tensors of the module's dtype, its forward pass in inference mode, and back.

Owns inference mode and the casts. A tensor is a copy in aligned memory: arrays from the wire lie anywhere, and the
kernels' order of sums depends on alignment. ``limit_threads`` sets the threads, once a process.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from broker.protocol.tensors import Array
from edge_agent.modules import Module, Pass
from edge_agent.modules.weights.precision import FLOATS


def forward(module: Module, chosen: Pass, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Run one forward pass; int8 modules compute in float32."""
    dtype = FLOATS.get(module.dtype, torch.float32)
    with torch.inference_mode():
        return to_numpy(chosen.forward(module.network, **{name: _tensor(each, dtype) for name, each in arrays.items()}))


def to_numpy(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    """Tensors as the wire takes them: contiguous, and float32 whatever they were computed in."""
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).contiguous().numpy()
        for name, tensor in tensors.items()
    }


def _tensor(array: Array, dtype: torch.dtype) -> Tensor:
    made = torch.tensor(array)
    return made.to(dtype) if made.is_floating_point() else made
