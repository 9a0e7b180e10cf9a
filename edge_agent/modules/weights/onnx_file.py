"""ONNX files: what such a file refers to, read without an engine, and the session that runs it.

Owns the checks of a file from a stranger, and the options of ONNX Runtime. Knows no family, no steps, and no
``export.json``.

A file is a protobuf message of ``onnx.proto``. It is read here as far as it can refer to something outside of itself
(data in other files, operators of other libraries), or make much work out of few bytes. ONNX Runtime checks the rest:
types, shapes, the graph.

Invariants:
- Data in another file is read only from a file that is named to ``check``, which lies beside the ONNX file.
- Operators are those of ONNX Runtime itself (``DOMAINS``). No library of operators is ever loaded.
- No graph is run again and again (``Loop``, ``Scan``), and functions in functions make no more than ``MAX_NODES``
  nodes: a pass ends, and so does a load. What is computed at load has at most ``MAX_FOLDED_BYTES`` each.
- ONNX Runtime keeps data in another file mapped, instead of in memory of its own. No output is given that was computed
  after such a file was written to.
- ONNX Runtime gets no memory arena: it would keep the largest pass's memory (``open_session`` has the measurements).
"""

from __future__ import annotations

import math
import mmap
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime

from broker.protocol.errors import ModuleRefused, first_line
from broker.protocol.tensors import Array
from edge_agent.modules import threads
from edge_agent.modules.weights.mapped import Mapped
from edge_agent.modules.weights.mapped import check as check_mapped
from edge_agent.runtime.out_of_memory import is_out_of_memory

SUFFIX = ".onnx"  # ONNX Runtime takes other forms of a file by their suffix
DOMAINS = frozenset({"", "ai.onnx.ml", "com.microsoft"})
"""The operators that ONNX Runtime brings; those of ``com.microsoft`` are what its own quantisation writes."""
DTYPES: Mapping[str, str] = {
    "tensor(bool)": "bool",
    "tensor(double)": "float64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
}
"""ONNX Runtime's types of the arrays that a pass takes and gives -> NumPy's."""
MAX_FIELDS = 4_000_000  # of a file's graph; CLIP L/14 in float32 has 60,000
MAX_DEPTH = 64  # of messages in messages: graphs in attributes of nodes; and of functions in functions
MAX_NODES = 1_000_000  # where each call of a function is as many nodes as the function has; CLIP L/14 has 3,000
MAX_FOLDED_BYTES = 64 * 1024 * 1024  # of an array that ONNX Runtime computes at load: a matrix of 4,096 x 4,096
_FOLDED = "optimization.constant_folding_max_output_size_in_bytes"
_IF = ("", "If")  # runs one of its graphs, once
_MOST_SAID = 300  # characters of ONNX Runtime's reason
_PLACE = re.compile(r"\S+\.(?:cc|h):\d+ ")  # of ONNX Runtime's own code
_FUNCTION = re.compile(r"^[^()]*::\w+\((?:[^()]|\([^()]*\))*\)(?: const)? ")

# onnx.proto: of each message, the fields that hold messages which may refer to something, and the kind of these.
_MESSAGES: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "tensor": {13: "external"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "external": {},
}
_TEXTS = {("node", 4), ("node", 7), ("function", 1), ("function", 10), ("external", 1), ("external", 2)}
"""Names and domains of operators and of functions; a key, and its value."""
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # protobuf's wire types


_Operator = tuple[str, str]
"""Its domain and its name."""


@dataclass
class References:
    """All that an ONNX file refers to outside of itself, and what its nodes call."""

    files: set[str] = field(default_factory=set)  # with data of its arrays
    called: Counter[_Operator] = field(default_factory=Counter)  # by the nodes of its graph
    functions: dict[_Operator, Counter[_Operator]] = field(default_factory=dict)  # of its own, and what they call
    repeating: set[str] = field(default_factory=set)  # operators that have a graph, and may run it many times
    has_graph: bool = False

    @property
    def domains(self) -> set[str]:
        """The domains of its operators."""
        return {domain for each in (self.called, *self.functions.values()) for domain, _ in each}

    @property
    def own(self) -> set[str]:
        """The domains of the functions that it defines itself."""
        return {domain for domain, _ in self.functions}

    def nodes(self) -> float:
        """The nodes of its graph with those of all functions; infinite where functions lie too deep in each other."""
        known: dict[_Operator, float] = {}

        def size(operator: _Operator, depth: int) -> float:
            if operator not in self.functions:
                return 1
            if depth > MAX_DEPTH:
                return math.inf
            if operator not in known:
                known[operator] = math.inf  # while it is counted: a function that calls itself has no end
                known[operator] = total(self.functions[operator], depth + 1)
            return known[operator]

        def total(called: Counter[_Operator], depth: int) -> float:
            return sum(count * size(operator, depth) for operator, count in called.items())

        return total(self.called, 0)


def references(path: Path) -> References:
    """Read what a file refers to.

    Raises:
        ModuleRefused: it can't be read, or is not an ONNX file.
    """
    try:
        with path.open("rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        found = References()
        _read(content, "model", found, [MAX_FIELDS], depth=0, called=found.called)
    except OSError as error:
        raise ModuleRefused(f"{path} can't be read ({error.strerror or error}): export the module again") from error
    except (ValueError, IndexError) as error:  # also of an empty file, which can't be mapped
        raise ModuleRefused(f"{path} is not an ONNX file ({first_line(error)}): export the module again") from error
    if not found.has_graph:
        raise ModuleRefused(f"{path} is not an ONNX file (it has no graph): export the module again")
    return found


def check(path: Path, beside: Collection[str] | None = None) -> References:
    """Check that a file refers to nothing but ONNX Runtime's operators, and data in the files named by ``beside``.

    ``beside`` are the files that its export.json names; a file without one (None) has all of its data in itself.

    Raises:
        ModuleRefused: it does, its passes may have no end, or it is not an ONNX file.
    """
    if path.suffix != SUFFIX:
        raise ModuleRefused(f"{path} must have a name that ends in {SUFFIX}: rename it")
    found = references(path)
    if strange := sorted(found.files - set(beside or ())):
        allowed = f"only {', '.join(sorted(beside))} beside it may" if beside else "no other file may"
        other = " (torch.onnx.export: external_data=False)"
        if beside is not None:
            other = ", or in a file beside it that export.json names"
        raise ModuleRefused(
            f"{path} takes data from the file {strange[0][:200]!r}, and {allowed} hold data of it: save the data in "
            f"the ONNX file itself{other}"
        )
    if strange := sorted(found.domains - found.own - DOMAINS):
        raise ModuleRefused(
            f"{path} has operators of the domain {strange[0][:200]!r}, and no library of operators is loaded: export "
            "the module with ONNX's own operators"
        )
    if found.repeating:
        raise ModuleRefused(
            f"{path} has the operator {min(found.repeating)[:200]!r}, which may run a graph without end: export the "
            "module without loops"
        )
    if found.nodes() > MAX_NODES:
        raise ModuleRefused(
            f"{path} has functions that call each other so often that they are more than {MAX_NODES} nodes: export the "
            "module without functions"
        )
    return found


@dataclass(frozen=True)
class Signature:
    """The arrays that a file takes, by name with their shapes and dtypes, and those that it gives.

    A length that may differ is None. ``strange`` are the outputs that no module gives, with their types: lists, tables.
    """

    inputs: Mapping[str, tuple[tuple[int | None, ...], str]]
    outputs: tuple[str, ...]
    strange: Mapping[str, str]

    def require_arrays(self, path: Path, outputs: Collection[str]) -> None:
        """Refuse outputs that aren't arrays of numbers.

        Raises:
            ModuleRefused: one of them isn't.
        """
        if name := next((each for each in outputs if each in self.strange), None):
            raise ModuleRefused(_wrong_type(path, f"output {name}", self.strange[name], "module gives"))


@dataclass(frozen=True)
class Session(Signature):
    """A file in memory, ready to run."""

    name: str
    runs: onnxruntime.InferenceSession
    mapped: tuple[Mapped, ...]  # its own ones, beside those of the module's load: it may open long after that

    def run(self, arrays: Mapping[str, Array], outputs: tuple[str, ...]) -> dict[str, Array]:
        """Run one forward pass: arrays to the named outputs. An array is converted to the dtype of its input.

        Raises:
            ModuleRefused: its weights were overwritten.
        """
        given = {name: np.ascontiguousarray(arrays[name], dtype) for name, (_, dtype) in self.inputs.items()}
        check_mapped(self.mapped)  # a shorter file would end this process
        found = self.runs.run(list(outputs), given)
        check_mapped(self.mapped)
        return dict(zip(outputs, found, strict=True))


def open_session(path: Path, beside: Collection[str] = ()) -> Session:
    """Load a file, which was checked, with the agent's threads; ``beside`` are the files with its data.

    Raises:
        ModuleRefused: ONNX Runtime refuses it, or it takes arrays of a type that no request has.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads.count(), 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other programs need the processor, too
    options.add_session_config_entry(_FOLDED, str(MAX_FOLDED_BYTES))
    mapped = tuple(Mapped(path.parent / name) for name in sorted(beside))
    made, found = _opened(path, options)
    return Session(found.inputs, found.outputs, found.strange, path.name, made, mapped)


def signature(path: Path) -> Signature:
    """Let ONNX Runtime check all of a file, which was checked here, without keeping it in memory.

    The session neither optimises the graph nor packs the weights, so it doesn't even read those in a file beside the
    graph: 11 ms and 4 MB for MiniLM, where ``open_session`` takes 180 ms and 53 MB (2026-11-27).

    Raises:
        ModuleRefused: as ``open_session``.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    return _opened(path, options)[1]


def _opened(path: Path, options: onnxruntime.SessionOptions) -> tuple[onnxruntime.InferenceSession, Signature]:
    """A session, and what it takes and gives."""
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.log_severity_level = 4  # its errors are raised, and its warnings are about speed
    try:
        # Its fallback would print, and load the file once more: by the CPU again.
        made = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)
        takes = [(each.name, each.type, each.shape) for each in made.get_inputs()]  # names may be no UTF-8
        given = {each.name: each.type for each in made.get_outputs()}
    except Exception as error:  # the library's errors have no base class of their own
        if is_out_of_memory(error):
            raise
        raise ModuleRefused(
            f"{path} can't be loaded by ONNX Runtime {onnxruntime.__version__} ({reason(error)}): export it with an "
            "opset and operators that this version has, or update onnxruntime"
        ) from error
    inputs: dict[str, tuple[tuple[int | None, ...], str]] = {}
    for name, kind, shape in takes:
        if kind not in DTYPES:
            raise ModuleRefused(_wrong_type(path, f"input {name}", kind, "request has"))
        inputs[name] = tuple(n if isinstance(n, int) and n > 0 else None for n in shape), DTYPES[kind]
    if not inputs:
        raise ModuleRefused(f"{path} takes no input, so it gives the same for each request: export it with an input")
    if not given:
        raise ModuleRefused(f"{path} gives no output: export it with one")
    return made, Signature(inputs, tuple(given), {name: kind for name, kind in given.items() if kind not in DTYPES})


def _wrong_type(path: Path, what: str, kind: str, others: str) -> str:
    return f"{path}: the {what} is {kind}, and a {others} {', '.join(sorted(DTYPES))}: export it with one of these"


def show_shape(shape: Sequence[int | None]) -> str:
    """A shape as sentences have it: ``(1, any, 384)``."""
    return f"({', '.join('any' if length is None else str(length) for length in shape)})"


def reason(error: Exception) -> str:
    """ONNX Runtime's sentence, on one line, without the places of its own code; of a long one, the end."""
    said = " ".join(str(error).split()) or type(error).__name__
    for noise in ("[ONNXRuntimeError] : ", " failed:"):
        said = said.rpartition(noise)[2] if noise == " failed:" else said.removeprefix(noise)
    said = _FUNCTION.sub("", _PLACE.split(said)[-1]) or said
    return said if len(said) <= _MOST_SAID else f"… {said[-_MOST_SAID:].partition(' ')[2]}"


def _read(
    content: memoryview, kind: str, found: References, budget: list[int], *, depth: int, called: Counter[_Operator]
) -> bool:
    """Take in a message and those in it; returns whether a graph is in it. ``called`` is what its nodes add to."""
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} messages lie in each other")  # told as all other damage
    inner = _MESSAGES[kind]
    calls = Counter[_Operator]() if kind == "function" else called
    texts: dict[int, str] = {}
    has_graph = False
    for number, value in fields(content, budget):
        if isinstance(value, int):
            continue
        if number in inner:
            deeper = _read(value, inner[number], found, budget, depth=depth + 1, called=calls)
            has_graph |= inner[number] == "graph" or deeper
        elif (kind, number) in _TEXTS:
            texts[number] = bytes(value).decode(errors="replace")
    found.has_graph |= has_graph
    if kind == "node":
        operator = _operator(texts.get(7, ""), texts.get(4, ""))
        calls[operator] += 1
        if has_graph and operator != _IF:
            found.repeating.add(operator[1])
    elif kind == "function":
        found.functions.setdefault(_operator(texts.get(10, ""), texts.get(1, "")), Counter()).update(calls)
    elif kind == "external" and texts.get(1) == "location":
        found.files.add(texts.get(2, ""))
    return has_graph


def _operator(domain: str, name: str) -> _Operator:
    """ONNX's own domain has two names."""
    return "" if domain == "ai.onnx" else domain, name


def fields(content: memoryview, budget: list[int]) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a protobuf message: number, and a whole number or bytes."""
    at, end = 0, len(content)
    while at < end:
        budget[0] -= 1
        if budget[0] < 0:
            raise ValueError(f"it has more than {MAX_FIELDS} fields")
        tag, at = _varint(content, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            whole, at = _varint(content, at)
            yield number, whole
            continue
        if wire == _BYTES:
            length, at = _varint(content, at)
        elif wire in {_EIGHT, _FOUR}:
            length = 8 if wire == _EIGHT else 4
        else:
            raise ValueError(f"a field of the unknown kind {wire}")
        if length > end - at:
            raise ValueError("it ends in the middle of a field")
        yield number, content[at : at + length]
        at += length


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    """A whole number of protobuf's form, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")
