"""The cost of one pass of an ONNX file: its operations and its outputs, found by a pass on a machine that has the file.

Owns which operators count, and how: two operations for each multiplication of a matrix product, a convolution or a
recurrent cell, as torch's counter has it; all other operators count as none. The shapes are those of a real pass, in
which the graph gives its inner arrays, too. Needs ONNX Runtime alone: a file is protobuf, in which appended bytes add
to its lists, so the outputs are appended.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime

from broker.protocol.errors import ModuleRefused, first_line
from broker.protocol.tensors import Array
from edge_agent.modules.weights.onnx_file import MAX_FIELDS, fields

_CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "FusedConv": 1, "QLinearConv": 3}
"""-> which input has the weights, (given, taken, ...)."""
_PRODUCTS = {"MatMul", "MatMulInteger", "QLinearMatMul", "FusedMatMul", "DynamicQuantizeMatMul", "MatMulNBits"}
_GEMMS = {"Gemm", "FusedGemm"}
_CELLS = {"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"}
_COUNTED = {*_CONVOLUTIONS, *_PRODUCTS, *_GEMMS, *_CELLS, "ConvTranspose"}
# onnx.proto: fields of a model, a graph, a node, a tensor.
_GRAPH, _NODE, _INITIALIZER, _OUTPUT = 7, 1, 5, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_TYPE = 1, 2, 4
_TENSOR_DIMS, _TENSOR_NAME = 1, 8
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """The cost of a pass."""

    flops: int
    output_bytes: int  # of the first output in float32


@dataclass(frozen=True)
class _Node:
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class _Graph:
    nodes: list[_Node] = field(default_factory=list)
    weights: dict[str, Shape] = field(default_factory=dict)


def cost(path: Path, arrays: Mapping[str, Array]) -> Cost:
    """Run a file, which was checked, on these arrays, and count.

    Raises:
        ModuleRefused: it can't run on them.
    """
    content = path.read_bytes()
    graph = _graph_of(memoryview(content))
    counted = [node for node in graph.nodes if node.operator in _COUNTED]
    shapes: dict[str, Shape] = {**graph.weights, **{name: array.shape for name, array in arrays.items()}}
    inner = {name for node in counted for name in (*node.inputs, node.outputs[0]) if name} - shapes.keys()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    try:
        changed = _giving(content, sorted(inner))
        made = onnxruntime.InferenceSession(changed, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        first = made.get_outputs()[0].name
        wanted = [first, *sorted(inner - {first})]
        found = dict(zip(wanted, made.run(wanted, dict(arrays)), strict=True))
    except Exception as error:  # the library's errors have no base class of their own
        raise ModuleRefused(f"{path} can't run on a sample input ({first_line(error)}): export it again") from error
    shapes |= {name: np.shape(array) for name, array in found.items()}
    return Cost(sum(_operations(node, shapes) for node in counted), 4 * int(np.size(found[first])))


def _operations(node: _Node, shapes: Mapping[str, Shape]) -> int:
    taken = shapes[node.inputs[0]]
    if node.operator in _CELLS:  # whose first output, that of all steps, may be left out
        return 2 * math.prod(taken[:2]) * sum(math.prod(shapes[name]) for name in node.inputs[1:3])
    given = shapes[node.outputs[0]]
    if node.operator in _PRODUCTS:
        return 2 * math.prod(given) * taken[-1]
    if node.operator in _GEMMS:
        return 2 * math.prod(taken) * given[-1]
    weights = shapes[node.inputs[_CONVOLUTIONS.get(node.operator, 1)]]
    places = taken if node.operator == "ConvTranspose" else given
    return 2 * math.prod(places) * math.prod(weights[1:])


def _graph_of(content: memoryview) -> _Graph:
    """The nodes and the weights of a file's graph; not those of graphs inside of it."""
    graph, budget = _Graph(), [MAX_FIELDS]
    for number, value in fields(content, budget):
        for inner, each in fields(value, budget) if number == _GRAPH and not isinstance(value, int) else ():
            if isinstance(each, int):
                continue
            if inner == _NODE:
                texts = list(_texts(each, budget))
                taken, given, operator = (
                    tuple(text for found, text in texts if found == kind)
                    for kind in (_NODE_INPUT, _NODE_OUTPUT, _NODE_TYPE)
                )
                graph.nodes.append(_Node("".join(operator), taken, given))
            elif inner == _INITIALIZER:
                name = next((text for found, text in _texts(each, budget) if found == _TENSOR_NAME), "")
                graph.weights[name] = tuple(_dims(each, budget))
    return graph


def _texts(content: memoryview, budget: list[int]) -> Iterator[tuple[int, str]]:
    for number, value in fields(content, budget):
        if not isinstance(value, int) and number in {_NODE_INPUT, _NODE_OUTPUT, _NODE_TYPE, _TENSOR_NAME}:
            yield number, bytes(value).decode(errors="replace")


def _dims(content: memoryview, budget: list[int]) -> Iterator[int]:
    """The lengths of a tensor: numbers one by one, or packed."""
    for number, value in fields(content, budget):
        if number != _TENSOR_DIMS:
            continue
        if isinstance(value, int):
            yield value
            continue
        whole = 0
        shift = 0
        for byte in bytes(value):
            whole |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                yield whole
                whole = shift = 0


def _giving(content: bytes, names: list[str]) -> bytes:
    """A file whose graph gives these arrays besides its outputs."""
    outputs = b"".join(_message(_OUTPUT, _message(1, name.encode())) for name in names)
    return content + _message(_GRAPH, outputs)


def _message(number: int, content: bytes) -> bytes:
    """A field of bytes in protobuf's form."""
    length, size = bytearray(), len(content)
    while size > 0x7F:  # noqa: PLR2004 - seven bits a byte
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content
