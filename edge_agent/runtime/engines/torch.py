"""torch, on the CPU or on a CUDA device: arrays to tensors of the module's dtype, its pass in inference mode, and back.

Owns inference mode, the casts, and the way to the device of a module (``Module.device``). A tensor is a copy in aligned
memory: arrays from the wire lie anywhere, and the kernels' order of sums depends on alignment. To and from CUDA it goes
through pinned memory, and a pass waits for the device once, when all outputs are on their way. Outputs are copies, too:
one that is kept for a retry would lie where the pass left it, between activations, whose memory no later pass then gets
(22 MB after 200 requests). The threads are those of ``modules.threads``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from broker.protocol.tensors import Array
from edge_agent.modules import Module, Pass
from edge_agent.modules.threads import limit_torch
from edge_agent.modules.weights.precision import FLOATS

limit_torch()

CPU = "cpu"


def forward(module: Module, chosen: Pass, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Run one forward pass; int8 modules compute in float32."""
    dtype = FLOATS.get(module.dtype, torch.float32)
    with torch.inference_mode():
        given = {name: _tensor(each, dtype, module.device) for name, each in arrays.items()}
        return to_numpy(chosen.forward(module.network, **given))


def moved(module: Module, device: str) -> Module:
    """The module with its weights on a device; the same module where they can't be: int8 stays on the CPU.

    The weights on the CPU are given up one by one, so that they are in memory twice only for a moment.
    """
    network = module.network
    if device == CPU or module.dtype not in FLOATS:
        return module
    if isinstance(network, nn.Module | Tensor):
        network = network.to(device)
    elif isinstance(network, dict):
        for name in network:
            network[name] = network[name].to(device)
    return replace(module, network=network, device=device, mapped=())


def to_numpy(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    """Tensors as the wire takes them: contiguous, and float32 whatever they were computed in."""
    made = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in tensors.items()
    }
    on_cuda = {name: tensor for name, tensor in made.items() if tensor.is_cuda}
    if not on_cuda:
        return {name: tensor.numpy().copy() for name, tensor in made.items()}
    pinned = {name: torch.empty_like(tensor, device=CPU, pin_memory=True) for name, tensor in on_cuda.items()}
    for name, tensor in on_cuda.items():
        pinned[name].copy_(tensor, non_blocking=True)
    torch.cuda.current_stream().synchronize()
    return {name: pinned[name].numpy().copy() if name in pinned else tensor.numpy() for name, tensor in made.items()}


def _tensor(array: Array, dtype: torch.dtype, device: str) -> Tensor:
    made = torch.tensor(array)
    if device != CPU:
        made = made.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else made.to(device)
    return made.to(dtype) if made.is_floating_point() else made
