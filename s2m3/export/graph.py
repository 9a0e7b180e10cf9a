"""One forward pass of a torch module as an ONNX file, by torch's exporter; weights in int8, and in a file beside it.

Owns which lengths may differ from request to request. Knows no family: examples of the arrays that ``forward`` takes
say all. A length that differs between examples is free. The first length is free, too, where two examples at once give
what each gives alone: then it is a batch.

torch has two exporters. The newer one (``dynamo=True``) proves that a free length is free, where the older one keeps
the lengths of the example without a word. It also leaves less to do at run time: 93 operations of EfficientNet-Lite0's
encoder where the older one leaves 1,138, and 283 of MiniLM's where that leaves 509; one pass takes 9.0 ms where it took
12.7 ms, and 7.2 ms where it took 7.0 ms (2026-11-27, one thread of a busy machine). It exports SDPA attention, and
needs ten times as long: 10 s of a core for EfficientNet.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from broker.protocol.errors import ModuleRefused, first_line
from broker.protocol.tensors import Array
from edge_agent.modules.weights import precision

SMALLEST_BYTES = 1024  # of weights that lie beside the graph; ONNX Runtime reads shapes and the like from the graph
ALIGNED_BYTES = 64  # a cache line, and what any number of a tensor needs
BATCH_TOLERANCE = 1e-3  # of the largest number: kernels sum in another order for a batch
_Arrays = Mapping[str, Array]


Lengths = Mapping[str, tuple[int | None, ...]]
"""The shapes of arrays by name; a free length is None."""


@dataclass(frozen=True)
class Written:
    """The names that a file gives, and the version of ONNX's operators that it needs."""

    outputs: tuple[str, ...]
    opset: int


class _Traced(nn.Module):
    """A forward pass with positional tensors, as the exporter wants it."""

    def __init__(self, network: Any, forward: Callable[..., Any], names: Sequence[str]) -> None:  # noqa: ANN401 - as Module.network
        super().__init__()
        self._network, self._forward, self._names = network, forward, names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the pass."""
        found = self._forward(self._network, **dict(zip(self._names, tensors, strict=True)))
        return tuple(found.values())


def free_lengths(run: Callable[[_Arrays], _Arrays], examples: Sequence[_Arrays]) -> Lengths:
    """The lengths of a pass's arrays; ``run`` is the pass, and each of the ``examples`` has all of its arrays."""
    shapes = {name: [each[name].shape for each in examples] for name in examples[0]}
    found = {
        name: tuple(length[0] if len(set(length)) == 1 else None for length in zip(*each, strict=True))
        for name, each in shapes.items()
    }
    if _is_batch(run, examples):
        return {name: (None, *rest) for name, (_, *rest) in found.items()}
    return found


def _is_batch(run: Callable[[_Arrays], _Arrays], examples: Sequence[_Arrays]) -> bool:
    """Whether two examples at once give what each gives alone."""
    one = examples[0]
    other = next((each for each in examples[1:] if not _same(one, each)), None)
    if other is None or any(each[name].shape[:1] != (1,) for each in (one, other) for name in each):
        return False
    if any(one[name].shape != other[name].shape for name in one):
        return False
    try:
        both = run({name: np.concatenate([one[name], other[name]]) for name in one})
    except (RuntimeError, ValueError):  # torch's, for shapes that don't fit
        return False
    return all(_are_rows(both, run(each), at) for at, each in enumerate((one, other)))


def _same(one: _Arrays, other: _Arrays) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def _are_rows(both: _Arrays, alone: _Arrays, at: int) -> bool:
    return all(
        both[name].shape == (2, *array.shape[1:])
        and array.shape[0] == 1
        and bool(np.abs(both[name][at] - array[0]).max() <= BATCH_TOLERANCE * max(1.0, np.abs(array).max()))
        for name, array in alone.items()
    )


def write(
    path: Path,
    network: Any,  # noqa: ANN401 - as Module.network
    forward: Callable[..., Any],
    examples: Sequence[_Arrays],
    lengths: Lengths,
) -> Written:
    """Write a pass's file.

    Raises:
        ModuleRefused: torch can't export it.
    """
    example = _large(examples, lengths)
    tensors = {name: torch.tensor(each) for name, each in example.items()}
    traced = _Traced(network, forward, tuple(tensors)).eval()
    with torch.inference_mode():
        outputs = tuple(forward(network, **tensors))
    if both := sorted(tensors.keys() & set(outputs)):
        raise ModuleRefused(f"it takes and gives an array {both[0]}, and an ONNX file has each name once")
    free: Any = torch.export.Dim.DYNAMIC
    shapes = tuple({at: free for at, length in enumerate(lengths[name]) if length is None} for name in tensors)
    try:
        with _silence("torch.onnx", "onnxscript", "onnx_ir"):
            program = torch.onnx.export(
                traced,
                tuple(tensors.values()),
                None,
                input_names=list(tensors),
                output_names=list(outputs),
                dynamic_shapes=(shapes,),
                dynamo=True,
                verbose=False,
                custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
            )
            assert program is not None  # noqa: S101 - without dynamo it would be
            program.save(str(path), external_data=False)
    except Exception as error:  # the exporter raises anything
        raise ModuleRefused(f"torch can't export it ({type(error).__name__}: {_reason(error)})") from error
    return Written(outputs, int(program.model.opset_imports[""]))


def _large(examples: Sequence[_Arrays], lengths: Lengths) -> dict[str, Array]:
    """An example to trace: torch takes a free length of 0 or 1 for a fixed one, so these are doubled."""
    best = max(examples, key=lambda each: sum(array.size for array in each.values()))
    made = dict(best)
    for name, array in best.items():
        for at, length in enumerate(lengths[name]):
            if length is None and array.shape[at] == 1:
                made[name] = np.repeat(made[name], 2, axis=at)
    return made


def _reason(error: Exception) -> str:
    """The innermost cause's first line: the outer ones explain the exporter."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return first_line(error)[:300]


def _stable_sort(values: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:  # noqa: ANN401, ARG001, FBT001, FBT002 - as torch's operator
    """A stable sort, which torch's exporter doesn't know: ONNX's TopK of all; equal ones keep their order there."""
    from onnxscript import opset20  # noqa: PLC0415 - the exporter's language

    op: Any = opset20
    count = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
    return op.TopK(values, count, axis=dim, largest=1 if descending else 0, sorted=1)


def quantise(source: Path, target: Path) -> None:
    """Write a file with the large matrices of a file's MatMul and Gemm in int8; all else, and all sums, stay float32.

    By onnxruntime's own tool, which also computes the scale of the other factor in each pass. Each column of a matrix
    has its own scale: with one scale a matrix, the cosines of MiniLM's embeddings to those in float32 were 0.907 at
    least and 0.970 in the median, so they are 0.987 and 0.995, for 4.3 ms instead of 3.6 ms (2026-11-27). Small
    matrices stay as they are, as in torch's int8. So do convolutions: in int8 they are ten times slower.
    """
    import onnx  # noqa: PLC0415 - only for int8
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415 - the same

    graph = onnx.load(source).graph
    large = {each.name for each in graph.initializer if math.prod(each.dims) >= precision.SMALLEST}
    with _silence(""):  # the tool advises on the root logger
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=[node.name for node in graph.node if not large & set(node.input)],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )


def weights_file(file: str) -> str:
    """The name of the file with the weights of an ONNX file."""
    return f"{file}.data"


def move_weights(path: Path) -> tuple[str, ...]:
    """Move the large weights of an ONNX file into a file beside it; gives that file's name, or nothing without any.

    ONNX Runtime maps such a file into memory, where it copies weights out of a graph. MiniLM in an agent's process then
    occupies 55 MB instead of 98, and its load takes 55 MB at most instead of 177 (2026-11-27).
    """
    import onnx  # noqa: PLC0415 - only where files are written
    from onnx.external_data_helper import set_external_data  # noqa: PLC0415 - the same

    model = onnx.load(path)
    beside = path.with_name(weights_file(path.name))
    with beside.open("wb") as file:
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) >= SMALLEST_BYTES:
                file.write(bytes(-file.tell() % ALIGNED_BYTES))
                set_external_data(tensor, beside.name, file.tell(), len(tensor.raw_data))
                file.write(tensor.raw_data)
                tensor.ClearField("raw_data")
        is_empty = file.tell() == 0
    onnx.save(model, path)
    if is_empty:
        beside.unlink()
    return () if is_empty else (beside.name,)


@contextmanager
def _silence(*names: str) -> Iterator[None]:
    """Keep loggers from advising, and Python from warning: of packages and rules that don't matter here."""
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    try:
        for logger in levels:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
