"""The dtypes of weights in memory: how each is made of float32 weights, and the bytes that they then take.

Owns the rule of each dtype; knows no family. float16 and bfloat16 hold every number in half the bytes, and compute in
it. int8 holds the large matrices of linear layers row by row, each row with its own scale (symmetric, weight-only:
torchao's ``Int8WeightOnlyConfig``), and so the large kernels of a network that is functions; everything else, and all
arithmetic, stays float32. A matrix of words is not a linear layer. An output layer that is tied to one isn't
held as int8 either: that would hold the matrix twice. A part that has no large linear layers gains nothing.
While a part is loaded in int8, its float32 weights are in memory besides.

Invariant: the same float32 weights give the same numbers in every dtype, for a version of torchao: nothing is
calibrated, and nothing is random.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from broker.process import return_freed_memory
from broker.protocol.errors import ModuleRefused
from edge_agent.modules import lacking

FLOATS: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
INT8 = "int8"
DTYPES = (*FLOATS, INT8)
# Numbers of a matrix, or a kernel, from which on it is held as int8. Smaller ones weigh next to nothing, and may hurt:
# with a fitted head of 12,800 numbers in int8, 35 % of 150 digits were right, instead of all.
SMALLEST = 65_536
_ROW_BYTES = 5  # of a row's scale, float32, and its zero point, int8, which torchao stores though it is 0


def own(tensor: Tensor, dtype: str | None = None) -> Tensor:
    """A row-major copy in aligned memory, in a dtype, but whole numbers as they are; None: as it is.

    What a file maps or stores transposed would sum in another order. For int8 it is float32 (see ``quantise``).
    """
    wanted = tensor.dtype if dtype is None or not tensor.is_floating_point() else FLOATS.get(dtype, torch.float32)
    return tensor.to(wanted, copy=True, memory_format=torch.contiguous_format)


def quantise(network: nn.Module, *, tied: Collection[str] = ()) -> None:
    """Replace the float32 matrices of a network's linear layers by int8, but those that are ``tied`` to another.

    Raises:
        ModuleRefused: torchao is missing.
    """
    quantization = torchao()

    def is_chosen(module: nn.Module, name: str) -> bool:
        if not _is_large_linear(module) or f"{name}.weight" in tied:
            return False
        return_freed_memory()  # of the layer before: most of it fits no other one, and would add up
        return True

    quantization.quantize_(network, quantization.Int8WeightOnlyConfig(), filter_fn=is_chosen)


class Int8Matrices(Mapping[str, Tensor]):
    """Weights by name, for networks that are functions: kernels of at least ``SMALLEST`` numbers are held as int8.

    They come out as new float32 tensors of their shape each time.

    Raises:
        ModuleRefused: torchao is missing.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        quantization = torchao()
        self._held: dict[str, Any] = dict(tensors)
        self._shapes = {name: tensor.shape for name, tensor in tensors.items() if _is_worth(tensor.shape)}
        for name in self._shapes:
            rows = tensors[name].flatten(1)
            self._held[name] = quantization.Int8Tensor.from_hp(rows, granularity=quantization.PerRow())

    def __getitem__(self, name: str) -> Tensor:
        held: Tensor = self._held[name]
        return self._held[name].dequantize().reshape(self._shapes[name]) if name in self._shapes else held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def memory_bytes(self) -> int:
        """Bytes held."""
        return memory_bytes(self._held.values())


def memory_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors really take, those of int8 with their scales."""
    return sum(each.nbytes for tensor in tensors for each in _stored(tensor))


def network_bytes(network: nn.Module, dtype: str, *, tied: Collection[str] = ()) -> int:
    """Bytes of a float32 network's weights and stored buffers in a dtype, on any device, counted without making them.

    Weights that are ``tied`` to another don't count.
    """
    linear = {f"{name}.weight" for name, module in network.named_modules() if _is_large_linear(module)}
    return sum(
        _bytes(tensor, dtype, matrix=name in linear)
        for name, tensor in network.state_dict().items()
        if name not in tied
    )


def shapes_bytes(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> int:
    """Bytes of float32 tensors of these shapes in a dtype; in int8 as ``Int8Matrices`` holds them."""
    with torch.device("meta"):
        return sum(_bytes(torch.empty(shape), dtype, matrix=_is_worth(shape)) for shape in shapes.values())


def _is_worth(shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and math.prod(shape) >= SMALLEST


def _bytes(tensor: Tensor, dtype: str, *, matrix: bool) -> int:
    if not tensor.is_floating_point():
        return tensor.nbytes
    if dtype == INT8:
        return tensor.numel() + _ROW_BYTES * tensor.shape[0] if matrix else tensor.nbytes
    return tensor.numel() * FLOATS[dtype].itemsize


def _is_large_linear(module: nn.Module) -> bool:
    """Whether it is a large linear layer that is called as one; that of nn.MultiheadAttention isn't."""
    if not isinstance(module, nn.Linear) or isinstance(module, NonDynamicallyQuantizableLinear):
        return False
    return _is_worth(module.weight.shape)


def _stored(tensor: Any) -> list[Tensor]:  # noqa: ANN401 - torchao is untyped
    if not hasattr(tensor, "qdata"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [getattr(tensor, name) for name in names]


def torchao() -> Any:  # noqa: ANN401 - torchao is untyped
    """The library, which is an extra."""
    try:
        from torchao import quantization  # noqa: PLC0415 - it may be missing
    except ImportError as error:
        raise ModuleRefused(f"dtype int8 needs {lacking(error)}: install the [int8] extra") from error
    return quantization
